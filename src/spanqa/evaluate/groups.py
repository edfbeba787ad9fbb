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


def groups(
    outcomes: Sequence[Outcome],
    name_of: Callable[[Outcome], str | None],
    order_of: Callable[[Outcome], float | None] | None = None,
) -> list[Group]:
    """Return the groups by name. A question whose name is None is in no group.

    The largest group comes first or, with `order_of`, the one with the smallest value.
    """
    members: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        name = name_of(outcome)
        if name is not None:
            members.setdefault(name, []).append(outcome)

    def order(name: str) -> float:
        values = [] if order_of is None else [value for each in members[name] if (value := order_of(each)) is not None]
        return min(values, default=-len(members[name]))

    return [
        Group(
            name,
            len(members[name]),
            100 * float(column(members[name], "exact").mean()),
            100 * float(column(members[name], "f1").mean()),
        )
        for name in sorted(members, key=order)
    ]


def bucket(value: int | None, bounds: Sequence[int], unit: str) -> str | None:
    """Name the bucket of a number: "up to 100 tokens", "101 to 200 tokens", "over 200 tokens".

    Numbers are whole and at least 1, and a bucket of one number has its name: "1 word", "2 words".

    >>> bucket(150, (100, 200), "tokens")
    '101 to 200 tokens'
    """
    if value is None:
        return None
    low = 0
    for bound in bounds:
        if value <= bound:
            if low + 1 == bound:
                return f"{bound} {unit.removesuffix('s') if bound == 1 else unit}"
            return f"{low + 1} to {bound} {unit}" if low else f"up to {bound} {unit}"
        low = bound
    return f"over {low} {unit}"
