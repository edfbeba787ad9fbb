"""What became of each question: the answer given, how sure, and whether it is right; and what that says when counted.

    reader, examples -> Outcome for each -> groups, curves, comparison of two runs

An outcome is what `Reader.ask` returns: the best place, or no answer below the threshold. It counts as right when its official
F1 is at least 0.5. Nothing is drawn here: that is `spanqa.evaluate.report`.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import DatasetError
from spanqa.evaluate.metrics import question_scores
from spanqa.evaluate.run import read_all
from spanqa.evaluate.tune import RIGHT
from spanqa.reader import Reader
from spanqa.squad import Example


@dataclass(frozen=True, slots=True)
class Outcome:
    """A question and what became of it.

    `text`, `start` and `probability` are those of what was returned; `score` is that of the best place, whatever was returned. `best_f1` is the
    official F1 of the best place, as if it had been returned. `passage_tokens` and `answer_place` (between 0 and 1: where in the
    passage the first reference answer begins) are for grouping.
    """

    id: str
    question: str
    text: str
    start: int | None
    score: float
    probability: float
    exact: float
    f1: float
    best_f1: float
    answerable: bool
    cause: str | None
    passage_tokens: int
    answer_place: float | None
    answer_words: int | None

    @property
    def right(self) -> bool:
        """Whether what was returned counts as right."""
        return self.f1 >= RIGHT


def collect(
    reader: Reader,
    examples: Sequence[Example],
    *,
    threshold: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Ask every question and return what became of it."""
    least = reader.answers.no_answer_threshold if threshold is None else threshold
    found = []
    for done, (example, reading) in enumerate(read_all(reader, examples), 1):
        ranking = reader.decode(reading)
        answer = ranking.best(least)
        best = ranking.answers[0].text if ranking.answers else ""
        exact, f1 = question_scores(example, answer.text)
        gold = example.answers[0] if example.answers else None
        found.append(
            Outcome(
                id=example.id,
                question=example.question,
                text=answer.text,
                start=answer.start,
                score=ranking.best_score,
                probability=answer.probability,
                exact=exact,
                f1=f1,
                best_f1=question_scores(example, best)[1],
                answerable=gold is not None,
                cause=example.cause,
                passage_tokens=len(reading.passages[0].tokens),
                answer_place=None if gold is None else gold.start / max(1, len(example.passage)),
                answer_words=None if gold is None else len(gold.text.split()),
            )
        )
        if progress:
            progress(done)
    return found


def write_outcomes(path: str | os.PathLike[str], outcomes: Iterable[Outcome]) -> None:
    """Write outcomes as JSON, one a line."""
    with Path(path).open("w", encoding="utf-8") as file:
        for outcome in outcomes:
            file.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")


def read_outcomes(path: str | os.PathLike[str]) -> list[Outcome]:
    """Read what `write_outcomes` wrote.

    Raises:
        DatasetError: the file is missing, or holds something else.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
        return [Outcome(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(
            f"{str(path)!r} is no file of outcomes ({error}). Expected outcomes.jsonl from a folder that `spanqa evaluate --report` wrote."
        ) from None


# --- groups

_TYPES = (
    ("how many", r"how (?:many|much)"),
    ("how long, far, old", r"how (?:long|far|old|often|tall|large|big)"),
    ("how", r"how"),
    ("who", r"who|whom|whose"),
    ("when", r"when|(?:in )?(?:what|which) (?:year|month|day|century|decade|date)"),
    ("where", r"where|(?:in )?(?:what|which) (?:city|country|state|place|town)"),
    ("why", r"why"),
    ("which", r"which"),
    ("what", r"what"),
)


def question_type(question: str) -> str:
    """Return who, when, how many, ...: by the question word that comes first, "other" where there is none.

    >>> question_type("In what year was it built?"), question_type("Name the builder.")
    ('when', 'other')
    """
    found = [
        (match.start(), order, name)
        for order, (name, pattern) in enumerate(_TYPES)
        if (match := re.search(rf"\b(?:{pattern})\b", question, re.IGNORECASE))
    ]
    return min(found)[2] if found else "other"


@dataclass(frozen=True, slots=True)
class Group:
    """Questions that have something in common, and their average exact match and F1 in percent."""

    name: str
    questions: int
    exact: float
    f1: float


def groups(outcomes: Sequence[Outcome], name_of: Callable[[Outcome], str | None]) -> list[Group]:
    """Return the groups by name, the largest first; questions whose name is None are in none."""
    members: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        name = name_of(outcome)
        if name is not None:
            members.setdefault(name, []).append(outcome)
    made = [
        Group(name, len(each), 100 * _mean([o.exact for o in each]), 100 * _mean([o.f1 for o in each]))
        for name, each in members.items()
    ]
    return sorted(made, key=lambda group: -group.questions)


def bucket(value: float | None, bounds: Sequence[float], unit: str) -> str | None:
    """Name the bucket of a number: "up to 100 tokens", "101 to 200 tokens", "over 200 tokens".

    >>> bucket(150, (100, 200), "tokens")
    '101 to 200 tokens'
    """
    if value is None:
        return None
    low: float | None = None
    for bound in bounds:
        if value <= bound:
            return f"up to {bound:g} {unit}" if low is None else f"{low + 1:g} to {bound:g} {unit}"
        low = bound
    return f"over {low:g} {unit}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


# --- curves


def risk_coverage(outcomes: Sequence[Outcome]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return coverage, risk, and the area under risk over coverage.

    Outcomes are taken in order of falling probability; risk is the share of wrong ones among those taken. Of equal
    probabilities all are taken together. Source: El-Yaniv & Wiener 2010; the area as in Geifman & El-Yaniv 2017.
    """
    order = np.argsort([-outcome.probability for outcome in outcomes], kind="stable")
    return risk_coverage_of(
        np.array([outcome.probability for outcome in outcomes])[order],
        np.array([outcome.right for outcome in outcomes])[order],
    )


