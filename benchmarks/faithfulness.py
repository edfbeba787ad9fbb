"""How faithful and how expensive each method of explanation is, and which thresholds make a verdict.

    SPANQA_DATA=... python benchmarks/faithfulness.py occlusion hierarchical_occlusion --out benchmarks/results/faithfulness.json

On 200 answered and 60 abstained questions of SQuAD 2.0's development set, drawn by a seed from those whose passage has at most
`--words` words. Every method explains the same decision, and is measured by `spanqa.explain.trust` on the same random orders, which
are attributions too: each is measured against the others. From these follow the thresholds of the verdict. Confidence intervals are
by bootstrap over questions.

Each question and method is a stage, kept in `--cache`: a run that is cut goes on where it was. The record is of what is there.
"""

import argparse
import json
import os
import platform
import random
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import processor

from spanqa import Reader, __version__, read_squad
from spanqa.explain.attribute import METHODS
from spanqa.explain.decision import Decision, decide, words_in_play
from spanqa.explain.occlusion import Occluder
from spanqa.explain.trust import Faithfulness, faithfulness, verdict_of
from spanqa.explain.words import Word, lies_in, mask_of
from spanqa.files import describe
from spanqa.progress import silent
from spanqa.squad import Example

DATA = "squad-v2.0-dev.json.gz"
ANSWERED, ABSTAINED = 200, 60
ORDERS = 11
"""Random orders of each question: one more than a verdict uses, because each is measured against the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "methods", nargs="*", help=f"of {', '.join(METHODS)}; without any, the record is made of what was kept"
    )
    parser.add_argument("--model", default="spanqa-mini")
    parser.add_argument("--words", type=int, default=80, help="of the longest passage")
    parser.add_argument("--answered", type=int, default=ANSWERED)
    parser.add_argument("--abstained", type=int, default=ABSTAINED)
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no further stage begins")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "results" / "faithfulness.rows.jsonl")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    path = Path(os.environ["SPANQA_DATA"]) / DATA
    rows = run(arguments, path) if arguments.methods else kept(arguments.cache)
    record = {
        "command": shlex.join(["python", "benchmarks/faithfulness.py", *sys.argv[1:]]),
        "data": describe(path, path.read_bytes()) | {"longest_passage_words": arguments.words},
        "processor": processor(),
        "versions": {"spanqa": __version__, "python": platform.python_version()},
        **summary(rows),
    }
    show(record)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def run(arguments: argparse.Namespace, path: Path) -> list[dict]:
    """Run what the cache lacks, and return all of it."""
    stop = time.monotonic() + 60 * arguments.minutes
    arguments.cache.parent.mkdir(parents=True, exist_ok=True)
    rows = kept(arguments.cache)
    done = {(row["id"], row["method"]) for row in rows}
    needs_torch = any(METHODS[name].needs for name in arguments.methods)
    reader = Reader.load(arguments.model, backend="torch" if needs_torch else "auto", dtype="fp32")
    examples = [example for example in read_squad(path) if len(example.passage.split()) <= arguments.words]
    random.Random(0).shuffle(examples)
    left = {True: arguments.answered, False: arguments.abstained}
    console = Console(stderr=True)
    with arguments.cache.open("a") as file:
        for example in track(list(chosen(reader, examples, left)), "questions", console=console):
            decision = None
            for name in ("random", *arguments.methods):
                if (example.id, name) in done or time.monotonic() > stop:
                    continue
                decision = decision or decide(reader, example.question, example.passage)
                row = {"id": example.id, "answered": bool(decision.answer), "method": name}
                row |= measure(reader, decision, name)
                rows.append(row)
                file.write(json.dumps(rounded(row)) + "\n")
                file.flush()
    return rows


def rounded(value: object) -> object:
    """Return the numbers in a row with seven digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def kept(cache: Path) -> list[dict]:
    return [json.loads(line) for line in cache.read_text().splitlines()] if cache.exists() else []


def chosen(reader: Reader, examples: list[Example], left: dict[bool, int]) -> Iterator[Example]:
    """Yield examples until `left` of them were answered (True) and abstained on (False)."""
    left = dict(left)
    pairs = ((example.question, example.passage) for example in examples)
    for example, answer in zip(examples, reader.ask_many(pairs), strict=True):
        if left[bool(answer)]:
            left[bool(answer)] -= 1
            yield example
        if not any(left.values()):
            return


def measure(reader: Reader, decision: Decision, name: str) -> dict:
    """Return the faithfulness of a method, or of random orders, with the windows and the seconds that its scores took."""
    words = words_in_play(decision)
    occluder = Occluder(reader, decision, mask_of(reader.checkpoint.tokenizer))
    spans = [decision.characters(span) for span in decision.spans]
    free = [i for i, word in enumerate(words) if not lies_in(word, spans)]
    if name == "random":
        draw = random.Random(1)
        orders = [draw.sample(free, len(free)) for _ in range(ORDERS)]
        return {"words": len(words), "orders": [asdict(each) for each in measured(occluder, words, orders)]}
    started = time.process_time()
    found = METHODS[name].run(occluder, words, silent)
    row = {"passes": occluder.passes + found.passes, "cpu_seconds": round(time.process_time() - started, 3)}
    if found.convergence is not None:
        row["convergence"] = asdict(found.convergence)
    order = sorted(free, key=lambda i: (-found.scores[i], i))
    [own] = measured(occluder, words, [order])
    return {**row, "orders": [asdict(own)]}


