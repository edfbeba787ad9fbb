"""What can go wrong with a request, and the one form in which a client is told: {"error": message, "error_type": type}."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from spanqa.errors import BackendError, ClosedError, DeadlineError, InputError, QueueFullError

STATUS: Mapping[str, int] = {
    "invalid_json": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden_origin": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "misdirected": 421,
    "validation": 422,
    "overloaded": 429,
    "rate_limited": 429,
    "headers_too_large": 431,
    "client_gone": 499,
    "internal": 500,
    "loading": 503,
    "draining": 503,
    "deadline_exceeded": 504,
}
"""Every `error_type`, with its status. 499, a client that has gone, is only seen in logs and metrics."""


class Problem(Exception):
    """A request that is not answered: a type of `STATUS`, and a message for the client that holds none of the user's text."""

    def __init__(
        self, error_type: str, message: str, *, retry_after: float | None = None, headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(message)
        self.error_type, self.message, self.retry_after = error_type, message, retry_after
        self._headers = headers

    @property
    def status(self) -> int:
        """The status code."""
        return STATUS[self.error_type]

    @property
    def body(self) -> dict[str, Any]:
        """What the client gets, as JSON."""
        return {"error": self.message, "error_type": self.error_type}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response: Retry-After in whole seconds, at least 1, where the client may try again."""
        again = {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        return {**self._headers, **again}


def response_of(problem: Problem) -> JSONResponse:
    """Return the response that tells a client of a problem."""
    return JSONResponse(problem.body, problem.status, problem.headers)


def loading() -> Problem:
    """Return what a client is told before the model is there."""
    return Problem("loading", "The model is being loaded. Try again soon.", retry_after=1)


def draining() -> Problem:
    """Return what a client is told when the server is about to end."""
    return Problem("draining", "The server is being stopped. Ask another one.", retry_after=1)


def problem_of(error: Exception) -> Problem:
    """Return the problem that an error of the library is to the client; what we did not foresee is "internal", without details."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, QueueFullError):
        return Problem("overloaded", "The queue is full. Try again later.", retry_after=1)
    if isinstance(error, (DeadlineError, TimeoutError)):
        return Problem(
            "deadline_exceeded", "There was no answer before the deadline. Ask less at once, or try again later."
        )
    if isinstance(error, ClosedError):
        return draining()
    if isinstance(error, InputError):
        return Problem("validation", str(error))
    if isinstance(error, BackendError):
        return Problem("internal", "The model could not read this text. The log of the server says more.")
    return Problem("internal", "Something went wrong in the server. Its log says more.")
