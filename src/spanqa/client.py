"""Asks a server of spanqa over HTTP the way a `Reader` is asked; the answers are the same. Needs `pip install spanqa[client]`."""

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from email.utils import mktime_tz, parsedate_tz
from itertools import islice
from typing import Any

from spanqa.answers import Answer
from spanqa.errors import DeadlineError, InputError, ServerError, SpanQAError
from spanqa.extras import require

AT_ONCE = 32
"""Questions of `ask_many` that are asked at the same time, so that the server can read them in one batch."""

LONGEST_WAIT = 60.0
"""Seconds: the most that a client waits before it sends a request again, whatever Retry-After says."""

PassageText = str | Mapping[str, str | None]
"""A text, or {"text": ..., "source": ...}: the answers get the source."""


class Client(AbstractContextManager["Client"]):
    """A server of spanqa, to be asked from any number of threads.

        with Client("http://127.0.0.1:8000") as client:
            client.ask("Who built it?", "The pier was built by Anna Kestrel.").text    # 'Anna Kestrel'

    `timeout` are seconds without a sign of the server. A request that a full or starting server refuses (429, 503), or that finds
    no server, is sent again up to `retries` times: after the seconds of Retry-After, or else 0.5, 1, 2 ... seconds. `transport` is
    one of httpx, for what a URL cannot say: `httpx.HTTPTransport(uds="/run/spanqa.sock")` for a unix socket. `ask`, `ask_many` and
    `rank` take the options of `Reader`: `threshold`, `no_answer` and `min_probability`.

    Raises:
        InputError, NotInstalledError: the URL is wrong; httpx is missing. The methods: a text cannot be sent.
        ServerError, DeadlineError: from the methods: the server refuses, cannot be reached, or does not answer in time.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 60.0, retries: int = 3, transport: Any = None
    ) -> None:
        require("client")
        import httpx

        if not url.startswith(("http://", "https://")):
            raise InputError(f"url is {url!r}; expected one like http://127.0.0.1:8000.")
        self.url, self.retries = url.rstrip("/"), retries
        headers = {"X-Scale-Up-Timeout": f"{max(1.0, timeout):.0f}"}  # Hugging Face waits for a server to start
        headers |= {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_keepalive_connections=AT_ONCE)
        self._http = httpx.Client(headers=headers, timeout=timeout, limits=limits, transport=transport)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, question: str, passage: PassageText, **options: Any) -> Answer:
        """Return the words of the passage that answer the question, or an answer whose text is ""."""
        return self._answers(question, [passage], 1, options)[0]

    def ask_many(self, pairs: Iterable[tuple[str, PassageText]], **options: Any) -> Iterator[Answer]:
        """Yield an answer for each (question, passage), in order, as the stream comes in; an error says which pair it was."""
        pool, stream, number = ThreadPoolExecutor(AT_ONCE, "spanqa-client"), iter(pairs), 0
        try:
            waiting = deque(pool.submit(self.ask, *pair, **options) for pair in islice(stream, AT_ONCE))
            while waiting:
                number += 1
                yield waiting.popleft().result()
                waiting.extend(pool.submit(self.ask, *pair, **options) for pair in islice(stream, 1))
        except SpanQAError as error:
            error.args = (f"Pair {number}: {error}",)
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def rank(self, question: str, passages: Sequence[PassageText], top_k: int = 5, **options: Any) -> list[Answer]:
        """Return the best spans of all passages, best first; [] where all score too low."""
        return self._answers(question, passages, top_k, options)[:-1]

    def explain(self, question: str, passage: PassageText, **options: Any) -> dict[str, Any]:
        """Return what /v1/explain says of an answer; the options are its method, against, threshold and trust."""
        return self._send("POST", "/v1/explain", {"question": question, "passage": passage, **options})

    def info(self) -> dict[str, Any]:
        """Return the model, its settings and the server's limits."""
        return self._send("GET", "/info")

    def ready(self) -> bool:
        """Return whether the server takes questions now; False, too, where nothing listens."""
        try:
            return bool(self._send("GET", "/ready", attempt=self.retries))
        except (ServerError, DeadlineError):
            return False

    def _answers(self, question: str, passages: Sequence[PassageText], top_k: int, options: Any) -> list[Answer]:
        given = [passages] if isinstance(passages, str) else list(passages)
        reply = self._send("POST", "/v1/answers", {"question": question, "passages": given, "top_k": top_k, **options})
        texts = [each if isinstance(each, str) else str(each["text"]) for each in given]
        try:
            none = {"text": "", "start": None, "end": None, "probability": reply["no_answer_probability"]}
            return [Answer.from_json(fields, texts) for fields in (*reply["answers"], {**reply, **none})]
        except (LookupError, TypeError) as error:
            raise ServerError(f"{self.url} gives no answers as spanqa does: {error!r}") from None

    def _once(self, method: str, path: str, body: Any) -> dict[str, Any]:
        import httpx

        try:
            return _read(self._http.request(method, self.url + path, json=body))
        except (TypeError, ValueError, httpx.InvalidURL) as error:
            raise InputError(f"This cannot be sent as JSON to {self.url}: {error}.") from None
        except httpx.TimeoutException as error:
            raise DeadlineError(f"{self.url} did not answer in time ({type(error).__name__}).") from error
        except httpx.RequestError as error:
            raise ServerError(f"{self.url} cannot be reached: {error}") from error

    def _send(self, method: str, path: str, body: Any = None, attempt: int = 0) -> dict[str, Any]:
        try:
            return self._once(method, path, body)
        except ServerError as error:
            if error.status in (408, 504):
                raise DeadlineError(str(error)) from None
            if error.status not in (None, 429, 503) or attempt >= self.retries:
                raise
            wait = 0.5 * 2.0 ** min(attempt, 9) if error.retry_after is None else error.retry_after
        time.sleep(min(wait, LONGEST_WAIT) * random.uniform(1, 1.25))  # not all clients at the same time
        return self._send(method, path, body, attempt + 1)


def _read(response: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with suppress(TypeError, ValueError, RecursionError):  # of a proxy, perhaps
        fields = dict(response.json())
    if response.is_success and fields:
        return fields
    hidden, asked = (response.headers.get(name, "") for name in ("ms-azureml-model-error-statuscode", "Retry-After"))
    status = int(hidden) if hidden.isdecimal() else response.status_code  # Azure's is 424 for every refusal
    said = fields.get("error") or response.headers.get("ms-azureml-model-error-reason") or response.text[:200]
    seconds = float(asked) if asked.isdecimal() else None
    with suppress(TypeError, ValueError, OverflowError):  # it is no date
        seconds = max(0.0, mktime_tz(parsedate_tz(asked)) - time.time())
    raise ServerError(f"{response.url} answered {status}: {said}", status, fields.get("error_type", ""), seconds)
