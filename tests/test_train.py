"""Fine-tuning from end to end: what is learned, what is written, and what survives an interruption."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import numpy as np
from safetensors.numpy import load_file, save_file

import tiny as tiny_checkpoints
from spanqa.answers import AnswerSettings
from spanqa.checkpoint import open_checkpoint
from spanqa.cli.train import _print_result as print_result
from spanqa.errors import (
    BackendError,
    CheckpointError,
    InputError,
    InterruptedTrainingError,
    SpanQAWarning,
    TrainingError,
)
from spanqa.evaluate import score
from spanqa.evaluate.run import Score
from spanqa.files import claimed
from spanqa.reader import Reader
from spanqa.squad import Example, GoldAnswer
from spanqa.train import best, work
from spanqa.train.curve import Point, advice, gain_of_twice, learning_curve, plot
from spanqa.train.labels import hold_out
from spanqa.train.recipe import FineTuned, Questions, fine_tune, read_questions
from spanqa.train.run import Trained, train
from spanqa.train.settings import TrainSettings, preset

NAMES = ["Anna Kestrel", "Tomas Brandt", "the keeper", "a young ferry", "old mail", "the chair", "Dr. M. Osei"]
PLACES = ["lighthouse", "tower", "lamp", "harbour", "village", "cable", "shelf", "ferry"]


def questions(count: int, seed: int = 0) -> list[Example]:
    """Who built it? One of two sentences says so; the other one is about another thing."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        what, other = draw.sample(PLACES, 2)
        who, whom = draw.sample(NAMES, 2)
        sentences = [f"The {what} was built by {who}.", f"The {other} was lost by {whom}."]
        passage = " ".join(draw.sample(sentences, 2))
        made.append(Example(f"{seed}-{i}", f"Who built the {what}?", passage, (GoldAnswer(who, passage.index(who)),)))
    return made


