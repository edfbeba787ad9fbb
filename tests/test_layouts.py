"""The three layouts of a batch, planned and run: padded, packed, flat; several replicas; several threads."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import need_backend
from spanqa.backends.base import Backend
from spanqa.backends.registry import preferred_layout
from spanqa.backends.replicas import Replicas
from spanqa.batches import Batch, BatchLayout, SpanLogits, pack, pack_rows, plan_batches
from spanqa.errors import InputError
from spanqa.reader import Reader

LAYOUTS = get_args(BatchLayout)
HARBOUR = (Path(__file__).parents[1] / "examples" / "harbour.txt").read_text("utf-8")
PAIRS = [
    (question, passage)
    for passage in (HARBOUR, HARBOUR[:322], HARBOUR[324:620], HARBOUR * 2)
    for question in (
        "Who built the first pier?",
        "When did the cannery close?",
        "What is the red one?",
        "Who was king?",
    )
]


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 100))
def test_packed_rows_hold_every_window_once_and_no_more_than_their_width(lengths: list[int], cols: int) -> None:
    rows = pack_rows(lengths, cols)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[position] for position in row) <= cols for row in rows)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_no_two_packed_rows_could_be_joined(lengths: list[int]) -> None:
    filled = sorted(sum(lengths[position] for position in row) for row in pack_rows(lengths, 64))
    assert len(filled) < 2 or filled[0] + filled[1] > 64


def test_windows_of_question_length_leave_little_space_in_packed_rows() -> None:
    lengths = np.clip(np.random.default_rng(0).normal(183, 60, 10_000), 30, 384).astype(int).tolist()
    rows = pack_rows(lengths, 512)
    assert sum(lengths) / (512 * len(rows)) > 0.97  # measured 0.989


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.sampled_from(LAYOUTS), st.integers(40, 200))
def test_plans_hold_every_window_once_within_the_budget(lengths: list[int], layout: BatchLayout, budget: int) -> None:
    batches = list(plan_batches(lengths, layout, budget, cols=40))
    assert sorted(i for batch in batches for row in batch for i in row) == list(range(len(lengths)))
    for batch in batches:
        widths = [sum(lengths[i] for i in row) for row in batch]
        width = 40 if layout == "packed" else max(widths)
        assert width * len(batch) <= budget
        assert layout != "padded" or all(len(row) == 1 for row in batch)
        assert layout != "flat" or len(batch) == 1


def test_a_window_longer_than_a_row_and_an_unknown_layout_are_errors() -> None:
    with pytest.raises(InputError, match="A window has 600 tokens; it does not fit into a row of 512"):
        pack_rows([600], 512)
    with pytest.raises(InputError, match="no batch layout 'round'"):
        list(plan_batches([5], "round", 100))  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["openvino", "torch", "numpy"])
def test_every_layout_gives_the_same_answers(backend: str, layout: BatchLayout) -> None:
    need_backend(backend)
    expected = list(Reader.load(dtype="fp32").ask_many(PAIRS))
    answers = list(Reader.load(backend=backend, dtype="fp32", layout=layout).ask_many(PAIRS))
    assert [(a.text, a.start) for a in answers] == [(e.text, e.start) for e in expected]
    np.testing.assert_allclose(  # measured: at most 2e-5
        [a.score for a in answers], [e.score for e in expected], atol=1e-3
    )


def test_a_neighbour_in_a_flat_row_does_not_move_a_window_on_torch(mini: Reader) -> None:
    need_backend("torch")
    torch = Reader.load(backend="torch", dtype="fp32")
    windows = [mini._cut(question, [mini.prepare(passage)])[0][0] for question, passage in PAIRS[:8]]
    for i, window in enumerate(windows):
        others = [other for other in windows if other is not window]
        before = torch.backend.forward(pack([[others[0], window, others[1]]])).start
        after = torch.backend.forward(pack([[others[2], window, others[3], others[4]]])).start
        alone = torch.backend.forward(pack([[window]])).start[0]
        for row, first in ((before, others[0]), (after, others[2])):
            place = slice(len(first), len(first) + len(window))
            np.testing.assert_allclose(row[0, place], alone, atol=1e-4, err_msg=str(i))  # measured: at most 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_flat_rows_on_a_gpu_give_the_answers_of_the_reference(dtype: str) -> None:
    need_backend("torch")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    expected = list(Reader.load(backend="numpy").ask_many(PAIRS, no_answer="off"))
    reader = Reader.load(backend="torch", device="cuda", dtype=dtype)
    assert reader.layout == "flat"
    answers = list(reader.ask_many(PAIRS, no_answer="off"))
    assert [(a.text, a.start) for a in answers] == [(e.text, e.start) for e in expected]
    np.testing.assert_allclose([a.score for a in answers], [e.score for e in expected], atol=0.3)


def test_batches_are_padded_where_no_gpu_is(mini: Reader) -> None:
    assert mini.layout == "padded"
    assert preferred_layout(Flat()) == "flat"


class Flat:
    """What a torch backend on a GPU looks like from outside."""

    name, device, dtype, batches_at_once = "torch", "cuda:0", "bf16", 1

    def forward(self, batch: Batch, *, attention: Collection[int] | None = None) -> SpanLogits:
        raise AssertionError("not called")


class Meeting:
    """A backend that answers only when two batches are in hand at once."""

    name, dtype, batches_at_once = "meeting", "fp32", 1

    def __init__(self, device: str, backend: Backend, barrier: Barrier) -> None:
        self.device, self.backend, self.barrier = device, backend, barrier

    def forward(self, batch: Batch, *, attention: Collection[int] | None = None) -> SpanLogits:
        self.barrier.wait(timeout=30)
        return self.backend.forward(batch, attention=attention)


def test_replicas_work_at_the_same_time_and_answer_in_order(mini: Reader, monkeypatch: Any) -> None:
    monkeypatch.setattr("spanqa.reader.BATCH_TOKENS", 300)
    barrier = Barrier(2)
    replicas = Replicas([Meeting("one", mini.backend, barrier), Meeting("two", mini.backend, barrier)])
    reader = Reader(mini.checkpoint, replicas)
    lengths = [len(w) for q, p in PAIRS[:8] for cut in mini._cut(q, [mini.prepare(p)]) for w in cut]
    assert len(list(plan_batches(lengths, "padded", 300))) % 2 == 0, "the barrier needs an even number of batches"
    assert [a.text for a in reader.ask_many(PAIRS[:8])] == [a.text for a in mini.ask_many(PAIRS[:8])]
    assert reader.backend.device == "one,two"


def test_several_devices_are_given_by_their_names() -> None:
    reader = Reader.load(device="cpu,cpu")
    assert isinstance(reader.backend, Replicas)
    assert reader.backend.batches_at_once == 4
    assert reader.ask("Who built the first pier?", HARBOUR).text == "Anna Kestrel"


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_one_reader_answers_in_several_threads(backend: str) -> None:
    need_backend(backend)
    reader = Reader.load(backend=backend, dtype="fp32")
    expected = [reader.ask(*pair) for pair in PAIRS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: reader.ask(*pair), PAIRS)) == expected


def test_a_stream_left_early_stops_the_batches_that_wait(mini: Reader) -> None:
    stream = mini.ask_many(PAIRS * 20)
    assert next(stream).text == "Anna Kestrel"
    stream.close()
    assert mini.ask(*PAIRS[0]).text == "Anna Kestrel"
