"""The three layouts of a batch, planned and run: padded, packed, flat; several replicas; several threads."""

import shutil
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
from spanqa.backends.replicas import Replicas
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits, pack, pack_rows, plan_batches
from spanqa.checkpoint import find
from spanqa.errors import InputError
from spanqa.reader import Reader
from spanqa.windows import cut

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
    windows = [
        cut(question, [mini.prepare(passage)], mini.checkpoint.tokenizer)[0][0] for question, passage in PAIRS[:8]
    ]
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


def test_a_model_of_torch_says_which_layouts_it_reads() -> None:
    need_backend("torch")
    from spanqa.backends.torch import _layouts

    assert _layouts(True, "cuda:0", "bf16")[0] == "flat"
    assert _layouts(True, "cuda:0", "fp32")[0] == "padded"
    assert _layouts(False, "cuda:0", "bf16") == ("padded",)  # as DeBERTa: nothing would keep its windows apart


def test_a_layout_that_the_backend_does_not_read_is_refused_at_load(tmp_path: Path) -> None:
    need_backend("torch")
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.DebertaV2Config(vocab_size=30522, **sizes)
    transformers.DebertaV2ForQuestionAnswering(config).save_pretrained(tmp_path)
    shutil.copyfile(find("spanqa-mini") / "tokenizer.json", tmp_path / "tokenizer.json")
    assert Reader.load(tmp_path).layout == "padded"
    with pytest.raises(InputError, match="layout is 'flat'; this model on backend 'torch' reads padded"):
        Reader.load(tmp_path, layout="flat")


class Meeting:
    """A backend whose first batch waits until the other replica has one too."""

    name, dtype, batches_at_once, batch_tokens = "meeting", "fp32", 1, 300
    layouts: tuple[BatchLayout, ...] = ("padded",)

    def __init__(self, device: str, backend: Backend, barrier: Barrier) -> None:
        self.device, self.backend, self.barrier, self.met = device, backend, barrier, False

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        if not self.met:
            self.barrier.wait(timeout=30)
        self.met = True
        return self.backend.forward(batch, capture=capture)


def test_replicas_work_at_the_same_time_and_answer_in_order(mini: Reader, monkeypatch: Any) -> None:
    monkeypatch.setattr("spanqa.stream.FIRST_CHUNK", 64)  # all at once, so that there are several batches
    barrier = Barrier(2)
    replicas = Replicas([Meeting("one", mini.backend, barrier), Meeting("two", mini.backend, barrier)])
    reader = Reader(mini.checkpoint, replicas)
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
        found = list(pool.map(lambda pair: reader.ask(*pair), PAIRS))
    if backend == "openvino":
        assert found == expected  # to the last bit, whoever shared a batch
    assert [(answer.text, answer.start) for answer in found] == [(answer.text, answer.start) for answer in expected]
    scores = [answer.score for answer in found]
    np.testing.assert_allclose(scores, [answer.score for answer in expected], atol=1e-4)  # measured: 1e-5


def test_a_stream_left_early_stops_the_batches_that_wait(mini: Reader) -> None:
    stream = mini.ask_many(PAIRS * 20)
    assert next(stream).text == "Anna Kestrel"
    stream.close()
    assert mini.ask(*PAIRS[0]).text == "Anna Kestrel"
