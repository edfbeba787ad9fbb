"""What is known of a request once it is over: what metrics, the log and traces are made of.

Routes leave what only they know with `note_asked` and `note_outcomes`; nobody else has to know who observes.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from spanqa.serve.problems import Problem
from spanqa.serve.queue import Asked, Times


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response. `route` is a template such as /v2/models/{name}, or "other", and never what a client wrote.

    `started` is a time of `time.time_ns()`. `status` is 499 where the client had gone.
    """

    scope: Scope
    route: str
    status: int
    started: int
    seconds: float
    trace_id: str | None

    @property
    def method(self) -> str:
        method = self.scope["method"]
        return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"

    @property
    def problem(self) -> Problem | None:
        return self.scope.get("spanqa.problem")

    @property
    def asked(self) -> "Noted | None":
        return self.scope.get("spanqa.asked")

    @property
    def answered(self) -> int:
        """Questions that got an answer."""
        return int(self.scope.get("spanqa.outcomes", (0, 0))[0])

    @property
    def unanswered(self) -> int:
        """Questions that got no answer, since there is none in the text."""
        return int(self.scope.get("spanqa.outcomes", (0, 0))[1])


@dataclass(frozen=True, slots=True)
class Noted:
    """What was asked: how many questions, of how many characters with their passages, and the seconds of each stage.

    `text` are the questions; it is empty unless the operator wants them in the log. `started` is a time of `time.time_ns()`.
    """

    questions: int
    characters: int
    times: Times
    text: tuple[str, ...]
    started: int


def note_asked(scope: Scope, asked: Sequence[Asked[Any]], times: Times, *, text: bool) -> None:
    """Note what a request asks when it is handed to the queue; `text`: whether the questions may be logged."""
    questions = tuple(str(getattr(each, "question", "")) for each in asked) if text else ()
    characters = sum(each.characters for each in asked)
    scope["spanqa.asked"] = Noted(len(asked), characters, times, questions, time.time_ns())


def note_outcomes(scope: Scope, has_answer: Iterable[bool]) -> None:
    """Note for each question whether the text had an answer."""
    outcomes = list(has_answer)
    scope["spanqa.outcomes"] = (sum(outcomes), len(outcomes) - sum(outcomes))
