"""The benchmark page of the documentation, made from the JSON under benchmarks/results.

python benchmarks/page.py        # writes docs/benchmarks.md; a test sees that it is up to date
"""

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

INTRODUCTION = """# Benchmarks

<!-- made by benchmarks/page.py from benchmarks/results/*.json; do not edit -->

Every figure here was measured by the command beside it, and lies as JSON under `benchmarks/results`. What is compared ran
interleaved in one run, on the same questions, at equal threads and with the same weights; *x pipeline* is against
transformers 4.57.6's `pipeline("question-answering")` at its best batch size in that run, which computes in fp32. *GFLOP/s* count
useful tokens only: what a contender computes on padding, or twice, counts against it. *Of matmul* is that rate as a share of
`torch.matmul` (2048 x 1024 x 4096, same dtype and threads) in the same run. Int8 copies were made by `spanqa quantize`, of
spanqa-mini with 200 questions of SQuAD's training set to calibrate and 1,000 to fit the threshold, of the shape of BERT-large with 4.
"""

SIDE_BY_SIDE = (
    (
        "side-by-side.spanqa-mini",
        "## Questions of SQuAD 2.0, as they stand in the file",
        "End to end, from texts to answers. Questions on one paragraph follow each other in the file, which is kind to every contender "
        "that pads batches in the order of arrival.",
    ),
    (
        "side-by-side.random-order",
        "## The same in random order",
        "Questions as they come from users. Batches of the pipeline then hold windows of all lengths, padded to the longest; spanqa "
        "sorts, and loses nothing.",
    ),
    (
        "side-by-side.long-texts",
        "## Many questions on long texts",
        "The pages of TimeQA over 8,000 words, with questions of their own and of other pages. The pipeline encodes each page anew "
        "for every question; spanqa encodes it once. F1 is low for all: the model was not trained on such pages.",
    ),
    (
        "side-by-side.bert-large-shape",
        "## The shape of BERT-large",
        "24 layers of 1,024, random weights: speed only.",
    ),
)

COLUMNS = (
    ("questions/s", "questions_per_s", ".1f"),
    ("x pipeline", "times_best_pipeline", ".2f"),
    ("GFLOP/s", "gflop_per_s", ".0f"),
    ("of matmul", "share_of_matmul", ".0%"),
    ("F1", "f1", ".2f"),
)


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for name, title, text in SIDE_BY_SIDE:
        record = read(name)
        if record is not None:
            parts += [f"{title}\n\n{text}\n", side_by_side(record), origin(record, name)]
    for name, section in (
        ("confidence.spanqa-mini", confidence),
        ("ten-passages", ten_passages),
        ("training-speed", training),
        ("layouts-f1", layouts_f1),
        ("few-labels", few_labels),
    ):
        record = read(name)
        if record is not None:
            parts += [section(record), origin(record, name)]
    return "\n".join(parts)


