"""Windows to window logits: a bounded queue, batches by token budget, and the workers that run them.

    request   the windows of one `submit`, sorted by length and planned into pieces of at most one batch
    batch     the next piece, filled up with pieces of similar length from other requests
    worker    a thread; as many as the backend is worth

Which piece is next: that of the request with the least left to do, so that a short question does not wait for a long
document; every fourth batch belongs to the oldest request, so that nothing starves. A request that fits one batch runs in the
caller's own thread when nothing else runs.

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
from threading import Condition, Lock, Thread, get_ident

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
"""The queue holds this many batches of tokens. When it is full, `submit` waits, or refuses."""

PACKED_COLS = 512
"""The width of packed rows; that of the longest window where it is longer."""

_OLDEST_EVERY = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Rows of windows, by their positions in the request; `width` is that of the rows in tokens, padding included."""

    rows: list[list[int]]
    width: int

    @property
    def cost(self) -> int:
        return len(self.rows) * self.width


@dataclass(eq=False)
class _Request:
    """Some windows, the pieces that no batch has yet, and the future of their logits."""

    number: int
    windows: Sequence[Window]
    capture: Capture | None
    deadline: float | None
    pieces: list[_Piece]  # the next one last
    future: "Future[list[WindowLogits]]" = field(default_factory=Future)
    found: list[WindowLogits | None] = field(default_factory=list)
    unnotified: Lock = field(default_factory=Lock)
    waiting_tokens: int = 0
    unread: int = 0

    @property
    def over(self) -> bool:
        """Whether its future is done: cancelled, or failed."""
        return self.future.done()

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):  # cancelled, or failed with another batch of it
            self.future.set_exception(error)

    def notify(self) -> None:
        """Tell `concurrent.futures.wait` and `as_completed`, once, that a cancelled request will not run."""
        if self.future.cancelled() and self.unnotified.acquire(blocking=False):
            self.future.set_running_or_notify_cancel()

    def finish(self, logits: list[WindowLogits]) -> None:
        with suppress(InvalidStateError):  # cancelled
            self.future.set_result(logits)


class Engine:
    """Reads windows with a backend, for any number of callers.

        with Engine(backend) as engine:
            logits = engine.submit(windows).result()        # one WindowLogits for each window, in order

    `layout` is one of the backend's, its preferred one when None. `rebuild` makes the backend again in a process that was forked
    after it was loaded, where the old one would not work; without it such a process gets an error. Safe to use from many threads.
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
        self.closed = False
        self._forked = False
        self._fork_lock = Lock()
        self._start()
        _ENGINES.add(self)

    def _start(self) -> None:
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

        `deadline` is a time of `time.monotonic()`: windows that no worker has begun by then are dropped when their turn comes, and
        the future raises `DeadlineError`. A cancelled future costs no batch that has not begun. `capture` names the attention that
        is wanted beside the logits. When the queue is full, `submit` waits, or, without `wait`, refuses. The future raises
        `BackendError` where logits are not numbers.

        Raises:
            QueueFullError: the queue is full and `wait` is false.
            ClosedError: the engine was closed.
            BackendError: this process was forked, and the backend cannot be loaded again.
        """
        if self.closed:
            raise ClosedError("The reader was closed. Load it again.")
        if self._forked:
            self._after_fork()
        return self._work.submit(windows, deadline, capture, wait)

    def _after_fork(self) -> None:
        with self._fork_lock:
            if not self._forked:  # another thread was faster
                return
            if self.rebuild is None:
                raise BackendError(
                    f"This process was forked after the model was loaded, and backend {self.backend.name!r} does not work here. Load "
                    "the model in this process, or start processes with multiprocessing's 'spawn'."
                )
            _OF_PARENT.append(self.backend)
            self.backend = self.rebuild()
            self._start()
            self._forked = False

    def close(self) -> None:
        """Drop what waits, with `ClosedError`, and wait for the batches that run. Closing twice does nothing."""
        self.closed = True
        self._finalizer()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ENGINES: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_OF_PARENT: list[Backend] = []  # in a forked child: destroying these would wait for threads that do not exist here


