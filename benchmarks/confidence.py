"""How far a model's probabilities can be believed: calibration error and risk over coverage, on data it was not tuned on.

    SPANQA_DATA=... python benchmarks/confidence.py --out benchmarks/results/confidence.json

For each file: F1 at the stored threshold and at the best one, the expected calibration error (10 equal bins; of the outcome
returned, right meaning official F1 of at least 0.5) with and without the stored calibration, and the area under risk over coverage.
On files where every question has an answer, the model still may abstain, and is wrong when it does.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import processor

from spanqa import Reader, __version__, read_squad
from spanqa.answers import Calibration
from spanqa.evaluate.metrics import averages, best_threshold
from spanqa.evaluate.outcomes import risk_coverage_of
from spanqa.evaluate.record import describe_file
from spanqa.evaluate.tune import expected_calibration_error, gather, outcomes

FILES = ("squad-v2.0-dev", "squadshifts-new-wiki", "squadshifts-reddit", "qed-nq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spanqa-mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--files", default=",".join(FILES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    reader = Reader.load(arguments.model, dtype=arguments.dtype)
    rows = {}
    for name in track(arguments.files.split(","), "files", console=Console(stderr=True)):
        path = Path(os.environ["SPANQA_DATA"]) / f"{name}.json.gz"
        rows[name] = measure(reader, path)
    show(rows)
    if arguments.out:
        record = {
            "command": " ".join(["python", "benchmarks/confidence.py", *sys.argv[1:]]),
            "model": {"name": reader.checkpoint.path.name, "sha256": reader.checkpoint.sha256},
            "calibration": {name: getattr(reader.calibration, name) for name in ("a", "b", "temperature")},
            "no_answer_threshold": reader.answers.no_answer_threshold,
            "backend": f"{reader.backend.name} {reader.backend.dtype}",
            "processor": processor(),
            "versions": {"spanqa": __version__},
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def measure(reader: Reader, path: Path) -> dict:
    evidence = gather(reader, read_squad(path))
    stored = reader.answers.no_answer_threshold
    scores = evidence.scores()
    best, _ = best_threshold(scores, "f1")
    row = {
        "data": describe_file(path),
        "questions": len(evidence),
        "f1": averages(scores, no_answer_above=-stored)["f1"],
        "best_f1": best,
        "f1_always_answering": 100 * float(np.where(evidence.answerable, evidence.f1, 0.0).mean()),
    }
    for name, calibration in (("uncalibrated", Calibration()), ("calibrated", reader.calibration)):
        probabilities, right = outcomes(evidence, calibration, stored)
        row[f"ece_{name}"] = expected_calibration_error(probabilities, right)
        row[f"area_{name}"] = risk_coverage_of(probabilities, right)[2]
    return row


def show(rows: dict[str, dict]) -> None:
    table = Table(
        "",
        "questions",
        "F1",
        "best F1",
        "ECE uncalibrated",
        "ECE",
        "area uncalibrated",
        "area",
        box=None,
        padding=(0, 2),
    )
    for name, row in rows.items():
        cells = [f"{row[key]:.2f}" for key in ("f1", "best_f1")]
        cells += [
            f"{row[key]:.4f}" for key in ("ece_uncalibrated", "ece_calibrated", "area_uncalibrated", "area_calibrated")
        ]
        table.add_row(name, f"{row['questions']:,}", *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