def read(name: str) -> dict[str, Any] | None:
    """Return a record, or None where that run was not made."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def side_by_side(record: dict[str, Any]) -> str:
    shown = [column for column in COLUMNS if any(column[1] in row for row in record["rows"].values())]
    lines = ["| | " + " | ".join(head for head, _, _ in shown) + " |", "|---|" + "--:|" * len(shown)]
    for name, row in record["rows"].items():
        cells = [format(row[key], form) if key in row else "" for _, key, form in shown]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    compiled = [
        f"{name}: {row['first_pass_seconds']:.0f} s for the first pass over all questions, compiling included, "
        f"{record['questions'] / row['questions_per_s']:.0f} s for the second."
        for name, row in record["rows"].items()
        if "first_pass_seconds" in row
    ]
    return "\n".join([*lines, "", *compiled, *([""] if compiled else [])])


def confidence(record: dict[str, Any]) -> str:
    rows = record["rows"]
    lines = [
        "## Confidence\n",
        "spanqa-mini at the threshold and with the calibration that training stored, both fitted on held-out articles of SQuAD's "
        "training set. ECE: expected calibration error of the outcome returned, ten equal bins, right meaning official F1 of at "
        "least 0.5. Area: under risk over coverage; smaller is better. In all files but the first every question has an answer, so "
        "that abstaining is always wrong.\n",
        "| | questions | F1 | best F1 of any threshold | ECE uncalibrated | ECE | area uncalibrated | area |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        cells = [f"{row['questions']:,}", f"{row['f1']:.2f}", f"{row['best_f1']:.2f}"]
        cells += [f"{row[f'{key}_{which}']:.3f}" for key in ("ece", "area") for which in ("uncalibrated", "calibrated")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Beside transformers 4.57.6's `pipeline` with the same weights on the same questions, drawn from each file; its `score` taken "
        "as the probability of what it returned.\n",
        "| | questions | right | ECE | area |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        for who in ("spanqa", "transformers"):
            if found := row.get("beside_transformers", {}).get(who):
                cells = [f"{row['beside_transformers']['questions']:,}", f"{found['right']:.1%}"]
                cells += [f"{found[key]:.3f}" for key in ("ece", "area")]
                lines.append(f"| {name}, {who} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def ten_passages(record: dict[str, Any]) -> str:
    lines = [
        "## Ten passages, of which one holds the answer\n",
        f"{record['questions']:,} answerable questions of SQuAD 2.0's development set, each with its paragraph among nine others of the "
        "same article. The last row but one is a bound: how often the best ten places touch the right paragraph at all.\n",
        "| | right passage first |",
        "|---|--:|",
        *(f"| {name} | {share:.1%} |" for name, share in record["shares"].items()),
    ]
    return "\n".join([*lines, ""])


def layouts_f1(record: dict[str, Any]) -> str:
    lines = [
        "## The same training without padding\n",
        f"F1 of spanqa-mini after one pass over {record['questions']:,} questions of PolicyQA, three seeds, the same windows in the "
        "same steps.\n",
        "| | F1 by seed | mean | deviation |",
        "|---|---|--:|--:|",
    ]
    for layout, values in record["f1"].items():
        told = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {layout} | {told} | {statistics.fmean(values):.2f} | {statistics.stdev(values):.2f} |")
    return "\n".join([*lines, ""])


def few_labels(record: dict[str, Any]) -> str:
    sizes = sorted({int(size) for told in record["data"].values() for f1 in told["f1"].values() for size in f1})
    lines = [
        "## A new domain with few labels\n",
        "F1 on questions of the domain that were held out, by the number of its questions trained on: mean and deviation of three "
        "seeds. Its trunk is the sentence encoder that spanqa-mini was trained from, which never saw a question.\n",
        "| | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "|---|" + "--:|" * len(sizes),
    ]
    for name, told in record["data"].items():
        for base, curve in told["f1"].items():
            cells = []
            for size in map(str, sizes):
                values = curve.get(size, [])
                spread = f" ± {statistics.stdev(values):.1f}" if len(set(values)) > 1 else ""
                cells.append(f"{statistics.fmean(values):.1f}{spread}" if values else "")
            lines.append(f"| {name}, from {base} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def training(record: dict[str, Any]) -> str:
    lines = [
        "## Training\n",
        f"One step each in turn, on the same windows of SQuAD 2.0's training questions in random order "
        f"({record['useful_tokens_per_window']:.0f} tokens on average), {record['batch_size']} windows a step, {record['dtype']}.\n",
        "| | windows/s | flat is faster by |",
        "|---|--:|--:|",
    ]
    for name, row in record["rows"].items():
        lines.append(f"| {name} | {row['windows_per_s']:.1f} | {row['flat_is_faster_by']:.2f} |")
    return "\n".join([*lines, ""])


def origin(record: dict[str, Any], name: str) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    counted = f"{record['questions']:,} questions, {record['windows']:,} windows. " if "windows" in record else ""
    threads = f"{record['threads']} threads; " if "threads" in record else ""
    made = f"{counted}{threads}{record['processor']}; {versions}."
    return f"`{record['command']}`\n\n{made} Record: `benchmarks/results/{name}.json`.\n"


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
