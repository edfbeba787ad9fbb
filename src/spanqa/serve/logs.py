"""The log of a server: a line for each request, and forms for people (text) and machines (JSON, an object a line).

    2026-11-28 15:56:09.120 INFO     POST /v1/answers 200 12.3 ms request_id=8f14e45fceea167a questions=1 characters=812 tokens=201 ...
    {"time": "2026-11-28T15:56:09.120Z", "level": "info", "logger": "spanqa.access", "message": "POST /v1/answers 200", ...}

Nothing that a user wrote is in it, unless `ServeSettings.log_text`: then the questions are. Of an error that nobody foresaw there are
its type and the lines of code that it passed, without its message, which may quote a text.
"""

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, Literal, TextIO

from spanqa.serve.observe import Exchange
from spanqa.serve.problems import Problem
from spanqa.serve.routes.bodies import Body

_encode = json.dumps  # in ASCII: other line ends and encodings of the stream break nothing
_ACCESS = logging.getLogger("spanqa.access")

LogFormat = Literal["text", "json"]


def configure(
    form: LogFormat = "text", level: str = "info", *, text: bool = False, stream: TextIO | None = None
) -> None:
    """Write the log of this process to a stream, by default stderr. `text`: messages of unforeseen errors may be shown.

    spanqa and uvicorn are logged from `level` on, others from warnings on. uvicorn is to be run with `log_config=None` and
    `access_log=False`.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter((_Json if form == "json" else _Text)(text))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("spanqa", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True  # uvicorn may have been set up before, in another way
        logger.setLevel(level.upper())


def log(exchange: Exchange, probes: frozenset[str]) -> None:
    """Write the line of a request that is over; one of a health route is for debugging only."""
    level = logging.DEBUG if exchange.route in probes else logging.INFO
    if not _ACCESS.isEnabledFor(level):
        return
    fields = {name: value for name, value in _fields(exchange) if value is not None}
    _ACCESS.log(level, "%s %s %s", exchange.method, exchange.route, exchange.status, extra={"spanqa": fields})


def _fields(exchange: Exchange) -> Iterator[tuple[str, Any]]:
    scope, problem, asked = exchange.scope, exchange.problem, exchange.asked
    yield "request_id", scope.get("spanqa.request_id")
    yield "trace_id", exchange.trace_id
    yield "method", exchange.method
    yield "route", exchange.route
    yield "status", exchange.status
    yield "error_type", problem and problem.error_type
    yield "field", problem and _field(problem)
    yield "key", scope.get("spanqa.key")
    yield "bytes", scope.get("spanqa.body_bytes")
    yield "seconds", round(exchange.seconds, 6)
    if asked is not None:
        yield "questions", asked.questions
        yield "characters", asked.characters
        yield "tokens", asked.times.tokens
        for stage in ("prepare", "read", "decode"):
            yield stage, round(getattr(asked.times, stage), 6)
        yield "question", list(asked.text) or None


def _field(problem: Problem) -> str | None:
    """Return the field that a message of a validation error begins with; a name that is none of ours is a question mark."""
    match = re.match(r"(.+?): ", problem.message) if problem.error_type == "validation" else None
    if match is None:
        return None
    names = {"body", "query"}.union(*(model.model_fields for model in _models(Body)))
    return ".".join(part if part in names or part.isdecimal() else "?" for part in match[1].split("."))


def _models(model: type[Body]) -> Iterator[type[Body]]:
    for each in model.__subclasses__():
        yield each
        yield from _models(each)


class _Formatter(logging.Formatter):
    """Shows errors without their messages, unless `text`."""

    def __init__(self, text: bool) -> None:
        super().__init__()
        self.text = text

    def formatException(self, info: Any) -> str:
        if self.text:
            return super().formatException(info)
        kind, error, _ = info
        lines = []
        while error is not None:
            lines += [*traceback.format_tb(error.__traceback__), f"{type(error).__name__}\n"]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "".join(lines).rstrip() or str(kind)


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        shown = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "spanqa", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            shown["exception"] = self.formatException(record.exc_info)
        return _encode(shown)


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"{at}.{int(record.msecs):03d} {record.levelname:<8} {record.getMessage()}"
        fields = dict(getattr(record, "spanqa", {}))
        if fields:
            seconds = fields.pop("seconds")
            of_message = ("method", "route", "status")
            line += f" {1000 * seconds:.1f} ms"
            line += "".join(f" {name}={_shown(fields[name])}" for name in fields if name not in of_message)
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{1000 * value:.1f}ms"
    return str(value) if isinstance(value, (int, str)) else _encode(value)
