"""Questions per second, end to end, of spanqa and its peers: interleaved, equal threads and weights, F1 beside each.

    SPANQA_DATA=... python benchmarks/side_by_side.py --out benchmarks/results/side-by-side.json

Each contender lives in a process of its own and idles while another runs. In each round every contender answers the same
slice of the questions, so that what disturbs the machine disturbs all. transformers 4.57.6 needs its environment, made by
scripts/make_hf4_env. The table is printed; the JSON is the record.

Work is counted on useful tokens: the floating-point operations of the windows of all questions, without padding, as
layers * tokens * (2 * (4 h^2 + 2 h f) + 4 h * tokens). What a contender computes beyond that counts against it.
"""

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from spanqa import Reader, __version__, read_squad
from spanqa.evaluate import score_squad
from spanqa.files import describe
from spanqa.squad import Example
from spanqa.windows import make_windows

ROOT = Path(__file__).parents[1]
MINI = ROOT / "src" / "spanqa" / "models" / "spanqa-mini"
FOUND = subprocess.run([ROOT / "scripts" / "make_hf4_env", "--find"], capture_output=True, text=True).stdout.strip()
HF4 = Path(FOUND or "no environment of transformers 4.57.6") / "bin" / "python"
VERSIONS = ("numpy", "tokenizers", "openvino", "torch", "transformers", "onnxruntime", "jax", "tensorflow-cpu", "nncf")


def contenders(model: Path, int8: Path | None) -> dict[str, dict]:
    """What is compared, by the name it has in the table."""
    found: dict[str, dict] = {
        f"transformers 4.57.6 pipeline, batch {size}": {"kind": "transformers_pipeline", "batch_size": size}
        for size in (1, 8, 32)
    }
    found["transformers 5 loop, padded to 384"] = {"kind": "transformers_loop", "fixed": True}
    found["transformers 5 loop, dynamic padding"] = {"kind": "transformers_loop", "fixed": False}
    ours = [("openvino", "fp32", None), ("openvino", "bf16", None), ("openvino", "bf16", "packed")]
    ours += [("torch", dtype, layout) for dtype in ("fp32", "bf16") for layout in ("padded", "flat")]
    ours += [(backend, "fp32", None) for backend in ("onnx", "jax", "tensorflow")]
    for backend, dtype, layout in ours:
        name = " ".join(["spanqa", backend, dtype, layout or ""]).strip()
        found[name] = {"kind": "spanqa_reader", "backend": backend, "dtype": dtype, "layout": layout}
    for dtype in ("fp32", "bf16"):
        found[f"openvino {dtype}, forward pass alone"] = {
            "kind": "spanqa_forward", "backend": "openvino", "dtype": dtype, "layout": None
        }  # fmt: skip
    for options in found.values():
        options["model"] = str(model)
    if int8 is not None:
        of_int8 = {"backend": "openvino", "dtype": "int8", "layout": None, "model": str(int8)}
        found["spanqa openvino int8"] = {"kind": "spanqa_reader", **of_int8}
        found["openvino int8, forward pass alone"] = {"kind": "spanqa_forward", **of_int8}
    for dtype, torch_dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
        found[f"torch.matmul {dtype}"] = {"kind": "matmul", "dtype": torch_dtype}
    return found


def start(options: dict, threads: int) -> subprocess.Popen:
    python = str(HF4) if options["kind"] == "transformers_pipeline" else sys.executable
    quiet = {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [python, str(ROOT / "benchmarks" / "contender.py"), json.dumps({**options, "threads": threads})]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **quiet, "OMP_NUM_THREADS": str(threads)},
    )


