"""How much memory it costs to capture the attention of the answer's tokens, beside a forward pass of BERT-large's shape.

    python benchmarks/attention_memory.py --out benchmarks/results/attention-memory.json

Each measurement is a process of its own: it loads the model (24 layers, 16 heads, hidden size 1,024, random weights), reads a window of
512 tokens once, gives back what is free, sets the peak of its resident memory back, and reads the window again, with or without capture. What the peak has
above that of a plain second reading is the cost. "eager" is what transformers offers: all attention of a network loaded with eager
attention. Linux only.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from spanqa.backends.registry import load_backend
from spanqa.batches import Batch, Capture
from spanqa.checkpoint import open_checkpoint
from spanqa.evaluate.record import describe_run

TOKENS = 512
ROWS = {"forward": 0, "answer of 8 tokens": 8, "answer of 30 tokens": 30, "eager": 0}
LIMIT_MIB = 40


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) / 1024


def measure(folder: str, name: str, kind: str) -> float:
    """Return the peak of the second reading, in MiB above the resident memory before it."""
    ids = np.random.default_rng(0).integers(1000, 20_000, (1, TOKENS)).astype(np.int32)
    positions, zeros = np.arange(TOKENS, dtype=np.int32)[None], np.zeros((1, TOKENS), np.int32)
    batch = Batch(ids, zeros, positions, zeros)
    if kind == "eager":
        import torch
        from transformers import AutoModelForQuestionAnswering

        torch.set_num_threads(2)
        network = AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager").eval()

        def read(captured: bool):
            with torch.inference_mode():
                return network(input_ids=torch.from_numpy(ids).long(), output_attentions=captured)
    else:
        backend, _ = load_backend(name, open_checkpoint(folder), device="cpu", dtype="fp32")
        capture = Capture(tuple(range(24)), (tuple(range(100, 100 + ROWS[kind])),)) if ROWS[kind] else None

        def read(captured: bool):
            return backend.forward(batch, capture=capture if captured else None)

    first = read(False)
    ctypes.CDLL(None).malloc_trim(0)  # what the first reading freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = peak_mib()
    second = read(True)
    found = peak_mib() - before
    if kind != "eager":
        np.testing.assert_allclose(second.start, first.start, rtol=0, atol=1e-4)
        assert capture is None or second.attention[23][0].shape == (16, ROWS[kind], TOKENS)
    return found


def run_child(folder: Path, name: str, kind: str) -> float:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", str(folder), name, kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default="torch,openvino,numpy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "BACKEND", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(*arguments.measure))
        return
    from side_by_side import make_bert_large_shape, processor

    names = arguments.backends.split(",")
    with tempfile.TemporaryDirectory() as folder:
        make_bert_large_shape(Path(folder))
        rows = {}
        for name in names:
            kinds = [kind for kind in ROWS if kind != "eager" or name == "torch"]
            peaks = {kind: [run_child(Path(folder), name, kind) for _ in range(arguments.rounds)] for kind in kinds}
            plain = statistics.median(peaks["forward"])
            rows[name] = {
                kind: {"peak_mib": peaks[kind], "above_forward_mib": round(statistics.median(peaks[kind]) - plain, 1)}
                for kind in kinds
            }
            print(name, {kind: row["above_forward_mib"] for kind, row in rows[name].items()}, flush=True)
    record = {
        **describe_run(("numpy", "torch", "transformers", "openvino")),
        "processor": processor(),
        "shape": "24 layers, 16 heads, hidden size 1024, random weights, fp32",
        "tokens": TOKENS,
        "limit_mib": LIMIT_MIB,
        "backends": rows,
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
