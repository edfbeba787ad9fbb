"""A stream of questions in, a stream of readings out: chunks of windows for the engine, and errors where they belong.

Items are taken from the stream in chunks, whose windows share batches: a small chunk first, for an early answer, then each
64 times as large as the last. One chunk is read while the next is encoded, so memory stays bounded however long the stream is. An item that
cannot be read costs that item alone; an error of the stream itself is raised after the items before it.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from spanqa.batches import WindowLogits
from spanqa.engine import Engine
from spanqa.errors import BackendError, InputError, SpanQAError
from spanqa.progress import Progress, silent
from spanqa.tokens import Passage, Tokenizer, Tokens
from spanqa.windows import Window, WindowSettings, check_question, cut

FIRST_CHUNK, LARGEST_CHUNK = 1 / 256, 16.0
"""The sizes of the first chunk (one item) and of the largest, in batches of tokens."""

GROWTH = 64
"""Each chunk is so many times as large as the last: small chunks cost, for their windows find no others of their length."""

_ITEMS = 256  # for each batch of a chunk, at most so many questions
_CHARACTERS = 1 << 20  # and so many characters of passages

Question = tuple[str | Tokens, Sequence[str | Passage]]
"""What a stream is made of: a question, as text or as tokens, and the passages it is asked of."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A question, its passages, and the model's output for each: the logits of the windows of every passage."""

    question: str | Tokens
    passages: tuple[Passage, ...]
    logits: tuple[tuple[WindowLogits, ...], ...]


@dataclass(slots=True, eq=False)
class Item:
    """A question, its passages, and the windows of each passage; or the error that prevents them."""

    question: str | Tokens
    passages: tuple[Passage, ...] = ()
    windows: Sequence[Sequence[Window]] = ()
    error: InputError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Items that were taken together, and the future of their windows; `broken` is the stream's own error after them."""

    items: list[Item]
    logits: "Future[list[WindowLogits]]"
    broken: Exception | None


def read_stream(
    stream: Iterator[Question],
    engine: Engine,
    tokenizer: Tokenizer,
    settings: WindowSettings,
    progress: Progress = silent,
) -> Iterator[tuple[Item, Reading | SpanQAError]]:
    """Yield each item with its reading, or with its error, in order. `progress` counts the windows of each chunk."""
    running: deque[_Chunk] = deque()
    size, more = FIRST_CHUNK, True
    try:
        while more or running:
            if more:
                items, more, broken = _take(stream, size, size * engine.backend.batch_tokens, tokenizer)
                _cut(items, tokenizer, settings)
                windows = [window for item in items for piece in item.windows for window in piece]
                running.append(_Chunk(items, engine.submit(windows, progress=progress), broken))
                size = min(GROWTH * size, LARGEST_CHUNK)
            # One chunk is read while the next is encoded; the first one does not wait for that.
            if len(running) > 1 or not more or (size == GROWTH * FIRST_CHUNK and running[0].logits.done()):
                yield from _readings(running[0], engine)
                broken = running.popleft().broken
                if broken is not None:
                    raise broken
    finally:
        for chunk in running:
            chunk.logits.cancel()


def read_chunks(
    chunks: Iterable[Sequence[Question]],
    engine: Engine,
    tokenizer: Tokenizer,
    settings: WindowSettings,
    progress: Progress = silent,
) -> Iterator[list[Reading | SpanQAError]]:
    """Yield the readings of each chunk, or the errors in their places. `progress` counts the windows of the chunk that is read.

    Windows share batches within a chunk and never with another one, so that the logits of a chunk do not depend, by as much as a
    rounding, on what is read before it or behind it. One chunk is read while the next is encoded.
    """
    turn = ThreadPoolExecutor(1, "spanqa-chunks")
    futures: list[Future[list[WindowLogits]]] = []

    def read(items: list[Item]) -> list[Reading | SpanQAError]:
        windows = [window for item in items for piece in item.windows for window in piece]
        futures[:] = [engine.submit(windows, progress=progress)]
        return [reading for _, reading in _readings(_Chunk(items, futures[0], None), engine)]

    running: deque[Future[list[Reading | SpanQAError]]] = deque()
    try:
        for questions in chunks:
            items = [_item(each, tokenizer) for each in questions]
            _cut(items, tokenizer, settings)
            running.append(turn.submit(read, items))
            if len(running) > 1:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in futures:
            future.cancel()
        turn.shutdown(wait=False, cancel_futures=True)


