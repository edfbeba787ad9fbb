"""Batch jobs: what they cost beside `Reader.ask_many`, and how much memory they take.

    SPANQA_DATA=... python benchmarks/batch_jobs.py throughput --out benchmarks/results/batch-throughput.json
    python benchmarks/batch_jobs.py memory --out benchmarks/results/batch-memory.json
    SPANQA_DATA=... python benchmarks/batch_jobs.py steps --rows 1000 --out benchmarks/results/batch-steps.json

throughput   5,000 rows of the SQuAD 2.0 development set, in five files. `run_batch`, from file to file, and `ask_many` on the same
             rows in memory take turns, with a reader each; which of them begins changes.
memory       a file of 1 GB of JSON Lines, made of random words, in a process with an address space of 600 MB. In the place of the
             engine's backend there is one that answers at once, as if it were infinitely fast; all else is real.
steps        from one process to Ray: the same job with no Ray, with one actor that has all cores, and with one for each core, in the
             environment of scripts/make_ray_env. `start` is what the command takes beside the job itself: Python, Ray, the model.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ADDRESS_SPACE = 600_000_000


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    from side_by_side import MINI, choose_examples, processor

    from spanqa import Reader
    from spanqa.evaluate import score_squad
    from spanqa.scale import place_of, rows_input, run_batch

    examples = choose_examples("squad", arguments.rows, shuffle=True)
    readers = {
        name: Reader.load(MINI, dtype=arguments.dtype) for name in ("run_batch", "ask_many")
    }  # each remembers its own passages
    size = -(-len(examples) // 5)
    slices = [examples[start : start + size] for start in range(0, len(examples), size)]
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    texts: dict[str, dict[str, str]] = {name: {} for name in seconds}
    with tempfile.TemporaryDirectory() as folder:
        for reader in readers.values():
            reader.ask("Who built the pier?", "The pier was built by Anna Kestrel.")
        for turn, some in enumerate(slices):
            source, out = Path(folder, f"in-{turn}.jsonl"), Path(folder, f"out-{turn}.jsonl")
            source.write_text(
                "".join(json.dumps({"id": e.id, "question": e.question, "context": e.passage}) + "\n" for e in some)
            )
            for name in sorted(seconds, reverse=turn % 2 == 1):
                started = time.perf_counter()
                if name == "run_batch":
                    run_batch(readers[name], rows_input(place_of(str(source))), place_of(str(out)))
                else:
                    found = list(readers[name].ask_many((e.question, e.passage) for e in some))
                seconds[name].append(time.perf_counter() - started)
                if name == "run_batch":
                    texts[name] |= {
                        row["id"]: row["prediction"]["text"] for row in map(json.loads, out.open(encoding="utf-8"))
                    }
                else:
                    texts[name] |= {e.id: answer.text for e, answer in zip(some, found, strict=True)}
            print(
                f"{turn + 1} of {len(slices)}: "
                + ", ".join(f"{name} {each[-1]:.1f} s" for name, each in seconds.items()),
                flush=True,
            )
    return {
        "rows": len(examples),
        "dtype": readers["run_batch"].backend.dtype,
        "processor": processor(),
        "cores": os.cpu_count(),
        "seconds": seconds,
        "rows_per_s": {name: len(examples) / sum(each) for name, each in seconds.items()},
        "run_batch_of_ask_many": sum(seconds["ask_many"]) / sum(seconds["run_batch"]),
        "f1": {name: score_squad(examples, found)["f1"] for name, found in texts.items()},
        "answers_that_differ": sum(texts["run_batch"][e.id] != texts["ask_many"][e.id] for e in examples),
    }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    from side_by_side import processor

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        rows = write_rows(source, arguments.bytes)
        started = time.perf_counter()
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, __file__, "child", str(source), str(Path(folder, "out.jsonl"))]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return {
            "bytes": source.stat().st_size,
            "rows": rows,
            "address_space": ADDRESS_SPACE,
            "processor": processor(),
            "seconds": time.perf_counter() - started,
            **json.loads(done.stdout),
        }


def steps(arguments: argparse.Namespace) -> dict[str, Any]:
    from side_by_side import MINI, choose_examples, processor

    found = subprocess.run([ROOT / "scripts" / "make_ray_env", "--find"], capture_output=True, text=True, check=True)
    python = Path(found.stdout.strip()) / "bin" / "python"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    cores = os.cpu_count() or 1
    ways = {
        "no Ray": [],
        "one actor": ["--ray", "--actors", "1", "--cpus-per-actor", str(cores)],
        "an actor for each core": ["--ray", "--actors", str(cores), "--cpus-per-actor", "1"],
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        examples = choose_examples("squad", arguments.rows, shuffle=True)
        source.write_text("".join(json.dumps({"question": e.question, "context": e.passage}) + "\n" for e in examples))
        written = set()
        for turn in range(3):
            for name, options in ways.items():
                out = Path(folder, f"{turn}-{name.replace(' ', '-')}.jsonl")
                command = [
                    python,
                    "-m",
                    "spanqa",
                    "batch",
                    source,
                    out,
                    "--model",
                    MINI,
                    "--dtype",
                    arguments.dtype,
                    "--json",
                ]
                started = time.perf_counter()
                done = subprocess.run(
                    [*map(str, command), *options], stdout=subprocess.PIPE, text=True, check=True, env=environment
                )
                wall, summary = time.perf_counter() - started, json.loads(done.stdout)
                rows[name].append({"seconds": summary["seconds"], "start": wall - summary["seconds"]})
                written.add(out.read_bytes())
                print(f"{turn + 1}, {name}: {rows[name][-1]}", flush=True)
    return {
        "rows": arguments.rows,
        "dtype": arguments.dtype,
        "processor": processor(),
        "cores": cores,
        "machine_load_before": load,
        "ways": {
            name: {
                "rows_per_s": arguments.rows / statistics.median(each["seconds"] for each in runs),
                "start_s": statistics.median(each["start"] for each in runs),
                "runs": runs,
            }
            for name, runs in rows.items()
        },
        "different_files": len(written),
    }


def write_rows(path: Path, size: int) -> int:
    """Write rows of random words until the file has this size; return their number."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghiklmnoprstuw", k=chance.randint(2, 9))) for _ in range(5000)]
    number = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            context = " ".join(chance.choices(words, k=chance.randint(50, 400)))
            row = {
                "id": number,
                "question": " ".join(chance.choices(words, k=9)),
                "context": context,
                "note": "x" * chance.randint(0, 900),
            }
            file.write(json.dumps(row) + "\n")
            number += 1
    return number


