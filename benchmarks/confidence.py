"""How far a model's probabilities can be trusted: calibration error and risk over coverage, on data it was not tuned on.

    SPANQA_DATA=... python benchmarks/confidence.py --out benchmarks/results/confidence.json

For each file: F1 at the stored threshold and at the best one, the expected calibration error with and without the stored
calibration, and the area under risk over coverage. The error has 10 equal bins and measures what is returned; an answer is
right from an official F1 of 0.5 on. On files where every question has an answer, the model may still answer "", and is then
wrong.

For comparison, on some questions of each file: transformers 4.57.6's pipeline with the settings of SQuAD 2.0. Its `score`
counts as the probability of what it returned.
"""

import argparse
import json
import os
import random
import shlex
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import HF4, processor, start

from spanqa import Reader, __version__, read_squad
from spanqa.calibration import Calibration
from spanqa.evaluate.curves import expected_calibration_error, risk_coverage_of
from spanqa.evaluate.metrics import averages, best_threshold, column
from spanqa.evaluate.outcomes import RIGHT
from spanqa.evaluate.scoring import question_scores
from spanqa.evaluate.tune import gather, probabilities_at
from spanqa.files import describe
from spanqa.squad import Example

FILES = ("squad-v2.0-dev", "squadshifts-new-wiki", "squadshifts-reddit", "qed-nq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spanqa-mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--files", default=",".join(FILES))
    parser.add_argument("--peer-questions", type=int, default=2000, help="of each file; 0 skips the comparison")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    reader = Reader.load(arguments.model, dtype=arguments.dtype)
    rows = {}
    for name in track(arguments.files.split(","), "files", console=Console(stderr=True)):
        path = Path(os.environ["SPANQA_DATA"]) / f"{name}.json.gz"
        rows[name] = measure(reader, path)
        if HF4.exists() and arguments.peer_questions:
            rows[name]["beside_transformers"] = beside_transformers(reader, read_squad(path), arguments.peer_questions)
    show(rows)
    if arguments.out:
        record = {
            "command": shlex.join(["python", "benchmarks/confidence.py", *sys.argv[1:]]),
            "model": {"name": reader.checkpoint.path.name, "sha256": reader.checkpoint.weights.sha256},
            "calibration": {name: getattr(reader.calibration, name) for name in ("a", "b", "temperature")},
            "no_answer_threshold": reader.answers.no_answer_threshold,
            "backend": f"{reader.backend.name} {reader.backend.dtype}",
            "processor": processor(),
            "versions": {"spanqa": __version__},
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def measure(reader: Reader, path: Path) -> dict:
    outcomes = gather(reader, read_squad(path))
    stored = reader.answers.no_answer_threshold
    best, _ = best_threshold(outcomes, "f1")
    row = {
        "data": describe(path, path.read_bytes()),
        "questions": len(outcomes),
        "f1": averages(outcomes)["f1"],
        "best_f1": best,
        "f1_always_answering": 100
        * float(np.where(column(outcomes, "answerable"), column(outcomes, "best_f1"), 0.0).mean()),
    }
    for name, calibration in (("uncalibrated", Calibration()), ("calibrated", reader.calibration)):
        probabilities, right = probabilities_at(outcomes, calibration, stored)
        row[f"ece_{name}"] = expected_calibration_error(probabilities, right)
        row[f"area_{name}"] = risk_coverage_of(probabilities, right)[2]
    return row


def beside_transformers(reader: Reader, examples: list[Example], count: int) -> dict:
    """Both on the same questions: F1 of what was returned, calibration error and area under risk over coverage."""
    if len(examples) > count:
        examples = random.Random(0).sample(examples, count)
    process = start(
        {"kind": "transformers_pipeline", "batch_size": 8, "model": str(reader.checkpoint.path), "scores": True}, 2
    )
    assert process.stdin is not None and process.stdout is not None
    found = []
    for i in range(0, len(examples), 100):
        pairs = [(example.question, example.passage) for example in examples[i : i + 100]]
        process.stdin.write(json.dumps({"questions": pairs}) + "\n")
        process.stdin.flush()
        found += json.loads(process.stdout.readline())["answers"]
    process.stdin.close()
    process.wait()
    f1 = np.array([question_scores(example, text)[1] for example, (text, _) in zip(examples, found, strict=True)])
    scores = np.array([score for _, score in found])
    outcomes = gather(reader, examples)
    theirs = (np.clip(scores, 0, 1), f1 >= RIGHT)
    ours = probabilities_at(outcomes, reader.calibration, reader.answers.no_answer_threshold)
    row = {"questions": len(examples)}
    for name, (probabilities, right), value in (
        ("transformers", theirs, 100 * float(f1.mean())),
        ("spanqa", ours, averages(outcomes)["f1"]),
    ):
        row[name] = {
            "f1": value,
            "right": float(right.mean()),
            "ece": expected_calibration_error(probabilities, right),
            "area": risk_coverage_of(probabilities, right)[2],
        }
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
    table = Table("beside transformers' score", "questions", "F1", "right", "ECE", "area", box=None, padding=(0, 2))
    for name, row in rows.items():
        for who in ("spanqa", "transformers"):
            if found := row.get("beside_transformers", {}).get(who):
                cells = [f"{found['f1']:.2f}", f"{found['right']:.1%}", f"{found['ece']:.4f}", f"{found['area']:.4f}"]
                table.add_row(f"{name}, {who}", f"{row['beside_transformers']['questions']:,}", *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
