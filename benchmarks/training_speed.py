"""Training speed in windows per second: flat rows against packed rows, dynamic padding, and padding to 384.

    SPANQA_DATA=... python benchmarks/training_speed.py --out benchmarks/results/training-speed.json

One copy of a model per layout trains on the same windows. The copies take turns, one step each in random order, so that other work
on the machine disturbs all of them alike. A step is that of `spanqa train`: batch, forward, loss, backward, clipping, AdamW.
"""

import argparse
import json
import os
import random
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import MINI, processor
from transformers import AutoModelForQuestionAnswering

from spanqa import __version__, read_squad
from spanqa.backends import torch_attention
from spanqa.checkpoint import open_checkpoint
from spanqa.train.objective import InputFormat, QuestionAnswering
from spanqa.train.targets import make_training_windows
from spanqa.windows import WindowSettings

LAYOUTS = {
    "flat": ("flat", None),
    "dynamic padding": ("padded", None),
    "packed, 512": ("packed", 512),
    "padded to 384": ("padded", 384),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    examples = read_squad(Path(os.environ["SPANQA_DATA"]) / "squad-v2.0-train-rebuilt.json.gz")
    examples = random.Random(0).sample(examples, (arguments.steps + 2) * arguments.batch_size)
    items, _ = make_training_windows(examples, open_checkpoint(MINI).tokenizer, WindowSettings())
    random.Random(0).shuffle(items)
    runs = {name: Run(layout, cols, arguments) for name, (layout, cols) in LAYOUTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, list[float]] = {name: [] for name in runs}
    for step in track(range(arguments.steps + 2), "steps", console=Console(stderr=True)):
        windows = items[step * arguments.batch_size : (step + 1) * arguments.batch_size]
        for name in random.Random(step).sample(list(runs), len(runs)):
            begin = time.perf_counter()
            losses[name].append(runs[name].step(windows))
            seconds[name].append(time.perf_counter() - begin)
    rows = {
        name: {"windows_per_s": arguments.steps * arguments.batch_size / sum(times[2:]), "last_loss": losses[name][-1]}
        for name, times in seconds.items()
    }
    table = Table("", "windows/s", "flat is faster by", "last loss", box=None, padding=(0, 2))
    for name, row in rows.items():
        row["flat_is_faster_by"] = rows["flat"]["windows_per_s"] / row["windows_per_s"]
        table.add_row(name, *(f"{row[key]:.4g}" for key in ("windows_per_s", "flat_is_faster_by", "last_loss")))
    Console(width=120).print(table)
    if arguments.out:
        record = {
            "command": shlex.join(["python", "benchmarks/training_speed.py", *sys.argv[1:]]),
            **{name: getattr(arguments, name) for name in ("steps", "batch_size", "dtype", "threads", "device")},
            "useful_tokens_per_window": sum(map(len, items)) / len(items),
            "processor": processor(),
            "versions": {"spanqa": __version__, **{name: version(name) for name in ("torch", "transformers")}},
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


class Run:
    """One copy of the model, its optimizer, and its layout."""

    def __init__(self, layout: str, cols: int | None, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.objective, self.arguments = QuestionAnswering(InputFormat(layout, cols=cols)), arguments
        changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = AutoModelForQuestionAnswering.from_pretrained(MINI, dtype=torch.float32, **changes)
        if layout == "flat":
            model.set_attn_implementation(torch_attention.NAME)
        self.model = model.to(arguments.device).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(self, windows: list) -> float:
        device = self.arguments.device
        batch = {
            part: {name: value.to(device) if torch.is_tensor(value) else value for name, value in tensors.items()}
            for part, tensors in self.objective.collate(windows).items()
        }
        with torch.autocast(device.split(":")[0], torch.bfloat16, self.arguments.dtype == "bf16"):
            output = self.model(**batch["inputs"])
        loss = self.objective.loss(output, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


if __name__ == "__main__":
    main()
