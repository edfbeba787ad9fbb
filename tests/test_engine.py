"""The engine: order, budgets, deadlines, cancellation, a bounded queue, workers, and their end."""

import gc
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from conftest import need_backend
from spanqa import engine as engine_module
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits, WindowLogits, pad, split_logits
from spanqa.engine import Engine
from spanqa.errors import BackendError, ClosedError, DeadlineError, InputError, QueueFullError
from spanqa.reader import Reader
from spanqa.tokens import Template, Tokens
from spanqa.windows import Window

BERT = Template(((101, 0),), ((102, 0),), ((102, 1),), 0, 1)


def window(length: int, word: int = 7) -> Window:
    """A window of so many tokens, whose passage is one word over and over."""
    ids = np.full(length - 4, word, np.int32)
    tokens = Tokens(ids, np.stack([np.arange(len(ids)), np.arange(1, len(ids) + 1)], axis=1).astype(np.int32))
    question = Tokens(np.array([5], np.int32), np.array([[0, 1]], np.int32))
    return Window(question, tokens, 0, len(ids), BERT)


class Echo:
    """Logits that say which word and place they are of; each batch waits for the gate, and is noted."""

    name, device, dtype = "echo", "cpu", "fp32"

    def __init__(
        self, *, batch_tokens: int = 100, at_once: int = 1, layouts: tuple[BatchLayout, ...] = ("padded",)
    ) -> None:
        self.batch_tokens, self.batches_at_once, self.layouts = batch_tokens, at_once, layouts
        self.gate = Event()
        self.gate.set()
        self.began: list[list[int]] = []  # the words of each batch's windows
        self.shapes: list[tuple[int, int]] = []
        self.threads: list[str] = []

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        self.began.append([int(ids[max(3, (index >= 0).sum() // 2)]) for ids, index in zip(batch.input_ids, batch.window_index, strict=True)])  # fmt: skip
        self.shapes.append(batch.shape)
        self.threads.append(threading.current_thread().name)
        assert self.gate.wait(30)
        if (batch.input_ids == 666).any():
            raise BackendError("the devil")
        start = batch.input_ids.astype(np.float32)
        start[batch.input_ids == 999] = np.nan
        return SpanLogits(start, batch.position_ids.astype(np.float32))


def expected(of: Window) -> WindowLogits:
    batch = pad([of])
    (logits,) = split_logits([of], batch, Echo().forward(batch))
    return logits


def assert_same(found: list[WindowLogits], windows: list[Window]) -> None:
    assert len(found) == len(windows)
    for logits, each in zip(found, windows, strict=True):
        np.testing.assert_array_equal(logits.start, expected(each).start)
        np.testing.assert_array_equal(logits.end, expected(each).end)
        assert (logits.null_start, logits.null_end) == (101.0, 0.0)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def held(backend: Echo, engine: Engine, windows: int = 2) -> "Future[list[WindowLogits]]":
    """Keep the one worker busy with a batch that waits for the gate."""
    backend.gate.clear()
    first = engine.submit([window(90, 1)] * windows)  # several batches, so that a thread runs them
    until(lambda: backend.began)
    return first


# --- logits


@pytest.mark.parametrize("layout", ["padded", "packed", "flat"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_logits_come_in_the_order_of_the_windows_whatever_their_lengths(layout: BatchLayout, at_once: int) -> None:
    windows = [window(5 + 7 * n % 60, 10 + n) for n in range(40)]
    with Engine(Echo(at_once=at_once, layouts=("padded", "packed", "flat")), layout) as engine:
        assert_same(engine.submit(windows).result(30), windows)


def test_no_windows_have_no_logits() -> None:
    assert Engine(Echo()).submit([]).result(0) == []


def test_no_batch_is_larger_than_the_backend_wants_but_a_window_that_is_larger_itself() -> None:
    backend = Echo(batch_tokens=60)
    lengths = [5 + 7 * n % 50 for n in range(30)]
    with Engine(backend) as engine:
        engine.submit([window(length) for length in [*lengths, 80]]).result(30)
    assert backend.shapes[0] == (1, 80)
    assert all(rows * cols <= 60 for rows, cols in backend.shapes[1:])


def test_windows_of_several_requests_share_a_batch_where_their_lengths_are_alike() -> None:
    backend = Echo(batch_tokens=100)
    with Engine(backend) as engine:
        held(backend, engine)
        requests = {
            word: engine.submit([window(length, word)]) for word, length in ((2, 20), (3, 22), (4, 60), (5, 18))
        }
        backend.gate.set()
        for word, future in requests.items():
            assert future.result(30)[0].start[0] == word
    assert [2, 3, 5] in map(sorted, backend.began)
    assert [4] in backend.began


def test_captured_attention_goes_to_the_window_that_asked_for_it(mini: Reader) -> None:
    checkpoint = mini.checkpoint
    passage = mini.prepare("The pier was built by Anna Kestrel. " * 30)
    from spanqa.windows import WindowSettings, cut

    (windows,) = cut("Who built it?", [passage], checkpoint.tokenizer, WindowSettings(100, 20))
    queries = tuple(tuple(range(1 + n)) for n in range(len(windows)))
    found = mini.engine.submit(windows, capture=Capture((0, 5), queries)).result(60)
    for each, logits, wanted in zip(windows, found, queries, strict=True):
        alone = mini.backend.forward(pad([each]), capture=Capture((0, 5), (wanted,))).attention
        assert alone is not None and logits.attention is not None and list(logits.attention) == [0, 5]
        for layer in (0, 5):
            assert logits.attention[layer].shape == (12, len(wanted), len(each))
            np.testing.assert_allclose(logits.attention[layer], alone[layer][0], atol=1e-5)
    with pytest.raises(InputError, match=r"The capture has queries for 1 windows; \d+ were submitted"):
        mini.engine.submit(windows, capture=Capture((0,), ((0,),)))


# --- whose turn it is


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    backend = Echo()
    with Engine(backend) as engine:
        held(backend, engine)
        long = engine.submit([window(90, 2) for _ in range(20)])
        short = engine.submit([window(90, 3)])
        backend.gate.set()
        short.result(30)
        long.result(30)
    assert backend.began.index([3]) <= 3  # after the batch that was running, and the oldest's turn


def test_a_long_request_does_not_starve_beside_many_short_ones() -> None:
    backend = Echo()
    with Engine(backend) as engine:
        held(backend, engine)
        long = engine.submit([window(90, 2) for _ in range(5)])
        short = [engine.submit([window(90, 3)]) for _ in range(40)]
        backend.gate.set()
        for future in (long, *short):
            future.result(30)
    turns = [number for number, words in enumerate(backend.began) if words == [2]]
    assert max(later - earlier for earlier, later in pairwise(turns)) <= 4


def test_one_batch_runs_in_the_callers_own_thread_and_more_in_threads_of_the_engine() -> None:
    backend = Echo(at_once=2)
    with Engine(backend) as engine:
        engine.submit([window(20), window(30)]).result(0)
        assert backend.threads == [threading.current_thread().name]
        backend.gate.clear()
        future = engine.submit([window(90) for _ in range(6)])
        until(lambda: len(backend.began) == 3)
        assert set(backend.threads[1:]) == {"spanqa-engine"}
        time.sleep(0.05)
        assert len(backend.began) == 3, "as many batches at once as the backend is worth"
        backend.gate.set()
        future.result(30)


# --- what is not run


def test_a_cancelled_request_costs_no_further_batch() -> None:
    backend = Echo()
    with Engine(backend) as engine:
        first = held(backend, engine)
        waiting = engine.submit([window(90, 2) for _ in range(10)])
        before = engine.tokens_before(10_000)
        assert waiting.cancel()
        assert engine.tokens_before(10_000) <= before - 900  # nobody waits for it, before the next batch begins too
        backend.gate.set()
        first.result(30)
        engine.submit([window(90, 3)]).result(30)
        with pytest.raises(CancelledError):
            waiting.result(0)
    assert [2] not in backend.began


def test_a_request_cancelled_while_it_runs_stops_after_the_batch() -> None:
    backend = Echo()
    with Engine(backend) as engine:
        backend.gate.clear()
        future = engine.submit([window(90, 2) for _ in range(10)])
        until(lambda: backend.began)
        future.cancel()
        backend.gate.set()
        engine.submit([window(90, 3)]).result(30)
        until(lambda: not engine._work._running)
    assert backend.began.count([2]) <= 2


def test_a_deadline_that_passes_in_the_queue_drops_the_request() -> None:
    backend = Echo()
    with Engine(backend) as engine:
        held(backend, engine)
        late = engine.submit([window(90, 2)], deadline=time.monotonic() + 0.01)
        patient = engine.submit([window(90, 3)], deadline=time.monotonic() + 60)
        time.sleep(0.05)
        backend.gate.set()
        with pytest.raises(DeadlineError, match="The deadline passed before the windows were read"):
            late.result(30)
        patient.result(30)
    assert [2] not in backend.began
    with pytest.raises(TimeoutError, match="The deadline had passed when the windows were submitted"):
        Engine(backend).submit([window(20)], deadline=time.monotonic() - 1).result(0)


def test_a_full_queue_refuses_or_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "QUEUE_BATCHES", 2)
    backend = Echo()
    with Engine(backend) as engine:
        held(backend, engine)  # one batch runs, one waits
        engine.submit([window(90, 2)], wait=False)
        with pytest.raises(
            QueueFullError,
            match=r"The queue holds 180 tokens of 200 in requests that are not much longer than these windows, which would add 90",
        ):
            engine.submit([window(90, 3)], wait=False)
        waited = engine.submit([window(90, 4)], deadline=time.monotonic() + 0.02)
        with pytest.raises(DeadlineError, match="The deadline passed while the queue was full"):
            waited.result(0)
        done: list[Any] = []
        thread = Thread(target=lambda: done.append(engine.submit([window(90, 5)]).result(30)))
        thread.start()
        time.sleep(0.02)
        assert not done
        backend.gate.set()
        thread.join(30)
        assert done[0][0].start[0] == 5
    assert [3] not in backend.began and [4] not in backend.began


def test_a_request_larger_than_the_whole_queue_is_taken_when_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "QUEUE_BATCHES", 2)
    with Engine(Echo()) as engine:
        assert len(engine.submit([window(90) for _ in range(9)], wait=False).result(30)) == 9


def test_waiting_for_several_futures_ends_when_one_was_cancelled() -> None:
    backend = Echo()
    with Engine(backend) as engine:
        first = held(backend, engine)
        cancelled, read = engine.submit([window(90, 2)]), engine.submit([window(90, 3)])
        cancelled.cancel()
        backend.gate.set()
        done, waiting = wait([first, cancelled, read], timeout=20)
    assert waiting == set() and cancelled in done


def test_what_was_cancelled_makes_room_in_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "QUEUE_BATCHES", 2)
    backend = Echo()
    with Engine(backend) as engine:
        held(backend, engine)
        engine.submit([window(90, 2)]).cancel()
        read = engine.submit([window(90, 3)], wait=False)
        backend.gate.set()
        assert len(read.result(30)) == 1


def test_a_callback_may_submit_again_from_whichever_thread_it_runs_in() -> None:
    backend = Echo(at_once=2)
    again: list[Future[list[WindowLogits]]] = []
    with Engine(backend) as engine:
        for windows in ([window(20)], [window(90) for _ in range(6)]):  # inline, and in the engine's threads
            engine.submit(windows).add_done_callback(lambda _: again.append(engine.submit([window(30, 8)])))
        until(lambda: len(again) == 2)
        for future in again:
            assert future.result(30)[0].start[0] == 8
        until(lambda: not engine._work._running)


@pytest.mark.parametrize("layout", ["padded", "packed", "flat"])
def test_merged_batches_keep_to_the_budget(layout: BatchLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanqa.queue.PACKED_COLS", 64)
    backend = Echo(batch_tokens=200, layouts=("padded", "packed", "flat"))
    draw = random.Random(0)
    with Engine(backend, layout) as engine:
        held(backend, engine, 6)
        lengths = [draw.randint(5, 100) for _ in range(60)]
        futures = [engine.submit([window(length, 2)]) for length in lengths]
        backend.gate.set()
        for future in futures:
            future.result(30)
    assert all(rows * cols <= 200 or rows == 1 for rows, cols in backend.shapes)
    if layout == "packed":
        assert {cols for _, cols in backend.shapes} <= {64, *(length for length in (*lengths, 90) if length > 64)}


# --- errors


def test_a_keyboard_interrupt_in_the_callers_own_thread_reaches_the_caller() -> None:
    backend = Echo()
    backend.forward = lambda batch, **_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[assignment, misc]
    engine = Engine(backend)
    with pytest.raises(KeyboardInterrupt):
        engine.submit([window(20)])
    backend.forward = Echo().forward  # type: ignore[method-assign]
    assert len(engine.submit([window(20)]).result(10)) == 1


def test_what_the_backend_raises_goes_to_the_requests_of_that_batch_alone() -> None:
    backend = Echo()
    with Engine(backend) as engine:
        held(backend, engine)
        bad, good = engine.submit([window(90, 666)]), engine.submit([window(90, 3)])
        backend.gate.set()
        with pytest.raises(BackendError, match="the devil"):
            bad.result(30)
        assert good.result(30)[0].start[0] == 3
        with pytest.raises(BackendError, match="the devil"):
            engine.submit([window(20, 666)]).result(0)  # in the caller's own thread


def test_logits_that_are_no_numbers_fail_the_request_that_has_them() -> None:
    backend = Echo()
    with Engine(backend) as engine:
        held(backend, engine)
        good, bad = engine.submit([window(20, 3)]), engine.submit([window(20, 999)])
        backend.gate.set()
        with pytest.raises(
            BackendError, match=r"'echo' gave NaN or infinity for logits, computing in fp32: .* damaged"
        ):
            bad.result(30)
        assert good.result(30)[0].start[0] == 3
    assert [3, 999] in backend.began or [999, 3] in backend.began, "they shared a batch"


def test_a_layout_that_the_backend_does_not_read_is_refused() -> None:
    with pytest.raises(InputError, match="layout is 'flat'; this model on backend 'echo' reads padded"):
        Engine(Echo(), "flat")


# --- its end


def test_closing_drops_what_waits_and_waits_for_what_runs() -> None:
    backend = Echo()
    engine = Engine(backend)
    running = held(backend, engine)
    waiting = engine.submit([window(90, 2)])
    Thread(target=lambda: (time.sleep(0.05), backend.gate.set())).start()
    engine.close()
    assert engine.closed and not engine._work._running
    for future in (running, waiting):
        with pytest.raises(ClosedError, match="The reader was closed before these windows were read"):
            future.result(0)
    with pytest.raises(ClosedError, match=r"The reader was closed. Load it again"):
        engine.submit([window(20)])
    engine.close()
    assert len(backend.began) == 1


def test_whoever_waits_for_space_hears_that_the_engine_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "QUEUE_BATCHES", 1)
    backend = Echo()
    engine = Engine(backend)
    held(backend, engine)
    closing = Thread(target=engine.close)
    Thread(target=lambda: (time.sleep(0.05), closing.start(), time.sleep(0.05), backend.gate.set())).start()
    with pytest.raises(ClosedError, match=r"The reader was closed. Load it again"):
        engine.submit([window(90, 2)])
    closing.join(10)


def test_closing_waits_for_a_batch_in_a_callers_own_thread() -> None:
    backend = Echo()
    backend.gate.clear()
    engine = Engine(backend)
    done: list[Any] = []
    caller = Thread(target=lambda: done.append(engine.submit([window(20)]).result(0)))
    caller.start()
    until(lambda: backend.began)
    Thread(target=lambda: (time.sleep(0.05), backend.gate.set())).start()
    engine.close()
    caller.join(10)
    assert len(done) == 1
    assert not engine._work._running


def test_an_engine_that_nobody_holds_ends_its_threads_and_lets_go_of_the_backend() -> None:
    backend = Echo()
    engine = Engine(backend)
    engine.submit([window(90) for _ in range(4)]).result(30)
    (thread,) = engine._work._threads
    gone = weakref.ref(backend)
    del backend, engine
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert gone() is None


def test_many_threads_with_cancellations_and_deadlines_get_their_own_logits_or_their_error() -> None:
    backend = Echo(at_once=2)
    problems: list[BaseException] = []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for turn in range(60):
                windows = [window(draw.randint(5, 90), 1000 * seed + turn) for _ in range(draw.randint(0, 6))]
                deadline = time.monotonic() + draw.choice([0.0001, 5, 60]) if draw.random() < 0.3 else None
                future = engine.submit(windows, deadline=deadline)
                if draw.random() < 0.2:
                    future.cancel()
                with suppress(CancelledError, DeadlineError):
                    assert_same(future.result(30), windows)
        except BaseException as error:
            problems.append(error)

    with Engine(backend) as engine:
        threads = [Thread(target=client, args=(1 + seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert problems == []
        until(lambda: not engine._work._queue.requests and not engine._work._running)
        assert engine._work._queue.waiting_tokens == 0


# --- processes


FORKED = """
import os, signal, sys
from spanqa import Reader
from spanqa.errors import BackendError

reader = Reader.load(sys.argv[1], backend=sys.argv[2], dtype="fp32")
pairs = [("Who built it?", "It was Anna who built it.")] * 40
before = [answer.score for answer in reader.ask_many(pairs, threshold=-1e9)]
child = os.fork()
if child == 0:
    signal.alarm(40)
    try:
        after = [answer.score for answer in reader.ask_many(pairs, threshold=-1e9)]
        print(max(abs(a - b) for a, b in zip(before, after)) < 1e-4, flush=True)
    except BackendError as error:
        print(error, flush=True)
    if sys.argv[2] in ("numpy", "openvino"):
        sys.exit(0)  # as any program ends, closing its readers
    os._exit(0)  # as multiprocessing ends a child: other libraries crash in their own destructors
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("name", ["numpy", "openvino", "onnx", "torch", "jax", "tensorflow"])
def test_a_forked_child_answers_or_says_at_once_that_it_cannot(name: str, tiny: Callable[..., Path]) -> None:
    need_backend(name)
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tiny("bert")), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said, code = done.stdout.strip().rsplit("\n", 1)
    assert code == "0", done.stderr
    if name in ("numpy", "openvino", "onnx"):
        assert said == "True"
    else:
        assert said.startswith(
            f"This process was forked after the model was loaded, and backend '{name}' does not work"
        )
        assert "multiprocessing's 'spawn'" in said


# --- progress


def test_progress_counts_the_windows_that_have_been_read() -> None:
    with Engine(Echo()) as engine:
        told: list[tuple[int, int]] = []
        windows = [window(length) for length in (90, 90, 40, 40, 90)]
        assert_same(
            engine.submit(windows, progress=lambda done, total, note="": told.append((done, total))).result(), windows
        )
    assert told == sorted(told) and len(told) > 1
    assert told[-1] == (5, 5)


def test_an_error_of_the_progress_display_is_that_of_its_request_alone() -> None:
    def broken(done: int, total: int, note: str = "") -> None:
        raise RuntimeError("no terminal")

    with Engine(Echo()) as engine:
        with pytest.raises(RuntimeError, match="no terminal"):
            engine.submit([window(90), window(90)], progress=broken).result()
        assert_same(engine.submit([window(90), window(90)]).result(), [window(90), window(90)])


def test_a_batch_is_filled_with_what_is_most_similar_and_is_as_large_as_it_may_be() -> None:
    backend = Echo(batch_tokens=200)
    with Engine(backend) as engine:
        assert engine.batch_tokens == 200
        held(backend, engine, 3)
        others = [engine.submit([window(length, length)]) for length in (20, 35, 30, 22, 38)]
        engine.batch_tokens = 66
        assert engine.batch_tokens == 66
        backend.gate.set()
        wait(others, 30)
    shared = [sorted(batch) for batch in backend.began if 1 not in batch]
    assert sorted(shared) == [[20, 22], [30], [35], [38]]


def test_what_waits_is_bounded_whatever_the_lengths_and_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "QUEUE_BATCHES", 2)
    backend = Echo(batch_tokens=100)
    with Engine(backend) as engine:
        held(backend, engine)
        refused = 0
        for length in range(100, 4, -1):  # each one is shorter than all before it
            try:
                engine.submit([window(length)], wait=False)
            except QueueFullError:
                refused += 1
        assert refused > 60
        assert engine.waiting_tokens <= 200 * (200).bit_length() + 100
        backend.gate.set()
