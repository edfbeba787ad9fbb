"""Objectives: what a training step reads, and the loss that it minimizes.

    training windows -> Objective.collate -> StepBatch -> network -> Objective.loss

The training loop knows no task. It asks its objective for the batch of a step and for the loss of the network's output.
`QuestionAnswering` is one objective. Another one, such as whole-word masking, lays its windows out with the same
`InputFormat` and adds its own targets.

Source of the question-answering loss: the marginal likelihood of Clark & Gardner 2018 (https://arxiv.org/abs/1710.10723); of a
teacher's loss: Hinton, Vinyals & Dean 2015 (https://arxiv.org/abs/1503.02531).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanqa.batches import PADDING, Batch, BatchLayout, pack, pack_rows, window_places
from spanqa.checkpoint import Checkpoint
from spanqa.families import FAMILIES
from spanqa.train.targets import TrainingWindow
from spanqa.windows import Window

_FLAT_MULTIPLE = 128
"""Flat rows are widened to a multiple of this: oneDNN compiles its kernels for each shape and keeps only 1,024 of them."""


class StepBatch(TypedDict):
    """The batch of one training step: the network's arguments, and what the loss needs besides the network's output."""

    inputs: dict[str, Any]
    targets: dict[str, Any]


class Objective(Protocol):
    """What a training step reads and minimizes."""

    def collate(self, items: Sequence[Any], /) -> StepBatch:
        """Return the batch of a step, from items of the training set."""

    def loss(self, output: Any, batch: StepBatch, /) -> Tensor:
        """Return the mean loss of the network's output for a batch."""


@dataclass(frozen=True, slots=True, eq=False)
class LaidOutWindows:
    """Windows as arrays and tensors.

    `order` says which window lies where: it holds the numbers of the windows given, row by row. `batch` holds the arrays.
    `window` `[rows, cols]` is the place in `order` of the window that a token belongs to, -1 on padding. `corners` are the
    row and column of each window's first token, in order. `inputs` are the network's arguments.
    """

    order: tuple[int, ...]
    batch: Batch
    window: NDArray[np.int32]
    corners: tuple[tuple[int, int], ...]
    inputs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class InputFormat:
    """How a network reads windows.

    `position_offset` is added to position ids; None passes no position ids. `token_type_ids` says whether the network takes
    these. `cols` widens padded rows; it is the width of packed rows, 512 by default.
    """

    layout: BatchLayout
    position_offset: int | None = 0
    token_type_ids: bool = True
    cols: int | None = None

    @classmethod
    def of(cls, network: torch.nn.Module, checkpoint: Checkpoint, layout: BatchLayout) -> "InputFormat":
        """Return the format of a network that was built from a checkpoint."""
        family = checkpoint.model_type in FAMILIES
        return cls(
            layout,
            checkpoint.encoder.position_offset if family else None,
            "token_type_ids" in inspect.signature(network.forward).parameters,
        )

    def lay_out(self, windows: Sequence[Window]) -> LaidOutWindows:
        """Lay windows out as a batch.

        `inputs` holds `input_ids` and, where the network takes them, `token_type_ids` and `position_ids`, int64
        `[rows, cols]`. It also holds what keeps windows apart: `window_lengths` in the flat layout, `attention_mask`
        `[rows, cols]` in the padded one and bool `[rows, 1, cols, cols]` (true where a token may attend) in the packed one.
        """
        order = sorted(range(len(windows)), key=lambda i: -len(windows[i]))  # windows of equal length become neighbours
        lengths, cols = [len(windows[i]) for i in order], self.cols
        if self.layout == "flat":
            rows = [order]
            cols = -(-sum(lengths) // _FLAT_MULTIPLE) * _FLAT_MULTIPLE
        elif self.layout == "packed":
            cols = cols or 512
            rows = [[order[i] for i in row] for row in pack_rows(lengths, cols)]
        else:
            rows = [[i] for i in order]
        batch = pack([[windows[i] for i in row] for row in rows], cols)
        before = np.cumsum([0] + [len(row) for row in rows[:-1]], dtype=np.int32)
        window = np.where(batch.window_index == PADDING, PADDING, batch.window_index + before[:, None])
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(batch.input_ids).long()}
        if self.token_type_ids:
            inputs["token_type_ids"] = torch.from_numpy(batch.token_type_ids).long()
        if self.position_offset is not None:
            inputs["position_ids"] = torch.from_numpy(batch.position_ids).long() + self.position_offset
        if self.layout == "flat":
            padding = batch.shape[1] - sum(lengths)
            inputs["window_lengths"] = [*lengths, *([padding] if padding else [])]
        elif self.layout == "packed":
            inputs["attention_mask"] = torch.from_numpy(window[:, None, :, None] == window[:, None, None, :])
        else:
            inputs["attention_mask"] = torch.from_numpy(window != PADDING).long()
        corners = tuple((row, first) for row, first, _ in window_places(batch))
        return LaidOutWindows(tuple(i for row in rows for i in row), batch, window, corners, inputs)


