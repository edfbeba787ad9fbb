"""Windows to window logits: a bounded queue, batches by token budget, and the workers that run them.

    request   the windows of one `submit`, sorted by length and planned into pieces of at most one batch
    batch     the next piece, filled up with pieces of like length from other requests
    worker    a thread; as many as the backend is worth

Which piece is next: that of the request with the least left to do, so that a short question does not wait for a long
document; every fourth batch belongs to the request that waits longest, so that nothing starves. A request that fits one batch
runs in the caller's own thread when nothing else runs.

It cuts no text (`spanqa.windows`) and reads no logits (`spanqa.spans`).
"""

import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from threading import Condition, Thread

import numpy as np

from spanqa.backends.base import Backend
from spanqa.batches import (
    PADDING,
    Batch,
    BatchLayout,
    Capture,
    SpanLogits,
    WindowLogits,
    alike,
    pack,
    plan_batches,
    split_logits,
)
from spanqa.errors import BackendError, ClosedError, DeadlineError, InputError, QueueFullError
from spanqa.windows import Window

_LOG = logging.getLogger(__name__)

QUEUE_BATCHES = 64
"""So many batches of tokens may wait; beyond that `submit` waits, or refuses."""

_OLDEST_EVERY = 4


@dataclass(eq=False)
class _Request:
    """Some windows, what is left of them to do, and the future of their logits."""

    number: int
    windows: Sequence[Window]
    capture: Capture | None
    deadline: float | None
    pieces: list["_Piece"]  # the next one last
    future: "Future[list[WindowLogits]]" = field(default_factory=Future)
    found: list[WindowLogits | None] = field(default_factory=list)
    waiting_tokens: int = 0
    unread: int = 0

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done()

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):  # cancelled, or failed with another batch of it
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Rows of windows, by their positions in the request; `cost` is in tokens with padding, `longest` a window's length."""

    rows: list[list[int]]
    cost: int
    longest: int


