"""Fine-tuning, whole: what is learned, what is written, and what survives an interruption."""

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
from spanqa.errors import BackendError, CheckpointError, InputError, InterruptedTrainingError, TrainingError
from spanqa.evaluate import score
from spanqa.evaluate.record import questions_sha256
from spanqa.evaluate.run import Score
from spanqa.reader import Reader
from spanqa.squad import Example, GoldAnswer
from spanqa.train import finetune
from spanqa.train.curve import Point, advice, gain_of_twice, learning_curve, plot
from spanqa.train.finetune import train
from spanqa.train.labels import hold_out
from spanqa.train.settings import TrainSettings, preset

NAMES = ["Anna Kestrel", "Tomas Brandt", "the keeper", "a young ferry", "old mail", "the chair", "Dr. M. Osei"]
PLACES = ["lighthouse", "tower", "lamp", "harbour", "village", "cable", "shelf", "ferry"]


def questions(count: int, seed: int = 0) -> list[Example]:
    """Who built it? One of two sentences says so; the other tells of another thing."""
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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.make("bert", tmp_path_factory.mktemp("base") / "bert")


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_a_model_learns_and_is_delivered_whole(base: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    card = "# a card\n"
    done = train(
        TRAIN, DEV, base, out, SETTINGS, score=score, notes={"base": "tiny"}, card=lambda _: card,
        progress=lambda step, steps, found: seen.append((step, steps, dict(found))),
    )  # fmt: skip
    assert done.f1_before is not None
    assert done.f1 > done.f1_before + 30  # measured: from 26 to 100
    assert done.f1 == pytest.approx(score(Reader.load(out), DEV).f1, abs=0.5)
    assert (
        Reader.load(out, backend="numpy").ask(DEV[0].question, DEV[0].passage, threshold=-math.inf).text
        in DEV[0].passage
    )
    assert (out / "README.md").read_text() == card
    assert not out.with_name("out.training").exists()
    stored = json.loads((out / "spanqa.json").read_text())
    assert stored["training"]["base"] == "tiny"
    assert stored["training"]["settings"]["learning_rate"] == 3e-3
    log = json.loads((out / "training" / "log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert [entry["step"] for entry in log if "f1" in entry] == [0, 60, 120]
    assert seen[-1][0] == seen[-1][1] == done.steps == 120
    assert done.windows_per_s > 0


def test_the_same_seed_gives_the_same_model_and_another_does_not(base: Path, tmp_path: Path) -> None:
    settings = replace(BRIEF, max_steps=6, evaluations=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(TRAIN, DEV, base, tmp_path / name, replace(settings, seed=seed), score=best_last)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


steps_scored = 0


def best_last(reader: Reader, examples: Any) -> Score:
    """A score that rises with every call, so that the last model is the best."""
    global steps_scored
    steps_scored += 1
    return Score(float(steps_scored), None)


def stop_at(step: int, number: int) -> Any:
    def progress(at: int, steps: int, found: dict[str, float]) -> None:
        if at == step and not found:
            os.kill(os.getpid(), number)

    return progress


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(base: Path, tmp_path: Path, number: int) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = replace(BRIEF, dropout=0.2)  # so that the state of the random numbers matters
    train(TRAIN, DEV, base, whole, settings, score=best_last)
    before = signal.getsignal(number)
    with pytest.raises(InterruptedTrainingError, match=r"Stopped after step 13; the work is kept"):
        train(TRAIN, DEV, base, stopped, settings, score=best_last, progress=stop_at(13, number))
    assert signal.getsignal(number) is before
    assert not stopped.exists()
    with pytest.raises(InputError, match=r"holds the work of an earlier run"):
        train(TRAIN, DEV, base, stopped, settings, score=best_last)
    train(TRAIN, DEV, base, stopped, settings, score=best_last, resume=True)
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
        os.kill(os.getpid(), signal.SIGKILL)
    usual(self, folder)
Trainer._save_rng_state = die
t.train(t.TRAIN, t.DEV, {base!r}, {out!r}, t.BRIEF, score=t.best_last)
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(base: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    program = KILLED.format(tests=str(Path(__file__).parent), base=str(base), out=str(out))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    work = tmp_path / "out.training"
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-8"]
    assert (work / "writing" / "checkpoint-16" / "model.safetensors").exists()  # it was in the middle of it
    train(TRAIN, DEV, base, out, BRIEF, score=best_last, resume=True)
    train(TRAIN, DEV, base, whole, BRIEF, score=best_last)
    assert same(out, whole)
    assert not work.exists()


def test_accumulation_gives_the_steps_of_the_larger_batch(base: Path, tmp_path: Path) -> None:
    settings = replace(BRIEF, max_steps=10, evaluations=1)
    large = train(TRAIN, DEV, base, tmp_path / "large", settings, score=best_last)
    small = train(
        TRAIN, DEV, base, tmp_path / "small", replace(settings, batch_size=4, accumulation=4), score=best_last
    )
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


def test_a_loss_that_is_not_a_number_stops_the_run(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"The loss is nan after step [1-9]"):
        train(TRAIN, DEV, base, tmp_path / "out", replace(BRIEF, learning_rate=1e30), score=best_last)
    assert not (tmp_path / "out").exists()


def test_patience_stops_early_and_the_best_is_kept(base: Path, tmp_path: Path) -> None:
    falling = iter([50.0, 60.0, 55.0, 54.0, 99.0, 99.0, 99.0])
    settings = replace(BRIEF, evaluations=6, patience=2)
    done = train(TRAIN, DEV, base, tmp_path / "out", settings, score=lambda reader, dev: Score(next(falling), 1.5))
    assert (done.f1_before, done.f1, done.best_step, done.steps) == (50.0, 60.0, 4, 12)
    assert Reader.load(tmp_path / "out").answers.no_answer_threshold == 1.5


def test_the_base_is_delivered_when_nothing_was_better(base: Path, tmp_path: Path) -> None:
    falling = iter([50.0, 40.0, 30.0])
    done = train(TRAIN, DEV, base, tmp_path / "out", BRIEF, score=lambda reader, dev: Score(next(falling), None))
    assert (done.f1, done.best_step) == (50.0, 0)
    assert same(base, tmp_path / "out")


def test_a_trunk_without_a_head_gets_a_new_one_by_seed(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    trunk = tmp_path / "trunk"
    trunk.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (trunk / name).write_bytes((base / name).read_bytes())
    kept = {name: array for name, array in weights(base).items() if not name.startswith("qa_outputs")}
    save_file(kept, trunk / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no question-answering head"):
        Reader.load(trunk, backend="numpy")
    done = train(
        TRAIN, DEV, trunk, tmp_path / "out", replace(SETTINGS, epochs=4), score=score, answers=AnswerSettings(8)
    )
    assert done.f1_before is None  # it would have answered at random
    assert Reader.load(tmp_path / "out").answers.max_answer_tokens == 8
    broken = {name: array for name, array in kept.items() if "layer.1.output.dense.weight" not in name}
    save_file(broken, trunk / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 parameters beside the head, such as bert.encoder"):
        train(TRAIN, DEV, trunk, tmp_path / "other", BRIEF, score=best_last)


def test_half_weights_are_half_as_large(base: Path, tmp_path: Path) -> None:
    settings = replace(BRIEF, max_steps=2, evaluations=1)
    train(TRAIN, DEV, base, tmp_path / "half", replace(settings, half_weights=True), score=best_last)
    assert {str(array.dtype) for array in weights(tmp_path / "half").values()} == {"float16"}
    assert (
        Reader.load(tmp_path / "half", backend="torch", dtype="fp32").ask(DEV[0].question, DEV[0].passage) is not None
    )


@pytest.mark.parametrize("layout", ["padded", "packed", "flat"])
def test_training_goes_the_same_way_in_every_layout(base: Path, tmp_path: Path, layout: Any) -> None:
    settings = replace(BRIEF, max_steps=20, evaluations=1)
    flat = train(TRAIN, DEV, base, tmp_path / "flat", settings, score=best_last)
    other = train(TRAIN, DEV, base, tmp_path / "other", replace(settings, layout=layout), score=best_last)
    losses = [[entry["loss"] for entry in each.history if "loss" in entry] for each in (flat, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_what_cannot_work_is_told_before_it_begins(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"is there already"):
        train(TRAIN, DEV, base, tmp_path, BRIEF, score=best_last)
    with pytest.raises(InputError, match=r"There is nothing to resume"):
        train(TRAIN, DEV, base, tmp_path / "out", BRIEF, score=best_last, resume=True)
    with pytest.raises(InputError, match=r"There are 0 questions to train on and 24 to measure with"):
        train([], DEV, base, tmp_path / "out", BRIEF, score=best_last)
    with pytest.raises(InputError, match=r"No window to train on is left"):
        train([Example("1", "who " * 99, "It was.", ())], DEV, base, tmp_path / "out", BRIEF, score=best_last)
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"cannot be written"):
        train(TRAIN, DEV, base, tmp_path / "file" / "out", BRIEF, score=best_last)
    with pytest.raises(BackendError, match=r"fp16 trains on GPUs only"):
        train(TRAIN, DEV, base, tmp_path / "out", replace(BRIEF, dtype="fp16"), score=best_last)
    with pytest.raises(InputError, match=r"batch_size is 0; expected a number above 0"):
        replace(BRIEF, batch_size=0)
    with pytest.raises(InputError, match=r"dtype is 'int8'; expected one of auto, fp32, bf16, fp16"):
        replace(BRIEF, dtype="int8")
    monkeypatch.setattr(finetune.shutil, "disk_usage", lambda path: _Disk(1_000_000))
    with pytest.raises(BackendError, match=r"0.0 GB free; training needs 0.1 GB"):
        train(TRAIN, DEV, base, tmp_path / "out", BRIEF, score=best_last)


class _Disk:
    def __init__(self, free: int) -> None:
        self.free = free


def test_presets_follow_the_number_of_questions_and_the_width() -> None:
    assert preset(300, 384).epochs > preset(100_000, 384).epochs
    assert preset(5000, 384).learning_rate == pytest.approx(8e-5)
    assert preset(5000, 1024).learning_rate == pytest.approx(3e-5)


# --- the learning curve


def test_a_learning_curve_grows_is_drawn_and_goes_on(base: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def settings_for(questions: int, seed: int) -> TrainSettings:
        asked.append(questions)
        return replace(SETTINGS, epochs=8, seed=seed)

    sizes, seeds = (0, 20, 160), (0, 1)
    points = learning_curve(sizes, seeds, TRAIN, DEV, base, tmp_path / "curve", settings_for, score=score)
    assert [point.questions for point in points] == [0, 20, 160]
    assert points[0].deviation == 0
    assert points[2].mean > points[0].mean + 20
    assert asked == [20, 20, 160, 160]
    again = learning_curve(sizes, seeds, TRAIN, DEV, base, tmp_path / "curve", settings_for, score=score)
    assert again == points
    assert len(asked) == 4  # nothing was trained again
    pytest.importorskip("matplotlib")
    plot(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match=r"The curve asks for 161 questions; there are 160"):
        learning_curve((161,), seeds, TRAIN, DEV, base, tmp_path / "other", settings_for, score=score)


def test_the_advice_follows_the_last_step_of_the_curve() -> None:
    rising = [Point(0, (40.0,)), Point(100, (50.0, 51.0)), Point(200, (58.0, 59.0))]
    assert gain_of_twice(rising) == (8.0, pytest.approx(0.7071, abs=1e-4))
    assert "more labels would pay" in advice(rising)
    assert "would hardly pay" in advice([Point(100, (60.0, 60.1)), Point(200, (60.0, 60.1))])
    assert "too close to tell" in advice([Point(100, (50.0, 60.0)), Point(200, (52.0, 61.0))])
    with pytest.raises(InputError, match=r"has 1 sizes above 0"):
        gain_of_twice(rising[:2])


# --- the command


def spanqa(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spanqa", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def rows_of(examples: list[Example]) -> str:
    """A CSV of another country: a byte order mark, semicolons, and no places."""
    lines = ["\ufeffquestion;context;answer"]
    lines += [f'"{e.question}";"{e.passage}";{e.answers[0].text}' for e in examples]
    return "\n".join(lines)


def test_the_command_trains_tunes_and_tells(base: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "labels.csv", tmp_path / "out"
    lost = '"Who?";"Nobody was here.";Bertha'
    story = ("the sea was grey and old " * 6).strip()
    long = "\n".join(f'"Why {i}?";"It is so: {story}.";{story}' for i in range(20))
    data.write_text(rows_of(TRAIN) + f"\n{lost}\n{long}\n", "utf-8")
    done = spanqa("train", data, "--model", base, "--out", out, "--max-steps", 4, "--evaluations", 1, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "placed" in done.stderr and "1 dropped; dropped: row-161" in done.stderr
    assert "held out to measure with: " in done.stderr
    longest = re.search(r"answers may be (\d+) tokens long, so that 99 % of these fit", done.stderr)
    assert longest is not None
    assert (
        Reader.load(out).answers.max_answer_tokens
        == int(longest[1])
        == len(open_checkpoint(base).tokenizer.encode(story))
    )
    assert "Writing model shards" not in done.stderr  # no bar but our own
    assert "step 4 of 4: f1" in done.stderr
    assert f"{out}: F1" in done.stdout
    settings = json.loads((out / "spanqa.json").read_text())
    assert settings["calibration"]["data_sha256"]
    assert settings["training"]["labels"][0]["dropped"] == 1
    assert "# out" in (out / "README.md").read_text()
    assert any((out / "training" / "tensorboard").iterdir())
    assert Reader.load(out).calibrated
    again = spanqa("train", data, "--model", base, "--out", out)
    assert (again.returncode, again.stdout) == (1, "")
    assert "is there already" in again.stderr and "Traceback" not in again.stderr


def test_of_several_seeds_the_best_is_kept(base: Path, tmp_path: Path) -> None:
    for name, examples in (("train.csv", TRAIN), ("dev.csv", DEV)):
        (tmp_path / name).write_text(rows_of(examples), "utf-8")
    out = tmp_path / "out"
    done = spanqa(
        "train", tmp_path / "train.csv", "--dev", tmp_path / "dev.csv", "--model", base, "--out", out, "--seeds", 2,
        "--max-steps", 6, "--evaluations", 1, "--learning-rate", "0.003", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = map(float, done.stdout.splitlines()[0].removeprefix("F1 by seed: ").split(", "))
    settings = json.loads((out / "spanqa.json").read_text())["training"]
    assert settings["dev_f1"] == pytest.approx(max(first, second), abs=0.01)
    assert settings["settings"]["seed"] == (1 if second > first else 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.csv", "out", "train.csv"]


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
    assert settings["calibration"]["data_sha256"] == questions_sha256(hold_out(TRAIN)[1])
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
        ("id,question,context,answer\n1,a,b c,b\n1,a,b c,b\n", "The id '1' is there twice"),
        ("question,context,answer\nWho?,It was she.,he was\n", "There are 0 questions to train on"),
    ],
)
def test_bad_data_is_told_in_one_line_and_nothing_is_written(
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
