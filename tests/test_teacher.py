"""A teacher: what it says of a student's windows, what is kept of it, and what a student learns from it."""

import json
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import numpy as np
from safetensors.numpy import load_file, save_file

import tiny as tiny_checkpoints
from spanqa.batches import BatchLayout
from spanqa.checkpoint import open_checkpoint
from spanqa.errors import BackendError, CheckpointError, InputError
from spanqa.reader import Reader
from spanqa.squad import Example, GoldAnswer
from spanqa.tokens import Tokenizer
from spanqa.train import teacher as teaching
from spanqa.train.objective import InputFormat, QuestionAnswering, distillation_loss, span_loss
from spanqa.train.recipe import Questions, fine_tune, train_learning_curve
from spanqa.train.run import train
from spanqa.train.settings import TrainSettings
from spanqa.train.targets import TrainingWindow, make_training_windows, make_unlabelled_windows
from spanqa.train.teacher import Teacher, teach
from spanqa.windows import Window, WindowSettings
from test_train import BRIEF, DEV, QUICK, SETTINGS, TRAIN, rows_of

WINDOWS = WindowSettings(max_seq_length=40, overlap=12)
FAMILIES = ("bert", "roberta", "xlm-roberta")
"""WordPiece, byte-level and unigram."""


pytestmark = pytest.mark.usefixtures("one_thread")


def questions(count: int = 6, first: int = 0) -> list[Example]:
    passages = [" ".join(tiny_checkpoints._WORDS[i : i + 3]) for i in range(0, 15, 3)]
    made = []
    for i in range(first, first + count):
        passage = passages[i % len(passages)]
        words = passage.split()[i % 7 : i % 7 + 2]
        made.append(Example(str(i), f"Who built {i}?", passage, (GoldAnswer(words[0], passage.index(words[0])),)))
    return made


def items(tokenizer: Tokenizer, count: int = 6) -> list[TrainingWindow]:
    return make_training_windows(questions(count), tokenizer, WINDOWS, empty_windows=9)[0]


def teacher(model: Path, lines: list[str] | None = None, **options: Any) -> Teacher:
    return Teacher(model, notify=(lines if lines is not None else []).append, **options)


