"""Questions per second, end to end, of spanqa and its peers: interleaved, equal threads and weights, F1 beside each.

    SPANQA_DATA=... python benchmarks/side_by_side.py --questions 2000 --rounds 4 --out benchmarks/results/side-by-side.json

Each contender lives in a process of its own and idles while another runs. In each round every contender answers the same
slice of the questions, so that what disturbs the machine disturbs all. transformers 4.57.6 needs its environment, made by
scripts/make_hf4_env. The table is printed; the JSON is the record.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from spanqa import __version__, read_squad
from spanqa.evaluate import score_squad

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "src" / "spanqa" / "models" / "spanqa-mini"
HF4 = ROOT / ".venv-hf4" / "bin" / "python"


def contenders(threads: int, int8: Path | None) -> dict[str, dict]:
    model = str(MODEL)
    found = {
        f"transformers 4.57.6 pipeline, batch {size}": {
            "kind": "transformers_pipeline",
            "batch_size": size,
            "model": model,
        }
        for size in (1, 8, 32)
    }
    found["transformers 5 loop, padded to 384"] = {"kind": "transformers_loop", "fixed": True, "model": model}
    found["transformers 5 loop, dynamic padding"] = {"kind": "transformers_loop", "fixed": False, "model": model}
    for backend, dtype in (
        ("openvino", "fp32"), ("openvino", "bf16"), ("torch", "fp32"), ("torch", "bf16"), ("onnx", "fp32"),
        ("jax", "fp32"), ("tensorflow", "fp32"),
    ):  # fmt: skip
        found[f"spanqa {backend} {dtype}"] = {
            "kind": "spanqa_reader",
            "backend": backend,
            "dtype": dtype,
            "model": model,
        }
    if int8 is not None:
        found["spanqa openvino int8"] = {
            "kind": "spanqa_reader",
            "backend": "openvino",
            "dtype": "int8",
            "model": str(int8),
        }
    for dtype in ("float32", "bfloat16"):
        found[f"torch.matmul {dtype}, GFLOP/s"] = {"kind": "matmul", "dtype": dtype}
    return {name: {**options, "threads": threads} for name, options in found.items()}


def start(options: dict) -> subprocess.Popen:
    python = str(HF4) if options["kind"] == "transformers_pipeline" else sys.executable
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(options["threads"]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [python, str(ROOT / "benchmarks" / "contender.py"), json.dumps(options)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def ask(process: subprocess.Popen, questions: list) -> dict:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"questions": questions}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a contender ended with {process.wait()}: {process.args}")
    return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="words, with commas, one of which a contender's name must hold")
    parser.add_argument("--int8", type=Path, help="a folder written by `spanqa quantize`")
    parser.add_argument("--shuffle", action="store_true", help="random order instead of the file's")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = Path(os.environ["SPANQA_DATA"]) / "squad-v2.0-dev.json.gz"
    examples = read_squad(data)
    if arguments.shuffle:
        examples = random.Random(0).sample(examples, len(examples))
    examples = examples[: arguments.questions]
    words = arguments.only.split(",")
    chosen = {
        name: options
        for name, options in contenders(arguments.threads, arguments.int8).items()
        if any(word in name for word in words) and (options["kind"] != "transformers_pipeline" or HF4.exists())
    }
    processes = {name: start(options) for name, options in chosen.items()}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    answers: dict[str, list[str]] = {name: [] for name in chosen}
    warm = [(example.question, example.passage) for example in examples[:64]]
    for process in processes.values():
        ask(process, warm)
    step = -(-len(examples) // arguments.rounds)
    slices = [examples[i : i + step] for i in range(0, len(examples), step)]
    turns = [
        (piece, name) for r, piece in enumerate(slices) for name in random.Random(r).sample(list(chosen), len(chosen))
    ]
    for piece, name in track(turns, "rounds", console=Console(stderr=True)):
        reply = ask(processes[name], [(example.question, example.passage) for example in piece])
        seconds[name].append(reply["seconds"])
        answers[name] += reply["answers"]
    for process in processes.values():
        process.stdin.close()
        process.wait()
    report(arguments, examples, slices, seconds, answers)


def report(arguments, examples, slices, seconds, answers) -> None:
    rows = {}
    for name, times in seconds.items():
        if "matmul" in name:
            rates = sorted(float(rate) for rate in answers[name])
            rows[name] = {"gflop_per_s": rates[len(rates) // 2]}
            continue
        found = dict(zip((example.id for example in examples), answers[name], strict=True))
        rates = [len(piece) / time for piece, time in zip(slices, times, strict=True)]
        rows[name] = {
            "questions_per_s": len(examples) / sum(times),
            "by_round": [round(rate, 2) for rate in rates],
            "f1": score_squad(examples, found)["f1"],
        }
    peers = [row["questions_per_s"] for name, row in rows.items() if "pipeline" in name]
    best = max(peers, default=None)
    table = Table("", "questions/s", "x the best pipeline", "F1", "slowest and fastest round", box=None, padding=(0, 2))
    for name, row in rows.items():
        if "gflop_per_s" in row:
            table.add_row(name, f"{row['gflop_per_s']:.0f}", "", "", "")
            continue
        if best:
            row["times_best_pipeline"] = row["questions_per_s"] / best
        ratio = f"{row['times_best_pipeline']:.2f}" if best else ""
        spread = f"{min(row['by_round'])} - {max(row['by_round'])}"
        table.add_row(name, f"{row['questions_per_s']:.1f}", ratio, f"{row['f1']:.2f}", spread)
    Console(width=140).print(table)
    if arguments.out:
        record = {
            "command": " ".join(["python", "benchmarks/side_by_side.py", *sys.argv[1:]]),
            "questions": len(examples),
            "threads": arguments.threads,
            "processor": processor(),
            "versions": {
                "spanqa": __version__,
                **{name: version(name) for name in ("numpy", "openvino", "torch", "transformers")},
            },
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            flags = Path("/proc/cpuinfo").read_text()
            extra = [flag for flag in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if f" {flag}" in flags]
            return f"{line.split(':')[1].strip()} ({', '.join(extra)}), {os.cpu_count()} cores"
    return platform.processor()


if __name__ == "__main__":
    main()
