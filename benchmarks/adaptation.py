"""Does adapting to plain text help, and what do masks cost? Token against whole-word masking, from two starting points.

    SPANQA_DATA=... python benchmarks/adaptation.py --base-model BASE --out benchmarks/results/adaptation.json

The texts are the passages of the training parts of PolicyQA and FairytaleQA, split as in few_labels.py. Adapted are the base model of
spanqa-mini, which never saw a question (BASE is the folder that `scripts/train_mini` leaves) and is then fine-tuned on SQuAD questions,
and spanqa-mini itself, whose head is kept. Each is then fine-tuned on a few labels of the domain. The masked-word accuracy is that on
texts that were held out, on the same hidden words for every model of a domain; F1 is that on the domain's questions, before and after the
labels. Whole-word and token masking take equal steps.

`cost` is the time of masking and packing, as a share of that of a step.

Each finished part is written to WORK/parts.json at once, and a run that was stopped continues. With other sizes, choose another --work.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from few_labels import questions, settings_for
from rich.console import Console
from rich.table import Table
from side_by_side import MINI, processor

from spanqa import __version__, read_squad
from spanqa.answers import AnswerSettings
from spanqa.backends.torch_networks import build_masked_lm
from spanqa.checkpoint import open_checkpoint
from spanqa.files import write_json
from spanqa.squad import Example
from spanqa.train.adapt import USUAL_LENGTH, adapt
from spanqa.train.corpus import Corpus, CorpusSettings, text_files, write_corpus
from spanqa.train.curve import learning_curve
from spanqa.train.labels import answer_length_tokens
from spanqa.train.masked_lm import MaskedWords, predict_only_chosen
from spanqa.train.masking import mask_tokens
from spanqa.train.run import train
from spanqa.train.settings import preset
from spanqa.train.work import prepared

MASKINGS = ("none", "token", "word")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-model", type=Path, help="without it, only spanqa-mini itself is adapted")
    parser.add_argument("--data", default="policyqa,fairytaleqa")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="of adapting")
    parser.add_argument("--questions", type=int, default=10_000, help="of SQuAD, for the base model")
    parser.add_argument("--labels", type=int, default=100, help="of the domain")
    parser.add_argument("--dev", type=int, default=1000, help="questions of the domain to measure on")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cost-steps", type=int, default=20)
    parser.add_argument("--parts", default="cost,help")
    parser.add_argument(
        "--work", type=Path, default=Path("adaptation.work"), help="kept, so that a stopped run can continue"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    parts = Parts(arguments.work / "parts.json", sizes(arguments))
    if "cost" in arguments.parts:
        parts.do("cost", lambda: cost(arguments))
    if "help" in arguments.parts:
        for name in arguments.data.split(","):
            domain = Domain(name, arguments)
            for start, model in starts(arguments).items():
                for seed in range(arguments.seeds):
                    for masking in MASKINGS:
                        key = f"{name}, from {start}, {masking}, {seed}"
                        parts.do(key, lambda: measured(domain, start, model, masking, seed, arguments))  # noqa: B023
    if arguments.out:
        write_json(arguments.out, record(parts, arguments))
    show(parts.done)


class Parts:
    """The finished parts of the work, in a file."""

    def __init__(self, path: Path, sizes: dict) -> None:
        self.path, self.sizes = path, sizes
        stored = json.loads(path.read_text()) if path.exists() else {"sizes": sizes, "done": {}}
        if stored["sizes"] != sizes:
            sys.exit(f"{path} holds the work of other sizes: {stored['sizes']}. Choose another --work.")
        self.done: dict = stored["done"]

    def do(self, key: str, work: Callable[[], dict]) -> None:
        """Do a part, unless it is done, and write it down."""
        if key not in self.done:
            begin = time.perf_counter()
            found = work()
            self.done[key] = found | {"seconds": round(time.perf_counter() - begin, 1)}
            write_json(self.path, {"sizes": self.sizes, "done": self.done})
            print(f"{key}: {self.done[key]}", file=sys.stderr)


def sizes(arguments: argparse.Namespace) -> dict:
    return {name: getattr(arguments, name) for name in ("steps", "questions", "labels", "dev", "batch_size", "dtype")}


def starts(arguments: argparse.Namespace) -> dict[str, Path]:
    return {**({"base": arguments.base_model} if arguments.base_model else {}), "mini": MINI}


class Domain:
    """The questions of a domain, and its texts in a file."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self.train, dev = questions(name)
        self.dev = random.Random(0).sample(dev, min(arguments.dev, len(dev)))
        self.longest = max(30, answer_length_tokens(self.train, open_checkpoint(MINI).tokenizer))
        self.texts = arguments.work / f"{name}.jsonl"
        passages = dict.fromkeys(example.passage for example in self.train)
        self.texts.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))