@dataclass(frozen=True, slots=True)
class QuestionAnswering:
    """Extractive question answering: a high probability of all right starts together, and of all right ends together.

    The loss is a mean over windows, each with its own softmax, so it does not depend on how windows share rows. With a teacher it
    is (1 - `teacher_weight`) of the labels' loss and `teacher_weight` of the teacher's at `temperature`; 0 is without a teacher.
    """

    format: InputFormat
    teacher_weight: float = 0.0
    temperature: float = 1.0

    def collate(self, windows: Sequence[TrainingWindow]) -> StepBatch:
        """Return the network's inputs and the targets, all `[rows, cols]`.

        `window` int64 is the number of the window that a token belongs to, -1 on padding; `position` int64 is a token's
        position in its window; `starts` and `ends` (bool) are true at right positions. With a teacher, `teacher` float32
        `[2, rows, cols]` holds its start and end logits, -inf where it has none.
        """
        laid_out = self.format.lay_out([each.window for each in windows])
        starts, ends = np.zeros(laid_out.batch.shape, bool), np.zeros(laid_out.batch.shape, bool)
        for i, (row, first) in zip(laid_out.order, laid_out.corners, strict=True):
            starts[row, [first + start for start in windows[i].starts]] = True
            ends[row, [first + end for end in windows[i].ends]] = True
        targets = {
            "window": torch.from_numpy(laid_out.window).long(),
            "position": torch.from_numpy(laid_out.batch.position_ids).long(),
            "starts": torch.from_numpy(starts),
            "ends": torch.from_numpy(ends),
        }
        if self.teacher_weight:
            teacher = np.full((2, *laid_out.batch.shape), -np.inf, np.float32)
            for i, (row, first) in zip(laid_out.order, laid_out.corners, strict=True):
                logits = windows[i].teacher
                if logits is not None:
                    teacher[:, row, first : first + len(logits)] = logits.T
            targets["teacher"] = torch.from_numpy(teacher)
        return {"inputs": laid_out.inputs, "targets": targets}

    def loss(self, output: Any, batch: StepBatch) -> Tensor:
        """Return `span_loss` of the network's output, mixed with `distillation_loss` where there is a teacher."""
        start, end, targets = output.start_logits, output.end_logits, batch["targets"]
        loss = span_loss(start, end, targets)
        if not self.teacher_weight:
            return loss
        teachers = distillation_loss(start, end, targets, self.temperature)
        return (1 - self.teacher_weight) * loss + self.teacher_weight * teachers


def span_loss(start_logits: Tensor, end_logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Return the mean over windows of half of -log P(a right start) - log P(a right end), each over its window's tokens.

    Logits are `[rows, cols]`; `QuestionAnswering.collate` makes the targets.
    """
    inside, cells, shape = _cells(targets)
    loss = torch.zeros((), device=start_logits.device)
    for logits, right in ((start_logits, targets["starts"]), (end_logits, targets["ends"])):
        values = logits[inside].float()
        right_values = torch.where(right[inside], values, -torch.inf)
        all_values, right_values = (_by_window(each, cells, shape) for each in (values, right_values))
        loss = loss + (all_values.logsumexp(1) - right_values.logsumexp(1)).mean() / 2
    return loss


def distillation_loss(
    start_logits: Tensor, end_logits: Tensor, targets: dict[str, Tensor], temperature: float
) -> Tensor:
    """Return the mean over windows of half of T^2 KL(teacher || student) of the starts, and half of that of the ends.

    Both are a softmax of logits / T over the tokens of a window. A token for which the teacher has no logit (-inf) has the
    teacher's probability 0; a window without any has the loss 0. T^2 keeps the gradient, T (student - teacher) of two softmaxes,
    as large as that of the labels, whatever T is. Logits are `[rows, cols]`; `QuestionAnswering.collate` makes the targets.
    """
    inside, cells, shape = _cells(targets)
    loss = torch.zeros((), device=start_logits.device)
    for logits, teacher in zip((start_logits, end_logits), targets["teacher"], strict=True):
        student = _by_window(logits[inside].float() / temperature, cells, shape).log_softmax(1)
        goal = _by_window(teacher[inside] / temperature, cells, shape)
        taught = goal.amax(1) > -torch.inf
        goal = goal[taught].log_softmax(1)
        each = (goal.exp() * (goal - student[taught])).masked_fill(goal == -torch.inf, 0)
        loss = loss + temperature**2 * each.sum() / shape[0] / 2
    return loss


Cells = tuple[Tensor, Tensor]
"""For each token, the number of its window and its position there."""


def _cells(targets: dict[str, Tensor]) -> tuple[Tensor, Cells, tuple[int, int]]:
    """Return which tokens of a batch are no padding, their cells, and how many windows and positions there are."""
    inside = targets["window"] != PADDING
    cells = (targets["window"][inside], targets["position"][inside])
    return inside, cells, (int(cells[0].max()) + 1, int(cells[1].max()) + 1)


def _by_window(values: Tensor, cells: Cells, shape: tuple[int, int]) -> Tensor:
    """Return values of tokens as `[window, position]`, -inf behind the end of a window."""
    return torch.full(shape, -torch.inf, device=values.device).index_put(cells, values)
