"""What waits to be read, and what comes next: requests, their pieces, and the turns they take. No threads here.

A request is the windows of one `Engine.submit`, sorted by length and planned into pieces of at most one batch. The next batch begins
with a piece of the request that has the least left to do, so that a short question does not wait for a long document; every fourth
batch belongs to the oldest request, so that nothing starves. The batch is filled up with pieces of similar length from all requests.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from threading import Lock

from spanqa.batches import BatchLayout, Capture, WindowLogits, alike, plan_batches
from spanqa.progress import Progress, silent
from spanqa.windows import Window

PACKED_COLS = 512
"""The width of packed rows; that of the longest window where it is longer."""

_OLDEST_EVERY = 4


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows of windows, by their positions in the request; `width` is that of the rows in tokens, padding included."""

    rows: list[list[int]]
    width: int

    @property
    def cost(self) -> int:
        """Tokens, padding included."""
        return len(self.rows) * self.width


@dataclass(eq=False)
class Request:
    """Some windows, the pieces that no batch has yet, and the future of their logits.

    `found` are the logits so far, `unread` the number of windows without; `progress` is called after each batch.
    """

    number: int
    windows: Sequence[Window]
    capture: Capture | None
    deadline: float | None
    pieces: list[Piece]  # the next one last
    future: "Future[list[WindowLogits]]" = field(default_factory=Future)
    found: list[WindowLogits | None] = field(default_factory=list)
    unnotified: Lock = field(default_factory=Lock)
    waiting_tokens: int = 0
    unread: int = 0
    progress: Progress = silent

    @property
    def over(self) -> bool:
        """Whether its future is done: cancelled, or failed."""
        return self.future.done()

    def fail(self, error: BaseException) -> None:
        """Give the error to the future, unless that is done."""
        with suppress(InvalidStateError):  # cancelled, or failed with another batch of it
            self.future.set_exception(error)

    def finish(self, logits: list[WindowLogits]) -> None:
        """Give the logits to the future, unless that is done."""
        with suppress(InvalidStateError):  # cancelled
            self.future.set_result(logits)

    def notify(self) -> None:
        """Tell `concurrent.futures.wait` and `as_completed`, once, that a cancelled request will not run."""
        if self.future.cancelled() and self.unnotified.acquire(blocking=False):
            self.future.set_running_or_notify_cancel()


Taken = list[tuple[Request, Piece]]
"""The pieces of one batch, with the requests they belong to."""


class Queue:
    """The requests with pieces left, in order of arrival. Its owner guards it with a lock."""

    def __init__(self, layout: BatchLayout, batch_tokens: int) -> None:
        self.layout, self.batch_tokens = layout, batch_tokens
        self.requests: list[Request] = []
        self.waiting_tokens = 0
        self._numbers = count()
        self._batches = 0

    def plan(
        self, windows: Sequence[Window], deadline: float | None, capture: Capture | None, progress: Progress = silent
    ) -> Request:
        """Return a request for some windows, which is not in the queue yet."""
        lengths = list(map(len, windows))
        packed_cols = max([PACKED_COLS, *lengths])
        pieces = [
            Piece(rows, packed_cols if self.layout == "packed" else max(sum(lengths[i] for i in row) for row in rows))
            for rows in plan_batches(lengths, self.layout, self.batch_tokens, packed_cols)
        ]
        request = Request(next(self._numbers), windows, capture, deadline, pieces[::-1], progress=progress)
        request.waiting_tokens = sum(piece.cost for piece in pieces)
        request.found = [None] * len(windows)
        request.unread = len(windows)
        return request

    def in_the_way(self, tokens: int) -> int:
        """Return the tokens that wait in requests of less than the next power of two: they count against a new one of so many."""
        lengths = (each.waiting_tokens for each in self.requests)
        return sum(each for each in lengths if each.bit_length() <= tokens.bit_length())

    def tokens_before(self, tokens: int) -> int:
        """Return how many tokens are read before a new request of so many is done: the shorter ones, and the turns of the oldest."""
        waiting = [each.waiting_tokens for each in self.requests if not each.over]
        shorter = sum(each for each in waiting if each <= tokens)
        return shorter + min(sum(waiting) - shorter, (shorter + tokens) // (_OLDEST_EVERY - 1))

    def add(self, request: Request) -> None:
        """Let a request wait."""
        self.requests.append(request)
        self.waiting_tokens += request.waiting_tokens

    def drop_over(self) -> list[tuple[Request, bool]]:
        """Take out what was cancelled, has failed, or is late, and return it with whether it was late."""
        now = time.monotonic()
        dropped = []
        for request in list(self.requests):
            late = request.deadline is not None and request.deadline < now
            if late or request.over:
                self._remove(request)
                dropped.append((request, late))
        return dropped

    def take(self) -> Taken:
        """Take out the pieces of the next batch; there is at least one request."""
        self._batches += 1
        if self._batches % _OLDEST_EVERY == 0:
            first = self.requests[0]
        else:
            first = min(self.requests, key=lambda request: (request.waiting_tokens, request.number))
        taken = [(first, self._pop(first))]
        if first.capture is None:
            self._fill(taken)
        for request in dict.fromkeys(request for request, _ in taken):
            if not request.pieces:
                self._remove(request)
        return taken

    def clear(self) -> list[Request]:
        """Take out everything, and return it."""
        waiting, self.requests, self.waiting_tokens = self.requests, [], 0
        return waiting

    def _fill(self, taken: Taken) -> None:
        """Add pieces of similar length from all requests while the batch has room: the most similar first, which pad least."""
        width, rows = taken[0][1].width, len(taken[0][1].rows)
        waiting = [request for request in self.requests if request.pieces and request.capture is None]
        for request in sorted(waiting, key=lambda each: abs(each.pieces[-1].width - width)):
            while request.pieces:
                piece = request.pieces[-1]
                if self.layout == "flat":
                    joined = (1, width + piece.width)
                else:
                    joined = (rows + len(piece.rows), max(width, piece.width))
                similar = self.layout == "flat" or alike(min(width, piece.width), joined[1])
                if joined[0] * joined[1] > self.batch_tokens or not similar:
                    break
                taken.append((request, self._pop(request)))
                rows, width = joined

    def _pop(self, request: Request) -> Piece:
        piece = request.pieces.pop()
        request.waiting_tokens -= piece.cost
        self.waiting_tokens -= piece.cost
        return piece

    def _remove(self, request: Request) -> None:
        self.requests.remove(request)
        self.waiting_tokens -= request.waiting_tokens
        request.waiting_tokens = 0
        request.pieces.clear()