def child(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the job in this process, which may not have more address space."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    import numpy as np

    from spanqa.batches import Batch, Capture, SpanLogits
    from spanqa.checkpoint import open_checkpoint
    from spanqa.reader import Reader
    from spanqa.scale import place_of, rows_input, run_batch

    class AtOnce:
        """A backend that answers at once: every span is as likely as any other."""

        name, device, dtype, layouts, batch_tokens, batches_at_once = "at once", "cpu", "fp32", ("padded",), 4096, 1

        def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
            zeros = np.zeros(batch.input_ids.shape, np.float32)
            return SpanLogits(zeros, zeros)

    reader = Reader(open_checkpoint("spanqa-mini"), AtOnce())  # type: ignore[arg-type]
    done = run_batch(reader, rows_input(place_of(arguments.source)), place_of(arguments.out))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_rss": peak, "answered_rows": done.counts.rows - done.counts.bad}


def main() -> None:
    """Run one of the parts, print its record, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("throughput", "memory", "steps"):
        part = parts.add_parser(name)
        part.add_argument("--out", type=Path)
        part.add_argument("--rows", type=int, default=5000)
        part.add_argument("--dtype", default="fp32")
        part.add_argument("--bytes", type=int, default=1_000_000_000)
    part = parts.add_parser("child")
    part.add_argument("source")
    part.add_argument("out")
    arguments = parser.parse_args()
    if arguments.part == "child":
        print(json.dumps(child(arguments)))
        return
    from importlib.metadata import version

    from spanqa import __version__

    out = "" if arguments.rows == 5000 else f" --rows {arguments.rows}"
    out += "" if arguments.out is None else f" --out benchmarks/results/{arguments.out.name}"
    record = {
        "command": f"python benchmarks/batch_jobs.py {arguments.part}{out}",
        "versions": {"spanqa": __version__, **{name: version(name) for name in ("numpy", "tokenizers", "openvino")}},
        **globals()[arguments.part](arguments),
    }
    text = json.dumps(record, indent=2) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
