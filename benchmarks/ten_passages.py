"""Which of ten passages holds the answer: ranking on one scale, compared with transformers 4.57.6's score.

    SPANQA_DATA=... python benchmarks/ten_passages.py --out benchmarks/results/ten-passages.json

The questions are answerable ones of squad-v2.0-dev. Each is asked of its own paragraph and nine others of the same article,
drawn by seed. The benchmark counts how often the right paragraph comes first. transformers reads each paragraph alone (with
handle_impossible_answer, as for SQuAD 2.0), and its paragraphs are ranked by its score, empty answers last. The bound counts
how often one of the ten best spans lies in the right paragraph: no ranking of these spans can do better.
"""

import argparse
import json
import os
import random
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import HF4, MINI, processor, start

from spanqa import Reader, __version__, read_squad
from spanqa.squad import Example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tasks = choose(arguments.questions)
    reader = Reader.load("spanqa-mini")
    first = {
        "spanqa rank": 0,
        "spanqa, probability of each passage alone": 0,
        "right answer among the ten best places": 0,
    }
    for example, passages, right in track(tasks, "spanqa", console=Console(stderr=True)):
        answers = reader.rank(example.question, passages, 10, no_answer="off")
        first["spanqa rank"] += answers[0].passage_index == right
        alone = [reader.ask(example.question, passage, no_answer="off").probability for passage in passages]
        first["spanqa, probability of each passage alone"] += max(range(len(alone)), key=alone.__getitem__) == right
        first["right answer among the ten best places"] += any(answer.passage_index == right for answer in answers)
    if HF4.exists():
        first["transformers 4.57.6 score"] = peer(tasks, arguments.threads)
    shares = {name: count / len(tasks) for name, count in first.items()}
    table = Table("", "right passage first", box=None, padding=(0, 2))
    for name, share in shares.items():
        table.add_row(name, f"{share:.1%}")
    Console(width=120).print(table)
    if arguments.out:
        record = {
            "command": shlex.join(["python", "benchmarks/ten_passages.py", *sys.argv[1:]]),
            "questions": len(tasks),
            "model": {"name": "spanqa-mini", "sha256": reader.checkpoint.weights.sha256},
            "backend": f"{reader.backend.name} {reader.backend.dtype}",
            "processor": processor(),
            "versions": {"spanqa": __version__},
            "shares": shares,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def choose(count: int) -> list[tuple[Example, list[str], int]]:
    """Questions, their ten passages, and the index of the right one."""
    draw = random.Random(0)
    examples = read_squad(Path(os.environ["SPANQA_DATA"]) / "squad-v2.0-dev.json.gz")
    articles: dict[str, list[str]] = {}
    for example in examples:
        paragraphs = articles.setdefault(example.title, [])
        if example.passage not in paragraphs:
            paragraphs.append(example.passage)
    answerable = [example for example in examples if example.answers and len(articles[example.title]) >= 10]
    tasks = []
    for example in draw.sample(answerable, count):
        others = draw.sample([passage for passage in articles[example.title] if passage != example.passage], 9)
        index = draw.randrange(10)
        tasks.append((example, [*others[:index], example.passage, *others[index:]], index))
    return tasks


def peer(tasks: list[tuple[Example, list[str], int]], threads: int) -> int:
    """How often the pipeline's score puts the right passage first."""
    process = start({"kind": "transformers_pipeline", "batch_size": 8, "model": str(MINI), "scores": True}, threads)
    assert process.stdin is not None and process.stdout is not None
    right_ones = 0
    for example, passages, right in track(tasks, "transformers", console=Console(stderr=True)):
        pairs = [(example.question, passage) for passage in passages]
        process.stdin.write(json.dumps({"questions": pairs}) + "\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline())["answers"]
        keys = [(bool(answer), score) for answer, score in found]
        right_ones += max(range(len(keys)), key=keys.__getitem__) == right
    process.stdin.close()
    process.wait()
    return right_ones


if __name__ == "__main__":
    main()
