"""The policy of a server, without HTTP: who is let in, how long a request may take, and what happens when nobody waits for it.

    admission   a request is refused at once where others would keep it waiting for too long
    reading     texts are encoded in threads, windows are read by the engine, answers are decoded in threads
    deadline    a request that takes too long is given up; a batch that runs is not stopped
    gone        a request whose task is cancelled costs no step that has not begun

Batches, turns and the bounded queue are the engine's (`spanqa.engine`, `spanqa.queue`).
"""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from spanqa.answers import Ranking
from spanqa.batches import WindowLogits
from spanqa.engine import BatchRecord, Engine
from spanqa.errors import InputError
from spanqa.pipelines.calls import CallSettings
from spanqa.pipelines.steps import decode, encode, window_settings
from spanqa.reader import Reader
from spanqa.serve.problems import Problem
from spanqa.stream import Item, Reading, reading_of
from spanqa.windows import check_question, cut

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

CHARACTERS_PER_TOKEN = 3.0
"""An estimate, for texts that have not been encoded yet; windows overlap, which counts."""

LONG_TEXT = 20_000
"""Requests of more characters than this are encoded and decoded in a thread of their own, so that short ones do not wait for them."""


class Asked(Protocol[T_co]):
    """One question as a route understood it: how it becomes windows, and how their logits become a result."""

    @property
    def characters(self) -> int:
        """Characters of the question and its passages."""

    def prepare(self) -> Item:
        """Encode the texts and cut them into windows."""

    def decode(self, reading: Reading) -> T_co:
        """Return the result."""


@dataclass(frozen=True, slots=True)
class AskedOfPassages:
    """A question asked of passages, the way `Reader.ranking` is. `sources` name the passages."""

    reader: Reader
    question: str
    passages: Sequence[str]
    sources: Sequence[str | None]
    top_k: int = 1

    @property
    def characters(self) -> int:
        return len(self.question) + sum(map(len, self.passages))

    def prepare(self) -> Item:
        tokenizer = self.reader.checkpoint.tokenizer
        passages = tuple(map(self.reader.prepare, self.passages, self.sources))
        question = check_question(self.question)
        return Item(question, passages, cut(question, passages, tokenizer, self.reader.windows))

    def decode(self, reading: Reading) -> Ranking:
        return self.reader.decode(reading, top_k=self.top_k)


@dataclass(frozen=True, slots=True)
class AskedOfPipeline:
    """A question asked the way transformers' pipeline was: the result has its answers, best first (`spanqa.pipelines.steps`)."""

    reader: Reader
    question: str
    context: str
    settings: CallSettings

    @property
    def characters(self) -> int:
        return len(self.question) + len(self.context)

    def prepare(self) -> Item:
        question, passage = encode(self.reader, check_question(self.question), self.context, self.settings)
        settings = window_settings(self.reader, question, passage, self.settings)
        reader = self.reader.with_settings(windows=settings)
        windows = cut(question, [passage], reader.checkpoint.tokenizer, reader.windows)
        return Item(question, (passage,), windows)

    def decode(self, reading: Reading) -> list[dict[str, object]]:
        return decode(self.reader, reading, self.settings)


@dataclass(slots=True)
class Times:
    """Seconds that a request spent in each stage, `read` with the wait for its turn; `tokens` were read for it."""

    prepare: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    tokens: int = 0