def read_one(
    question: str,
    passages: Sequence[str | Passage],
    engine: Engine,
    tokenizer: Tokenizer,
    settings: WindowSettings,
    progress: Progress = silent,
) -> Reading:
    """Return the reading of one question; `progress` counts its windows.

    Raises:
        InputError, BackendError: it cannot be read.
    """
    [(_, reading)] = read_stream(iter([(question, passages)]), engine, tokenizer, settings, progress)
    if not isinstance(reading, Reading):
        raise reading
    return reading


def _take(
    stream: Iterator[Question], size: float, most_tokens: float, tokenizer: Tokenizer
) -> tuple[list[Item], bool, Exception | None]:
    """Take the next items of the stream, and say whether there may be more, or what broke the stream."""
    items: list[Item] = []
    tokens = characters = 0
    while tokens < most_tokens and characters < size * _CHARACTERS and len(items) < size * _ITEMS:
        try:
            item = _item(next(stream), tokenizer)
        except StopIteration:
            return items, False, None
        except InputError as error:
            items.append(Item("", error=error))
            continue
        except Exception as error:  # the caller's own: the items before it are answered first
            return items, False, error
        items.append(item)
        if item.error is None:
            tokens += sum(len(passage.tokens) for passage in item.passages)
            characters += len(item.question) + sum(len(passage.text) for passage in item.passages)
    return items, True, None


def _item(given: Any, tokenizer: Tokenizer) -> Item:
    """Return an item of a stream with its passages encoded, or with its error."""
    question: str | Tokens = ""
    try:
        question, passages = pair(given, "a question and a list of passages")
        encoded = _passages(passages, tokenizer)
        return Item(question if isinstance(question, Tokens) else check_question(question), encoded)
    except InputError as error:
        return Item(question, error=error)


def pair(item: Any, expected: str) -> tuple[Any, Any]:
    """Return the two parts of an item of a stream, which holds what is `expected`.

    Raises:
        InputError: it is not a pair.
    """
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    raise InputError(f"Expected a pair of {expected}, got {type(item).__name__}: {item!r:.60}")


def _passages(given: Sequence[str | Passage], tokenizer: Tokenizer) -> tuple[Passage, ...]:
    if isinstance(given, (str, bytes, Passage, Mapping)) or not isinstance(given, Iterable):
        raise InputError(f"The passages should be a list of texts, got {type(given).__name__}: {given!r:.60}")
    return tuple(map(tokenizer.prepare, given))


def _cut(items: Sequence[Item], tokenizer: Tokenizer, settings: WindowSettings) -> None:
    """Give the items their windows, or their error; questions are encoded together."""
    texts = [item.question for item in items if item.error is None and isinstance(item.question, str)]
    try:
        encoded = iter(tokenizer.encode_many(texts))
    except InputError:
        encoded = None  # one of them cannot be encoded; each is tried alone below
    for item in items:
        if item.error is None:
            try:
                question = item.question
                if encoded is not None and isinstance(question, str):
                    question = next(encoded)
                item.windows = cut(question, item.passages, tokenizer, settings)
            except InputError as error:
                item.error = error


def _readings(chunk: _Chunk, engine: Engine) -> Iterator[tuple[Item, Reading | SpanQAError]]:
    """Wait for a chunk, and yield its items with their readings or errors."""
    try:
        found = iter(chunk.logits.result())
    except BackendError:  # of one item's windows perhaps: each item is tried alone
        for item in chunk.items:
            try:
                found = iter(engine.submit(list(chain(*item.windows))).result())
                yield item, item.error or reading_of(item, found)
            except BackendError as error:
                yield item, error
        return
    for item in chunk.items:
        yield item, item.error or reading_of(item, found)


def reading_of(item: Item, found: Iterator[WindowLogits]) -> Reading:
    """Return the reading of an item, taking the logits of its windows from `found`."""
    return Reading(item.question, item.passages, tuple(tuple(islice(found, len(piece))) for piece in item.windows))