def measured(
    domain: Domain, start: str, model: Path, masking: str, seed: int, arguments: argparse.Namespace
) -> dict[str, object]:
    """Adapt a model to a domain, let it learn to answer, and return how it does."""
    found: dict[str, object] = {}
    folder = arguments.work / f"{domain.name}-{start}-{masking}-{seed}"
    adapted = folder.with_name(f"{folder.name}-adapted")
    if masking != "none":
        if not adapted.exists():
            adapt(
                domain.texts, adapted, model=model, masking=masking, seed=seed, max_steps=arguments.steps,
                batch_size=arguments.batch_size, dtype=arguments.dtype, resume=adapted.with_name(f"{adapted.name}.training").is_dir(),
            )  # fmt: skip
        notes = json.loads((adapted / "spanqa.json").read_text())["training"]
        found["predictions"] = notes["found"]
        found["windows_per_s"] = notes["windows_per_s"]
        model = adapted
    if start == "base":  # what was not adapted to a domain learned to answer for all of them
        folder = folder.with_name(f"none-{seed}") if masking == "none" else folder
        model = learned(model, folder, seed, arguments)
    curve = arguments.work / f"curve-{domain.name}-{start}-{masking}-{seed}"
    points = learning_curve(
        (0, arguments.labels),
        (seed,),
        domain.train,
        domain.dev,
        model,
        curve,
        settings_for,
        answers=AnswerSettings(domain.longest),
    )
    found["f1"] = {str(point.questions): point.mean for point in points}
    if masking != "none":
        for done in (adapted, folder):
            shutil.rmtree(done, ignore_errors=True)
    return found


def learned(model: Path, folder: Path, seed: int, arguments: argparse.Namespace) -> Path:
    """Return a model that has learned to answer from questions of SQuAD, the same ones for every model."""
    if not folder.exists():
        data = Path(os.environ["SPANQA_DATA"])
        every = read_squad(data / "squad-v2.0-train-rebuilt.json.gz")
        chosen = random.Random(0).sample(every, arguments.questions)
        settings = preset(arguments.questions, 384)
        settings = type(settings)(
            **{name: getattr(settings, name) for name in ("epochs", "learning_rate", "batch_size", "dropout")},
            seed=seed, evaluations=1, dtype=arguments.dtype,
        )  # fmt: skip
        few: list[Example] = random.Random(1).sample(read_squad(data / "squad-v2.0-dev.json.gz"), 200)
        resume = folder.with_name(f"{folder.name}.training").is_dir()
        train(chosen, few, model, folder, settings, resume=resume)
    return folder


def cost(arguments: argparse.Namespace) -> dict[str, object]:
    """Return how long masking and packing take, in seconds for a step, and the whole step."""
    base = open_checkpoint(arguments.base_model or MINI)
    folder = arguments.work / "cost"
    shutil.rmtree(folder, ignore_errors=True)
    passages = dict.fromkeys(e.passage for e in read_squad(Path(os.environ["SPANQA_DATA"]) / "squad-v2.0-dev.json.gz"))
    texts = arguments.work / "cost.jsonl"
    texts.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    template = base.tokenizer.text_template
    room = USUAL_LENGTH - template.special_tokens
    begin = time.perf_counter()
    write_corpus(text_files([str(texts)]), base.tokenizer, CorpusSettings(room, "text"), folder)
    corpus = Corpus(folder)
    reading = corpus.report.tokens / (time.perf_counter() - begin)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, _ = build_masked_lm(base, torch.float32)
    predict_only_chosen(network)
    objective = MaskedWords(prepared(network, base, None), template, mask_tokens(base.tokenizer, "the model"))
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    half = arguments.dtype == "bf16" or (arguments.dtype == "auto" and device == "cuda")
    order = np.random.default_rng(0).permutation(len(corpus))
    seconds: list[tuple[float, float]] = []
    for step in range(arguments.cost_steps + 2):
        numbers = order[np.arange(step * arguments.batch_size, (step + 1) * arguments.batch_size) % len(order)]
        begin = time.perf_counter()
        batch = objective.collate([corpus[int(number)] for number in numbers])
        masked = time.perf_counter()
        moved = {
            part: {name: each.to(device) if torch.is_tensor(each) else each for name, each in batch[part].items()}
            for part in ("inputs", "targets")
        }
        with torch.autocast(device, torch.bfloat16, half):
            output = network(**moved["inputs"])
        loss = objective.loss(output, moved)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append((masked - begin, time.perf_counter() - begin))
    masks, whole = (statistics.median(each) for each in zip(*seconds[2:], strict=True))
    return {
        "masks_and_packing_ms": 1000 * masks, "step_ms": 1000 * whole, "share_percent": 100 * masks / whole,
        "tokens_per_s_to_read_texts": reading, "device": device, "bf16": half,
    }  # fmt: skip


def record(parts: Parts, arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "command": shlex.join(["python", "benchmarks/adaptation.py", *sys.argv[1:]]),
        **parts.sizes,
        "model": {"name": "spanqa-mini", "sha256": open_checkpoint(MINI).weights.sha256},
        "processor": processor(),
        "versions": {"spanqa": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "parts": parts.done,
    }


def show(done: dict) -> None:
    """Show the mean over the seeds, and the standard deviation."""
    table = Table("", "masking", "masked words, %", "F1 before labels", "F1 after", box=None, padding=(0, 2))
    rows: dict[tuple[str, str], list[dict]] = {}
    for key, found in done.items():
        if key != "cost":
            name, start, masking, _ = key.split(", ")
            rows.setdefault((f"{name}, {start}", masking), []).append(found)
    for (name, masking), found in rows.items():
        cells = [spread([last(each["predictions"]) for each in found if "predictions" in each])]
        labels = sorted(found[0]["f1"], key=int)
        cells += [spread([each["f1"][size] for each in found]) for size in labels]
        table.add_row(name, masking, *cells)
    console = Console(width=140)
    console.print(table)
    if "cost" in done:
        console.print(
            {name: round(each, 2) if isinstance(each, float) else each for name, each in done["cost"].items()}
        )


def last(predictions: dict) -> float:
    return predictions[max(predictions, key=int)]["words"]


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    main()