TRAIN, DEV = questions(160), questions(24, seed=1)
SETTINGS = TrainSettings(
    epochs=12, learning_rate=3e-3, batch_size=16, evaluations=2, dropout=0.0, dtype="fp32", save_steps=20, device="cpu"
)
BRIEF = replace(SETTINGS, max_steps=24, save_steps=8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.make("bert", tmp_path_factory.mktemp("base") / "bert")


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_a_model_learns_and_is_delivered_whole(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[tuple[int, int, str]] = []
    done = train(
        TRAIN, DEV, base, out, SETTINGS, notes={"base": "tiny"},
        finish=lambda folder, done: (folder / "README.md").write_text(f"F1 {done.f1}"),
        progress=lambda done, total, note="": seen.append((done, total, note)),
    )  # fmt: skip
    assert done.f1_before is not None
    assert done.f1 > done.f1_before + 30  # measured: from 26 to 100
    assert done.f1 == pytest.approx(score(Reader.load(out), DEV).f1, abs=0.5)
    assert (
        Reader.load(out, backend="numpy").ask(DEV[0].question, DEV[0].passage, threshold=-math.inf).text
        in DEV[0].passage
    )
    assert (out / "README.md").read_text() == f"F1 {done.f1}"
    assert not out.with_name("out.training").exists()
    stored = json.loads((out / "spanqa.json").read_text())
    assert stored["training"]["base"] == "tiny"
    assert stored["training"]["settings"]["learning_rate"] == 3e-3
    log = json.loads((out / "training" / "log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert [entry["step"] for entry in log if "f1" in entry] == [0, 60, 120]
    assert seen[-1][0] == seen[-1][1] == done.steps == 120
    assert re.fullmatch(r"loss [\d.e-]+, F1 [\d.]+", seen[-1][2])
    assert done.windows_per_s > 0


@pytest.mark.usefixtures("last_is_best")
def test_the_same_seed_gives_the_same_model_and_another_does_not(base: Path, tmp_path: Path) -> None:
    settings = replace(BRIEF, max_steps=6, evaluations=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(TRAIN, DEV, base, tmp_path / name, replace(settings, seed=seed))
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def rising(first: int) -> Any:
    """A scorer whose values rise with every call, so that the last model is the best."""
    values = count(first)
    return lambda reader, examples: Score(float(next(values)), None)


@pytest.fixture
def last_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the score by one that rises with every call: for tests that do not ask how good a model is."""
    monkeypatch.setattr(best, "score", rising(100))


def stop_at(step: int, number: int) -> Any:
    def progress(done: int, total: int, note: str = "") -> None:
        if done == step and not note:
            os.kill(os.getpid(), number)

    return progress


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("last_is_best")
def test_a_run_that_is_stopped_and_resumed_gives_the_same_weights(base: Path, tmp_path: Path, number: int) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = replace(BRIEF, dropout=0.2)  # so that the state of the random numbers matters
    train(TRAIN, DEV, base, whole, settings)
    before = signal.getsignal(number)
    with pytest.raises(InterruptedTrainingError, match=r"Stopped after step 13. The work so far is in"):
        train(TRAIN, DEV, base, stopped, settings, progress=stop_at(13, number))
    assert signal.getsignal(number) is before
    assert not stopped.exists()
    with pytest.raises(InputError, match=r"holds the work of an earlier run"):
        train(TRAIN, DEV, base, stopped, settings)
    train(TRAIN, DEV, base, stopped, settings, resume=True)
    assert same(whole, stopped)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from transformers import Trainer
import test_train as t

times = 0
usual = Trainer._save_rng_state
def die(self, folder):
    global times
    times += 1
    if times == 2:
        print("TensorFlow is loaded:", "tensorflow" in sys.modules, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    usual(self, folder)
Trainer._save_rng_state = die
t.best.score = t.rising(1)
t.train(t.TRAIN, t.DEV, {base!r}, {out!r}, t.BRIEF)
"""


@pytest.mark.usefixtures("last_is_best")
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(base: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    program = KILLED.format(tests=str(Path(__file__).parent), base=str(base), out=str(out))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == "TensorFlow is loaded: False\n"  # the log for TensorBoard needs none of it
    work = tmp_path / "out.training"
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-8"]
    assert (work / "writing" / "checkpoint-16" / "model.safetensors").exists()  # it was in the middle of it
    train(TRAIN, DEV, base, out, BRIEF, resume=True)
    train(TRAIN, DEV, base, whole, BRIEF)
    assert same(out, whole)
    assert not work.exists()


@pytest.mark.usefixtures("last_is_best")
def test_accumulation_gives_the_steps_of_the_larger_batch(base: Path, tmp_path: Path) -> None:
    settings = replace(BRIEF, max_steps=10, evaluations=1)
    large = train(TRAIN, DEV, base, tmp_path / "large", settings)
    small = train(TRAIN, DEV, base, tmp_path / "small", replace(settings, batch_size=4, accumulation=4))
    losses = [[entry["loss"] for entry in each.history if "loss" in entry] for each in (large, small)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_two_processes_give_the_loss_curve_of_one(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    for path, examples in ((data, TRAIN), (tmp_path / "dev.jsonl", DEV)):
        rows = [
            {"id": e.id, "question": e.question, "context": e.passage, "answer": e.answers[0].text, "start": e.answers[0].start}
            for e in examples
        ]  # fmt: skip
        path.write_text("\n".join(map(json.dumps, rows)))
    common = [
        "train", data, "--dev", tmp_path / "dev.jsonl", "--model", base, "--dtype", "fp32", "--dropout", "0", "--device", "cpu",
        "--learning-rate", "0.003", "--max-steps", "50", "--evaluations", "1",
    ]  # fmt: skip
    curves = []
    for name, launcher, size in (
        ("one", [], 16),
        ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", "29507"], 8),
    ):  # fmt: skip
        out = tmp_path / name
        command = [sys.executable, *launcher, "-m", "spanqa", *common, "--batch-size", size, "--out", out]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        log = json.loads((out / "training" / "log.json").read_text())
        curves.append([entry["loss"] for entry in log if "loss" in entry])
    assert len(curves[0]) == 5
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.usefixtures("last_is_best")
def test_a_loss_that_is_not_a_number_stops_the_run(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"The loss is nan after step [1-9]"):
        train(TRAIN, DEV, base, tmp_path / "out", replace(BRIEF, learning_rate=1e30))
    assert not (tmp_path / "out").exists()


def test_patience_stops_early_and_the_best_is_kept(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([50.0, 60.0, 55.0, 54.0, 99.0, 99.0, 99.0])
    settings = replace(BRIEF, evaluations=6, patience=2)
    monkeypatch.setattr(best, "score", lambda reader, dev: Score(next(falling), 1.5))
    done = train(TRAIN, DEV, base, tmp_path / "out", settings)
    assert (done.f1_before, done.f1, done.best_step, done.steps) == (50.0, 60.0, 4, 12)
    assert Reader.load(tmp_path / "out").answers.no_answer_threshold == 1.5


def test_the_base_is_delivered_when_nothing_was_better(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = iter([50.0, 40.0, 30.0])
    monkeypatch.setattr(best, "score", lambda reader, dev: Score(next(falling), None))
    done = train(TRAIN, DEV, base, tmp_path / "out", BRIEF)
    assert (done.f1, done.best_step) == (50.0, 0)
    assert same(base, tmp_path / "out")


def test_a_base_model_without_a_head_gets_a_new_one_by_seed(base: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (encoder / name).write_bytes((base / name).read_bytes())
    kept = {name: array for name, array in weights(base).items() if not name.startswith("qa_outputs")}
    save_file(kept, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no question-answering head"):
        Reader.load(encoder, backend="numpy")
    done = train(TRAIN, DEV, encoder, tmp_path / "out", replace(SETTINGS, epochs=4), answers=AnswerSettings(8))
    assert done.f1_before is None  # it would have answered at random
    assert Reader.load(tmp_path / "out").answers.max_answer_tokens == 8
    broken = {name: array for name, array in kept.items() if "layer.1.output.dense.weight" not in name}
    save_file(broken, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 parameters or has them in another shape: bert.encoder"):
        train(TRAIN, DEV, encoder, tmp_path / "other", BRIEF)


@pytest.mark.usefixtures("last_is_best")
def test_half_weights_are_half_as_large(base: Path, tmp_path: Path) -> None:
    settings = replace(BRIEF, max_steps=2, evaluations=1)
    train(TRAIN, DEV, base, tmp_path / "half", replace(settings, half_weights=True))
    assert {str(array.dtype) for array in weights(tmp_path / "half").values()} == {"float16"}
    assert (
        Reader.load(tmp_path / "half", backend="torch", dtype="fp32").ask(DEV[0].question, DEV[0].passage) is not None
    )


@pytest.mark.parametrize("layout", ["padded", "packed", "flat"])
@pytest.mark.usefixtures("last_is_best")
def test_training_goes_the_same_way_in_every_layout(base: Path, tmp_path: Path, layout: Any) -> None:
    settings = replace(BRIEF, max_steps=20, evaluations=1)
    flat = train(TRAIN, DEV, base, tmp_path / "flat", settings)
    other = train(TRAIN, DEV, base, tmp_path / "other", replace(settings, layout=layout))
    losses = [[entry["loss"] for entry in each.history if "loss" in entry] for each in (flat, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.usefixtures("last_is_best")
def test_what_cannot_work_is_reported_before_training_starts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"already exists. Choose a new path"):
        train(TRAIN, DEV, base, tmp_path, BRIEF)
    with pytest.raises(InputError, match=r"There is nothing to resume"):
        train(TRAIN, DEV, base, tmp_path / "out", BRIEF, resume=True)
    with pytest.raises(InputError, match=r"There are 0 questions to train on and 24 to measure on"):
        train([], DEV, base, tmp_path / "out", BRIEF)
    with pytest.raises(InputError, match=r"No window is left to train on"):
        train([Example("1", "who " * 99, "It was.", ())], DEV, base, tmp_path / "out", BRIEF)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"The results cannot be written to .*out.training'"):
        train(TRAIN, DEV, base, tmp_path / "file" / "out", BRIEF)
    with claimed(tmp_path / "out.training"), pytest.raises(InputError, match=r"Another run writes to .*out.training'"):
        train(TRAIN, DEV, base, tmp_path / "out", BRIEF)
    with pytest.raises(BackendError, match=r"fp16 training needs a GPU"):
        train(TRAIN, DEV, base, tmp_path / "out", replace(BRIEF, dtype="fp16"))
    with pytest.raises(InputError, match=r"batch_size is 0; expected a whole number, at least 1"):
        replace(BRIEF, batch_size=0)
    with pytest.raises(InputError, match=r"dtype is 'int8'; expected one of auto, fp32, bf16, fp16"):
        replace(BRIEF, dtype="int8")
    monkeypatch.setattr(work.shutil, "disk_usage", lambda path: _Disk(1_000_000))
    with pytest.raises(BackendError, match=r"0.0 GB free; training needs 0.1 GB"):
        train(TRAIN, DEV, base, tmp_path / "out", BRIEF)


class _Disk:
    def __init__(self, free: int) -> None:
        self.free = free


def test_presets_follow_the_number_of_questions_and_the_width() -> None:
    assert preset(300, 384).epochs > preset(100_000, 384).epochs
    assert preset(5000, 384).learning_rate == pytest.approx(8e-5)
    assert preset(5000, 1024).learning_rate == pytest.approx(3e-5)


# --- the learning curve


def test_a_learning_curve_rises_is_drawn_and_continues(base: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def settings_for(questions: int, seed: int) -> TrainSettings:
        asked.append(questions)
        return replace(SETTINGS, epochs=8, seed=seed)

    sizes, seeds = (0, 20, 160), (0, 1)
    points = learning_curve(sizes, seeds, TRAIN, DEV, base, tmp_path / "curve", settings_for)
    assert [point.questions for point in points] == [0, 20, 160]
    assert points[0].deviation == 0
    assert points[2].mean > points[0].mean + 20
    assert asked == [20, 20, 160, 160]
    again = learning_curve(sizes, seeds, TRAIN, DEV, base, tmp_path / "curve", settings_for)
    assert again == points
    assert len(asked) == 4  # nothing was trained again
    with pytest.raises(InputError, match=r"holds the curve of .*Choose a new path"):
        learning_curve(sizes, seeds, TRAIN, DEV[:9], base, tmp_path / "curve", settings_for)
    pytest.importorskip("matplotlib")
    plot(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match=r"The curve asks for 161 questions, but there are 160"):
        learning_curve((161,), seeds, TRAIN, DEV, base, tmp_path / "other", settings_for)


def test_the_advice_follows_the_last_step_of_the_curve() -> None:
    rising = [Point(0, (40.0,)), Point(100, (50.0, 51.0)), Point(200, (58.0, 59.0))]
    assert gain_of_twice(rising) == (8.0, pytest.approx(0.7071, abs=1e-4))
    assert "more labels would pay" in advice(rising)
    assert "would hardly pay" in advice([Point(100, (60.0, 60.1)), Point(200, (60.0, 60.1))])
    assert "too close to tell" in advice([Point(100, (50.0, 60.0)), Point(200, (52.0, 61.0))])
    with pytest.raises(InputError, match=r"has 1 sizes above 0"):
        gain_of_twice(rising[:2])


# --- the recipe

QUICK: dict[str, Any] = {
    "max_steps": 6,
    "evaluations": 1,
    "learning_rate": 3e-3,
    "dtype": "fp32",
    "device": "cpu",
    "notify": lambda line: None,
}


def test_of_several_seeds_the_best_is_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, examples in (("train.csv", TRAIN), ("dev.csv", DEV)):
        (tmp_path / name).write_text(rows_of(examples), "utf-8")
    lines: list[str] = []
    asked = read_questions(tmp_path / "train.csv", tmp_path / "dev.csv", notify=lines.append)
    assert lines == [f"{tmp_path / 'train.csv'}: labels: 160 placed", f"{tmp_path / 'dev.csv'}: labels: 24 placed"]
    values = iter([10.0, 20.0, 10.0, 60.0, 10.0, 40.0])  # before and after, for each of three seeds
    monkeypatch.setattr(best, "score", lambda reader, dev: Score(next(values), None))
    out = tmp_path / "out"

    def stop_in_the_second(done: int, total: int, note: str = "") -> None:
        if "F1 60" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(asked, out, model=base, seeds=3, seed=5, progress=stop_in_the_second, **QUICK)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out.seed-5", "out.seed-6.training"]
    values = iter([10.0, 60.0, 10.0, 40.0])
    done = fine_tune(asked, out, model=base, seeds=3, seed=5, resume=True, **QUICK)
    assert done is not None
    assert done.f1_by_seed == {5: 20.0, 6: 60.0, 7: 40.0}
    assert (done.training["dev_f1"], done.training["settings"]["seed"]) == (60.0, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.csv", "out", "train.csv"]
    with Reader.load(out) as reader:
        assert reader.calibration == done.tuned.calibration
    print_result(done, asked, as_json=False)
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "F1 by seed: 20.00, 60.00, 40.00"
    assert second == f"{out}: F1 10.00 before, 60.00 after, on 24 questions"
    with pytest.raises(InputError, match=r"out' already exists. Choose a new path"):
        fine_tune(asked, out, model=base, seeds=2, **QUICK)


def test_questions_in_memory_are_identified_by_their_ids(base: Path, tmp_path: Path) -> None:
    done = fine_tune(Questions(TRAIN[:32], DEV[:8]), tmp_path / "out", model=base, max_answer_tokens=9, **QUICK)
    assert done is not None
    with Reader.load(tmp_path / "out") as reader:
        assert reader.answers.max_answer_tokens == 9
        assert not reader.calibrated  # nothing can be fitted to 8 questions
    assert "- not from files" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match=r"There is no training setting 'epoch'. Expected one of epochs, "):
        fine_tune(Questions(TRAIN, DEV), tmp_path / "other", model=base, epoch=3)
    with pytest.raises(InputError, match=r"seeds is 0; expected a whole number, at least 1"):
        fine_tune(Questions(TRAIN, DEV), tmp_path / "other", model=base, seeds=0)


@pytest.mark.usefixtures("last_is_best")
def test_a_run_without_a_checkpoint_leaves_nothing_to_the_next(base: Path, tmp_path: Path) -> None:
    work = tmp_path / "out.training"
    work.mkdir()
    (work / "best.json").write_text('{"step": 1, "f1": 999.0, "no_answer_threshold": null}')
    done = train(TRAIN, DEV, base, tmp_path / "out", replace(BRIEF, max_steps=2, evaluations=1))
    assert (done.best_step, done.f1) == (2, 101.0)


@pytest.mark.usefixtures("last_is_best")
def test_a_run_that_was_stopped_after_its_last_step_is_delivered(base: Path, tmp_path: Path) -> None:
    settings, out = replace(BRIEF, max_steps=4, evaluations=1), tmp_path / "out"

    def fail(folder: Path, done: Trained) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        train(TRAIN, DEV, base, out, settings, finish=fail)
    assert not out.exists()
    done = train(TRAIN, DEV, base, out, settings, resume=True)
    assert (done.steps, done.best_step, done.windows_per_s) == (4, 4, 0.0)
    assert (done.f1_before, done.f1) == (100.0, 101.0)
    assert Reader.load(out).checkpoint.settings["training"]["steps"] == 4


def test_the_recipe_loads_no_framework_before_it_trains() -> None:
    program = "import sys, spanqa.train.recipe; print({'torch', 'transformers', 'openvino'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


# --- the command


def spanqa(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spanqa", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, umask=0o027)


def rows_of(examples: list[Example]) -> str:
    """A CSV as some countries write it: a byte order mark, semicolons, and no starts of answers."""
    lines = ["\ufeffquestion;context;answer"]
    lines += [f'"{e.question}";"{e.passage}";{e.answers[0].text}' for e in examples]
    return "\n".join(lines)


def test_the_command_trains_tunes_and_reports(base: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "labels.csv", tmp_path / "out"
    lost = '"Who?";"Nobody was here.";Bertha'
    story = ("the sea was grey and old " * 6).strip()
    long = "\n".join(f'"Why {i}?";"It is so: {story}.";{story}' for i in range(20))
    data.write_text(rows_of(TRAIN) + f"\n{lost}\n{long}\n", "utf-8")
    done = spanqa("train", data, "--model", base, "--out", out, "--max-steps", 4, "--evaluations", 1, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "placed" in done.stderr and "1 dropped; dropped: row-161" in done.stderr
    assert "held out to measure on: " in done.stderr
    longest = re.search(r"answers may be up to (\d+) tokens long, so that 99 % of them fit", done.stderr)
    assert longest is not None
    assert (
        Reader.load(out).answers.max_answer_tokens
        == int(longest[1])
        == len(open_checkpoint(base).tokenizer.encode(story))
    )
    ours = (
        "step ",
        "held out",
        "answers may be",
        "Every question to train on has an answer",
        "the base model's",
        str(data),
    )
    assert [line for line in done.stderr.splitlines() if not line.startswith(ours)] == []  # and no library's
    assert "step 4 of 4: F1" in done.stderr
    assert "From these alone a model unlearns to say that a text has none. Add" in done.stderr
    assert f"{out}: F1" in done.stdout
    assert re.search(r"best step: \d of 4, at [1-9][\d,]* windows/s; use it with", done.stdout)
    settings = json.loads((out / "spanqa.json").read_text())
    assert settings["training"]["labels"][0]["dropped"] == 1
    assert "# out" in (out / "README.md").read_text()
    assert any((out / "training" / "tensorboard").iterdir())
    masks = {path: path.stat().st_mode & 0o777 for path in [out, *out.rglob("*")]}
    assert {path: (0o777 if path.is_dir() else 0o666) & ~0o027 for path in masks} == masks
    assert len(masks) > 7


def test_an_output_that_exists_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    program = (
        "import sys; from spanqa.__main__ import run; "
        f"print(run(['train', 'none.csv', '--out', {str(tmp_path / 'out')!r}]), {{'torch', 'numpy', 'transformers'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1 set()\n"
    assert done.stderr == f"spanqa: Output folder {str(tmp_path / 'out')!r} already exists. Choose a new path.\n"


@pytest.mark.parametrize(
    ("speed", "shown"), [(0.0, "4; use"), (0.42, "4, at 0.42 windows/s;"), (1234.5, "4, at 1,234 windows/s;")]
)
def test_the_speed_is_shown_where_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], speed: float, shown: str
) -> None:
    training = {"dev_f1": 70.0, "dev_f1_before": None, "best_step": 4, "steps": 4, "windows_per_s": speed}
    print_result(FineTuned(tmp_path, training, None, {0: 70.0}), Questions(TRAIN, DEV), as_json=False)  # type: ignore[arg-type]
    assert f"best step: 4 of {shown}" in capsys.readouterr().out


def test_training_on_answerable_questions_alone_is_a_warning(base: Path, tmp_path: Path) -> None:
    given = {**QUICK, "max_steps": 2, "model": base}
    lines: list[str] = []
    fine_tune(Questions(TRAIN[:16], DEV[:8]), tmp_path / "out", **{**given, "notify": lines.append})
    assert any("Add questions that their text does not answer" in line for line in lines)
    mixed = [*TRAIN[:16], Example("none", "Who sank it?", TRAIN[0].passage)]
    del given["notify"]
    with pytest.warns(SpanQAWarning, match=r"From these alone a model unlearns to say that a text has none"):
        fine_tune(Questions(TRAIN[:16], DEV[:8]), tmp_path / "warned", **given)
    fine_tune(Questions(mixed, DEV[:8]), tmp_path / "mixed", **given)  # a warning would be an error here


def test_dev_questions_on_passages_that_are_trained_on_are_a_warning(tmp_path: Path) -> None:
    for name, examples in (("train.csv", TRAIN), ("dev.csv", TRAIN[:3])):
        (tmp_path / name).write_text(rows_of(examples), "utf-8")
    with pytest.warns(
        SpanQAWarning, match=r"3 of the 3 questions to measure on are on a passage that is also trained on"
    ):
        read_questions(tmp_path / "train.csv", tmp_path / "dev.csv")


def test_two_stages_are_averaged_and_tuned_on_the_articles_they_held_out(base: Path, tmp_path: Path) -> None:
    paragraphs = []
    for e in TRAIN:
        answers = [{"text": answer.text, "answer_start": answer.start} for answer in e.answers]
        paragraphs.append({"context": e.passage, "qas": [{"id": e.id, "question": e.question, "answers": answers}]})
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    for name, times in (("first", 1), ("last", 3)):
        shutil.copytree(base, tmp_path / name)
        (tmp_path / name / "spanqa.json").write_text(json.dumps({"format": "spanqa/1", "training": {"steps": times}}))
        scaled = {key: array * times for key, array in weights(base).items()}
        save_file(scaled, tmp_path / name / "model.safetensors", {"format": "pt"})
    script = Path(__file__).parents[1] / "scripts" / "average_mini.py"
    given = [tmp_path / "train.json", tmp_path / "first", tmp_path / "last", "0.25", tmp_path / "out"]
    done = subprocess.run([sys.executable, script, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = weights(base), weights(tmp_path / "out")
    assert all(after[name].dtype == np.float16 for name in before)
    assert all(np.allclose(after[name], 2.5 * before[name], atol=2e-3) for name in before)
    settings = json.loads((tmp_path / "out" / "spanqa.json").read_text())
    assert f"on {len(hold_out(TRAIN)[1])} held-out questions" in done.stdout
    assert "calibration" not in settings and "no_answer_threshold" in settings["answers"]  # so few decide nothing
    assert settings["training"]["steps"] == 3
    assert settings["training"]["averaged"]["shares"] == {"first": 0.25, "last": 0.75}
    assert not (tmp_path / "out.tmp").exists()


def test_the_command_draws_a_learning_curve(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, examples in (("train.csv", TRAIN[:40]), ("dev.csv", DEV)):
        (tmp_path / name).write_text(rows_of(examples), "utf-8")
    done = spanqa(
        "train", tmp_path / "train.csv", "--dev", tmp_path / "dev.csv", "--model", base, "--out", tmp_path / "curve",
        "--learning-curve", "0,10,40", "--seeds", 2, "--epochs", 1, "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [point["questions"] for point in found["points"]] == [0, 10, 40]
    assert "80 labels would give" in found["advice"]
    assert (tmp_path / "curve" / "curve.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("question,context\na,b\n", "lacks the column for answer"),
        ("id,question,context,answer\n1,a,b c,b\n1,a,b c,b\n", "Two questions have the id '1'"),
        ("question,context,answer\nWho?,It was she.,he was\n", "There are 0 questions to train on"),
    ],
)
def test_bad_data_is_reported_in_one_line_and_nothing_is_written(
    base: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "bad.csv").write_text(text)
    (tmp_path / "dev.csv").write_text(rows_of(DEV), "utf-8")
    done = spanqa(
        "train", tmp_path / "bad.csv", "--dev", tmp_path / "dev.csv", "--model", base, "--out", tmp_path / "out"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_wrong_usage_exits_with_2(tmp_path: Path) -> None:
    done = spanqa("train", "x.csv", "--out", tmp_path / "out", "--learning-curve", "few")
    assert done.returncode == 2
    assert "should be numbers with commas" in done.stderr


def test_without_its_packages_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from spanqa.cli.train import train as command
    from spanqa.errors import NotInstalledError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"pip install 'spanqa\[train\]'"):
        command([tmp_path / "x.csv"], tmp_path / "out")
