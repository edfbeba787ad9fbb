"""What stands behind the routes: the reader once it is loaded, the queue, and the state that /ready reports."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol, TypeVar

from starlette.requests import Request

from spanqa.reader import Reader
from spanqa.serve.observe import note_asked
from spanqa.serve.problems import Problem, loading
from spanqa.serve.queue import AnswerQueue, Asked, Times
from spanqa.serve.settings import ServeSettings

T = TypeVar("T")

State = Literal["loading", "ready", "draining"]


class Explained(Protocol):
    """An explanation, as `spanqa.explain` makes it."""

    def as_json(self) -> dict[str, Any]:
        """Return it in a form that JSON can write."""


Explain = Callable[..., Explained]
"""explain(reader, question, passage, *, method, against, threshold, budget_s, trust, progress); handed in by the command line."""


class Service:
    """A model that is being served: `state`, the reader and its queue.

    The server listens before the model is loaded: until `start`, questions get "loading". After `drain`, /ready says "draining", and
    questions are still answered; they were sent before the balancer knew.
    """

    def __init__(
        self, settings: ServeSettings = ServeSettings(), *, explain: Explain | None = None, name: str = ""
    ) -> None:
        self.settings, self.explain, self.name = settings, explain, name
        self.state: State = "loading"
        self.started = time.monotonic()
        self.when_loading: list[Callable[[], object]] = []  # what is done beside loading the model, in its thread
        self.when_closed: list[Callable[[], None]] = []
        self._reader: Reader | None = None
        self._queue: AnswerQueue | None = None
        self.explaining = asyncio.Semaphore(1)

    def start(self, reader: Reader, tokens_per_second: float = math.inf) -> None:
        """Begin to answer, with this reader; how fast it reads is learnt from its batches, if it is not known."""
        settings = self.settings
        self._reader = reader
        self._queue = AnswerQueue(
            reader.engine, max_wait=settings.max_wait, max_requests=settings.max_requests, max_bytes=settings.max_bytes
        )
        self._queue.tokens_per_second = tokens_per_second
        self.name = self.name or reader.checkpoint.path.name
        self.state = "ready"

    def drain(self) -> None:
        """Say that this server is about to end."""
        self.state = "draining"

    def close(self) -> None:
        """Drop what waits, and wait for the batches that run."""
        if self._queue is not None:
            self._queue.close()
        if self._reader is not None:
            self._reader.close()
        for close in self.when_closed:
            close()

    @property
    def loaded(self) -> bool:
        """Whether there is a reader."""
        return self._reader is not None

    @property
    def reader(self) -> Reader:
        """The reader.

        Raises:
            Problem: "loading".
        """
        if self._reader is None:
            raise loading()
        return self._reader

    @property
    def queue(self) -> AnswerQueue:
        """The queue.

        Raises:
            Problem: "loading".
        """
        if self._queue is None:
            raise loading()
        return self._queue

    async def answer(self, request: Request, asked: Sequence[Asked[T]]) -> list[T]:
        """Answer the questions of a request, unless its client goes away first; note what is asked, for metrics, log and traces."""
        settings = self.settings
        if len(asked) > settings.max_questions:
            raise Problem(
                "validation", f"There are {len(asked)} questions; at most {settings.max_questions} are allowed at once."
            )
        times = Times()
        note_asked(request.scope, asked, times, text=settings.log_text)
        deadline = time.monotonic() + settings.deadline
        with self.queue.admitted(len(await request.body())):
            return await unless_gone(request, self.queue.answer(asked, deadline, times))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of some work, and cancel it when the client of the request has gone.

    Raises:
        Problem: "client_gone".
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Problem("client_gone", "The client has gone.")
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