def risk_coverage_of(
    sureness: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """As `risk_coverage`, of numbers in any order.

    >>> coverage, risk, area = risk_coverage_of(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    >>> risk.round(2).tolist(), round(area, 4)
    ([0.0, 0.5, 0.33], 0.2778)
    """
    order = np.argsort(-sureness, kind="stable")
    wrong = np.cumsum(~right[order])
    taken = np.arange(1, len(order) + 1)
    last = np.append(np.diff(sureness[order]) != 0, True)
    ends = np.flatnonzero(last)
    risk = (wrong / taken)[ends]
    sizes = np.diff(np.concatenate([[0], taken[ends]]))
    return taken[ends] / len(order), risk, float((risk * sizes).sum() / len(order))


def threshold_curve(outcomes: Sequence[Outcome]) -> dict[str, NDArray[np.float64]]:
    """Return, by threshold on the score, precision and recall of answering, and F1 with abstaining counted.

    Precision is the share of right ones among the answers given, recall that among the questions that have an answer.
    """
    scores = np.array([outcome.score for outcome in outcomes])
    answerable = np.array([outcome.answerable for outcome in outcomes])
    f1 = np.where(answerable, [outcome.best_f1 for outcome in outcomes], 0.0)
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(f1[order] >= RIGHT)
    given = np.arange(1, len(order) + 1)
    total = np.cumsum(f1[order]) + np.cumsum(~answerable[order][::-1])[::-1] - ~answerable[order]
    return {
        "threshold": scores[order],
        "precision": right / given,
        "recall": right / max(1, int(answerable.sum())),
        "f1": total / len(order),
    }


# --- two runs


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of two runs' F1 in percent on the same questions, its 95 % interval, and how many differ."""

    f1: float
    other_f1: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    questions: int


def compare_runs(
    outcomes: Sequence[Outcome], others: Sequence[Outcome], draws: int = 2000, seed: int = 0
) -> Difference:
    """Return the difference in F1 with a paired bootstrap interval: questions are drawn again, both runs' together.

    Source: Berg-Kirkpatrick, Burkett & Klein 2012.

    Raises:
        DatasetError: the runs are not on the same questions.
    """
    theirs = {outcome.id: outcome for outcome in others}
    mine = {outcome.id for outcome in outcomes}
    if mine != set(theirs):
        odd = sorted(mine ^ set(theirs))
        raise DatasetError(
            f"The runs are not on the same questions: {len(odd)} are in one only, such as {odd[0]!r}. Compare runs on one file."
        )
    f1 = np.array([outcome.f1 for outcome in outcomes])
    other = np.array([theirs[outcome.id].f1 for outcome in outcomes])
    gaps = f1 - other
    generator = np.random.default_rng(seed)
    means = [float(gaps[generator.integers(0, len(gaps), len(gaps))].mean()) for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(
        f1=100 * float(f1.mean()),
        other_f1=100 * float(other.mean()),
        difference=100 * float(gaps.mean()),
        low=100 * float(low),
        high=100 * float(high),
        better=int((gaps > 0).sum()),
        worse=int((gaps < 0).sum()),
        questions=len(gaps),
    )
