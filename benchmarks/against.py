"""This source tree against another one (the commit before, say), paired and interleaved.

    python benchmarks/against.py OTHER --out benchmarks/results/against.json [--rounds 9] [--only NAME ...]

OTHER is a checkout. Each contender runs in a process of its own, first from one tree, then from the other, in an order that
alternates from round to round; so the machine's drift meets both alike. The ratio is OTHER's time over ours, with a 95 %
bootstrap interval over the rounds: above 1, we are faster. Same Python, libraries, weights, threads and precision (fp32).
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[1]
DATA = os.environ.get("SPANQA_DATA", "")
FILE_ORDER, OVERHEAD = 400, 3000


# --- the contenders, run inside a process that has one of the two trees on its path; each returns seconds, and answers


def examples() -> list[Any]:
    from spanqa.squad import read_squad

    return read_squad(Path(DATA) / "squad-v2.0-dev.json.gz")


def reader() -> Any:
    from spanqa import Reader

    return Reader.load(backend="openvino", dtype="fp32")


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    value = function(*arguments)
    return time.perf_counter() - begin, value


def stream(asked: list[Any]) -> tuple[float, Any]:
    model = reader()
    pairs = [(each.question, each.passage) for each in asked]
    list(model.ask_many(pairs[:40]))
    seconds, answers = timed(lambda: list(model.ask_many(pairs)))
    return seconds, {each.id: answer.text for each, answer in zip(asked, answers, strict=True)}


def file_order() -> tuple[float, Any]:
    return stream(examples()[:FILE_ORDER])


def random_order() -> tuple[float, Any]:
    return stream(random.Random(0).sample(examples(), FILE_ORDER))


def long_text() -> tuple[float, Any]:
    from spanqa.squad import read_squad

    page = max((each.passage for each in read_squad(Path(DATA) / "timeqa-human.json.gz")), key=len)
    model = reader()
    model.ask("Who was it?", page[:20_000])
    return timed(lambda: [model.ask(question, page).text for question in ("Who was it?", "When was that?")])


def ask_short() -> tuple[float, Any]:
    model = reader()
    text = "The pier was built in 1873 by Anna Kestrel. It is made of granite and 240 metres long."
    for _ in range(20):
        model.ask("Who built the pier?", text)
    return timed(lambda: [model.ask("Who built the pier?", text).text for _ in range(300)])


class InstantBackend:
    """Logits that are there at once: what is left is the work of Python."""

    name, device, dtype, batches_at_once = "instant", "cpu", "fp32", 1
    layouts, batch_tokens = ("padded", "packed", "flat"), 4096

    def __init__(self) -> None:
        self.noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)

    def forward(self, batch: Any, **_: Any) -> Any:
        from spanqa.batches import SpanLogits

        noise = self.noise[: batch.input_ids.size].reshape(batch.input_ids.shape)
        return SpanLogits(noise, noise)

    def logits(self, windows: Any) -> Any:
        """What an engine that answers at once would return."""
        try:
            from spanqa.batches import WindowLogits
        except ImportError:
            from spanqa.spans import WindowLogits
        sizes = (window.stop - window.first for window in windows)
        return [
            WindowLogits(window.first, self.noise[:size], self.noise[1 : size + 1], 0.5, 0.5)
            for window, size in zip(windows, sizes, strict=True)
        ]


class InstantEngine:
    """An engine whose futures are done when it returns them."""

    layout, closed = "padded", False

    def __init__(self, backend: InstantBackend) -> None:
        self.backend = backend

    def submit(self, windows: Any, **_: Any) -> Any:
        future: Any = Future()
        future.set_result(self.backend.logits(windows))
        return future


def instant(*, engine: bool) -> Any:
    """A reader whose backend, or whose whole engine, answers at once."""
    from spanqa import Reader
    from spanqa.checkpoint import open_checkpoint

    backend = InstantBackend()
    model = Reader(open_checkpoint("spanqa-mini"), backend)
    if engine and hasattr(model, "engine"):
        model.engine = InstantEngine(backend)
    elif engine:  # before there was one, these steps were the reader's
        model._run = lambda rows: backend.logits([window for row in rows for window in row])
    return model


def ask_all(model: Any) -> tuple[float, Any]:
    """The median time of seven passes over questions on cached passages."""
    pairs = [(each.question, each.passage) for each in examples()[:OVERHEAD]]
    passes = [timed(lambda: [answer.text for answer in model.ask_many(pairs)]) for _ in range(8)]
    return statistics.median(seconds for seconds, _ in passes[1:]), passes[0][1]


def overhead() -> tuple[float, Any]:
    """Questions on cached passages, with an engine that answers at once."""
    return ask_all(instant(engine=True))


def overhead_with_engine() -> tuple[float, Any]:
    """The same, with the real engine and a backend that answers at once."""
    return ask_all(instant(engine=False))


def rank_five() -> tuple[float, Any]:
    """`rank` over 500 passages with top_k=5, its time over that with top_k=1, with an engine that answers at once."""
    model = instant(engine=True)
    texts = list(dict.fromkeys(each.passage for each in examples()))[:500]
    passages = [model.prepare(text) for text in texts]
    times: dict[int, list[float]] = {1: [], 5: []}
    for _ in range(7):
        for top_k, seconds in times.items():
            seconds.append(timed(lambda k=top_k: model.rank("Who built it?", passages, k, no_answer="off"))[0])
    return statistics.median(times[5]) / statistics.median(times[1]), None


def cold_start() -> tuple[float, Any]:
    """`spanqa ask`, the whole process."""
    command = [sys.executable, "-m", "spanqa", "ask", "Who built the first pier?", "examples/harbour.txt"]
    seconds, done = timed(lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    return seconds, done.stdout.split("  (")[0]


def load_large() -> tuple[float, Any]:
    """Loading BERT-large's shape, random weights in float16."""
    from spanqa import Reader

    return timed(lambda: Reader.load(os.environ["LARGE"], backend="openvino", dtype="fp32"))[0], None


