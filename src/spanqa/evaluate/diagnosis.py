"""Why wrong answers are wrong, from the evaluation record alone: exactly one cause for each.

    the passage has no answer, and one was given         answered though there is none
    the passage has one
        no answer was given
            the best span is right                       null beats span
            a legal span covers a reference              null beats span
        no legal span covers a reference                 not where labelled, too long, outside every window, no legal span
        the answer given shares a character with one     boundary
        it lies elsewhere                                outranked

"Wrong" is what `Outcome.right` says: an F1 below one half. The first line that fits is the cause. No model is run here; what
needs one is in `spanqa.explain.diagnosis`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from spanqa.errors import DatasetError
from spanqa.evaluate.outcomes import RIGHT, Outcome, located
from spanqa.squad import Example

Cause = Literal[
    "null beats span",
    "outranked",
    "boundary",
    "answered though there is none",
    "outside every window",
    "too long",
    "not where labelled",
    "no legal span",
]

CAUSES: Mapping[Cause, str] = {
    "null beats span": "The passage has an answer, and none was given.",
    "outranked": "The answer given lies elsewhere: its span scores higher than the gold span.",
    "boundary": "The answer given overlaps a reference, and starts or ends at another word.",
    "answered though there is none": "The passage has no answer, and one was given.",
    "outside every window": "No window holds all of a reference; windows cut it.",
    "too long": "The reference has more tokens than an answer may have.",
    "not where labelled": "The words of no reference are in the passage where the data says.",
    "no legal span": "No span that may be an answer covers a reference, for another reason or one that the record does not say.",
}
"""What each cause means."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """By how many words an answer goes beyond a reference at its start and at its end; below 0, how many it lacks there.

    A part of a word counts as one.
    """

    start: int
    end: int

    def __str__(self) -> str:
        sides = [
            f"{abs(words)} word{'s' * (abs(words) > 1)} {'too many' if words > 0 else 'too few'} at the {side}"
            for words, side in ((self.start, "start"), (self.end, "end"))
            if words
        ]
        return " and ".join(sides) or "no word too many or too few"


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong answer and its cause. `boundary` is there where that is the cause."""

    example: Example
    outcome: Outcome
    cause: Cause
    boundary: Boundary | None = None

    @property
    def note(self) -> str:
        """What is known of this mistake beside its cause, in one sentence."""
        outcome, gold = self.outcome, self.outcome.gold
        match self.cause:
            case "null beats span":
                if outcome.best_f1 >= RIGHT:
                    return f"The best span, {outcome.best_text!r}, is right; its score is {outcome.score:.2f}."
                place = f" The gold span has rank {gold.rank:,}." if gold else ""
                return f"The best span, {outcome.best_text!r}, is wrong, too.{place}"
            case "outranked" if gold is not None and outcome.score is not None:
                return f"The gold span has rank {gold.rank:,}, {outcome.score - gold.score:.2f} below the best."
            case "boundary":
                return f"The answer has {self.boundary}."
            case "answered though there is none":
                score = "" if outcome.score is None else f"The score is {outcome.score:.2f}. "
                return (score + (f"The data gives the reason {outcome.cause!r}." if outcome.cause else "")).strip()
            case "outside every window":
                return "A larger overlap or longer windows would keep the reference in one piece."
            case "too long":
                return "A higher max_answer_tokens would allow the reference."
        return CAUSES[self.cause]

    def as_json(self) -> dict[str, Any]:
        """Return what a program needs, in a form that JSON can write."""
        outcome = self.outcome
        return {
            "id": outcome.id,
            "question": outcome.question,
            "cause": self.cause,
            "note": self.note,
            "given": outcome.text,
            "start": outcome.start,
            "probability": outcome.probability,
            "references": [answer.text for answer in self.example.answers],
            "best": outcome.best_text,
            "best_is_right": outcome.best_f1 >= RIGHT,
            "score": None if outcome.score in (None, -math.inf) else outcome.score,
            "gold": None if outcome.gold is None else asdict(outcome.gold),
            "boundary": None if self.boundary is None else asdict(self.boundary),
        }


def diagnose(examples: Iterable[Example], outcomes: Sequence[Outcome]) -> list[Mistake]:
    """Return the wrong ones of a reader's outcomes with their causes, most confident first.

    Raises:
        DatasetError: the outcomes are not of these examples.
    """
    examples = list(examples)
    if len(outcomes) > len(examples):
        raise DatasetError(
            f"There are {len(outcomes):,} outcomes of {len(examples):,} questions. Give the outcomes of one run on these questions."
        )
    by_id = {example.id: example for example in examples}
    others = [outcome.id for outcome in outcomes if not _is_of(outcome, by_id.get(outcome.id))]
    if others:
        raise DatasetError(
            f"The outcomes are not of these questions: {len(others):,} of {len(outcomes):,} differ or are not there, for example "
            f"id {others[0]!r}. Give the file that they were made from."
        )
    wrong = sorted((outcome for outcome in outcomes if not outcome.right), key=lambda o: -(o.probability or 0.0))
    return [_mistake(by_id[outcome.id], outcome) for outcome in wrong]


def by_cause(mistakes: Iterable[Mistake]) -> dict[Cause, list[Mistake]]:
    """Return the mistakes of each cause in the order given, the most frequent cause first."""
    found: dict[Cause, list[Mistake]] = {}
    for mistake in mistakes:
        found.setdefault(mistake.cause, []).append(mistake)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def right_but_for_null(mistakes: Iterable[Mistake]) -> int:
    """Return how many unanswered questions have a best span that is right: a lower threshold would give it."""
    return sum(mistake.cause == "null beats span" and mistake.outcome.best_f1 >= RIGHT for mistake in mistakes)


def _is_of(outcome: Outcome, example: Example | None) -> bool:
    if example is None or (example.question, bool(example.answers)) != (outcome.question, outcome.answerable):
        return False
    start = outcome.start
    return start is None or example.passage[start : start + len(outcome.text)] == outcome.text


def _mistake(example: Example, outcome: Outcome) -> Mistake:
    if not outcome.answerable:
        return Mistake(example, outcome, "answered though there is none")
    if not outcome.text and (outcome.best_f1 >= RIGHT or outcome.gold):
        return Mistake(example, outcome, "null beats span")
    if outcome.gold is None:
        return Mistake(example, outcome, outcome.out_of_reach or "no legal span")
    boundary = _boundary(example, outcome)
    return Mistake(example, outcome, "outranked" if boundary is None else "boundary", boundary)


def _boundary(example: Example, outcome: Outcome) -> Boundary | None:
    """Return how the answer given differs from the reference that it shares most characters with, None where it shares none.

    Of references that share as many, the shortest counts.
    """
    if outcome.start is None:
        return None
    start, end = outcome.start, outcome.start + len(outcome.text)

    shared, shorter, first = max(
        ((min(end, stop) - max(start, first), first - stop, first) for first, stop in located(example)),
        default=(0, 0, 0),
    )
    stop = first - shorter
    if shared <= 0:
        return None

    def more(low: int, high: int) -> int:
        """Return the number of words from `low` to `high`; below 0 where `high` comes first."""
        words = sum(any(map(str.isalnum, word)) for word in example.passage[min(low, high) : max(low, high)].split())
        return words if low < high else -words

    return Boundary(more(start, first), more(stop, end))