def ask(process: subprocess.Popen, questions: list[Example]) -> dict:
    assert process.stdin is not None and process.stdout is not None
    pairs = [(example.question, example.passage) for example in questions]
    process.stdin.write(json.dumps({"questions": pairs}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a contender ended with {process.wait()}: {process.args}")
    return json.loads(line)


def choose_examples(data: str, questions: int, shuffle: bool) -> list[Example]:
    """The questions to answer: of squad-v2.0-dev, or, for `long`, on the pages of timeqa-human over 8,000 words.

    Each long page gets its own questions and, where these are fewer than its share, questions of other pages, which it
    does not answer.
    """
    folder = Path(os.environ["SPANQA_DATA"])
    pool = random.Random(0)
    if data == "squad":
        examples = read_squad(folder / "squad-v2.0-dev.json.gz")
        return (pool.sample(examples, len(examples)) if shuffle else examples)[:questions]
    everything = read_squad(folder / "timeqa-human.json.gz")
    pages: dict[str, list[Example]] = {}
    for example in everything:
        if len(example.passage.split()) > 8000:
            pages.setdefault(example.passage, []).append(example)
    chosen = []
    for passage, own in pages.items():
        share = questions // len(pages)
        others = [example for example in everything if example.passage != passage]
        asked = own[:share] + [
            Example(f"{example.id}@{own[0].id}", example.question, passage, (), example.title)
            for example in pool.sample(others, max(0, share - len(own)))
        ]
        chosen += asked
    return pool.sample(chosen, len(chosen)) if shuffle else chosen


def work(model: Path, examples: list[Example]) -> dict[str, float]:
    """Windows, useful tokens, and billions of floating-point operations of the questions."""
    reader = Reader.load(model, backend="numpy")
    config = reader.checkpoint.encoder
    lengths = window_lengths(reader, examples)
    hidden, inner = config.hidden_size, config.intermediate_size
    each = (config.layers * n * (2 * (4 * hidden**2 + 2 * hidden * inner) + 4 * hidden * n) for n in lengths)
    return {"windows": len(lengths), "tokens": sum(lengths), "gflop": sum(each) / 1e9}


def window_lengths(reader: Reader, examples: Iterable[Example]) -> list[int]:
    """The tokens of each window of the questions."""
    tokenizer = reader.checkpoint.tokenizer
    return [
        len(window)
        for example in examples
        for window in make_windows(
            tokenizer.encode(example.question), tokenizer.encode_passage(example.passage), tokenizer.template, reader.windows
        )
    ]  # fmt: skip


def make_bert_large_shape(folder: Path) -> None:
    """Write a BERT of 24 layers and 1,024 hidden units with random weights, and spanqa-mini's tokenizer."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    BertForQuestionAnswering(config).save_pretrained(folder)
    for name in ("tokenizer.json", "vocab.txt"):
        shutil.copyfile(MINI / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("spanqa-mini", "bert-large"), default="spanqa-mini")
    parser.add_argument("--data", choices=("squad", "long"), default="squad")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="words, with commas, one of which a contender's name must hold")
    parser.add_argument("--int8", type=Path, help="a folder written by `spanqa quantize`")
    parser.add_argument("--shuffle", action="store_true", help="random order instead of the file's")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not HF4.exists():
        print("without transformers 4.57.6: run scripts/make_hf4_env for its rows", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        model = MINI
        if arguments.shape == "bert-large":
            model = Path(temporary)
            make_bert_large_shape(model)
        run(arguments, model)


def run(arguments: argparse.Namespace, model: Path) -> None:
    examples = choose_examples(arguments.data, arguments.questions, arguments.shuffle)
    chosen = {
        name: options
        for name, options in contenders(model, arguments.int8).items()
        if any(word in name for word in arguments.only.split(","))
        and (options["kind"] != "transformers_pipeline" or HF4.exists())
    }
    processes = {name: start(options, arguments.threads) for name, options in chosen.items()}
    first: dict[str, float] = {}
    for name, process in processes.items():
        compiles = chosen[name].get("backend") in ("jax", "tensorflow")  # for each shape of a batch
        first[name] = ask(process, examples if compiles else examples[: max(2, len(examples) // 40)])["seconds"]
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    answers: dict[str, list[str]] = {name: [] for name in chosen}
    step = -(-len(examples) // arguments.rounds)
    slices = [examples[i : i + step] for i in range(0, len(examples), step)]
    turns = [
        (piece, name) for r, piece in enumerate(slices) for name in random.Random(r).sample(list(chosen), len(chosen))
    ]
    for piece, name in track(turns, "rounds", console=Console(stderr=True)):
        reply = ask(processes[name], piece)
        seconds[name].append(reply["seconds"])
        answers[name] += reply["answers"]
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    total = work(model, examples)
    rows = measure(chosen, examples, [len(piece) for piece in slices], total, seconds, answers)
    for name, options in chosen.items():
        if options.get("backend") in ("jax", "tensorflow"):
            rows[name]["first_pass_seconds"] = first[name]  # over all questions, compiling included
    if arguments.shape == "bert-large":
        for row in rows.values():
            row.pop("f1", None)  # of random weights, it says nothing
    show(rows)
    if arguments.out:
        record = {
            "command": shlex.join(["python", "benchmarks/side_by_side.py", *sys.argv[1:]]),
            "shape": arguments.shape,
            "model": describe(model / "model.safetensors", (model / "model.safetensors").read_bytes()),
            "data": arguments.data,
            "order": "random" if arguments.shuffle else "as in the file",
            "questions": len(examples),
            **total,
            "threads": arguments.threads,
            "processor": processor(),
            "versions": {"spanqa": __version__, **{name: version(name) for name in VERSIONS}},
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def measure(
    chosen: dict[str, dict],
    examples: list[Example],
    sizes: list[int],
    total: dict[str, float],
    seconds: dict[str, list[float]],
    answers: dict[str, list[str]],
) -> dict[str, dict]:
    """Rates, ratios and F1 of each contender."""
    rows: dict[str, dict] = {}
    for name, times in seconds.items():
        if chosen[name]["kind"] == "matmul":
            rates = sorted(float(rate) for rate in answers[name])
            rows[name] = {"gflop_per_s": rates[len(rates) // 2]}
            continue
        rows[name] = {
            "questions_per_s": len(examples) / sum(times),
            "by_round": [round(size / time, 2) for size, time in zip(sizes, times, strict=True)],
            "gflop_per_s": total["gflop"] / sum(times),
        }
        if answers[name]:
            ids = (example.id for example in examples)
            rows[name]["f1"] = score_squad(examples, dict(zip(ids, answers[name], strict=True)))["f1"]
    best = max((row["questions_per_s"] for name, row in rows.items() if "pipeline" in name), default=None)
    for name, row in rows.items():
        if best and "questions_per_s" in row:
            row["times_best_pipeline"] = row["questions_per_s"] / best
        rate = rows.get(f"torch.matmul {'bf16' if 'bf16' in name else 'fp32'}")
        if rate and "int8" not in name and "questions_per_s" in row:
            row["share_of_matmul"] = row["gflop_per_s"] / rate["gflop_per_s"]
    return rows


def show(rows: dict[str, dict]) -> None:
    heads = ("", "questions/s", "x pipeline", "GFLOP/s", "of matmul", "F1", "slowest - fastest round")
    table = Table(*heads, box=None, padding=(0, 2))
    forms = (("questions_per_s", ".1f"), ("times_best_pipeline", ".2f"), ("gflop_per_s", ".0f"))
    forms += (("share_of_matmul", ".0%"), ("f1", ".2f"))
    for name, row in rows.items():
        cells = [format(row[key], form) if key in row else "" for key, form in forms]
        spread = f"{min(row['by_round'])} - {max(row['by_round'])}" if "by_round" in row else ""
        table.add_row(name, *cells, spread)
    Console(width=150).print(table)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            flags = Path("/proc/cpuinfo").read_text()
            extra = [flag for flag in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if f" {flag}" in flags]
            return f"{line.split(':')[1].strip()} ({', '.join(extra)}), {os.cpu_count()} cores"
    return platform.processor()


if __name__ == "__main__":
    main()
