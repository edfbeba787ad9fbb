"""How much of a batch is useful, layout by layout, and how long it takes to plan the batches of a million windows.

    SPANQA_DATA=... python benchmarks/planning.py --out benchmarks/results/planning.json

The windows are those of all questions of SQuAD 2.0's development set. Useful is a token that is no padding; the million windows have
lengths drawn from the same. Beside spanqa's layouts, the two ways in common use: every window padded to the longest possible, and
batches of 32 in the order of arrival (here: random), padded to their longest.
"""

import argparse
import json
import os
import random
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from side_by_side import MINI, processor, window_lengths

from spanqa import Reader, __version__, read_squad
from spanqa.batches import BatchLayout, plan_batches
from spanqa.files import describe

BUDGET, COLS, MILLION = 8192, 512, 1_000_000
LAYOUTS: tuple[BatchLayout, ...] = ("padded", "packed", "flat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    reader = Reader.load(MINI, backend="numpy")
    data = Path(os.environ["SPANQA_DATA"]) / "squad-v2.0-dev.json.gz"
    examples = read_squad(data)
    lengths = window_lengths(reader, examples)
    pool = random.Random(0)
    many = pool.choices(lengths, k=MILLION)
    arrived = pool.sample(range(len(lengths)), len(lengths))
    rows = {
        f"every window padded to {reader.windows.max_seq_length}": {
            "useful": sum(lengths) / (len(lengths) * reader.windows.max_seq_length)
        },
        "batches of 32 in random order": {
            "useful": useful(lengths, ([[i] for i in arrived[at : at + 32]] for at in range(0, len(arrived), 32)))
        },
    }
    for layout in LAYOUTS:
        begin = time.perf_counter()
        for _ in plan_batches(many, layout, BUDGET, COLS):
            pass
        seconds = time.perf_counter() - begin
        cols = COLS if layout == "packed" else None
        rows[f"spanqa {layout}"] = {
            "useful": useful(lengths, plan_batches(lengths, layout, BUDGET, COLS), cols),
            "seconds": seconds,
        }
    table = Table("", "useful tokens", "planning a million windows", box=None, padding=(0, 2))
    for name, row in rows.items():
        seconds = f"{row['seconds']:.1f} s" if "seconds" in row else ""
        table.add_row(name, f"{row['useful']:.1%}", seconds)
    Console(width=120).print(table)
    if arguments.out:
        record = {
            "command": shlex.join(["python", "benchmarks/planning.py", *sys.argv[1:]]),
            "data": describe(data, data.read_bytes()),
            "questions": len(examples),
            "windows": len(lengths),
            "budget_tokens": BUDGET,
            "cols": COLS,
            "processor": processor(),
            "versions": {"spanqa": __version__, **{name: version(name) for name in ("numpy", "tokenizers")}},
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def useful(lengths: Sequence[int], batches: Iterable[list[list[int]]], cols: int | None = None) -> float:
    """The share of tokens that are no padding; rows are `cols` wide, or as wide as the longest of their batch."""
    computed = 0
    for batch in batches:
        widths = [sum(lengths[i] for i in row) for row in batch]
        computed += len(batch) * (cols or max(widths))
    return sum(lengths) / computed


if __name__ == "__main__":
    main()