class AnswerQueue:
    """Answers questions for many clients at once, with one engine.

    `max_wait` are seconds: a request that others would keep waiting for longer is refused. How fast the machine reads is measured
    with every batch. To be used from one event loop.
    """

    def __init__(self, engine: Engine, *, max_wait: float, max_requests: int, max_bytes: int) -> None:
        self.engine = engine
        self.max_wait, self.max_requests, self.max_bytes = max_wait, max_requests, max_bytes
        self.requests = self.bytes = 0
        self._preparing = 0  # an estimate of the tokens that are not in the engine's queue yet
        self.tokens_per_second = math.inf
        self._short = ThreadPoolExecutor(4, "spanqa-serve")
        self._long = ThreadPoolExecutor(1, "spanqa-serve-long")
        engine.observers.append(self._learn)

    def _learn(self, record: BatchRecord) -> None:
        """Learn from a batch how fast the machine reads: a moving average, for which a full batch counts more than a small one."""
        speed = record.rows * record.cols / max(record.seconds, 1e-6)
        if self.tokens_per_second == math.inf:
            self.tokens_per_second = speed
        share = 0.2 * min(1.0, record.rows * record.cols / self.engine.batch_tokens)
        self.tokens_per_second += share * (speed - self.tokens_per_second)

    @contextmanager
    def admitted(self, size: int) -> Iterator[None]:
        """Hold the place of a request with a body of so many bytes.

        Raises:
            Problem: too many requests, or bytes, are in work: "overloaded".
        """
        if self.requests >= self.max_requests or (self.requests and self.bytes + size > self.max_bytes):
            raise Problem("overloaded", "Too many requests are in work. Try again later.", retry_after=1)
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size

    async def answer(self, asked: Sequence[Asked[T]], deadline: float, times: Times | None = None) -> list[T]:
        """Return the result of each question, in order; the windows of all of them share batches.

        `deadline` is a time of `time.monotonic()`. When the task is cancelled, what has not begun is never done.

        Raises:
            Problem: the wait would be too long: "overloaded".
            QueueFullError: the engine's queue is full.
            InputError: a question or passage cannot be read; of several questions, the message counts them from 1.
            DeadlineError, TimeoutError: the deadline passed first.
        """
        times = Times() if times is None else times
        characters = sum(each.characters for each in asked)
        tokens = int(characters / CHARACTERS_PER_TOKEN)
        self._check_wait(tokens)
        threads = self._long if characters > LONG_TEXT else self._short
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            started = time.perf_counter()
            begun = threads.submit(self._begin, asked, deadline, times)
            self._preparing += tokens
            try:
                items, future, results = await asyncio.wrap_future(begun)
            except asyncio.CancelledError:
                begun.add_done_callback(_drop)
                raise
            finally:
                self._preparing -= tokens
            if results is not None:
                return results
            logits = await asyncio.wrap_future(future)
            times.read = time.perf_counter() - started - times.prepare
            return await asyncio.wrap_future(threads.submit(_decode, asked, items, logits, times))

    def _check_wait(self, tokens: int) -> None:
        wait = (self.engine.tokens_before(tokens) + self._preparing) / self.tokens_per_second
        if wait > self.max_wait:
            raise Problem(
                "overloaded",
                f"This request would wait for about {wait:.1f} seconds; at most {self.max_wait:g} are allowed. Try again later.",
                retry_after=wait - self.max_wait,
            )

    def _begin(
        self, asked: Sequence[Asked[T]], deadline: float, times: Times
    ) -> "tuple[list[Item], Future[list[WindowLogits]], list[T] | None]":
        """Encode and submit; where the engine was idle, it has read them now, and the results are there."""
        started = time.perf_counter()
        items = []
        for number, each in enumerate(asked, 1):
            try:
                items.append(each.prepare())
            except InputError as error:
                raise error if len(asked) == 1 else type(error)(f"Question {number}: {error}") from None
        windows = [window for each in items for of_passage in each.windows for window in of_passage]
        times.tokens = sum(map(len, windows))
        times.prepare = time.perf_counter() - started
        future = self.engine.submit(windows, deadline=deadline, wait=False)
        if not future.done() or future.exception() is not None:
            return items, future, None
        times.read = time.perf_counter() - started - times.prepare
        return items, future, _decode(asked, items, future.result(), times)

    def close(self) -> None:
        """End the threads when they are idle, without waiting for them."""
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)


def _drop(begun: "Future[tuple[list[Item], Future[list[WindowLogits]], list[T] | None]]") -> None:
    """Drop the windows of a request that was given up while its texts were encoded."""
    if not begun.cancelled() and begun.exception() is None:
        begun.result()[1].cancel()


def _decode(asked: Sequence[Asked[T]], items: Sequence[Item], logits: Sequence[WindowLogits], times: Times) -> list[T]:
    started = time.perf_counter()
    found = iter(logits)
    results = [each.decode(reading_of(item, found)) for each, item in zip(asked, items, strict=True)]
    times.decode = time.perf_counter() - started
    return results