def measured(occluder: Occluder, words: list[Word], orders: list[list[int]]) -> list[Faithfulness]:
    return faithfulness(occluder, [[words[i] for i in order] for order in orders])


def summary(rows: list[dict]) -> dict:
    """Return, for each method, its faithfulness against random orders, its cost, and how often a random order passes a threshold."""
    chance = {row["id"]: [Faithfulness(**each) for each in row["orders"]] for row in rows if row["method"] == "random"}
    answered = {row["id"]: row["answered"] for row in rows}
    attributions = [each for orders in chance.values() for each in left_out(orders)]
    random_deviations = np.array([deviations for deviations, _ in attributions])
    methods = {}
    for name in ("random", *METHODS):
        found = {row["id"]: row for row in rows if row["method"] == name and row["id"] in chance}
        if not found:
            continue
        methods[name] = {}
        for group, wanted in (("answered", True), ("abstained", False)):
            ids = [each for each in found if answered[each] is wanted]
            if ids:
                methods[name][group] = one(name, ids, found, chance)
    return {
        "questions": {
            "answered": sum(map(answered.get, chance)),
            "abstained": len(chance) - sum(map(answered.get, chance)),
        },
        "random_attributions": {
            "number": len(random_deviations),
            "deviations_at_percentile": {
                str(p): float(np.percentile(random_deviations, p)) for p in (80, 90, 95, 97.5, 99)
            },
            "share_of_verdicts": {
                name: float(np.mean([verdict_of(*each) == name for each in attributions]))
                for name in ("reliable", "weak", "no better than chance")
            },
            "share_at_least": {
                f"{z} deviations and {least}": float(np.mean([d >= z and a >= least for d, a in attributions]))
                for z in (1.0, 1.5, 2.0, 2.5, 3.0)
                for least in (0.0, 0.02, 0.05, 0.1)
            },
        },
        "methods": methods,
    }


def left_out(orders: list[Faithfulness]) -> Iterator[tuple[float, float]]:
    """Yield by how many standard deviations each random order beats the others, and by how much."""
    values = np.array([each.difference for each in orders])
    for i, value in enumerate(values):
        others = np.delete(values, i)
        advantage = float(value - others.mean())
        yield advantage / max(float(others.std(ddof=1)), 1e-6), advantage


def one(name: str, ids: list[str], found: dict[str, dict], chance: dict[str, list[Faithfulness]]) -> dict:
    comprehensiveness, sufficiency, advantage, deviations = [], [], [], []
    for each in ids:
        own = Faithfulness(**found[each]["orders"][0])
        others = np.array([order.difference for order in chance[each][1:]])
        comprehensiveness.append(np.mean(own.comprehensiveness))
        sufficiency.append(np.mean(own.sufficiency))
        advantage.append(own.difference - others.mean())
        deviations.append(advantage[-1] / max(others.std(ddof=1), 1e-6))
    row = {
        "questions": len(ids),
        "comprehensiveness": interval(comprehensiveness),
        "sufficiency": interval(sufficiency),
        "advantage": interval(advantage),
        "deviations_median": float(np.median(deviations)),
        "reliable": float(
            np.mean([verdict_of(*each) == "reliable" for each in zip(deviations, advantage, strict=True)])
        ),
        "weak": float(np.mean([verdict_of(*each) == "weak" for each in zip(deviations, advantage, strict=True)])),
    }
    if name != "random":
        row["passes_median"] = float(np.median([found[each]["passes"] for each in ids]))
        row["cpu_seconds_median"] = float(np.median([found[each]["cpu_seconds"] for each in ids]))
    gaps = [found[each]["convergence"] for each in ids if "convergence" in found[each]]
    if gaps:
        row["converged"] = float(np.mean([gap["converged"] for gap in gaps]))
        row["steps_median"] = float(np.median([gap["steps"] for gap in gaps]))
    return row


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean with its 95 % interval."""
    sample = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.percentile(sample, [2.5, 97.5])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def show(record: dict) -> None:
    for group in ("answered", "abstained"):
        table = Table(
            "method", "comprehensiveness", "sufficiency", "advantage", "reliable", "passes", "CPU s", title=group
        )
        for name, groups in record["methods"].items():
            row = groups.get(group)
            if row:
                numbers = [row[key] for key in ("comprehensiveness", "sufficiency", "advantage")]
                cells = [f"{each['mean']:.3f} ({each['low']:.3f}-{each['high']:.3f})" for each in numbers]
                cost = [f"{row[key]:.2f}" if key in row else "" for key in ("passes_median", "cpu_seconds_median")]
                table.add_row(name, *cells, f"{row['reliable']:.0%}", *cost)
        Console().print(table)
    Console().print(record["random_attributions"])


if __name__ == "__main__":
    main()
