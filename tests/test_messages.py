"""Messages of errors that no other test reads: the engine's, and those of calls that are wrong in themselves.

`test_house.py` fails when an error of the core has a message that no test matches.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spanqa import engine as engine_module
from spanqa import pipelines, weights
from spanqa.backends.registry import choose_backend
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits
from spanqa.checkpoint import open_checkpoint
from spanqa.engine import Engine
from spanqa.errors import BackendError, CheckpointError, ClosedError, DeadlineError, InputError, QueueFullError
from spanqa.pipelines import pipeline, revive_transformers_pipeline
from spanqa.reader import Reader
from spanqa.windows import Window, WindowSettings, make_windows


class Waiting:
    """A backend that computes nothing, and waits to be let go."""

    name, device, dtype = "waiting", "cpu", "fp32"
    layouts: tuple[BatchLayout, ...] = ("padded",)
    batch_tokens = 64
    batches_at_once = 1

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.go = Event()
        self.began = Event()

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        self.began.set()
        assert self.go.wait(30)
        logits = np.full(batch.shape, self.value, np.float32)
        return SpanLogits(logits, logits, None)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    backend = Waiting()
    yield backend
    backend.go.set()


@pytest.fixture
def window(tiny: Callable[..., Path]) -> Window:
    tokenizer = open_checkpoint(tiny("bert")).tokenizer
    return make_windows(tokenizer.encode("Who?"), tokenizer.encode("Anna."), tokenizer.template, WindowSettings(64))[0]


def busy(backend: Waiting, window: Window) -> Engine:
    """An engine that is reading a batch, so that whatever comes next must wait."""
    engine = Engine(backend)
    engine.submit([window] * 200)  # several batches: workers read them
    assert backend.began.wait(30)
    return engine


def test_a_layout_that_the_backend_does_not_read_is_refused(waiting: Waiting) -> None:
    with pytest.raises(InputError, match=r"layout is 'flat'; this model on backend 'waiting' reads padded"):
        Engine(waiting, "flat")


def test_queries_for_another_number_of_windows_are_refused(waiting: Waiting, window: Window) -> None:
    with Engine(waiting) as engine, pytest.raises(InputError, match="queries for 2 windows; 1 were submitted"):
        engine.submit([window], capture=Capture((0,), ((0,), (0,))))


def test_a_full_queue_is_told_with_its_size(waiting: Waiting, window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "QUEUE_BATCHES", 1)
    with busy(waiting, window) as engine:
        with pytest.raises(QueueFullError, match=r"The queue holds [\d,]+ tokens of 64; these windows would add \d+"):
            engine.submit([window], wait=False)
        with pytest.raises(DeadlineError, match="The deadline passed while the queue was full"):
            engine.submit([window], deadline=time.monotonic() + 0.05)
        waiting.go.set()


def test_a_deadline_that_has_passed_is_told(waiting: Waiting, window: Window) -> None:
    with busy(waiting, window) as engine:
        late = engine.submit([window], deadline=time.monotonic() + 0.05)
        with pytest.raises(DeadlineError, match="The deadline had passed when the windows were submitted"):
            engine.submit([window], deadline=time.monotonic() - 1).result(30)
        time.sleep(0.1)
        waiting.go.set()
        with pytest.raises(DeadlineError, match="The deadline passed before the windows were read"):
            late.result(30)


def test_a_closed_engine_says_so_to_whoever_waits_and_to_whoever_comes(waiting: Waiting, window: Window) -> None:
    engine = busy(waiting, window)
    waits = engine.submit([window])
    waits.add_done_callback(lambda _: waiting.go.set())  # closing waits for the batch that runs
    engine.close()
    with pytest.raises(ClosedError, match="The reader was closed before these windows were read"):
        waits.result(30)
    with pytest.raises(ClosedError, match=r"The reader was closed. Load it again"):
        engine.submit([window])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float, window: Window) -> None:
    backend = Waiting(value)
    backend.go.set()
    with (
        Engine(backend) as engine,
        pytest.raises(BackendError, match="Backend 'waiting' gave NaN or infinity for logits, computing in fp32"),
    ):
        engine.submit([window]).result(30)


def test_a_forked_process_that_cannot_load_again_is_told(
    waiting: Waiting, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting.go.set()
    engine = Engine(waiting)
    monkeypatch.setattr(os, "getpid", lambda pid=os.getpid(): pid + 1)
    with pytest.raises(
        BackendError, match=r"forked after the model was loaded, and backend 'waiting' does not work here"
    ):
        engine.submit([window])


# --- checkpoints, backends, readers


def test_a_model_in_memory_has_no_weight_files(tiny: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"is a module in memory and has no weight files. Save it"):
        _ = replace(open_checkpoint(tiny("bert")), files=None).weights


def test_weights_replaced_while_they_are_opened_are_refused(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(9))
    monkeypatch.setattr(weights, "_identity", lambda status: (0, next(numbers), 0, 0))
    with pytest.raises(CheckpointError, match=r"was replaced while it was being opened. Load the model again"):
        open_checkpoint(tiny("bert"))


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("tpu:0", "int8", "No installed backend can do device 'tpu:0' and dtype 'int8'. No backend of spanqa can"),
        ("quantum", "auto", "No installed backend can do device 'quantum'. No backend of spanqa can"),
    ],
)
def test_what_no_backend_can_do_is_refused(device: str, dtype: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        choose_backend("bert", device, dtype)


def test_a_reader_around_a_model_in_memory_does_not_pickle(mini: Reader) -> None:
    with pytest.raises(TypeError, match="made around a model in memory, which cannot be pickled"):
        pickle.dumps(Reader(mini.checkpoint, mini.backend))


def test_a_passage_prepared_with_another_tokenizer_is_refused(
    mini: Reader, tiny_reader: Callable[[str], Reader]
) -> None:
    passage = tiny_reader("roberta").prepare("Anna built it.")
    with pytest.raises(InputError, match=r"'Anna built it.' was prepared by a reader with another tokenizer"):
        mini.ask("Who?", passage)


def test_errors_are_raised_or_returned(mini: Reader) -> None:
    with pytest.raises(InputError, match="errors is 'ignore'; expected one of raise, return"):
        mini.forward([], errors="ignore")  # type: ignore[arg-type]


# --- pipeline

CALLS = {
    "in two ways": ((["Who?"],), {"question": "Who?", "context": "Anna."}, "Examples were given in two ways"),
    "nothing": ((), {}, "Give question= and context="),
    "no examples": ((7,), {}, "Expected examples, got int: 7"),
    "other numbers": ((), {"question": ["a"], "context": ["b", "c"]}, "There are 1 questions and 2 contexts"),
    "other kinds": ((), {"question": "a", "context": ["b"]}, "question is str and context is list"),
    "no context": (({"question": "a"},), {}, "An example .* 'context'"),
    "no example": (([3],), {}, "a dict with question and context, got int: 3"),
    "no text": (({"question": 3, "context": "a"},), {}, "question .* got int: 3"),
    "empty": ((), {"question": "Who?", "context": " "}, "context is empty"),
    "no number": ((), {"question": "Who?", "context": "Anna.", "top_k": 0}, "top_k is 0.*a whole number, at least 1"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_of_a_pipeline_that_is_wrong_says_how(case: str, mini: Reader) -> None:
    args, named, message = CALLS[case]
    with pytest.raises(InputError, match=message):
        pipeline(model=mini)(*args, **named)


def test_a_model_in_memory_runs_on_torch_alone_and_with_a_fast_tokenizer(tiny: Callable[..., Path]) -> None:
    module = SimpleNamespace(config=SimpleNamespace(to_dict=dict), name_or_path="")
    with pytest.raises(BackendError, match="backend is 'numpy', but a transformers model in memory runs on 'torch'"):
        pipeline(model=module, tokenizer=object(), backend="numpy")
    with pytest.raises(CheckpointError, match="int is not a fast tokenizer"):
        pipelines._tokenizer(7, {})


def test_a_transformers_that_still_has_the_pipeline_needs_no_revival(
    transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks
    monkeypatch.setitem(tasks, "question-answering", {"impl": object})
    with pytest.raises(InputError, match="still has its own 'question-answering' pipeline"):
        revive_transformers_pipeline()
