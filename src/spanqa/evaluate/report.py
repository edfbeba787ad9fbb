"""A report for people: one HTML page that needs nothing else, with its pictures as PNG files beside it.

It draws what `curves`, `groups`, `compare` and `diagnosis` make of the outcomes. It needs matplotlib: pip install 'spanqa[report]'.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spanqa.errors import InputError
from spanqa.evaluate.compare import Difference
from spanqa.evaluate.curves import expected_calibration_error, risk_coverage, threshold_curve
from spanqa.evaluate.diagnosis import CAUSES, Cause, Mistake, by_cause, diagnose, right_but_for_null
from spanqa.evaluate.groups import Group, bucket, groups, question_type
from spanqa.evaluate.metrics import best_threshold, column
from spanqa.evaluate.outcomes import Outcome, write_outcomes
from spanqa.extras import require
from spanqa.files import write_bytes, write_text
from spanqa.html import escape, marked, page, picture, table
from spanqa.progress import Progress, silent
from spanqa.squad import Example

_BLUE, _GREY, _RED = "#1f5fa8", "#9aa3ad", "#b3402f"

_STYLE = """
.columns { display: flex; flex-wrap: wrap; gap: 0 3rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1.5rem } figure { margin: 0 }
.mistake { border-left: 3px solid #b3402f; padding: .1rem 0 .1rem 1rem; margin: 1.2rem 0 } .mistake p { margin: .3rem 0 }
mark.given { background: #f6cfc8 } mark.gold { background: #cfe6cf } mark.both { background: #f3e3a8 }
.causes a { color: inherit } .causes td { vertical-align: top } .causes .small { display: block }
.cause { border: 1px solid #9aa3ad; border-radius: 1rem; padding: 0 .6rem; font-size: .85rem; white-space: nowrap }
.passage { max-height: 14rem; overflow: auto; color: #4a525a; font-size: .92rem }
@media (prefers-color-scheme: dark) { .passage { color: #aab2ba } }
"""

REPORT_FILES = ("report.html", "outcomes.jsonl", "reliability.png", "risk_coverage.png", "threshold.png")
"""What `write_report` writes."""

_NO_ANSWER = "<i>not in this text</i>"

Drawing = tuple[bytes, str]
"""A PNG, and the words below it."""


def write_report(
    folder: Path,
    examples: Sequence[Example],
    outcomes: Sequence[Outcome],
    record: Mapping[str, Any],
    *,
    calibrated: bool,
    difference: Difference | None = None,
    mistakes: int = 25,
    progress: Progress = silent,
) -> Path:
    """Write report.html, its pictures, and outcomes.jsonl into a folder, and return the path of the page.

    `record` and `outcomes` come from one `evaluate` of the examples.

    Raises:
        InputError: the folder cannot be written to, or there is no question.
        NotInstalledError: matplotlib is not installed.
    """
    if not outcomes:
        raise InputError("There is no question to report on. Give at least one.")
    require("report")
    import matplotlib

    matplotlib.use("Agg")
    threshold = record["settings"]["answers"]["no_answer_threshold"]
    drawings: dict[str, Callable[[], Drawing]] = {
        "reliability.png": lambda: _draw_reliability(outcomes, calibrated),
        "risk_coverage.png": lambda: _draw_risk_coverage(outcomes),
        "threshold.png": lambda: _draw_threshold(outcomes, threshold),
    }
    pictures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for done, (name, draw) in enumerate(drawings.items()):
            progress(done, len(drawings) + 1, name)
            png, words = draw()
            write_bytes(folder / name, png)
            pictures.append(picture(png, words))
        write_outcomes(folder / "outcomes.jsonl", outcomes)
        path = folder / "report.html"
        progress(len(drawings), len(drawings) + 1, path.name)
        write_text(path, _page(examples, outcomes, record, pictures, difference, mistakes))
        progress(len(drawings) + 1, len(drawings) + 1)
    except OSError as error:
        raise InputError(
            f"The report cannot be written to {str(folder)!r}: {error.strerror}. Name a folder that can be written to."
        ) from error
    return path


# --- the page


def _page(
    examples: Sequence[Example],
    outcomes: Sequence[Outcome],
    record: Mapping[str, Any],
    pictures: Sequence[str],
    difference: Difference | None,
    mistakes: int,
) -> str:
    settings = record["settings"]
    model = settings["model"]["name"]
    parts = [
        f"<h1>{escape(model)} on {escape(settings['data'].get('file', 'questions'))}</h1>",
        f"<p class=small>{len(outcomes):,} questions. {escape(settings['backend'])} in {escape(settings['dtype'])}, "
        f"threshold {_number(settings['answers']['no_answer_threshold'])}. {escape(settings['date'])}. "
        f"<code>{escape(settings['command'])}</code></p>",
        "<h2>Scores</h2>",
        _metrics(record),
    ]
    if difference is not None:
        parts += ["<h2>Compared with the other run</h2>", _difference(difference)]
    parts += ["<h2>Confidence</h2>", "<div class=figures>", *pictures, "</div>"]
    parts += ["<h2>Scores by group</h2>", "<div class=columns>"]
    for title, found in _groups(outcomes).items():
        if len(found) > 1:
            rows = [(group.name, f"{group.questions:,}", f"{group.exact:.1f}", f"{group.f1:.1f}") for group in found]
            parts.append(f"<div><h3>{escape(title)}</h3>{table(('', 'questions', 'exact', 'F1'), rows)}</div>")
    wrong = diagnose(examples, outcomes)
    parts += ["</div>", "<h2>Causes of mistakes</h2>", _causes(wrong)]
    parts += ["<h2>Most confident mistakes</h2>", _mistakes(_shown(wrong, mistakes))]
    return page(f"{model}: report", "".join(parts), _STYLE)


def _metrics(record: Mapping[str, Any]) -> str:
    blocks = {"official": record["metrics"], "reader": record["reader"]}
    names = dict.fromkeys(name for block in blocks.values() for name in block)
    rows = [(name, *(_number(block.get(name, "")) for block in blocks.values())) for name in names]
    return table(("", *blocks), rows) + (
        "<p class=small>official: the rule of transformers' run_qa. reader: what <code>spanqa ask</code> answers.</p>"
    )


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _difference(found: Difference) -> str:
    verdict = "more than chance explains" if found.beyond_chance else "no more than chance explains"
    return (
        f"<p>F1 {found.f1:.2f} against {found.other_f1:.2f}. The difference is {found.difference:+.2f}, with a 95 % interval "
        f"from {found.low:+.2f} to {found.high:+.2f} (paired bootstrap): {verdict}. Of {found.questions:,} questions, "
        f"{found.better:,} are better and {found.worse:,} are worse.</p>"
    )


def _groups(outcomes: Sequence[Outcome]) -> dict[str, list[Group]]:
    return {
        "question": groups(outcomes, lambda o: question_type(o.question)),
        "answerable": groups(outcomes, lambda o: "has an answer" if o.answerable else "has none"),
        "answer length": groups(
            outcomes, lambda o: bucket(o.answer_words, (1, 2, 4, 8), "words"), lambda o: o.answer_words
        ),
        "passage length": groups(
            outcomes,
            lambda o: bucket(o.passage_tokens, (100, 150, 200, 300, 1000), "tokens"),
            lambda o: o.passage_tokens,
        ),
        "position of the answer": groups(outcomes, lambda o: _quarter(o.answer_position), lambda o: o.answer_position),
        "why unanswerable": groups(outcomes, lambda o: o.cause),
    }


def _quarter(position: float | None) -> str | None:
    if position is None:
        return None
    return f"{('first', 'second', 'third', 'last')[min(3, int(4 * position))]} quarter"


def _shown(wrong: Sequence[Mistake], most: int) -> list[Mistake]:
    """Return the most confident mistakes, and of each cause that has none among them, its most confident one."""
    first_of_cause = {id(of_cause[0]) for of_cause in by_cause(wrong).values()}
    return [mistake for number, mistake in enumerate(wrong) if number < most or id(mistake) in first_of_cause]


def _causes(wrong: Sequence[Mistake]) -> str:
    if not wrong:
        return "<p>There are no mistakes.</p>"
    rows = []
    for cause, of_cause in by_cause(wrong).items():
        link = f'<a href="#{_anchor(cause)}">{escape(cause)}</a> <span class=small>{escape(CAUSES[cause])}</span>'
        rows.append(f"<tr><td>{link}</td><td>{len(of_cause):,}</td><td>{len(of_cause) / len(wrong):.1%}</td></tr>")
    heads = "".join(f"<th>{head}</th>" for head in ("cause, with an example", "mistakes", "share"))
    near = right_but_for_null(wrong)
    hint = f" Of those that null beats, {near:,} would be right with a lower threshold." if near else ""
    return (
        f"<table class=causes><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"<p class=small>A mistake is what has an F1 below one half. Each has one cause.{hint}</p>"
    )


def _anchor(cause: Cause) -> str:
    return cause.replace(" ", "-")


def _mistakes(shown: Sequence[Mistake]) -> str:
    parts = []
    linked: set[Cause] = set()
    for mistake in shown:
        example, outcome, cause = mistake.example, mistake.outcome, mistake.cause
        given = escape(outcome.text) if outcome.text else _NO_ANSWER
        gold = " · ".join(dict.fromkeys(escape(answer.text) for answer in example.answers)) or _NO_ANSWER
        anchor = "" if cause in linked else f' id="{_anchor(cause)}"'
        linked.add(cause)
        parts.append(
            f"<div class=mistake{anchor}><p><b>{escape(example.question)}</b></p>"
            f"<p>given: {given} ({outcome.probability or 0.0:.0%}) — reference: {gold}</p>"
            f"<p><span class=cause>{escape(cause)}</span> <span class=small>{escape(mistake.note)}</span></p>"
            f"<div class=passage>{marked(example.passage, _spans(example, outcome))}</div>"
            f"<p class=small>{escape(outcome.id)}, {escape(example.title)}</p></div>"
        )
    return "".join(parts) or "<p>None.</p>"


def _spans(example: Example, outcome: Outcome) -> dict[str, tuple[int, int]]:
    """The answer given and the first reference, to be marked in the passage."""
    spans = {}
    if outcome.start is not None:
        spans["given"] = (outcome.start, outcome.start + len(outcome.text))
    if example.answers and example.answers[0].start >= 0:
        gold = example.answers[0]
        spans["gold"] = (gold.start, gold.start + len(gold.text))
    return spans


# --- pictures


def _axes() -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file.getvalue()


def _draw_reliability(outcomes: Sequence[Outcome], calibrated: bool) -> Drawing:
    probabilities, right = column(outcomes, "probability"), column(outcomes, "right")
    index = np.minimum((probabilities * 10).astype(int), 9)
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    for each in range(10):
        chosen = index == each
        if chosen.any():
            middle, share = each / 10 + 0.05, right[chosen].mean()
            axes.bar(middle, share, width=0.09, color=_BLUE, alpha=0.25 + 0.75 * chosen.mean())
            axes.annotate(f"{chosen.sum():,}", (middle, share), ha="center", va="bottom", fontsize=7)
    axes.set(xlim=(0, 1), ylim=(0, 1.06), xlabel="probability", ylabel="share that is right")
    error = expected_calibration_error(probabilities, right)
    kind = "calibrated" if calibrated else "uncalibrated"
    return _png(figure), (
        "Reliability: the share of right answers at each probability, and the number of questions there. "
        f"Expected calibration error {error:.3f} ({kind})."
    )


def _draw_risk_coverage(outcomes: Sequence[Outcome]) -> Drawing:
    coverage, risk, area = risk_coverage(outcomes)
    figure, axes = _axes()
    axes.plot(coverage, risk, color=_BLUE)
    axes.set(
        xlim=(0, 1),
        ylim=(0, None),
        xlabel="coverage: share of questions, most confident first",
        ylabel="risk: share of them that is wrong",
    )
    return _png(figure), (
        f"Risk and coverage: the share of mistakes among the most confident answers. Area {area:.4f}; smaller is better."
    )


def _draw_threshold(outcomes: Sequence[Outcome], threshold: float | str) -> Drawing:
    curve = threshold_curve(outcomes)
    figure, axes = _axes()
    shown = np.isfinite(curve["threshold"])
    for name, color in (("precision", _BLUE), ("recall", _GREY), ("f1", _RED)):
        axes.plot(curve["threshold"][shown], curve[name][shown], color=color, label="F1" if name == "f1" else name)
    if isinstance(threshold, (int, float)) and math.isfinite(threshold):
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="threshold on the score", ylim=(0, 1.02))
    axes.legend(frameon=False)
    best, no_answer_score = best_threshold(outcomes, "f1")
    return _png(figure), (
        "Precision and recall of answering, and F1 over all questions, by threshold. "
        f"Best F1 {best:.2f} at {0.0 - no_answer_score:.2f}. Dotted: the threshold in use."
    )