def _mark_forked() -> None:
    """In a forked child: no engine has its threads, and its locks may be held by threads that are gone."""
    for engine in list(_ENGINES):
        engine._finalizer.detach()
        engine._fork_lock = Lock()
        engine._forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


class _Work:
    """The queue and the workers of an engine. Workers hold this, and not the engine, so that an unused engine can be freed."""

    def __init__(self, backend: Backend, layout: BatchLayout) -> None:
        self.backend, self.layout = backend, layout
        self.closed = False
        self._changed = Condition()
        self._requests: list[_Request] = []  # those with pieces left, in order of arrival
        self._waiting_tokens = 0
        self._running: set[int] = set()  # the threads that run a batch
        self._threads: list[Thread] = []
        self._dropped: list[tuple[_Request, bool]] = []  # no longer in the queue, and whether they were late
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
            request.finish([])
        if request.over:
            return request.future
        inline = False
        try:
            inline = self._admit(request, wait)
            if inline:
                self._run([(request, request.pieces.pop())])
        finally:
            if inline:
                self._has_run()
            self._settle()
        error = request.future.exception() if inline and not request.future.cancelled() else None
        if error is not None and not isinstance(error, Exception):
            raise error  # Ctrl-C
        return request.future

    def _plan(self, windows: Sequence[Window], deadline: float | None, capture: Capture | None) -> _Request:
        lengths = list(map(len, windows))
        packed_cols = max([PACKED_COLS, *lengths])
        pieces = [
            _Piece(rows, packed_cols if self.layout == "packed" else max(sum(lengths[i] for i in row) for row in rows))
            for rows in plan_batches(lengths, self.layout, self.backend.batch_tokens, packed_cols)
        ]
        request = _Request(next(self._numbers), windows, capture, deadline, pieces[::-1])
        request.waiting_tokens = sum(piece.cost for piece in pieces)
        request.found = [None] * len(windows)
        request.unread = len(windows)
        return request

    def _admit(self, request: _Request, wait: bool) -> bool:
        """Queue a request, or say that the caller's own thread is to run it at once."""
        with self._changed:
            self._wait_for_space(request, wait)
            if request.over:
                return False
            if self.closed:
                raise ClosedError("The reader was closed. Load it again.")
            if not self._requests and not self._running and len(request.pieces) == 1:
                self._running.add(get_ident())
                return True
            self._requests.append(request)
            self._waiting_tokens += request.waiting_tokens
            while len(self._threads) < min(self.backend.batches_at_once, len(self._threads) + len(request.pieces)):
                thread = Thread(target=self._serve, name="spanqa-engine", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()
            return False

    def _wait_for_space(self, request: _Request, wait: bool) -> None:
        limit = QUEUE_BATCHES * self.backend.batch_tokens

        def fits() -> bool:
            if self._waiting_tokens + request.waiting_tokens > limit:
                self._drop_over()
            return self.closed or not self._requests or self._waiting_tokens + request.waiting_tokens <= limit

        if not fits() and not wait:
            raise QueueFullError(
                f"The queue holds {self._waiting_tokens:,} tokens of {limit:,}; these windows would add "
                f"{request.waiting_tokens:,}. Try again later, or wait."
            )
        timeout = None if request.deadline is None else max(0.0, request.deadline - time.monotonic())
        if not self._changed.wait_for(fits, timeout):
            request.fail(DeadlineError("The deadline passed while the queue was full."))

    def _serve(self) -> None:
        """Run batches until the engine is closed: what each worker does."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self.closed or (self._requests and len(self._running) < self.backend.batches_at_once)
                )
                if self.closed:
                    return
                taken = self._take()
                if taken:
                    self._running.add(get_ident())
            self._settle()
            if taken:
                try:
                    self._run(taken)
                finally:
                    self._has_run()
            del taken

    def _has_run(self) -> None:
        with self._changed:
            if get_ident() in self._running:
                self._running.remove(get_ident())
                self._changed.notify_all()

    def _drop_over(self) -> None:
        """Take out of the queue what was cancelled, has failed, or is late; `_settle` tells their futures."""
        now = time.monotonic()
        for request in list(self._requests):
            late = request.deadline is not None and request.deadline < now
            if late or request.over:
                self._remove(request)
                self._dropped.append((request, late))
                self._changed.notify_all()

    def _settle(self) -> None:
        """Tell the futures of dropped requests; without the lock, since their callbacks may do anything."""
        with self._changed:
            dropped, self._dropped = self._dropped, []
        for request, late in dropped:
            if late:
                request.fail(DeadlineError("The deadline passed before the windows were read."))
            request.notify()

    def _take(self) -> list[tuple[_Request, _Piece]]:
        """Return the pieces of the next batch."""
        self._drop_over()
        if not self._requests:
            return []
        self._batches += 1
        if self._batches % _OLDEST_EVERY == 0:
            first = self._requests[0]
        else:
            first = min(self._requests, key=lambda request: (request.waiting_tokens, request.number))
        taken = [(first, self._pop(first))]
        if first.capture is None:
            self._fill(taken)
        for request in dict.fromkeys(request for request, _ in taken):
            if not request.pieces:
                self._remove(request)
        self._changed.notify_all()  # there is space in the queue
        return taken

    def _fill(self, taken: list[tuple[_Request, _Piece]]) -> None:
        """Add pieces of similar length from all requests while the batch has room."""
        width, rows = taken[0][1].width, len(taken[0][1].rows)
        for request in self._requests:
            while request.pieces and request.capture is None:
                piece = request.pieces[-1]
                if self.layout == "flat":
                    joined = (1, width + piece.width)
                else:
                    joined = (rows + len(piece.rows), max(width, piece.width))
                similar = self.layout == "flat" or alike(min(width, piece.width), joined[1])
                if joined[0] * joined[1] > self.backend.batch_tokens or not similar:
                    break
                taken.append((request, self._pop(request)))
                rows, width = joined

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
            cols = max(piece.width for _, piece in taken) if self.layout == "packed" else None
            request, piece = taken[0]
            capture = request.capture and request.capture.of([position for row in piece.rows for position in row])
            batch = pack(rows, cols)
            logits = self.backend.forward(batch, capture=capture)
            sound = _finite(batch, logits)
            found = iter(list(split_logits([window for row in rows for window in row], batch, logits)))
        except BaseException as error:
            for request, _ in taken:
                request.fail(error)
                request.notify()
            return
        with self._changed:  # two batches of one request may end at once
            for request, piece in taken:
                for row in piece.rows:
                    for position in row:
                        request.found[position] = next(found)
                        request.unread -= 1
        for request in dict.fromkeys(request for request, _ in taken):
            self._finish(request, sound)

    def _finish(self, request: _Request, sound: bool) -> None:
        logits = [each for each in request.found if each is not None]
        if not sound and not all(map(_is_finite, logits)):
            request.fail(
                BackendError(
                    f"Backend {self.backend.name!r} gave NaN or infinity for logits, computing in {self.backend.dtype}: the "
                    "numbers of this model are too large for it. Choose dtype='fp32'; if it is that already, the weights are "
                    "damaged."
                )
            )
        elif request.unread == 0:
            request.finish(logits)
        if request.unread == 0:
            request.notify()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            waiting, self._requests = self._requests, []
            self._waiting_tokens = 0
            self._changed.notify_all()
            threads, self._threads = self._threads, []
        for request in waiting:
            request.fail(ClosedError("The reader was closed before these windows were read."))
            request.notify()
        for thread in threads:
            with suppress(RuntimeError):  # it is this very thread
                thread.join()
        with self._changed:  # a batch may run in a caller's own thread
            self._changed.wait_for(lambda: not self._running - {get_ident()})


def _finite(batch: Batch, logits: SpanLogits) -> bool:
    tokens = batch.window_index != PADDING
    return bool(np.isfinite(logits.start[tokens]).all() and np.isfinite(logits.end[tokens]).all())


def _is_finite(logits: WindowLogits) -> bool:
    null = np.isfinite(logits.null_score)
    return bool(null and np.isfinite(logits.start).all() and np.isfinite(logits.end).all())
