"""The benchmark page of the documentation, made from the JSON under benchmarks/results.

python benchmarks/page.py        # writes docs/benchmarks.md; a test sees that it is up to date
"""

import json
import statistics
from collections.abc import Iterable, Sequence
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
spanqa-mini with 200 questions to calibrate, of the shape of BERT-large with 4. *Weights* is the
beginning of their SHA-256: F1 can be compared only where it is the same.
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
        "The pages of TimeQA over 8,000 words, twenty questions each; most belong to other pages and have no answer on the one they are "
        "asked of. The pipeline tokenises each page anew for every question; spanqa does it once.",
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
        ("planning", planning),
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


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a table whose first columns hold texts, the others numbers."""
    rule = "|" + "---|" * texts + "--:|" * (len(heads) - texts)
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""])


def side_by_side(record: dict[str, Any]) -> str:
    shown = [column for column in COLUMNS if any(column[1] in row for row in record["rows"].values())]
    rows = [
        [name, *(format(row[key], form) if key in row else "" for _, key, form in shown)]
        for name, row in record["rows"].items()
    ]
    compiled = [
        f"{name}: {row['first_pass_seconds']:.0f} s for the first pass over all questions, compiling included, "
        f"{record['questions'] / row['questions_per_s']:.0f} s for the second.\n"
        for name, row in record["rows"].items()
        if "first_pass_seconds" in row
    ]
    return "\n".join([table(["", *(head for head, _, _ in shown)], rows), *compiled])


def planning(record: dict[str, Any]) -> str:
    rows = [
        (name, f"{row['useful']:.1%}", f"{row['seconds']:.1f} s" if "seconds" in row else "")
        for name, row in record["rows"].items()
    ]
    return f"""## Batches

How many of the tokens computed are no padding, on all questions of SQuAD 2.0's development set, batches of
{record["budget_tokens"]:,} tokens, packed rows of {record["cols"]}; and how long the batches of a million such windows take to plan.

{table(("", "useful tokens", "planning a million"), rows)}"""


def confidence(record: dict[str, Any]) -> str:
    named = record["rows"].items()
    rows = [
        [
            name,
            f"{row['questions']:,}",
            f"{row['f1']:.2f}",
            f"{row['best_f1']:.2f}",
            *(f"{row[f'{key}_{which}']:.3f}" for key in ("ece", "area") for which in ("uncalibrated", "calibrated")),
        ]
        for name, row in named
    ]
    beside = [
        [
            f"{name}, {who}",
            f"{row['beside_transformers']['questions']:,}",
            f"{row['beside_transformers'][who]['right']:.1%}",
            *(f"{row['beside_transformers'][who][key]:.3f}" for key in ("ece", "area")),
        ]
        for name, row in named
        if "beside_transformers" in row
        for who in ("spanqa", "transformers")
    ]
    heads = ("questions", "F1", "best F1 of any threshold", "ECE uncalibrated", "ECE", "area uncalibrated", "area")
    return f"""## Confidence

spanqa-mini at the threshold and with the calibration stored with it, both fitted on held-out articles of SQuAD's training set. ECE:
expected calibration error of the outcome returned, ten equal bins, right meaning official F1 of at least 0.5. Area: under risk over
coverage; smaller is better. In all files but the first every question has an answer, so that abstaining is always wrong.

{table(("", *heads), rows)}
Beside transformers 4.57.6's `pipeline` with the same weights on the same questions, drawn from each file; its `score` taken as the
probability of what it returned.

{table(("", "questions", "right", "ECE", "area"), beside)}"""


def ten_passages(record: dict[str, Any]) -> str:
    shares = table(("", "right passage first"), [(name, f"{share:.1%}") for name, share in record["shares"].items()])
    return f"""## Ten passages, of which one holds the answer

{record["questions"]:,} answerable questions of SQuAD 2.0's development set, each with its paragraph among nine others of the same
article. "Right answer among the ten best places" is a bound: how often these touch the right paragraph at all.

{shares}"""


def layouts_f1(record: dict[str, Any]) -> str:
    rows = [
        [layout, ", ".join(f"{f1:.2f}" for f1 in f1s), f"{statistics.fmean(f1s):.2f}", f"{statistics.stdev(f1s):.2f}"]
        for layout, f1s in record["f1"].items()
    ]
    return f"""## The same training without padding

F1 of spanqa-mini after one pass over {record["questions"]:,} questions of PolicyQA, three seeds, the same windows in the same steps.

{table(("", "F1 by seed", "mean", "deviation"), rows, texts=2)}"""


def few_labels(record: dict[str, Any]) -> str:
    sizes = sorted({int(size) for told in record["data"].values() for curve in told["f1"].values() for size in curve})
    rows = [
        [f"{name}, from {base}", *(mean_and_spread(curve.get(str(size), [])) for size in sizes)]
        for name, told in record["data"].items()
        for base, curve in told["f1"].items()
    ]
    return f"""## A new domain with few labels

F1 on questions of the domain that were held out, by the number of its questions trained on: mean and deviation of three seeds.
Its trunk is the sentence encoder that spanqa-mini was trained from, which never saw a question.

{table(("", *(f"{size:,}" for size in sizes)), rows)}"""


def mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(set(values)) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def training(record: dict[str, Any]) -> str:
    rows = [
        (name, f"{row['windows_per_s']:.1f}", f"{row['flat_is_faster_by']:.2f}") for name, row in record["rows"].items()
    ]
    return f"""## Training

One step each in turn, on the same windows of SQuAD 2.0's training questions in random order
({record["useful_tokens_per_window"]:.0f} tokens on average), {record["batch_size"]} windows a step, {record["dtype"]}.

{table(("", "windows/s", "flat is faster by"), rows)}"""


def origin(record: dict[str, Any], name: str) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    counted = f"{record['questions']:,} questions, {record['windows']:,} windows. " if "windows" in record else ""
    threads = f"{record['threads']} threads; " if "threads" in record else ""
    weights = f"Weights {record['model']['sha256'][:12]}. " if "model" in record else ""
    made = f"{counted}{weights}{threads}{record['processor']}; {versions}."
    return f"`{record['command']}`\n\n{made} Record: `benchmarks/results/{name}.json`.\n"


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
