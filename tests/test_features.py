"""Examples to training windows, batches in every layout, and the loss."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pathlib import Path
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForQuestionAnswering

import tiny as tiny_checkpoints
from spanqa.backends import torch_attention
from spanqa.batches import PADDING, BatchLayout
from spanqa.checkpoint import Checkpoint, open_checkpoint
from spanqa.squad import Example, GoldAnswer
from spanqa.tokens import Tokens
from spanqa.train.features import (
    NO_ANSWER,
    TrainingWindow,
    answer_tokens,
    collate,
    make_features,
    span_loss,
)
from spanqa.windows import WindowSettings

PASSAGE = " ".join(tiny_checkpoints._WORDS[:4])
SETTINGS = WindowSettings(max_seq_length=40, overlap=12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoints.make("bert", tmp_path_factory.mktemp("tiny") / "bert"))


def example(*texts: str, passage: str = PASSAGE, id: str = "1") -> Example:
    return Example(
        id, "Who built the lighthouse?", passage, tuple(GoldAnswer(text, passage.index(text)) for text in texts)
    )


def text_of(window: TrainingWindow, start: int, end: int, passage: str = PASSAGE) -> str:
    shift = window.window.first - window.window.passage_start
    offsets = window.window.passage.offsets
    return passage[offsets[start + shift, 0] : offsets[end + shift, 1]]


def test_the_tokens_of_an_answer() -> None:
    passage = Tokens(
        np.arange(4, dtype=np.int32), np.array([[0, 4], [4, 5], [5, 6], [7, 10]], np.int32)
    )  # pier ' s end
    assert answer_tokens(passage, 0, 6) == (0, 2)
    assert answer_tokens(passage, 7, 10) == (3, 3)
    assert answer_tokens(passage, 8, 9) == (3, 3)  # within a token
    assert answer_tokens(passage, 2, 5) == (0, 1)
    assert answer_tokens(passage, 6, 7) == (0, -1)  # the space


@given(start=st.integers(0, len(PASSAGE) - 1), length=st.integers(1, 60))
def test_every_window_that_holds_the_answer_says_where(base: Checkpoint, start: int, length: int) -> None:
    text = PASSAGE[start : start + length]
    if not text.strip():
        return
    start += len(text) - len(text.lstrip())
    text = text.strip()
    asked = Example("1", "Who?", PASSAGE, (GoldAnswer(text, start),))
    windows, report = make_features([asked], base.tokenizer, SETTINGS, empty_windows=99)
    assert report.with_answer + report.without_answer == len(windows)
    for window in windows:
        if window.starts == NO_ANSWER:
            shift = window.window.passage.offsets[window.window.first : window.window.stop]
            assert shift[-1, 1] <= start or shift[0, 0] >= start + len(text)
        else:
            found = text_of(window, window.starts[0], window.ends[0])
            assert text in found
            assert len(found) < len(text) + 24  # at most the rest of two tokens
    assert report.lost_questions == (0 if windows else 1)
    assert windows or report.cut


def test_all_answers_count_and_cut_windows_are_left_out(base: Checkpoint) -> None:
    windows, report = make_features([example("Anna Kestrel", "1891")], base.tokenizer, SETTINGS)
    first = windows[0]
    assert [text_of(first, s, e) for s, e in zip(first.starts, first.ends, strict=True)] == ["Anna Kestrel", "1891"]
    long = example("Tomas Brandt, laid a cable from the village. The tower is 41 metres tall")
    windows, report = make_features([long], base.tokenizer, SETTINGS, empty_windows=99)
    assert report.cut > 0
    assert all(window.starts == NO_ANSWER or len(window.starts) == 1 for window in windows)


def test_empty_windows_are_drawn_by_seed(base: Checkpoint) -> None:
    asked = [example("Anna Kestrel", id=str(i)) for i in range(20)]
    windows, report = make_features(asked, base.tokenizer, SETTINGS, empty_windows=1, seed=3)
    assert report.without_answer == 20
    again, _ = make_features(asked, base.tokenizer, SETTINGS, empty_windows=1, seed=3)
    other, _ = make_features(asked, base.tokenizer, SETTINGS, empty_windows=1, seed=4)
    firsts = [[window.window.first for window in each] for each in (windows, again, other)]
    assert firsts[0] == firsts[1] != firsts[2]
    unanswerable = make_features([Example("1", "Who?", PASSAGE)], base.tokenizer, SETTINGS)
    assert [window.starts for window in unanswerable[0]] == [NO_ANSWER]


def test_a_question_that_is_too_long_is_counted_not_trained_on(base: Checkpoint) -> None:
    asked = Example("1", "who " * 30, PASSAGE, ())
    windows, report = make_features([asked], base.tokenizer, SETTINGS)
    assert (windows, report.lost_questions) == ([], 1)


# --- batches and the loss


def loss_of(folder: Path, windows: list[TrainingWindow], layout: BatchLayout, cols: int | None = None) -> Any:
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    if layout == "flat":
        model.set_attn_implementation(torch_attention.NAME)
    offset = open_checkpoint(folder).encoder.position_offset
    batch = collate(windows, layout=layout, position_offset=offset, cols=cols)
    given = {
        name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "window_lengths") if name in batch
    }
    if model.config.model_type == "bert":
        given["token_type_ids"] = batch["token_type_ids"]
    output = model(**given)
    loss = span_loss(output.start_logits, output.end_logits, batch)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss.item(), gradients


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_loss_and_its_gradients_are_the_same_in_every_layout(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoints.make(family, tmp_path / family)
    asked = [example("Anna Kestrel", "1891"), example("1923", id="2"), Example("3", "When?", PASSAGE)]
    windows, _ = make_features(asked, open_checkpoint(folder).tokenizer, SETTINGS, empty_windows=9)
    assert len(windows) > 5
    loss, gradients = loss_of(folder, windows, "padded")
    for layout, cols in (("flat", None), ("packed", 100), ("padded", 64)):
        other, others = loss_of(folder, windows, layout, cols)  # type: ignore[arg-type]
        assert other == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(others, gradients, atol=1e-5, rtol=1e-4)


def test_with_one_answer_the_loss_is_that_of_transformers(base: Checkpoint) -> None:
    windows, _ = make_features([example("Anna Kestrel"), example("1923", id="2")], base.tokenizer, SETTINGS)
    model = AutoModelForQuestionAnswering.from_pretrained(base.path).eval()
    longest = max(map(len, windows))
    short = [window for window in windows if len(window) == longest]  # its softmax runs over padding too
    assert len(short) > 1
    batch = collate(short, layout="padded")
    output = model(
        input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"], attention_mask=batch["attention_mask"],
        start_positions=torch.tensor([window.starts[0] for window in short]),
        end_positions=torch.tensor([window.ends[0] for window in short]),
    )  # fmt: skip
    ours = span_loss(output.start_logits, output.end_logits, batch)
    assert ours.item() == pytest.approx(output.loss.item(), abs=1e-6)


def test_the_loss_by_hand() -> None:
    batch = {
        "window": torch.tensor([[0, 0, 0, 1, 1, -1]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]]),
        "starts": torch.tensor([[False, True, True, True, False, False]]),
        "ends": torch.tensor([[False, False, True, True, False, False]]),
    }
    start = torch.tensor([[1.0, 2.0, 3.0, 0.5, -0.5, 99.0]])
    end = torch.tensor([[0.0, 0.0, 1.0, 2.0, 2.0, 99.0]])

    def log_share(values: list[float], right: list[int]) -> float:
        powers = np.exp(values)
        return float(-np.log(powers[right].sum() / powers.sum()))

    first = log_share([1, 2, 3], [1, 2]) + log_share([0, 0, 1], [2])
    second = log_share([0.5, -0.5], [0]) + log_share([2, 2], [0])
    assert span_loss(start, end, batch).item() == pytest.approx((first + second) / 4, abs=1e-6)


@pytest.mark.parametrize("layout", get_args(BatchLayout))
def test_targets_lie_where_the_tokens_do(base: Checkpoint, layout: BatchLayout) -> None:
    windows, _ = make_features([example("Anna Kestrel"), example("1923", id="2")], base.tokenizer, SETTINGS)
    batch = collate(windows, layout=layout, cols=100 if layout == "packed" else None)
    assert sorted(batch["window"][batch["window"] >= 0].unique().tolist()) == list(range(len(windows)))
    for name in ("starts", "ends"):
        assert int(batch[name].sum()) == len(windows)
        assert batch["window"][batch[name]].sort().values.tolist() == list(range(len(windows)))
    if layout == "flat":
        assert sum(batch["window_lengths"]) == batch["input_ids"].shape[1] == 256
        *lengths, padding = batch["window_lengths"]
        assert lengths == sorted(map(len, windows), reverse=True)
        assert int((batch["window"] == PADDING).sum()) == padding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_products_are_the_fused_attention(dtype: Any) -> None:
    torch.manual_seed(0)
    lengths = [70, 40, 40, 33, 32, 7, 3]
    q, k, v = (torch.randn(1, 2, sum(lengths), 8, dtype=dtype) for _ in range(3))
    fused, _ = torch_attention.flat_attention(torch.nn.Module(), q, k, v, None, window_lengths=lengths)
    plain, _ = torch_attention.flat_attention(torch.nn.Module(), q.requires_grad_(), k, v, None, window_lengths=lengths)
    torch.testing.assert_close(plain, fused, atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2)