CONTENDERS = {
    each.__name__: each
    for each in (
        file_order,
        random_order,
        long_text,
        ask_short,
        overhead,
        overhead_with_engine,
        rank_five,
        cold_start,
        load_large,
    )
}


def make_large(folder: Path) -> None:
    """A checkpoint of BERT-large's shape with random weights."""
    import shutil

    from safetensors.numpy import save_file

    from spanqa.checkpoint import find
    from spanqa.families import FAMILIES, encoder_config

    config = {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 1024, "num_hidden_layers": 24,
        "num_attention_heads": 16, "intermediate_size": 4096, "max_position_embeddings": 512, "type_vocab_size": 2,
        "hidden_act": "gelu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(find("spanqa-mini") / "tokenizer.json", folder)
    numbers = (0.02 * np.random.default_rng(0).standard_normal(1_000_003, np.float32)).astype(np.float16)
    family = FAMILIES["bert"]
    weights = {
        family.stored_name(name): np.ones(shape, np.float16)
        if name.endswith("norm.weight")
        else np.resize(numbers, shape)
        for name, shape in family.shapes(encoder_config(config)).items()
    }
    save_file(weights, folder / "model.safetensors")


# --- pairing


def run(name: str, tree: Path, large: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "LARGE": str(large)}
    done = subprocess.run(
        [sys.executable, __file__, "--contender", name],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed in {tree.name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def interval(ratios: list[float]) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    draws = generator.choice(np.array(ratios), (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def commit(tree: Path) -> str:
    return subprocess.run(
        ["git", "-C", tree, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    kinds = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{found[0] if found else platform.processor()} ({', '.join(kinds)}), {os.cpu_count()} cores"


def f1(answers: Any) -> float | None:
    if not isinstance(answers, dict):
        return None
    from spanqa.evaluate import score_squad

    asked = [each for each in examples() if each.id in answers]
    return score_squad(asked, answers)["f1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        seconds, answers = CONTENDERS[options.contender]()
        print(json.dumps({"seconds": seconds, "answers": answers}))
        return
    other = options.other.resolve()
    rows: dict[str, Any] = {}
    record = {
        "command": " ".join(["python", "benchmarks/against.py", "OTHER", *map(str, sys.argv[2:])]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor(),
        "versions": {name: version(name) for name in ("numpy", "openvino", "tokenizers")},
        "rounds": options.rounds,
        "commit": commit(HERE),
        "other_commit": commit(other),
        "rows": rows,
    }
    with tempfile.TemporaryDirectory() as large:
        make_large(Path(large))
        for name in options.only:
            ours, theirs = [], []
            for turn in range(options.rounds):
                pair = [(ours, HERE), (theirs, other)]
                for found, tree in pair if turn % 2 else pair[::-1]:
                    found.append(run(name, tree, Path(large)))
            ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
            low, high = interval(ratios)
            rows[name] = {
                "ours": statistics.median(each["seconds"] for each in ours),
                "other": statistics.median(each["seconds"] for each in theirs),
                "ratio": statistics.median(ratios),
                "low": low,
                "high": high,
                "same_answers": ours[0]["answers"] == theirs[0]["answers"],
                "f1": f1(ours[0]["answers"]),
                "other_f1": f1(theirs[0]["answers"]),
            }
            options.out.write_text(json.dumps(record, indent=1) + "\n")  # after each, so that an interruption costs one
            print(f"{name:14s} {rows[name]['ratio']:.3f} ({low:.3f} to {high:.3f})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