class Engine:
    """Reads windows with a backend, for as many callers as there are.

        with Engine(backend) as engine:
            logits = engine.submit(windows).result()        # one WindowLogits for each window, in order

    `layout` is one of the backend's, its preferred one when None. `rebuild` makes the backend again in a process that was forked
    after it was loaded, where it would not work; without it such a process gets an error. Safe to use from many threads.
    """

    def __init__(
        self, backend: Backend, layout: BatchLayout | None = None, *, rebuild: Callable[[], Backend] | None = None
    ) -> None:
        if layout is not None and layout not in backend.layouts:
            raise InputError(
                f"layout is {layout!r}; this model on backend {backend.name!r} reads {', '.join(backend.layouts)}."
            )
        self.backend = backend
        self.layout: BatchLayout = layout or backend.layouts[0]
        self.rebuild = rebuild
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._work = _Work(self.backend, self.layout)
        self._finalizer = weakref.finalize(self, self._work.close)

    def submit(
        self,
        windows: Sequence[Window],
        *,
        deadline: float | None = None,
        capture: Capture | None = None,
        wait: bool = True,
    ) -> "Future[list[WindowLogits]]":
        """Return the future of the logits of some windows, one for each, in order.

        `deadline` is a time of `time.monotonic()`: windows that no worker has begun by then are dropped, and the future raises
        `DeadlineError`. A cancelled future costs no batch that has not begun. `capture` names the attention that is wanted
        beside the logits. A full queue is waited for, or, without `wait`, refused. The future raises `BackendError` where logits
        are not numbers.

        Raises:
            QueueFullError: the queue is full and `wait` is false.
            ClosedError: the engine was closed.
            BackendError: this process was forked, and the backend cannot be loaded again.
        """
        if os.getpid() != self._pid:
            self._after_fork()
        return self._work.submit(windows, deadline, capture, wait)

    def _after_fork(self) -> None:
        self._finalizer.detach()
        if self.rebuild is None:
            raise BackendError(
                f"This process was forked after the model was loaded, and backend {self.backend.name!r} does not work here. Load the "
                "model in this process, or start processes with multiprocessing's 'spawn'."
            )
        self.backend = self.rebuild()
        self._start()

    def close(self) -> None:
        """Drop what waits, with `ClosedError`, and wait for the batches that run. Closing twice does nothing."""
        if os.getpid() == self._pid:
            self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether the engine was closed."""
        return self._work.closed

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Work:
    """The queue and the workers of an engine; workers hold on to this, so that an engine nobody uses can go."""

    def __init__(self, backend: Backend, layout: BatchLayout) -> None:
        self.backend, self.layout = backend, layout
        self.closed = False
        self._pid = os.getpid()
        self._changed = Condition()
        self._requests: list[_Request] = []  # those with pieces left, in order of arrival
        self._waiting_tokens = 0
        self._running = 0
        self._threads: list[Thread] = []
        self._numbers = count()
        self._batches = 0

    def submit(
        self, windows: Sequence[Window], deadline: float | None, capture: Capture | None, wait: bool
    ) -> "Future[list[WindowLogits]]":
        if capture is not None and capture.queries is not None and len(capture.queries) != len(windows):
            raise InputError(
                f"The capture has queries for {len(capture.queries)} windows; {len(windows)} were submitted."
            )
        request = self._plan(windows, deadline, capture)
        if deadline is not None and deadline < time.monotonic():
            request.fail(DeadlineError("The deadline had passed when the windows were submitted."))
        elif not windows:
            request.future.set_result([])
        if request.over:
            return request.future
        with self._changed:
            self._wait_for_space(request, wait)
            if request.over:
                return request.future
            if self.closed:
                raise ClosedError("The reader was closed. Load it again.")
            idle = not self._requests and self._running == 0
            inline = idle and len(request.pieces) == 1
            if inline:
                self._running += 1
            else:
                self._requests.append(request)
                self._waiting_tokens += request.waiting_tokens
                self._start_workers(len(request.pieces))
                self._changed.notify_all()
        if inline:
            try:
                self._run([(request, request.pieces.pop())])
            finally:
                self._has_run()
        return request.future

    def _plan(self, windows: Sequence[Window], deadline: float | None, capture: Capture | None) -> _Request:
        lengths = list(map(len, windows))
        pieces = [
            _Piece(rows, self._cost(rows, lengths), max(lengths[position] for row in rows for position in row))
            for rows in plan_batches(lengths, self.layout, self.backend.batch_tokens)
        ]
        request = _Request(next(self._numbers), windows, capture, deadline, pieces[::-1])
        request.waiting_tokens = sum(piece.cost for piece in pieces)
        request.found = [None] * len(windows)
        request.unread = len(windows)
        return request

    @staticmethod
    def _cost(rows: list[list[int]], lengths: list[int]) -> int:
        return len(rows) * max(sum(lengths[position] for position in row) for row in rows)

    def _wait_for_space(self, request: _Request, wait: bool) -> None:
        limit = QUEUE_BATCHES * self.backend.batch_tokens

        def fits() -> bool:
            return self.closed or not self._requests or self._waiting_tokens + request.waiting_tokens <= limit

        if not fits() and not wait:
            raise QueueFullError(
                f"The queue holds {self._waiting_tokens:,} tokens of {limit:,}; these windows would add "
                f"{request.waiting_tokens:,}. Try again later, or wait."
            )
        timeout = None if request.deadline is None else max(0.0, request.deadline - time.monotonic())
        if not self._changed.wait_for(fits, timeout):
            request.fail(DeadlineError("The deadline passed while the queue was full."))

    def _start_workers(self, pieces: int) -> None:
        while len(self._threads) < self.backend.batches_at_once and pieces > 0:
            thread = Thread(target=self._serve, name="spanqa-engine", daemon=True)
            self._threads.append(thread)
            thread.start()
            pieces -= 1

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self.closed or (self._requests and self._running < self.backend.batches_at_once)
                )
                if self.closed:
                    return
                taken = self._take()
                if not taken:
                    continue
                self._running += 1
            try:
                self._run(taken)
            finally:
                del taken
                self._has_run()

    def _has_run(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _take(self) -> list[tuple[_Request, _Piece]]:
        """The pieces of the next batch."""
        now = time.monotonic()
        for request in self._requests:
            if not request.over and request.deadline is not None and request.deadline < now:
                request.fail(DeadlineError("The deadline passed before the windows were read."))
        for request in [request for request in self._requests if request.over]:
            self._remove(request)
        if not self._requests:
            self._changed.notify_all()
            return []
        self._batches += 1
        if self._batches % _OLDEST_EVERY == 0:
            first = self._requests[0]
        else:
            first = min(self._requests, key=lambda request: (request.waiting_tokens, request.number))
        taken = [(first, self._pop(first))]
        if first.capture is None:
            self._fill(taken)
        for request, _ in taken:
            if not request.pieces:
                self._remove(request)
        self._changed.notify_all()  # there is space in the queue
        return taken

    def _fill(self, taken: list[tuple[_Request, _Piece]]) -> None:
        """Add pieces of like length from other requests while the batch has room."""
        longest, rows = taken[0][1].longest, len(taken[0][1].rows)
        cost = taken[0][1].cost
        for request in self._requests:
            while request.pieces and request.capture is None:
                piece = request.pieces[-1]
                low, high = sorted((piece.longest, longest))
                if self.layout == "padded":
                    joined, fits = (rows + len(piece.rows)) * high, alike(low, high)
                else:
                    joined, fits = cost + piece.cost, True
                if joined > self.backend.batch_tokens or not fits:
                    break
                taken.append((request, self._pop(request)))
                longest, rows, cost = high, rows + len(piece.rows), joined

    def _pop(self, request: _Request) -> _Piece:
        piece = request.pieces.pop()
        request.waiting_tokens -= piece.cost
        self._waiting_tokens -= piece.cost
        return piece

    def _remove(self, request: _Request) -> None:
        self._requests.remove(request)
        self._waiting_tokens -= request.waiting_tokens
        request.waiting_tokens = 0
        request.pieces.clear()

    def _run(self, taken: list[tuple[_Request, _Piece]]) -> None:
        """Run one batch and hand out its logits; whatever it raises goes to the requests."""
        _LOG.debug("a batch for %d requests", len(taken))
        try:
            rows = [[request.windows[position] for position in row] for request, piece in taken for row in piece.rows]
            if self.layout == "flat":
                rows = [[window for row in rows for window in row]]
            capture = None
            if taken[0][0].capture is not None:
                request, piece = taken[0]
                capture = taken[0][0].capture.of([position for row in piece.rows for position in row])
            batch = pack(rows)
            logits = self.backend.forward(batch, capture=capture)
            sound = _finite(batch, logits)
            found = iter(list(split_logits([window for row in rows for window in row], batch, logits)))
        except BaseException as error:
            for request, _ in taken:
                request.fail(error)
            return
        with self._changed:  # two batches of one request may end at once
            for request, piece in taken:
                for row in piece.rows:
                    for position in row:
                        request.found[position] = next(found)
                        request.unread -= 1
        for request in dict.fromkeys(request for request, _ in taken):
            logits_so_far = [each for each in request.found if each is not None]
            if not sound and not all(map(_is_finite, logits_so_far)):
                request.fail(
                    BackendError(
                        f"Backend {self.backend.name!r} gave NaN or infinity for logits, computing in {self.backend.dtype}: the "
                        "numbers of this model are too large for it. Choose dtype='fp32'; if it is that already, the weights are "
                        "damaged."
                    )
                )
            elif request.unread == 0:
                with suppress(InvalidStateError):  # cancelled, or set by the other batch
                    request.future.set_result(logits_so_far)

    def close(self) -> None:
        if os.getpid() != self._pid:  # a forked child has neither the threads nor, perhaps, a lock that can be had
            return
        with self._changed:
            self.closed = True
            waiting, self._requests = self._requests, []
            self._waiting_tokens = 0
            self._changed.notify_all()
            threads, self._threads = self._threads, []
        for request in waiting:
            request.fail(ClosedError("The reader was closed before these windows were read."))
        for thread in threads:
            with suppress(RuntimeError):  # it is this very thread
                thread.join()


def _finite(batch: Batch, logits: SpanLogits) -> bool:
    tokens = batch.window_index != PADDING
    return bool(np.isfinite(logits.start[tokens]).all() and np.isfinite(logits.end[tokens]).all())


def _is_finite(logits: WindowLogits) -> bool:
    null = np.isfinite(logits.null_score)
    return bool(null and np.isfinite(logits.start).all() and np.isfinite(logits.end).all())
