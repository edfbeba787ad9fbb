"""One question to 20 MB of text: time, memory, and what choosing the most likely windows costs.

    SPANQA_DATA=... python benchmarks/long_text.py --out benchmarks/results/long-text.json

The text is paragraphs of SQuAD 2.0 (development and training set) and whole pages of TimeQA in random order, by seed. Measured are: `spanqa ask`
on it as a whole process, with its memory above that of the same command on a short text; how often the answer of a development question
lies in what is read of the 20 MB; and F1 with and without the choice in 1 MB. `--read-all` also reads all of the 20 MB once.
"""

import argparse
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import track
from side_by_side import processor

from spanqa import Reader, __version__, read_squad
from spanqa.evaluate.metrics import score_squad
from spanqa.extras import package_version
from spanqa.retrieval import LIKELY_WINDOWS, TextIndex
from spanqa.squad import Example

ERRORS = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=500, help="for recall")
    parser.add_argument("--asked", type=int, default=20, help="for F1")
    parser.add_argument("--dtypes", default="bf16,fp32")
    parser.add_argument("--read-all", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    examples = [example for example in read_squad(data("squad-v2.0-dev")) if example.answers]
    text = long_text(int(arguments.megabytes * 1e6))
    chosen = random.Random(0).sample(examples, arguments.questions)
    reader = Reader.load("spanqa-mini")
    record = {
        "command": shlex.join(["python", "benchmarks/long_text.py", *sys.argv[1:]]),
        "megabytes": len(text.encode()) / 1e6,
        "model": {"name": "spanqa-mini", "sha256": reader.checkpoint.weights.sha256},
        "processor": processor(),
        "versions": {
            "spanqa": __version__,
            **{name: package_version(name) for name in ("openvino", "tokenizers", "bm25s")},
        },
        "processes": processes(text, chosen[0].question, arguments),
        "recall": recall(reader, text, chosen),
        "f1": f1(reader, chosen[: arguments.asked]),
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def data(name: str) -> Path:
    return Path(os.environ["SPANQA_DATA"]) / f"{name}.json.gz"


def long_text(size: int) -> str:
    """Return all paragraphs of the development set and so many others that the text has this size, in random order."""
    draw = random.Random(0)
    first = {example.passage for example in read_squad(data("squad-v2.0-dev"))}
    others = {
        example.passage for name in ("squad-v2.0-train-rebuilt", "timeqa-human") for example in read_squad(data(name))
    } - first
    kept, used = sorted(first), sum(len(passage) for passage in first)
    for passage in draw.sample(sorted(others), len(others)):
        if used >= size:
            break
        kept.append(passage)
        used += len(passage) + 2
    draw.shuffle(kept)
    return "\n\n".join(kept)


def processes(text: str, question: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and the peak memory above the loaded model, in MB, of `spanqa ask` as a whole process."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        long, short = Path(folder) / "long.txt", Path(folder) / "short.txt"
        long.write_text(text)
        short.write_text(text[:1000])
        for dtype in arguments.dtypes.split(","):
            runs = [(ask(question, short, dtype), ask(question, long, dtype)) for _ in range(arguments.rounds)]
            found[dtype] = {
                "seconds": statistics.median(run["seconds"] for _, run in runs),
                "by_round": [round(run["seconds"], 2) for _, run in runs],
                "peak_mb_above_short_text": max(run["mb"] - base["mb"] for base, run in runs),
                "short_text_mb": statistics.median(base["mb"] for base, _ in runs),
                "windows": runs[0][1]["windows"],
            }
        if arguments.read_all:
            base, run = ask(question, short, "auto"), ask(question, long, "auto", "--read-all")
            found["read all"] = {
                "seconds": run["seconds"],
                "peak_mb_above_short_text": run["mb"] - base["mb"],
                "windows": run["windows"],
            }
    return found


def ask(question: str, file: Path, dtype: str, *options: str) -> dict[str, Any]:
    """Run the command, and return its seconds, its peak memory in MB and the windows that it read, of how many."""
    command = [sys.executable, "-m", "spanqa", "ask", question, str(file), "--json", "--dtype", dtype, *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    assert process.stdout is not None
    answer = json.loads(process.stdout.read().splitlines()[0])
    return {"seconds": seconds, "mb": peak / 1e6, "windows": [answer["windows_read"], answer["windows_total"]]}


def recall(reader: Reader, text: str, examples: list[Example]) -> dict[str, Any]:
    """How often an answer, in the paragraph that the question was written for, lies in what is read."""
    index = TextIndex(reader, [text])
    found, seconds = 0, []
    for example in track(examples, "recall", console=ERRORS):
        begin = text.index(example.passage)
        start = time.perf_counter()
        choice = index.choose(example.question)
        seconds.append(time.perf_counter() - start)
        [passage] = choice.passages
        starts = {int(start) for start in passage.tokens.offsets[:, 0]}
        found += any(begin + gold.start in starts for gold in example.answers)
    return {
        "questions": len(examples),
        "found": found / len(examples),
        "windows": LIKELY_WINDOWS,
        "first_choice_s": seconds[0],
        "choice_s": statistics.median(seconds[1:]),
    }


def f1(reader: Reader, examples: list[Example]) -> dict[str, Any]:
    """F1 of the questions in 1 MB that holds their paragraphs, with and without the choice."""
    paragraphs = sorted({example.passage for example in examples})
    rest = [part for part in re.split(r"\n\n", long_text(3_000_000)) if part not in paragraphs]
    kept = list(paragraphs)
    while sum(map(len, kept)) < 1_000_000:
        kept.append(rest.pop())
    random.Random(0).shuffle(kept)
    index = TextIndex(reader, ["\n\n".join(kept)])
    texts: dict[str, dict[str, str]] = {"most likely windows": {}, "all windows": {}}
    for example in track(examples, "f1", console=ERRORS):
        for name, options in (
            ("most likely windows", {"max_windows": LIKELY_WINDOWS}),
            ("all windows", {"read_all": True}),
        ):
            choice = index.choose(example.question, **options)
            least = reader.answers.no_answer_threshold
            texts[name][example.id] = reader.ranking(example.question, choice.passages, 1).best(least).text
    return {
        name: {"questions": len(examples), "f1": score_squad(examples, answers)["f1"]}
        for name, answers in texts.items()
    }


if __name__ == "__main__":
    main()
