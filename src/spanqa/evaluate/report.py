"""A report that a person can look at: one HTML page that needs nothing else, its pictures as PNG beside it.

It draws and writes what `spanqa.evaluate.outcomes` counted. What it needs: pip install 'spanqa[report]' (matplotlib).
"""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spanqa.errors import InputError
from spanqa.evaluate.metrics import QuestionScore, best_threshold
from spanqa.evaluate.outcomes import (
    Difference,
    Group,
    Outcome,
    bucket,
    groups,
    question_type,
    risk_coverage,
    threshold_curve,
    write_outcomes,
)
from spanqa.evaluate.tune import expected_calibration_error
from spanqa.extras import require
from spanqa.squad import Example

_BLUE, _GREY, _RED = "#1f5fa8", "#9aa3ad", "#b3402f"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2126; background: #fff }
h1 { font-size: 1.7rem } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #dde2e7 }
table { border-collapse: collapse; margin: .6rem 0 } th, td { padding: .2rem .9rem .2rem 0; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 1px solid #9aa3ad; font-weight: 600 }
.columns { display: flex; flex-wrap: wrap; gap: 0 3rem } img { max-width: 100%; height: auto }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1rem }
.mistake { border-left: 3px solid #b3402f; padding: .1rem 0 .1rem 1rem; margin: 1.2rem 0 } .mistake p { margin: .3rem 0 }
mark.given { background: #f6cfc8 } mark.gold { background: #cfe6cf } mark.both { background: #f3e3a8 }
.passage { max-height: 14rem; overflow: auto; color: #4a525a; font-size: .92rem } .small { color: #5d666f; font-size: .9rem }
@media (prefers-color-scheme: dark) { body { color: #e3e6e9; background: #16191c } h2 { border-color: #3a4047 } .passage, .small { color: #aab2ba }
  mark { color: #16191c } img { background: #fff; border-radius: 4px } }
"""


def write_report(
    folder: Path,
    examples: Sequence[Example],
    outcomes: Sequence[Outcome],
    record: Mapping[str, Any],
    *,
    calibrated: bool,
    difference: Difference | None = None,
    mistakes: int = 25,
) -> Path:
    """Write report.html, its pictures, and outcomes.jsonl into a folder, and return the page's path.

    `record` is what `evaluate` returned for the same examples.

    Raises:
        InputError: the folder cannot be written, or there is no question.
        NotInstalledError: matplotlib is not installed.
    """
    if not outcomes:
        raise InputError("There is no question to report on. Give at least one.")
    require("report")
    import matplotlib

    matplotlib.use("Agg")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {
            "reliability.png": _draw_reliability(folder / "reliability.png", outcomes, calibrated),
            "risk_coverage.png": _draw_risk_coverage(folder / "risk_coverage.png", outcomes),
            "threshold.png": _draw_threshold(folder / "threshold.png", outcomes, record),
        }
        write_outcomes(folder / "outcomes.jsonl", outcomes)
        page = folder / "report.html"
        page.write_text(_page(folder, examples, outcomes, record, pictures, difference, mistakes), "utf-8")
    except OSError as error:
        raise InputError(f"The report cannot be written to {str(folder)!r}: {error.strerror}.") from error
    return page


# --- the page


def _page(
    folder: Path,
    examples: Sequence[Example],
    outcomes: Sequence[Outcome],
    record: Mapping[str, Any],
    pictures: Mapping[str, str],
    difference: Difference | None,
    mistakes: int,
) -> str:
    settings = record["settings"]
    model = settings["model"]["name"]
    parts = [
        f"<h1>{escape(model)} on {escape(settings['data'].get('file', 'questions'))}</h1>",
        f"<p class=small>{len(outcomes):,} questions. {escape(settings['backend'])} in {escape(settings['dtype'])}, "
        f"threshold {settings['answers']['no_answer_threshold']}. {escape(settings['date'])}. "
        f"<code>{escape(settings['command'])}</code></p>",
        "<h2>Scores</h2>",
        _metrics(record),
    ]
    if difference is not None:
        parts += ["<h2>Against the other run</h2>", _difference(difference)]
    parts += ["<h2>Confidence</h2>", "<div class=figures>"]
    for name, words in pictures.items():
        data = base64.b64encode((folder / name).read_bytes()).decode("ascii")
        parts.append(
            f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{data}"><figcaption class=small>{escape(words)}</figcaption></figure>'
        )
    parts += ["</div>", "<h2>Where it is good, and where not</h2>", "<div class=columns>"]
    for title, found in _groups(outcomes).items():
        if len(found) > 1:
            rows = [(group.name, f"{group.questions:,}", f"{group.exact:.1f}", f"{group.f1:.1f}") for group in found]
            parts.append(f"<div><h3>{escape(title)}</h3>{_table((title, 'questions', 'exact', 'F1'), rows)}</div>")
    parts += ["</div>", "<h2>Surest mistakes</h2>", _mistakes(examples, outcomes, mistakes)]
    return (
        f'<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{escape(model)}: report</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _metrics(record: Mapping[str, Any]) -> str:
    blocks = {"official": record["metrics"], "reader": record["reader"]}
    names = dict.fromkeys(name for block in blocks.values() for name in block)
    rows = [(name, *(_number(block.get(name)) for block in blocks.values())) for name in names]
    return _table(("", *blocks), rows) + (
        "<p class=small>official: by the rule of transformers' run_qa. reader: what <code>spanqa ask</code> answers.</p>"
    )


def _difference(found: Difference) -> str:
    told = (
        "a difference that chance hardly explains"
        if found.low > 0 or found.high < 0
        else "no more than chance explains"
    )
    return (
        f"<p>F1 {found.f1:.2f} against {found.other_f1:.2f}: {found.difference:+.2f}, 95 % interval {found.low:+.2f} to {found.high:+.2f} "
        f"(paired bootstrap), {told}. Better on {found.better:,} questions, worse on {found.worse:,}, of {found.questions:,}.</p>"
    )


def _groups(outcomes: Sequence[Outcome]) -> dict[str, list[Group]]:
    return {
        "question": groups(outcomes, lambda o: question_type(o.question)),
        "answerable": groups(outcomes, lambda o: "has an answer" if o.answerable else "has none"),
        "answer length": groups(outcomes, lambda o: bucket(o.answer_words, (1, 2, 4, 8), "words")),
        "passage length": groups(outcomes, lambda o: bucket(o.passage_tokens, (100, 150, 200, 300, 1000), "tokens")),
        "place of the answer": groups(
            outcomes, lambda o: None if o.answer_place is None else f"{['first', 'second', 'third', 'last'][min(3, int(4 * o.answer_place))]} quarter"
        ),
        "why unanswerable": groups(outcomes, lambda o: o.cause),
    }  # fmt: skip


def _mistakes(examples: Sequence[Example], outcomes: Sequence[Outcome], most: int) -> str:
    by_id = {example.id: example for example in examples}
    wrong = sorted((outcome for outcome in outcomes if not outcome.right), key=lambda outcome: -outcome.probability)
    parts = []
    for outcome in wrong[:most]:
        example = by_id[outcome.id]
        given = escape(outcome.text) if outcome.text else "<i>not in this text</i>"
        gold = " · ".join(dict.fromkeys(escape(answer.text) for answer in example.answers)) or "<i>not in this text</i>"
        parts.append(
            f"<div class=mistake><p><b>{escape(example.question)}</b></p><p>given: {given} ({outcome.probability:.0%}) — reference: {gold}</p>"
            f"<div class=passage>{_marked(example, outcome)}</div><p class=small>{escape(outcome.id)}, {escape(example.title)}</p></div>"
        )
    return "".join(parts) or "<p>None.</p>"


def _marked(example: Example, outcome: Outcome) -> str:
    """The passage with the answer given and the first reference marked; where both lie, the mark says so."""
    spans = {}
    if outcome.start is not None:
        spans["given"] = (outcome.start, outcome.start + len(outcome.text))
    if example.answers:
        spans["gold"] = (example.answers[0].start, example.answers[0].start + len(example.answers[0].text))
    bounds = sorted({0, len(example.passage), *(bound for span in spans.values() for bound in span)})
    parts = []
    for left, right in pairwise(bounds):
        kinds = [name for name, (start, end) in spans.items() if start <= left and right <= end]
        piece = escape(example.passage[left:right])
        parts.append(f"<mark class={'both' if len(kinds) > 1 else kinds[0]}>{piece}</mark>" if kinds else piece)
    return "".join(parts)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)


# --- pictures; each returns the words that stand below it


def _axes() -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_reliability(path: Path, outcomes: Sequence[Outcome], calibrated: bool) -> str:
    probabilities = np.array([outcome.probability for outcome in outcomes])
    right = np.array([outcome.right for outcome in outcomes])
    place = np.minimum((probabilities * 10).astype(int), 9)
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    for each in range(10):
        chosen = place == each
        if chosen.any():
            axes.bar(each / 10 + 0.05, right[chosen].mean(), width=0.09, color=_BLUE, alpha=0.25 + 0.75 * chosen.mean())
            axes.annotate(
                f"{chosen.sum():,}", (each / 10 + 0.05, right[chosen].mean()), ha="center", va="bottom", fontsize=7
            )
    axes.set(xlim=(0, 1), ylim=(0, 1.06), xlabel="probability", ylabel="share that is right")
    _save(figure, path)
    error = expected_calibration_error(probabilities, right)
    kind = "calibrated" if calibrated else "uncalibrated"
    return f"Reliability: how often outcomes of each probability are right. Expected calibration error {error:.3f} ({kind})."


def _draw_risk_coverage(path: Path, outcomes: Sequence[Outcome]) -> str:
    coverage, risk, area = risk_coverage(outcomes)
    figure, axes = _axes()
    axes.plot(coverage, risk, color=_BLUE)
    axes.set(
        xlim=(0, 1),
        ylim=(0, None),
        xlabel="coverage: share of questions taken, surest first",
        ylabel="share of them that is wrong",
    )
    _save(figure, path)
    return f"Risk and coverage: what is wrong among the surest outcomes. Area {area:.4f}; smaller is better."


def _draw_threshold(path: Path, outcomes: Sequence[Outcome], record: Mapping[str, Any]) -> str:
    curve = threshold_curve(outcomes)
    figure, axes = _axes()
    shown = np.isfinite(curve["threshold"])
    for name, color in (("precision", _BLUE), ("recall", _GREY), ("f1", _RED)):
        axes.plot(curve["threshold"][shown], curve[name][shown], color=color, label="F1" if name == "f1" else name)
    stored = record["settings"]["answers"]["no_answer_threshold"]
    if isinstance(stored, float) and math.isfinite(stored):
        axes.axvline(stored, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="threshold on the score", ylim=(0, 1.02))
    axes.legend(frameon=False)
    _save(figure, path)
    scores = [QuestionScore(o.best_f1, o.best_f1, o.answerable, True, -o.score) for o in outcomes]
    best, at_most = best_threshold(scores, "f1")
    return f"Precision and recall of answering, and F1 with abstaining counted. Best F1 {best:.2f} at {0.0 - at_most:.2f}; dotted: the threshold in use."
