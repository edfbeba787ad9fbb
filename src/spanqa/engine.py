"""Windows to window logits: a bounded queue, batches by token budget, and the workers that run them.

    request   the windows of one `submit`, in pieces of at most one batch
    batch     the next pieces, chosen by `spanqa.queue`
    worker    a thread; as many as the backend is worth

A request that fits one batch runs in the caller's own thread when nothing else runs. It cuts no text (`spanqa.windows`), decides
on no turns (`spanqa.queue`) and reads no logits (`spanqa.spans`).
"""

import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Lock, Thread, get_ident

import numpy as np

from spanqa.backends.base import Backend
from spanqa.batches import PADDING, Batch, BatchLayout, Capture, SpanLogits, WindowLogits, pack, split_logits
from spanqa.errors import BackendError, ClosedError, DeadlineError, InputError, QueueFullError
from spanqa.progress import Progress, silent
from spanqa.queue import Queue, Request, Taken
from spanqa.windows import Window

_LOG = logging.getLogger(__name__)

QUEUE_BATCHES = 64
"""The queue is full for a request when it and those that are not much longer have this many batches of tokens: `submit` waits, or refuses.

Requests from the next power of two on do not count, since they are read later; so a long text cannot shut out short ones. Each power
of two holds at most the limit, and so all that waits is at most log2(limit) times the limit, and one request more.
"""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch that was read: its rows and columns, how many of its tokens are no padding, and the seconds that it took."""

    rows: int
    cols: int
    tokens: int
    seconds: float


Observer = Callable[[BatchRecord], None]


class Engine:
    """Reads windows with a backend, for any number of callers.

        with Engine(backend) as engine:
            logits = engine.submit(windows).result()        # one WindowLogits for each window, in order

    `layout` is one of the backend's, its preferred one when None. `rebuild` makes the backend again in a process that was forked
    after it was loaded, where the old one would not work; without it such a process gets an error. `observers` are called with each
    batch, in the thread that ran it; what they raise fails the batch. Safe to use from many threads.
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
        self.observers: list[Observer] = []
        self.closed = False
        self._batch_tokens: int | None = None
        self._forked = False
        self._fork_lock = Lock()
        self._start()
        _ENGINES.add(self)

    def _start(self) -> None:
        self._work = _Work(self.backend, self.layout, self.observers)
        if self._batch_tokens is not None:
            self._work.batch_tokens(self._batch_tokens)
        self._finalizer = weakref.finalize(self, self._work.close)

    def submit(
        self,
        windows: Sequence[Window],
        *,
        deadline: float | None = None,
        capture: Capture | None = None,
        wait: bool = True,
        progress: Progress = silent,
    ) -> "Future[list[WindowLogits]]":
        """Return the future of the logits of some windows, one for each, in order.

        `deadline` is a time of `time.monotonic()`: windows that no worker has begun by then are dropped when their turn comes, and
        the future raises `DeadlineError`. A cancelled future costs no batch that has not begun. `capture` names the attention that
        is wanted beside the logits. `progress` is called after each batch, in the thread that ran it, with the windows that have
        been read. When the queue is full, `submit` waits, or, without `wait`, refuses. The future raises
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
        return self._work.submit(windows, deadline, capture, wait, progress)

    @property
    def batch_tokens(self) -> int:
        """The largest batch, in tokens with padding: the backend's own, which suits a long stream, unless another one is set.

        Smaller batches end sooner, so that what comes next waits less; where they are read as fast, that is a gain.
        """
        return self._batch_tokens or self.backend.batch_tokens

    @batch_tokens.setter
    def batch_tokens(self, tokens: int) -> None:
        self._batch_tokens = tokens
        self._work.batch_tokens(tokens)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait to be read, padding included; those of batches that run do not wait."""
        return self._work.waiting_tokens()

    def tokens_before(self, tokens: int) -> int:
        """Return how many tokens would be read before all of a new request of so many."""
        return self._work.waiting_tokens(tokens)

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

    def __init__(self, backend: Backend, layout: BatchLayout, observers: list[Observer]) -> None:
        self.backend, self.layout, self.observers = backend, layout, observers
        self.closed = False
        self._changed = Condition()
        self._queue = Queue(layout, backend.batch_tokens)
        self._running: set[int] = set()  # the threads that run a batch
        self._threads: list[Thread] = []
        self._dropped: list[tuple[Request, bool]] = []  # no longer in the queue, and whether they were late

    def submit(
        self,
        windows: Sequence[Window],
        deadline: float | None,
        capture: Capture | None,
        wait: bool,
        progress: Progress,
    ) -> "Future[list[WindowLogits]]":
        if capture is not None and capture.queries is not None and len(capture.queries) != len(windows):
            raise InputError(
                f"The capture has queries for {len(capture.queries)} windows; {len(windows)} were submitted."
            )
        request = self._queue.plan(windows, deadline, capture, progress)
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

    def batch_tokens(self, tokens: int) -> None:
        with self._changed:
            self._queue.batch_tokens = tokens

    def waiting_tokens(self, before: int | None = None) -> int:
        with self._changed:
            return self._queue.waiting_tokens if before is None else self._queue.tokens_before(before)

    def _admit(self, request: Request, wait: bool) -> bool:
        """Queue a request, or say that the caller's own thread is to run it at once."""
        with self._changed:
            self._wait_for_space(request, wait)
            if request.over:
                return False
            if self.closed:
                raise ClosedError("The reader was closed. Load it again.")
            if not self._queue.requests and not self._running and len(request.pieces) == 1:
                self._running.add(get_ident())
                return True
            self._queue.add(request)
            wanted = min(self.backend.batches_at_once, len(self._threads) + len(request.pieces))
            while len(self._threads) < wanted:
                thread = Thread(target=self._serve, name="spanqa-engine", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()
            return False

    def _wait_for_space(self, request: Request, wait: bool) -> None:
        limit, tokens = QUEUE_BATCHES * self.backend.batch_tokens, request.waiting_tokens

        def fits() -> bool:
            if self._queue.in_the_way(tokens) + tokens > limit:
                self._drop_over()
            return self.closed or not self._queue.requests or self._queue.in_the_way(tokens) + tokens <= limit

        if not fits() and not wait:
            raise QueueFullError(
                f"The queue holds {self._queue.in_the_way(tokens):,} tokens of {limit:,} in requests that are not much longer than these "
                f"windows, which would add {tokens:,}. Try again later, or wait."
            )
        timeout = None if request.deadline is None else max(0.0, request.deadline - time.monotonic())
        if not self._changed.wait_for(fits, timeout):
            request.fail(DeadlineError("The deadline passed while the queue was full."))

    def _serve(self) -> None:
        """Run batches until the engine is closed: what each worker does."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self.closed or (self._queue.requests and len(self._running) < self.backend.batches_at_once)
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
        """Take out of the queue what nobody waits for any more, or what is late; `_settle` tells the futures."""
        dropped = self._queue.drop_over()
        self._dropped += dropped
        if dropped:
            self._changed.notify_all()

    def _settle(self) -> None:
        """Tell the futures of dropped requests; without the lock, since their callbacks may do anything."""
        with self._changed:
            dropped, self._dropped = self._dropped, []
        for request, late in dropped:
            if late:
                request.fail(DeadlineError("The deadline passed before the windows were read."))
            request.notify()

    def _take(self) -> Taken:
        """Return the pieces of the next batch; none where nothing waits."""
        self._drop_over()
        if not self._queue.requests:
            return []
        taken = self._queue.take()
        self._changed.notify_all()  # there is space in the queue
        return taken

    def _run(self, taken: Taken) -> None:
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
            started = time.perf_counter()
            logits = self.backend.forward(batch, capture=capture)
            seconds = time.perf_counter() - started
            rows_read, cols_read = batch.input_ids.shape
            tokens = int((batch.window_index != PADDING).sum())
            for observe in self.observers:
                observe(BatchRecord(rows_read, cols_read, tokens, seconds))
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
            try:
                request.progress(len(request.windows) - request.unread, len(request.windows))
            except Exception as error:
                request.fail(error)
            self._finish(request, sound)

    def _finish(self, request: Request, sound: bool) -> None:
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
            waiting = self._queue.clear()
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