@pytest.fixture(scope="module")
def other(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other weights and the tokenizer of `tiny("bert")`."""
    folder = tiny_checkpoints.make("bert", tmp_path_factory.mktemp("other") / "bert", seed=1)
    (folder / "tokenizer.json").write_bytes((tiny("bert") / "tokenizer.json").read_bytes())
    return folder


def student(tiny: Callable[..., Path], family: str = "bert") -> Tokenizer:
    return open_checkpoint(tiny(family)).tokenizer


def fresh(model: Path, windows: Sequence[Window]) -> list[Any]:
    with Reader.load(model) as reader:
        return reader.engine.submit(windows).result()


# --- the loss


TARGETS = {
    "window": torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, -1]]),
    "position": torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1, 0]]),
}
NONE = -np.inf
STUDENT = np.array([[1, 2, 3, 0.5, -0.5, 2, 3, 1, 99], [0, 0, 1, 2, 2, -2, 1, 1, 99]], np.float32)
TAUGHT = np.array([[0, NONE, -1, -2, 0, NONE, NONE, NONE, NONE], [-3, NONE, 0, 0, -2.5, NONE, NONE, NONE, NONE]])


def softmax(values: Any) -> Any:
    powers = np.exp(np.asarray(values, np.float64))
    return powers / powers.sum()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_and_its_gradient_by_hand(temperature: float) -> None:
    logits = torch.tensor(STUDENT, requires_grad=True)
    targets = {**TARGETS, "teacher": torch.tensor(TAUGHT, dtype=torch.float32)[:, None]}
    loss = distillation_loss(logits[:1], logits[1:], targets, temperature)
    loss.backward()
    wanted, gradient = 0.0, np.zeros((2, 9))
    for side in range(2):
        for part in (slice(0, 3), slice(3, 6)):  # the third window has no teacher, the last token is padding
            ours, theirs = (softmax(array[side, part] / temperature) for array in (STUDENT, TAUGHT))
            there = theirs > 0
            wanted += temperature**2 * (theirs[there] * np.log(theirs[there] / ours[there])).sum() / 2 / 3
            gradient[side, part] = temperature * (ours - theirs) / 2 / 3
    assert loss.item() == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, atol=1e-6)


def test_without_any_teacher_in_the_batch_the_loss_is_zero() -> None:
    logits = torch.tensor(STUDENT, requires_grad=True)
    loss = distillation_loss(logits[:1], logits[1:], {**TARGETS, "teacher": torch.full((2, 1, 9), NONE)}, 2.0)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_window_without_labels_has_the_teachers_loss_alone(tiny: Callable[..., Path]) -> None:
    tokenizer = student(tiny)
    labelled = items(tokenizer, 3)
    unlabelled, _ = make_unlabelled_windows(questions(3, first=3), tokenizer, WINDOWS)
    generator = np.random.default_rng(0)
    taught = [
        replace(item, teacher=generator.standard_normal((len(item), 2)).astype(np.float16))
        for item in [*labelled, *unlabelled]
    ]
    objective = QuestionAnswering(InputFormat("padded"), 0.25, 2.0)
    batch = objective.collate(taught)
    start, end = (torch.randn(batch["targets"]["window"].shape, requires_grad=True) for _ in range(2))
    labels = span_loss(start, end, batch["targets"])
    labels.backward()
    touched = int(((start.grad.abs() + end.grad.abs()).sum(1) > 0).sum())  # one window a row
    assert (touched, len(taught) - touched) == (len(labelled), len(unlabelled))
    teachers = distillation_loss(start, end, batch["targets"], 2.0)
    loss = objective.loss(SimpleNamespace(start_logits=start, end_logits=end), batch)
    assert loss.item() == pytest.approx(0.75 * labels.item() + 0.25 * teachers.item(), abs=1e-6)
    assert "teacher" not in QuestionAnswering(InputFormat("padded")).collate(labelled)["targets"]


# --- what the teacher says at the student's tokens


def test_what_is_kept_equals_fresh_logits(
    tiny: Callable[..., Path], other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "_GROUP_TOKENS", 200)
    given = items(student(tiny))
    assert teaching._order(given) != list(range(len(given)))
    found = teach(teacher(other), given, student(tiny), WINDOWS, tmp_path / "teacher")
    for item, logits in zip(found, fresh(other, [item.window for item in given]), strict=True):
        passage = slice(item.window.passage_start, item.window.passage_start + len(logits.start))
        for side, (theirs, null) in enumerate(((logits.start, logits.null_start), (logits.end, logits.null_end))):
            wanted = np.full(len(item), -np.inf)
            wanted[0], wanted[passage] = null, theirs
            np.testing.assert_allclose(item.teacher[:, side], wanted - wanted.max(), rtol=1e-3, atol=2e-5)
    assert len(found) == len(given) > 10


def by_characters(item: TrainingWindow, theirs: Window, logits: Any) -> Any:
    """The definition, character by character: probabilities of starts and ends at each token of the student's window."""
    window = item.window
    found = np.zeros((len(item), 2))
    offsets = window.passage.offsets[window.first : window.stop].tolist()
    for side, (values, null) in enumerate(((logits.start, logits.null_start), (logits.end, logits.null_end))):
        powers = np.exp(np.array([null, *values], np.float64) - max(null, *values))
        found[0, side] = powers[0]
        for power, (start, end) in zip(
            powers[1:], theirs.passage.offsets[theirs.first : theirs.stop].tolist(), strict=True
        ):
            character = start if side == 0 else end - 1
            covering = [i for i, (first, last) in enumerate(offsets) if first <= character < last and start < end]
            if covering:
                found[window.passage_start + covering[-side], side] += power
    return found / found.sum(0)


@pytest.mark.parametrize(("ours", "theirs"), [*permutations(FAMILIES, 2)])
def test_a_teacher_with_another_tokenizer_speaks_of_the_same_characters(
    tiny: Callable[..., Path], tmp_path: Path, ours: str, theirs: str
) -> None:
    tokenizer, model = student(tiny, ours), tiny(theirs)
    given, _ = make_unlabelled_windows(questions(5), tokenizer, WindowSettings(max_seq_length=24, overlap=4))
    found = teach(teacher(model), given, tokenizer, WINDOWS, tmp_path / "teacher")
    checkpoint = open_checkpoint(model)
    lessons = [teaching._lesson(item, tokenizer, checkpoint) for item in given]
    read = [(item, lesson.window) for item, lesson in zip(found, lessons, strict=True) if lesson is not None]
    assert len(read) == len(given)
    logits = fresh(model, [window for _, window in read])
    for (item, window), values in zip(read, logits, strict=True):
        assert window.question.ids.tolist() == checkpoint.tokenizer.encode(item.example.question).ids.tolist()
        passage = item.example.passage
        (start, end), (first, last) = (
            (int(each.passage.offsets[each.first, 0]), int(each.passage.offsets[each.stop - 1, 1]))
            for each in (item.window, window)
        )
        assert first <= start and len(passage[:end].rstrip()) <= last  # the same slice of the passage,
        assert " " not in passage[first:start] + passage[end:last]  # and no more than the rest of a word
        said = np.exp(item.teacher.astype(np.float64))
        np.testing.assert_allclose(said / said.sum(0), by_characters(item, window, values), rtol=4e-3, atol=1e-6)


def test_by_characters_the_same_tokenizer_gives_the_same(tiny: Callable[..., Path]) -> None:
    tokenizer = student(tiny)
    for item in items(tokenizer):
        same, other = teaching._same_window(item.window), teaching._same_characters(item, tokenizer)
        assert other is not None
        assert (other.window.first, other.window.stop) == (same.window.first, same.window.stop)
        np.testing.assert_array_equal(other.starts, same.starts)
        np.testing.assert_array_equal(other.ends, same.ends)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_what_is_too_long_for_the_teacher_has_none_and_is_counted(
    tiny: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    short = tiny(family, max_position_embeddings=40 if family == "roberta" else 30)
    lines: list[str] = []
    given = items(student(tiny))
    found = teach(teacher(short, lines), given, student(tiny), WINDOWS, tmp_path / "teacher")
    limit = open_checkpoint(short).max_seq_length
    lessons = [teaching._lesson(item, student(tiny), open_checkpoint(short)) for item in given]
    without = [lesson is None for lesson in lessons]
    assert 0 < sum(without) < len(given)
    assert [bool(np.isneginf(item.teacher).all()) for item in found] == without
    assert lines == [
        f"{sum(without)} of {len(given)} windows are longer than the teacher can read ({limit} of its tokens), and have none. Use "
        "shorter windows (max_seq_length) for all to have one."
    ]


@pytest.mark.parametrize("layout", get_args(BatchLayout))
def test_the_teacher_is_read_at_the_right_tokens_in_every_layout(
    tiny: Callable[..., Path], other: Path, tmp_path: Path, layout: BatchLayout
) -> None:
    given = teach(teacher(other), items(student(tiny)), student(tiny), WINDOWS, tmp_path / "teacher")
    given[0] = replace(given[0], teacher=None)
    objective = QuestionAnswering(InputFormat(layout, cols=100 if layout == "packed" else None), 0.5, 2.0)
    targets = objective.collate(given)["targets"]
    windows, logits = targets["window"].numpy(), targets["teacher"].numpy()
    wanted = {i: item.teacher for i, item in enumerate(given)} | {0: np.full((len(given[0]), 2), -np.inf)}
    for number in range(len(given)):
        found = logits[:, windows == number].T
        (same,) = (i for i, each in wanted.items() if np.array_equal(found, each))
        del wanted[same]
    assert not wanted
    assert np.isneginf(logits[:, windows < 0]).all()


# --- what is kept on disk


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few windows are read and stored at a time."""
    monkeypatch.setattr(teaching, "_BATCHES", 0.03)


class Killed(BaseException):
    pass


def killed_at(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the work end in the middle of storing a part."""
    parts = 0
    append = teaching._Store.append

    def stop(store: Any, logits: Any) -> None:
        nonlocal parts
        parts += 1
        if parts == part:
            with store._logits.open("ab") as file:
                file.write(b"half a line")
            raise Killed
        append(store, logits)

    monkeypatch.setattr(teaching._Store, "append", stop)


def same_teacher(a: Sequence[TrainingWindow], b: Sequence[TrainingWindow]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(one.teacher, another.teacher) for one, another in zip(a, b, strict=True)
    )


@pytest.mark.usefixtures("small_parts")
def test_after_a_kill_what_is_complete_is_not_read_again(
    tiny: Callable[..., Path], other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, str]] = []
    lines: list[str] = []
    given, tokenizer = items(student(tiny)), student(tiny)
    counting = teacher(other, lines, progress=lambda done, total, note="": seen.append((done, total, note)))
    with monkeypatch.context() as patch:
        killed_at(4, patch)
        with pytest.raises(Killed):
            teach(counting, given, tokenizer, WINDOWS, tmp_path / "teacher")
    complete = json.loads((tmp_path / "teacher" / "logits.json").read_text())["windows"]
    assert 0 < complete < len(given) - 3
    assert any(note.endswith(" s left") for *_, note in seen)
    before = len(seen)
    found = teach(counting, given, tokenizer, WINDOWS, tmp_path / "teacher")
    assert min(done for done, *_ in seen[before:]) > complete
    assert seen[-1] == (len(given), len(given), "")
    assert same_teacher(found, teach(teacher(other), given, tokenizer, WINDOWS, tmp_path / "whole"))
    before = len(seen)
    monkeypatch.setattr(Reader, "load", None)  # a complete store needs no teacher
    assert same_teacher(found, teach(counting, given, tokenizer, WINDOWS, tmp_path / "teacher"))
    assert (len(seen), lines) == (before, [])


def test_what_belongs_to_another_teacher_or_other_windows_is_read_anew(
    tiny: Callable[..., Path], other: Path, tmp_path: Path
) -> None:
    tokenizer, folder = student(tiny), tmp_path / "teacher"
    lines: list[str] = []
    given = items(tokenizer)
    first = teach(teacher(tiny("bert"), lines), given, tokenizer, WINDOWS, folder)
    assert lines == []
    second = teach(teacher(other, lines), given, tokenizer, WINDOWS, folder)
    anew = "the teacher's logits of before belong to another model or other windows, and are read anew"
    assert lines == [anew]
    assert not same_teacher(first, second)
    changed = [replace(item, example=replace(item.example, question="Who lost it?")) for item in given]
    teach(teacher(other, lines), changed, tokenizer, WINDOWS, folder)
    teach(teacher(other, lines), changed[:-1], tokenizer, WINDOWS, folder)
    assert lines == [anew] * 3
    (folder / "logits.f16").write_bytes((folder / "logits.f16").read_bytes()[:-1])
    third = teach(teacher(other, lines), changed[:-1], tokenizer, WINDOWS, folder)
    assert lines == [anew] * 4
    assert same_teacher(third, second[:-1])


def test_the_other_processes_wait_for_the_one_that_reads(
    tiny: Callable[..., Path], other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, tokenizer, folder = items(student(tiny)), student(tiny), tmp_path / "teacher"
    teach(teacher(tiny("bert")), given, tokenizer, WINDOWS, folder)  # of an earlier run
    slept = threading.Event()
    monkeypatch.setattr(teaching.time, "sleep", lambda seconds: slept.set())
    waiting: list[Any] = []
    thread = threading.Thread(
        target=lambda: waiting.extend(teach(teacher(other), given, tokenizer, WINDOWS, folder, reads=False))
    )
    thread.start()
    assert slept.wait(20)
    assert thread.is_alive()
    found = teach(teacher(other), given, tokenizer, WINDOWS, folder)
    thread.join(20)
    assert same_teacher(found, waiting)


def test_the_teachers_memory_is_free_before_training(
    tiny: Callable[..., Path], other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    load = Reader.load

    def noted(*arguments: Any, **options: Any) -> Reader:
        reader = load(*arguments, **options)
        loaded.append(weakref.ref(reader.backend))
        return reader

    monkeypatch.setattr(Reader, "load", noted)
    teach(teacher(other), items(student(tiny)), student(tiny), WINDOWS, tmp_path / "teacher")
    until = time.monotonic() + 10
    while loaded[0]() is not None and time.monotonic() < until:  # its threads end soon
        time.sleep(0.01)
    assert loaded[0]() is None


def test_a_folder_that_cannot_be_written_is_an_error(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "teacher").write_text("")
    with pytest.raises(BackendError, match=r"logits.f16' cannot be written: .*It needs \d+ MB. Free some space"):
        teach(teacher(tiny("bert")), items(student(tiny)), student(tiny), WINDOWS, tmp_path / "teacher")


def test_a_teacher_that_cannot_answer_is_an_error(tiny: Callable[..., Path], tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (encoder / name).write_bytes((tiny("bert") / name).read_bytes())
    kept = load_file(tiny("bert") / "model.safetensors")
    kept = {name: array for name, array in kept.items() if not name.startswith("qa_outputs")}
    save_file(kept, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"encoder' has no question-answering head"):
        teach(teacher(encoder), items(student(tiny)), student(tiny), WINDOWS, tmp_path / "teacher")


# --- training


def test_a_student_learns_to_answer_from_its_teacher_alone(tiny: Callable[..., Path], tmp_path: Path) -> None:
    unlabelled = [replace(example, answers=()) for example in TRAIN[1:100]]
    settings = replace(SETTINGS, epochs=12, evaluations=1, teacher_weight=1.0)
    taught_by = teacher(tiny("spanqa-mini"), unlabelled=unlabelled)  # of another tokenizer
    done = train(TRAIN[:1], DEV, tiny("bert"), tmp_path / "out", settings, teacher=taught_by)
    assert done.f1_before is not None
    assert done.f1 > done.f1_before + 30
    assert not (tmp_path / "out.training").exists()


@pytest.mark.usefixtures("small_parts")
def test_a_run_that_was_killed_while_the_teacher_reads_continues_with_or_without_resume(
    tiny: Callable[..., Path], other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, complete = tmp_path / "out.training" / "teacher" / "logits.json", [0]
    seen: list[int] = []
    taught_by = teacher(other, progress=lambda done, total, note="": seen.append(done))

    def run(resume: bool) -> Any:
        settings = replace(BRIEF, max_steps=2, evaluations=1)
        return train(TRAIN[:40], DEV[:8], tiny("bert"), tmp_path / "out", settings, teacher=taught_by, resume=resume)

    for _ in range(2):
        seen.clear()
        with monkeypatch.context() as patch:
            killed_at(3, patch)
            with pytest.raises(Killed):
                run(resume=False)
        assert min(seen) > complete[-1]
        complete.append(json.loads(state.read_text())["windows"])
    seen.clear()
    assert run(resume=True).steps == 2
    assert min(seen) > complete[2] > complete[1] > 0


def test_the_command_learns_from_a_teacher_and_names_it(
    tiny: Callable[..., Path], tmp_path: Path, command: Callable[..., Any]
) -> None:
    (tmp_path / "train.csv").write_text(rows_of(TRAIN[:24]), "utf-8")
    (tmp_path / "dev.csv").write_text(rows_of(DEV[:8]), "utf-8")
    rows = [{"question": e.question, "context": e.passage} for e in TRAIN[24:40]]
    rows += [{"question": "Who is it?", "context": DEV[0].passage.upper()}]
    rows += [{"question": "Who sank it?", "context": "It was sunk by Anna.", "answer": "Anna"}]
    rows += [{"question": "who " * 40, "context": "It was sunk by Anna."}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [
        "train", tmp_path / "train.csv", "--dev", tmp_path / "dev.csv", "--model", tiny("bert"), "--out", tmp_path / "out",
        "--teacher", "spanqa-mini", "--unlabelled", tmp_path / "more.jsonl", "--temperature", "3", "--max-steps", "3",
        "--evaluations", "1", "--device", "cpu",
    ]  # fmt: skip
    done = command(*given)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'more.jsonl'}: 19 unlabelled questions; the labels of 1 of them are ignored" in done.stderr
    assert "1 unlabelled questions are left out: their passages are measured on" in done.stderr
    assert "1 unlabelled questions are left out: they are too long for the windows" in done.stderr
    assert "step 3 of 3: " in done.stderr
    training = json.loads((tmp_path / "out" / "spanqa.json").read_text())["training"]
    sha256 = open_checkpoint("spanqa-mini").weights.sha256
    assert (training["teacher"], training["teacher_sha256"]) == ("spanqa-mini", sha256)
    assert training["settings"]["temperature"] == 3
    assert [file["file"] for file in training["data"]] == ["train.csv", "more.jsonl", "dev.csv"]
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"| teacher | spanqa-mini (sha256 {sha256[:12]}), at temperature 3, 50 % of the loss |" in card
    assert "| questions without labels | 18 |" in card
    refused = command(*given, "--learning-curve", "8,16")
    assert refused.returncode == 2
    assert "a learning curve has no teacher" in refused.stderr


def test_without_a_teacher_what_needs_one_is_an_error(tiny: Callable[..., Path], tmp_path: Path) -> None:
    asked = Questions(TRAIN[:8], DEV[:4], unlabelled=TRAIN[8:12])
    options: dict[str, Any] = {**QUICK, "model": tiny("bert")}
    with pytest.raises(InputError, match=r"There is no teacher, which 4 unlabelled questions would be for. Give one"):
        fine_tune(asked, tmp_path / "out", **options)
    with pytest.raises(InputError, match=r"There is no teacher, which 4 unlabelled questions would be for. Give one"):
        train_learning_curve(asked, tmp_path / "out", [4], **options)
    with pytest.raises(InputError, match=r"There is no teacher, which temperature would be for. Give one"):
        fine_tune(replace(asked, unlabelled=()), tmp_path / "out", temperature=2.0, **options)
    with pytest.raises(InputError, match=r"teacher_weight is 0; expected a number above 0, at most 1"):
        TrainSettings(teacher_weight=0)
    with pytest.raises(InputError, match=r"seed is -1; expected a whole number from 0 to 4294967295"):
        TrainSettings(seed=-1)
    with pytest.raises(InputError, match=r"temperature is -1; expected a number above 0"):
        TrainSettings(temperature=-1)
