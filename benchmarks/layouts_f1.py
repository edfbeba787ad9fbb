"""Whether a model learns the same without padding: F1 after the same training in each layout.

    SPANQA_DATA=... python benchmarks/layouts_f1.py --out benchmarks/results/layouts-f1.json

spanqa-mini is trained on 3,000 questions of PolicyQA with three seeds; a fifth of the titles is held out, and 1,000 of their
questions are measured. The windows of each step are the same in flat rows, in packed rows of 512, and padded. `training_speed.py`
measures how fast each layout is.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from few_labels import questions
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import MINI, processor

from spanqa import __version__
from spanqa.answers import AnswerSettings
from spanqa.checkpoint import open_checkpoint
from spanqa.train.labels import answer_length_tokens
from spanqa.train.run import train
from spanqa.train.settings import preset

SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--layouts", default="flat,packed,padded")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    given, dev = questions("policyqa")
    longest = max(30, answer_length_tokens(given, open_checkpoint(MINI).tokenizer))
    f1: dict[str, list[float]] = {layout: [] for layout in arguments.layouts.split(",")}
    turns = [(seed, layout) for seed in SEEDS for layout in f1]
    for seed, layout in track(turns, "models", console=Console(stderr=True)):
        chosen = random.Random(seed).sample(given, arguments.questions)
        settings = replace(
            preset(len(chosen), 384), epochs=arguments.epochs, seed=seed, evaluations=1, dropout=0.1, layout=layout
        )
        with tempfile.TemporaryDirectory() as folder:
            done = train(chosen, dev, MINI, Path(folder) / "out", settings, answers=AnswerSettings(longest))
        f1[layout].append([entry["f1"] for entry in done.history if "f1" in entry][-1])
    table = Table("", "F1 by seed", "mean", "deviation", box=None, padding=(0, 2))
    for layout, values in f1.items():
        cells = (", ".join(f"{x:.2f}" for x in values), statistics.fmean(values), statistics.stdev(values))
        table.add_row(layout, cells[0], f"{cells[1]:.2f}", f"{cells[2]:.2f}")
    Console(width=120).print(table)
    if arguments.out:
        record = {
            "command": shlex.join(["python", "benchmarks/layouts_f1.py", *sys.argv[1:]]),
            "model": {"name": "spanqa-mini", "sha256": open_checkpoint(MINI).weights.sha256},
            "questions": arguments.questions,
            "measured_on": len(dev),
            "processor": processor(),
            "versions": {"spanqa": __version__, **{name: version(name) for name in ("torch", "transformers")}},
            "f1": f1,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
