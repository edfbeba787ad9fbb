"""A new domain with few labels: F1 by number of questions, from a model that can answer questions and from one that cannot yet.

    SPANQA_DATA=... python benchmarks/few_labels.py --base-model BASE --out benchmarks/results/few-labels.json

The settings are the preset of `spanqa train` for few labels, with three seeds, at 0, 100, 300 and 1,000 questions. The data sets are
FairytaleQA (trained on its training split, measured on its test split) and PolicyQA (a fifth of its titles held out, measured on 1,000
of their questions). The models start from spanqa-mini and from its base model, which never saw a question (BASE is the folder that
`scripts/train_mini` leaves). A run that was stopped continues.
"""

import argparse
import json
import os
import random
import shlex
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from side_by_side import MINI, processor

from spanqa import __version__, read_squad
from spanqa.answers import AnswerSettings
from spanqa.checkpoint import open_checkpoint
from spanqa.squad import Example
from spanqa.train.curve import Point, learning_curve
from spanqa.train.labels import answer_length_tokens, hold_out
from spanqa.train.settings import TrainSettings, preset

SIZES, SEEDS = (0, 100, 300, 1000), (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-model", type=Path, help="without it, the curves from the base model are left out")
    parser.add_argument("--data", default="policyqa,fairytaleqa")
    parser.add_argument(
        "--work", type=Path, default=Path("few-labels.work"), help="kept, so that a stopped run can continue"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    bases = {"spanqa-mini": MINI, **({"its base model": arguments.base_model} if arguments.base_model else {})}
    record = {
        "command": shlex.join(["python", "benchmarks/few_labels.py", *sys.argv[1:]]),
        "model": {"name": "spanqa-mini", "sha256": open_checkpoint(MINI).weights.sha256},
        "processor": processor(),
        "versions": {"spanqa": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "data": {},
    }
    for base, model in bases.items():
        for name in arguments.data.split(","):
            train, dev = questions(name)
            longest = max(30, answer_length_tokens(train, open_checkpoint(MINI).tokenizer))
            sizes = SIZES if base == "spanqa-mini" else SIZES[1:]  # without a head there is nothing to measure
            with Progress(console=Console(stderr=True)) as bar:
                task = bar.add_task(f"{name}, from {base}", total=len(sizes) * len(SEEDS))
                points = learning_curve(
                    sizes, SEEDS, train, dev, model, arguments.work / name / base.replace(" ", "-"), settings_for,
                    answers=AnswerSettings(longest),
                    progress=lambda done, total, note="", bar=bar, task=task: bar.update(task, completed=done),
                )  # fmt: skip
            entry = record["data"].setdefault(
                name, {"train": len(train), "dev": len(dev), "max_answer_tokens": longest, "f1": {}}
            )
            entry["f1"][base] = {str(point.questions): list(point.f1) for point in points}
            if arguments.out:
                arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    show(record["data"])


def settings_for(count: int, seed: int) -> TrainSettings:
    return replace(preset(count, 384), seed=seed)


def questions(name: str) -> tuple[list[Example], list[Example]]:
    """Return the questions to train on and those to measure on; no title is on both sides."""
    folder = Path(os.environ["SPANQA_DATA"])
    if name == "fairytaleqa":
        return read_squad(folder / "fairytaleqa-train.json.gz"), read_squad(folder / "fairytaleqa-test.json.gz")
    train, dev = hold_out(read_squad(folder / "policyqa-dev-test.json.gz"), 0.2)
    return train, random.Random(0).sample(dev, 1000)


def show(data: dict) -> None:
    table = Table("", *(f"{size:,}" for size in SIZES), box=None, padding=(0, 2))
    for name, entry in data.items():
        for base, curve in entry["f1"].items():
            points = {int(size): Point(int(size), tuple(f1)) for size, f1 in curve.items()}
            cells = [f"{points[n].mean:.2f} ± {points[n].deviation:.2f}" if n in points else "–" for n in SIZES]
            table.add_row(f"{name}, from {base}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
