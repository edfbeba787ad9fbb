"""How much the memory of the openvino backend grows as batches of ever new shapes come.

    python benchmarks/openvino_memory.py --batches 10000 --minutes 10 --out benchmarks/results/openvino-memory.json

Reads batches of random shapes, of at most `--tokens` tokens, and writes the growth of the resident memory since a first batch of the
largest size. Linux only.
"""

import argparse
import json
import random
import resource
import time
from pathlib import Path

import numpy as np

from spanqa import Reader
from spanqa.batches import Batch
from spanqa.evaluate.record import describe_run

LONGEST = 384


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def random_batch(generator: np.random.Generator, rows: int, cols: int) -> Batch:
    positions = np.tile(np.arange(cols, dtype=np.int32), (rows, 1))
    zeros = np.zeros((rows, cols), np.int32)
    return Batch(generator.integers(1000, 20_000, (rows, cols), np.int32), zeros, positions, zeros)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spanqa-mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--minutes", type=float, default=10, help="stop after so many minutes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    reader = Reader.load(arguments.model, backend="openvino", dtype=arguments.dtype)
    generator, shapes = np.random.default_rng(0), random.Random(0)
    for cols in (16, LONGEST):  # what one large batch needs is no growth
        for _ in range(2):
            reader.backend.forward(random_batch(generator, arguments.tokens // cols, cols))
    begin, before = time.perf_counter(), resident_mb()
    growth, seen, done = {}, set(), 0
    while done < arguments.batches and time.perf_counter() - begin < 60 * arguments.minutes:
        cols = shapes.randint(8, LONGEST)
        rows = shapes.randint(1, max(1, arguments.tokens // cols))
        reader.backend.forward(random_batch(generator, rows, cols))
        seen.add((rows, cols))
        done += 1
        if done in (128, 512, 1000, 2000, 3000, 5000, 8000, arguments.batches):
            growth[done] = round(resident_mb() - before, 1)
    growth[done] = round(resident_mb() - before, 1)
    record = {
        **describe_run(("openvino",)),
        "model": arguments.model,
        "dtype": reader.backend.dtype,
        "largest_batch_tokens": arguments.tokens,
        "batches": done,
        "shapes": len(seen),
        "loaded_mb": round(before, 1),
        "growth_mb_after_batches": growth,
        "batches_per_s": round(done / (time.perf_counter() - begin), 1),
    }
    print(json.dumps(record, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
