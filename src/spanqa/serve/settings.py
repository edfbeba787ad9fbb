"""What an operator can set about answers: limits, times, who may ask, and what is logged. It reads no file and no environment."""

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from spanqa.errors import InputError


def setting(default: Any, help: str, least: float | None = None, *, panel: str = "") -> Any:
    """Return a field whose help the command line shows, in a panel of its own where named; a number below `least` is refused."""
    return field(default=default, metadata={"help": help, "least": least, "panel": panel})


_access = partial(setting, panel="Who may ask")
_log = partial(setting, panel="Log")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Limits, times and policies of a server. Sizes are bytes or characters, times are seconds."""

    max_body: int = setting(4_000_000, "Largest body of a request, in bytes.", 1)
    body_seconds: float = setting(20.0, "Longest time for a body to arrive, in seconds.", 0.001)
    max_question: int = setting(2_000, "Longest question, in characters.", 1)
    max_passage: int = setting(1_000_000, "Longest passage, in characters.", 1)
    max_passages: int = setting(100, "Most passages of one question.", 1)
    max_questions: int = setting(64, "Most questions in one request.", 1)
    max_top_k: int = setting(100, "Most answers to one question.", 1)
    max_requests: int = setting(512, "Most requests that are worked on or wait at a time.", 1)
    max_bytes: int = setting(256_000_000, "Most bytes of bodies that are worked on or wait at a time.", 1)
    max_wait: float = setting(
        5.0, "Refuse a request that would wait longer than this for others, in seconds, with status 429.", 0
    )
    deadline: float = setting(30.0, "Give up a request after so many seconds, with status 504.", 0.001)
    explain_seconds: float = setting(20.0, "Most seconds of work for one explanation.", 0.001)
    rate_limit: float | None = _access(
        None,
        "Requests a minute for each API key, or for each address without keys, in each worker. Default: no limit.",
        0.001,
    )
    keys: tuple[str, ...] = _access((), "SHA-256 of each API key, in hexadecimal; none: everyone may ask.")
    hosts: tuple[str, ...] = _access((), "Names under which the server is reached, besides localhost and addresses.")
    cors_origins: tuple[str, ...] = _access(
        (), "Origins of web pages of others that may ask, such as https://example.org."
    )
    open_metrics: bool = _access(True, "Show /metrics on the main address, without a key.")
    otlp_endpoint: str | None = _log(
        None,
        "Send traces to this OpenTelemetry collector, such as http://127.0.0.1:4318. Default: the one that "
        "OTEL_EXPORTER_OTLP_ENDPOINT names, if any.",
    )
    log_text: bool = _log(False, "Write questions into the log. They are the users' own.")

    def __post_init__(self) -> None:
        for each in fields(self):
            value, least = getattr(self, each.name), each.metadata["least"]
            if least is not None and value is not None and not value >= least:
                raise InputError(f"{each.name} is {value!r}; expected at least {least}.")
