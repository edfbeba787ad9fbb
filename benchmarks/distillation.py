"""A small student with and without a teacher: F1 of two layers of spanqa-mini, trained on the same questions and steps.

    SPANQA_DATA=... python benchmarks/distillation.py --out benchmarks/results/distillation.json

The student is spanqa-mini with some of its layers left out. It is trained on questions of SQuAD 2.0 with the settings of
`spanqa train`, once from the labels alone and once with spanqa-mini as its teacher, for each seed: same questions, same order, same
number of steps. `--unlabelled N` adds a third run, with N further questions for which only the teacher counts. F1 is measured at the
end of each run, on dev questions that play no part before. A run that was stopped continues.
"""

import argparse
import json
import os
import random
import re
import shlex
import shutil
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from page import mean_and_spread
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.numpy import load_file, save_file
from side_by_side import MINI, processor

from spanqa import Reader, __version__, read_squad
from spanqa.checkpoint import open_checkpoint
from spanqa.evaluate import score
from spanqa.squad import Example
from spanqa.train.run import Trained, train
from spanqa.train.settings import TrainSettings, preset
from spanqa.train.teacher import Teacher

LABELS, TEACHER, UNLABELLED = "from the labels alone", "with the teacher", "with the teacher and unlabelled questions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=8000)
    parser.add_argument("--dev-questions", type=int, default=2000)
    parser.add_argument("--unlabelled", type=int, default=0)
    parser.add_argument("--layers", default="0,3", help="the layers that the student keeps, counted from 0")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--temperature", type=float, default=TrainSettings().temperature)
    parser.add_argument("--teacher-weight", type=float, default=TrainSettings().teacher_weight)
    parser.add_argument(
        "--work", type=Path, default=Path("distillation.work"), help="kept, so that a stopped run can continue"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    student = cut_student(arguments.work / "student", [int(layer) for layer in arguments.layers.split(",")])
    asked, unlabelled, dev = questions(arguments)
    path = arguments.work / "record.json"
    record = begin(path, arguments, student, dev)
    kinds = [LABELS, TEACHER, *([UNLABELLED] if unlabelled else [])]
    turns = [(kind, seed) for seed in range(arguments.seeds) for kind in kinds]
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("runs", total=len(turns))
        for kind, seed in turns:
            runs = record["runs"].setdefault(kind, {})
            if str(seed) not in runs:
                settings = replace(
                    preset(arguments.questions, 384), epochs=arguments.epochs, seed=seed, evaluations=1,
                    temperature=arguments.temperature, teacher_weight=arguments.teacher_weight,
                )  # fmt: skip
                runs[str(seed)] = one_run(kind, asked, unlabelled, dev, student, arguments.work, settings)
                path.write_text(json.dumps(record, indent=1) + "\n")
            bar.advance(task)
    show(record)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def cut_student(folder: Path, layers: list[int]) -> Path:
    """Write a copy of spanqa-mini that has only these of its layers, in this order."""
    if folder.exists():
        return folder
    folder.mkdir()
    weights = {}
    for name, array in load_file(MINI / "model.safetensors").items():
        layer = re.search(r"\.layer\.(\d+)\.", name)
        if layer is None:
            weights[name] = array
        elif int(layer[1]) in layers:
            weights[name.replace(layer[0], f".layer.{layers.index(int(layer[1]))}.")] = array
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((MINI / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": len(layers)}, indent=2))
    for name in ("tokenizer.json", "vocab.txt", "spanqa.json"):
        shutil.copyfile(MINI / name, folder / name)
    return folder


def questions(arguments: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Return the questions with labels, those without, and those to measure on."""
    folder = Path(os.environ["SPANQA_DATA"])
    drawn = random.Random(0).sample(
        read_squad(folder / "squad-v2.0-train-rebuilt.json.gz"), arguments.questions + arguments.unlabelled
    )
    dev = read_squad(folder / "squad-v2.0-dev.json.gz")
    asked, unlabelled = drawn[: arguments.questions], drawn[arguments.questions :]
    return asked, unlabelled, random.Random(0).sample(dev, min(arguments.dev_questions, len(dev)))


def begin(path: Path, arguments: argparse.Namespace, student: Path, dev: list[Example]) -> dict:
    """Return the record of the run that was stopped, or a new one."""
    chosen = ("questions", "dev_questions", "unlabelled", "layers", "epochs", "temperature", "teacher_weight")
    about = {name: getattr(arguments, name) for name in chosen}
    if path.exists():
        record = json.loads(path.read_text("utf-8"))
        if {name: record[name] for name in chosen} != about:
            sys.exit(f"{path} holds runs with other settings. Choose another --work.")
        return record
    models = {"teacher": MINI, "student": student}
    return {
        "command": shlex.join(["python", "benchmarks/distillation.py", *sys.argv[1:]]),
        "model": {"name": "spanqa-mini", "sha256": open_checkpoint(MINI).weights.sha256},
        **about,
        "processor": processor(),
        "versions": {"spanqa": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "parameters": {name: parameters(model) for name, model in models.items()},
        "f1": {name: f1_of(model, dev) for name, model in models.items()},
        "runs": {},
    }


def parameters(model: Path) -> int:
    return sum(array.size for array in load_file(model / "model.safetensors").values())


def f1_of(model: Path, dev: list[Example]) -> float:
    with Reader.load(model) as reader:
        return score(reader, dev).f1


def one_run(
    kind: str,
    asked: list[Example],
    unlabelled: list[Example],
    dev: list[Example],
    student: Path,
    work: Path,
    settings: TrainSettings,
) -> dict:
    """Train one student, and return its F1 at the end and what it cost."""
    out = work / f"{kind.replace(' ', '-')}-{settings.seed}"
    shutil.rmtree(out, ignore_errors=True)
    teacher = None
    if kind != LABELS:
        teacher = Teacher(MINI, unlabelled=unlabelled if kind == UNLABELLED else (), notify=print)
    resume = out.with_name(f"{out.name}.training").is_dir()
    began = time.monotonic()
    done: Trained = train(asked, dev, student, out, settings, teacher=teacher, resume=resume)
    seconds = time.monotonic() - began
    shutil.rmtree(out)
    f1 = [entry["f1"] for entry in done.history if "f1" in entry][-1]
    run = {"f1": f1, "steps": done.steps, "windows_per_s": done.windows_per_s, "seconds": seconds}
    return {**run, "resumed": True} if resume else run  # then the seconds are not of the whole


def show(record: dict) -> None:
    table = Table("", "F1", "steps", "seconds a run", box=None, padding=(0, 2))
    for name in ("teacher", "student"):
        table.add_row(f"{name}, {record['parameters'][name] / 1e6:.1f} M, before", f"{record['f1'][name]:.2f}", "", "")
    for kind, runs in record["runs"].items():
        values = list(runs.values())
        seconds = [run["seconds"] for run in values if "resumed" not in run]
        mean = f"{sum(seconds) / len(seconds):.0f}" if seconds else ""
        table.add_row(kind, mean_and_spread([run["f1"] for run in values]), f"{values[0]['steps']:,}", mean)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
