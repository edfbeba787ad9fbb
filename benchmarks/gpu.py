"""BERT-large's shape on a GPU: windows per second by layout, share of the card's own rate, and logits against the reference.

    SPANQA_DATA=... python benchmarks/gpu.py --out benchmarks/results/gpu.json

Forward pass alone, on the windows of squad-v2.0-dev in random order, at SQuAD lengths: flat rows (torch's variable-length
attention), sorted padding, and as plain loops over transformers do it, in the order of arrival: padded to the longest of the batch,
and to 384; each also with torch.compile. The card's rate is torch.matmul of 8192 x 8192 x 8192 in the same dtype. Random weights: speed, and equality of logits, only.
"""

import argparse
import json
import os
import random
import shlex
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from side_by_side import MINI, make_bert_large_shape

from spanqa import Reader, __version__, read_squad
from spanqa.batches import PADDING, Batch, pack, plan_batches
from spanqa.windows import Window, make_windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--shape", choices=("bert-large", "spanqa-mini"), default="bert-large")
    parser.add_argument("--windows", type=int, default=12_000)
    parser.add_argument("--budgets", default="16384,32768,65536", help="tokens of a batch")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = MINI
        if arguments.shape == "bert-large":
            model = Path(temporary)
            make_bert_large_shape(model)
        record = measure(arguments, model)
    show(record)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def measure(arguments: argparse.Namespace, model: Path) -> dict:
    reader = Reader.load(model, backend="torch", device=arguments.device, dtype=arguments.dtype)
    windows = windows_of(reader, arguments.windows)
    lengths = [len(window) for window in windows]
    config = reader.checkpoint.encoder
    linear = 2 * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size)
    work = sum(config.layers * n * (linear + 4 * config.hidden_size * n) for n in lengths)
    peak = matmul_rate(
        arguments.device, getattr(torch, {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[arguments.dtype])
    )
    rows: dict[str, dict] = {}
    for compiled in (False, True):
        if compiled:
            reader.backend._model.forward = torch.compile(reader.backend._model.forward, dynamic=True)
        for budget in map(int, arguments.budgets.split(",")):
            for layout in ("flat", "padded", "arrival", "fixed"):
                seconds = run(reader, windows, lengths, layout, budget)
                name = f"{layout}, {budget} tokens{', compiled' if compiled else ''}"
                rate = work / seconds
                rows[name] = {
                    "windows_per_s": len(windows) / seconds,
                    "tflop_per_s": rate / 1e12,
                    "share_of_matmul": rate / peak,
                }
        if compiled is False:
            differences = parity(reader, model, windows[:24])
    return {
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device,
        "dtype": arguments.dtype,
        "shape": arguments.shape,
        "windows": len(windows),
        "tokens": sum(lengths),
        "matmul_tflop_per_s": peak / 1e12,
        "largest_difference_of_probability": differences,
        "versions": {"spanqa": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "rows": rows,
    }


def windows_of(reader: Reader, count: int) -> list[Window]:
    examples = read_squad(Path(os.environ["SPANQA_DATA"]) / "squad-v2.0-dev.json.gz")
    tokenizer = reader.checkpoint.tokenizer
    made: list[Window] = []
    for example in random.Random(0).sample(examples, min(count, len(examples))):
        passage = tokenizer.encode_passage(example.passage)
        made += make_windows(tokenizer.encode(example.question), passage, tokenizer.template, reader.windows)
    return made[:count]


def batches_of(windows: list[Window], lengths: list[int], layout: str, budget: int) -> list[Batch]:
    if layout in ("fixed", "arrival"):
        step, cols = budget // 384, 384 if layout == "fixed" else None
        return [pack([[window] for window in windows[i : i + step]], cols) for i in range(0, len(windows), step)]
    return [pack([[windows[i] for i in row] for row in rows]) for rows in plan_batches(lengths, layout, budget)]  # type: ignore[arg-type]


def run(reader: Reader, windows: list[Window], lengths: list[int], layout: str, budget: int) -> float:
    batches = batches_of(windows, lengths, layout, budget)
    for batch in [*batches[:2], batches[-1]]:
        reader.backend.forward(batch)
    begin = time.perf_counter()
    for batch in batches:
        reader.backend.forward(batch)  # it returns NumPy arrays, so it has waited for the device
    return time.perf_counter() - begin


def parity(reader: Reader, model: Path, windows: list[Window]) -> dict[str, float]:
    """The largest difference of a start or end probability from fp32 on the CPU, by layout."""
    reference = Reader.load(model, backend="openvino", dtype="fp32")
    found = {}
    for layout in ("flat", "padded", "packed"):
        batches = [
            pack([[windows[i] for i in row] for row in rows])
            for rows in plan_batches(list(map(len, windows)), layout, 4096)  # type: ignore[arg-type]
        ]
        largest = 0.0
        for batch in batches:
            for ours, theirs in zip(probabilities(reader, batch), probabilities(reference, batch), strict=True):
                largest = max(largest, float(np.abs(ours - theirs).max()))
        found[layout] = largest
    return found


def probabilities(reader: Reader, batch: Batch) -> list[np.ndarray]:
    logits = reader.backend.forward(batch)
    found = []
    for row in range(batch.shape[0]):
        for window in range(int(batch.window_index[row].max(initial=PADDING)) + 1):
            place = batch.window_index[row] == window
            for values in (logits.start[row, place], logits.end[row, place]):
                powers = np.exp(values - values.max())
                found.append(powers / powers.sum())
    return found


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    size = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    rates = []
    for _ in range(20):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(5):
            torch.matmul(a, b)
        synchronize(device)
        rates.append(5 * 2 * size**3 / (time.perf_counter() - begin))
    return sorted(rates)[len(rates) // 2]


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def show(record: dict) -> None:
    table = Table("", "windows/s", "TFLOP/s", "of matmul", box=None, padding=(0, 2))
    for name, row in record["rows"].items():
        table.add_row(name, f"{row['windows_per_s']:.0f}", f"{row['tflop_per_s']:.1f}", f"{row['share_of_matmul']:.0%}")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{record['device']}: matmul {record['matmul_tflop_per_s']:.1f} TFLOP/s; differences {record['largest_difference_of_probability']}"
    )


if __name__ == "__main__":
    main()
