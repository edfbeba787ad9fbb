"""Questions with something in common, and their average scores: where a model is good, and where it is not."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spanqa.evaluate.metrics import column
from spanqa.evaluate.outcomes import Outcome

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
    """Return who, when, how many, ..., by the first question word; "other" where there is none.

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
    """Questions with something in common, and the average exact match and F1 of what was returned, in percent."""

    name: str
    questions: int
    exact: float
    f1: float


def groups(outcomes: Sequence[Outcome], name_of: Callable[[Outcome], str | None]) -> list[Group]:
    """Return the groups by name, the largest first. A question whose name is None is in no group."""
    members: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        name = name_of(outcome)
        if name is not None:
            members.setdefault(name, []).append(outcome)
    made = [
        Group(name, len(each), 100 * float(column(each, "exact").mean()), 100 * float(column(each, "f1").mean()))
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
