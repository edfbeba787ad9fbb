"""Whether integrated gradients add up: the gap between their sum and g(x) - g(baseline), on answered questions of SQuAD 2.0.

    SPANQA_DATA=... python benchmarks/completeness.py --out benchmarks/results/completeness.json

For each question: the steps that were taken, the gap, its share of g(x) - g(baseline), the seconds, and whether the explanation says
that it converged. The record is written after each question, and a run that was stopped continues with it.
"""

import argparse
import json
import os
import random
import shlex
import sys
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import processor

from spanqa import Reader, __version__, read_squad
from spanqa.explain.decision import decide
from spanqa.explain.gradients import FIRST_STEPS, LARGEST_GAP, MOST_STEPS, token_scores
from spanqa.explain.words import mask_of
from spanqa.files import describe, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spanqa-mini")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("completeness.json"))
    arguments = parser.parse_args()
    path = Path(os.environ["SPANQA_DATA"]) / "squad-v2.0-dev.json.gz"
    reader = Reader.load(arguments.model, backend="torch", dtype=arguments.dtype)
    examples = read_squad(path)
    random.Random(arguments.seed).shuffle(examples)
    settings = {
        "model": {"name": reader.checkpoint.path.name, "sha256": reader.checkpoint.weights.sha256},
        "data": describe(path, path.read_bytes()),
        "seed": arguments.seed,
        "backend": f"{reader.backend.name} {reader.backend.dtype}",
        "steps": [FIRST_STEPS, MOST_STEPS],
        "largest_gap": LARGEST_GAP,
    }
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows = before["rows"] if {name: before.get(name) for name in settings} == settings else {}
    for example in track(examples, "questions", console=Console(stderr=True)):
        if sum(row is not None for row in rows.values()) == arguments.questions:
            break
        if example.id in rows:
            continue
        rows[example.id] = measure(reader, example.question, example.passage)
        record = {
            "command": shlex.join(["python", "benchmarks/completeness.py", *sys.argv[1:]]),
            **settings,
            "processor": processor(),
            "versions": {"spanqa": __version__, **{name: version(name) for name in ("torch", "transformers")}},
            "summary": summary([row for row in rows.values() if row]),
            "rows": rows,
        }
        write_json(arguments.out, record)
    show(summary([row for row in rows.values() if row]))


def measure(reader: Reader, question: str, passage: str) -> dict | None:
    """Return how integrated gradients converged on a question; None where the reader gives no answer."""
    decision = decide(reader, question, passage)
    if not decision.answer:
        return None
    begin = time.perf_counter()
    scores, convergence, windows = token_scores(
        reader.backend, decision.objective(), mask_of(reader.checkpoint.tokenizer), "integrated_gradients"
    )
    seconds = time.perf_counter() - begin
    tokens = sum(len(of_window) for of_window in scores)
    return {**asdict(convergence), "tokens": tokens, "windows_read": windows, "seconds": round(seconds, 2)}


def summary(rows: list[dict]) -> dict:
    if not rows:
        return {"answers": 0}
    gaps = np.array([row["relative_gap"] for row in rows])
    steps = Counter(row["steps"] for row in rows)
    return {
        "answers": len(rows),
        "gap_below_limit": int((gaps < LARGEST_GAP).sum()),
        "said_not_converged": sum(not row["converged"] for row in rows),
        "median_relative_gap": float(np.median(gaps)),
        "largest_relative_gap": float(gaps.max()),
        "answers_by_steps": {str(count): steps[count] for count in sorted(steps)},
        "seconds_median": float(np.median([row["seconds"] for row in rows])),
    }


def show(found: dict) -> None:
    table = Table(*found, box=None, padding=(0, 2))
    table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in found.values()))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
