"""Objectives: batches in every layout, the loss, and a training loop that does not know its task."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from transformers import AutoModelForQuestionAnswering

import tiny as tiny_checkpoints
from spanqa.backends import torch_attention
from spanqa.batches import PADDING, BatchLayout
from spanqa.checkpoint import Checkpoint, open_checkpoint
from spanqa.squad import Example, GoldAnswer
from spanqa.train.loop import TrainingLoop
from spanqa.train.objective import InputFormat, QuestionAnswering, StepBatch, span_loss
from spanqa.train.settings import TrainSettings
from spanqa.train.targets import TrainingWindow, make_training_windows
from spanqa.train.work import training_arguments
from spanqa.windows import Window, WindowSettings

PASSAGE = " ".join(tiny_checkpoints._WORDS[:4])
SETTINGS = WindowSettings(max_seq_length=40, overlap=12)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoints.make("bert", tmp_path_factory.mktemp("tiny") / "bert"))


def example(*texts: str, passage: str = PASSAGE, id: str = "1") -> Example:
    return Example(
        id, "Who built the lighthouse?", passage, tuple(GoldAnswer(text, passage.index(text)) for text in texts)
    )


def loss_of(folder: Path, windows: list[TrainingWindow], layout: BatchLayout, cols: int | None = None) -> Any:
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    if layout == "flat":
        model.set_attn_implementation(torch_attention.FLAT)
    objective = QuestionAnswering(replace(InputFormat.of(model, open_checkpoint(folder), layout), cols=cols))
    batch = objective.collate(windows)
    loss = objective.loss(model(**batch["inputs"]), batch)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss.item(), gradients


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_loss_and_its_gradients_are_the_same_in_every_layout(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoints.make(family, tmp_path / family)
    asked = [example("Anna Kestrel", "1891"), example("1923", id="2"), Example("3", "When?", PASSAGE)]
    windows, _ = make_training_windows(asked, open_checkpoint(folder).tokenizer, SETTINGS, empty_windows=9)
    assert len(windows) > 5
    loss, gradients = loss_of(folder, windows, "padded")
    for layout, cols in (("flat", None), ("packed", 100), ("padded", 64)):
        other, others = loss_of(folder, windows, layout, cols)  # type: ignore[arg-type]
        assert other == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(others, gradients, atol=1e-5, rtol=1e-4)


def test_with_one_answer_the_loss_is_that_of_transformers(base: Checkpoint) -> None:
    windows, _ = make_training_windows([example("Anna Kestrel"), example("1923", id="2")], base.tokenizer, SETTINGS)
    model = AutoModelForQuestionAnswering.from_pretrained(base.path).eval()
    longest = max(map(len, windows))
    short = [window for window in windows if len(window) == longest]  # its softmax runs over padding too
    assert len(short) > 1
    objective = QuestionAnswering(InputFormat("padded"))
    batch = objective.collate(short)
    output = model(
        **batch["inputs"],
        start_positions=torch.tensor([window.starts[0] for window in short]),
        end_positions=torch.tensor([window.ends[0] for window in short]),
    )  # fmt: skip
    ours = objective.loss(output, batch)
    assert ours.item() == pytest.approx(output.loss.item(), abs=1e-6)


def test_the_loss_by_hand() -> None:
    targets = {
        "window": torch.tensor([[0, 0, 0, 1, 1, -1]]),
        "position": torch.tensor([[0, 1, 2, 0, 1, 0]]),
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
    assert span_loss(start, end, targets).item() == pytest.approx((first + second) / 4, abs=1e-6)


@pytest.mark.parametrize("layout", get_args(BatchLayout))
def test_targets_lie_where_the_tokens_do(base: Checkpoint, layout: BatchLayout) -> None:
    windows, _ = make_training_windows([example("Anna Kestrel"), example("1923", id="2")], base.tokenizer, SETTINGS)
    batch = QuestionAnswering(InputFormat(layout, cols=100 if layout == "packed" else None)).collate(windows)
    targets = batch["targets"]
    assert sorted(targets["window"][targets["window"] >= 0].unique().tolist()) == list(range(len(windows)))
    for name in ("starts", "ends"):
        assert int(targets[name].sum()) == len(windows)
        assert targets["window"][targets[name]].sort().values.tolist() == list(range(len(windows)))
    if layout == "flat":
        assert sum(batch["inputs"]["window_lengths"]) == batch["inputs"]["input_ids"].shape[1] == 256
        *lengths, padding = batch["inputs"]["window_lengths"]
        assert lengths == sorted(map(len, windows), reverse=True)
        assert int((targets["window"] == PADDING).sum()) == padding


def test_a_network_gets_the_inputs_that_it_takes(tmp_path: Path) -> None:
    windows: dict[str, set[str]] = {}
    for family in ("bert", "distilbert"):
        checkpoint = open_checkpoint(tiny_checkpoints.make(family, tmp_path / family))
        network = AutoModelForQuestionAnswering.from_pretrained(checkpoint.path)
        made, _ = make_training_windows([example("1923")], checkpoint.tokenizer, SETTINGS)
        batch = QuestionAnswering(InputFormat.of(network, checkpoint, "padded")).collate(made)
        windows[family] = set(batch["inputs"])
    assert windows["bert"] - windows["distilbert"] == {"token_type_ids"}
    assert windows["distilbert"] == {"input_ids", "position_ids", "attention_mask"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_products_are_the_fused_attention(dtype: Any) -> None:
    torch.manual_seed(0)
    lengths = [70, 40, 40, 33, 32, 7, 3]
    q, k, v = (torch.randn(1, 2, sum(lengths), 8, dtype=dtype) for _ in range(3))
    fused, _ = torch_attention.flat_attention(torch.nn.Module(), q, k, v, None, window_lengths=lengths)
    plain, _ = torch_attention.flat_attention(torch.nn.Module(), q.requires_grad_(), k, v, None, window_lengths=lengths)
    torch.testing.assert_close(plain, fused, atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2)


# --- an objective other than question answering


@dataclass(frozen=True)
class Masking:
    """Predict every fifth passage token, hidden behind one id: a small form of masked language modelling."""

    format: InputFormat
    hidden_id: int

    def collate(self, windows: Sequence[Window]) -> StepBatch:
        laid_out = self.format.lay_out(windows)
        labels = torch.full(laid_out.batch.shape, -100)
        for i, (row, first) in zip(laid_out.order, laid_out.corners, strict=True):
            at = slice(first + windows[i].passage_start, first + len(windows[i]) - 1, 5)
            labels[row, at] = laid_out.inputs["input_ids"][row, at]
        ids = laid_out.inputs["input_ids"].masked_fill(labels != -100, self.hidden_id)
        return {"inputs": {**laid_out.inputs, "input_ids": ids}, "targets": {"labels": labels}}

    def loss(self, output: Any, batch: StepBatch) -> Any:
        return torch.nn.functional.cross_entropy(output.logits.transpose(1, 2), batch["targets"]["labels"])


class Accuracy:
    """The share of hidden tokens that the model finds, in percent."""

    name = "Accuracy"

    def __init__(self, network: Any, batch: StepBatch) -> None:
        self.network, self.batch = network, batch

    def __call__(self, step: int) -> float:
        self.network.eval()
        with torch.no_grad():
            found = self.network(**self.batch["inputs"]).logits.argmax(-1)
        self.network.train()
        labels = self.batch["targets"]["labels"]
        return float(100 * (found == labels)[labels != -100].float().mean())


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_the_loop_trains_another_objective(base: Checkpoint, tmp_path: Path, layout: BatchLayout) -> None:
    asked = [Example(str(i), f"Who {'is ' * i}it?", PASSAGE) for i in range(3)]
    windows = [each.window for each in make_training_windows(asked, base.tokenizer, SETTINGS, empty_windows=9)[0]]
    windows = windows[:8]  # few enough to be learned by heart, far below the bounds, with any rounding
    transformers.set_seed(0)
    network: Any = transformers.BertForMaskedLM(transformers.BertConfig.from_dict({**base.config}))
    if layout == "flat":
        network.set_attn_implementation(torch_attention.FLAT)
    objective = Masking(InputFormat.of(network, base, layout), hidden_id=0)
    settings = TrainSettings(batch_size=4, accumulation=2, learning_rate=1e-2, max_steps=60, dtype="fp32", device="cpu")
    notes: list[str] = []
    loop = TrainingLoop(
        network,
        training_arguments(settings, tmp_path / "work"),
        windows,
        objective,
        measure=Accuracy(network, objective.collate(windows)),
        evaluations=2,
        measure_first=True,
        progress=lambda done, total, note="": notes.append(f"{done} of {total}: {note}"),
    )
    loop.train()

    losses = [entry["loss"] for entry in loop.state.log_history if "loss" in entry]
    accuracy = [entry["accuracy"] for entry in loop.state.log_history if "accuracy" in entry]
    assert losses[0] < 1.2 * np.log(network.config.vocab_size)  # a mean over batches, not their sum
    assert losses[-1] < losses[0] / 2
    assert len(accuracy) == 3 and accuracy[-1] > accuracy[0] + 30
    assert notes[-1].startswith("60 of 60: loss ") and f"Accuracy {accuracy[-1]:.4g}" in notes[-1]
