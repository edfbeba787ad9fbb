"""Examples to what a training step reads: windows with their targets, batches of them, and the loss.

    Example -> TrainingWindow -> collate -> model -> span_loss

Every right place counts: the loss asks only that the probability of all right starts together, and of all right ends
together, be high (the marginal likelihood of Clark & Gardner 2018, https://arxiv.org/abs/1710.10723). A window without the
answer has [CLS] as its target. The loss is a mean over windows, each with its own softmax, so it is the same however
windows share rows.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spanqa.batches import PADDING, BatchLayout, pack, pack_rows
from spanqa.errors import InputError
from spanqa.squad import Example
from spanqa.tokens import Tokenizer, Tokens
from spanqa.windows import Window, WindowSettings, cut

NO_ANSWER = (0,)
"""The target of a window without the answer: its first token, [CLS]."""

_FLAT_MULTIPLE = 128
"""Of the tokens in a flat row: oneDNN compiles its kernels for each shape anew, and keeps 1,024 of them."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingWindow:
    """A window, and the positions in it at which a right answer starts, and ends (both inclusive)."""

    window: Window
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.window)


@dataclass(slots=True)
class FeatureReport:
    """What became of the questions.

    Windows with the answer, without it, and left out because their edge cuts it; questions left out because no window
    holds the answer whole, or because they are too long.
    """

    with_answer: int = 0
    without_answer: int = 0
    cut: int = 0
    lost_questions: int = 0


def answer_tokens(passage: Tokens, start: int, end: int) -> tuple[int, int]:
    """Return the first and last token (inclusive) that cover the code points `start` to `end` (exclusive) of a passage.

    A token that the answer begins or ends within counts whole: tokens `pier`, `'`, `s` and the answer "pier's" are tokens
    0 to 2. (0, -1) when no token covers it.
    """
    first = int(np.searchsorted(passage.offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(passage.offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else (0, -1)


def make_features(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    settings: WindowSettings,
    *,
    empty_windows: int = 1,
    seed: int = 0,
) -> tuple[list[TrainingWindow], FeatureReport]:
    """Return the windows to train on.

    Of a question's windows without its answer, `empty_windows` are kept, drawn by `seed`: on long passages they would
    otherwise be nearly all. A window that cuts an answer in two is left out; it is neither right nor wrong there. A question
    that is too long for the windows is left out.
    """
    draw = random.Random(seed)
    report = FeatureReport()
    made: list[TrainingWindow] = []
    for example in examples:
        prepared = tokenizer.prepare(example.passage)
        try:
            (windows,) = cut(example.question, [prepared], tokenizer, settings)
        except InputError:
            report.lost_questions += 1
            continue
        passage = prepared.tokens
        spans = [answer_tokens(passage, gold.start, gold.start + len(gold.text)) for gold in example.answers]
        spans = [(first, last) for first, last in spans if first <= last]
        if example.answers and not spans:
            report.lost_questions += 1
            continue
        right, empty = [], []
        for window in windows:
            shift = window.passage_start - window.first
            inside = [span for span in spans if window.first <= span[0] and span[1] < window.stop]
            if inside:
                starts = tuple(sorted({first + shift for first, _ in inside}))
                ends = tuple(sorted({last + shift for _, last in inside}))
                right.append(TrainingWindow(window, starts, ends))
            elif any(first < window.stop and last >= window.first for first, last in spans):
                report.cut += 1
            else:
                empty.append(TrainingWindow(window, NO_ANSWER, NO_ANSWER))
        if spans and not right:
            report.lost_questions += 1
            continue
        kept = draw.sample(empty, min(len(empty), empty_windows))
        report.with_answer += len(right)
        report.without_answer += len(kept)
        made += right + kept
    return made, report


def collate(
    windows: Sequence[TrainingWindow], *, layout: BatchLayout, position_offset: int = 0, cols: int | None = None
) -> dict[str, Any]:
    """Return the tensors of a training step.

    `input_ids`, `token_type_ids`, `position_ids` int64 `[rows, cols]`; `window` int64 `[rows, cols]`, the number of the
    window in the batch that a token belongs to, -1 on padding; `starts` and `ends` bool `[rows, cols]`, true at right
    places; and what keeps windows apart: `window_lengths` where they lie flat, else `attention_mask`, `[rows, cols]` padded
    or `[rows, 1, cols, cols]` packed (bool, true where a token may look). `cols` widens padded rows, and is the width of
    packed ones (512 by default).
    """
    ordered = sorted(windows, key=len, reverse=True)  # so that equal lengths follow each other
    if layout == "packed":
        rows = [[ordered[i] for i in row] for row in pack_rows(map(len, ordered), cols or 512)]
    else:
        rows = [list(ordered)] if layout == "flat" else [[window] for window in ordered]
    if layout == "flat":
        cols = -(-sum(map(len, ordered)) // _FLAT_MULTIPLE) * _FLAT_MULTIPLE
    batch = pack([[each.window for each in row] for row in rows], cols)
    counts = np.cumsum([0] + [len(row) for row in rows[:-1]], dtype=np.int32)
    index = np.where(batch.window_index == PADDING, PADDING, batch.window_index + counts[:, None])
    starts, ends = np.zeros(batch.shape, bool), np.zeros(batch.shape, bool)
    for r, row in enumerate(rows):
        at = 0
        for each in row:
            starts[r, [at + start for start in each.starts]] = True
            ends[r, [at + end for end in each.ends]] = True
            at += len(each)
    made: dict[str, Any] = {
        "input_ids": torch.from_numpy(batch.input_ids).long(),
        "token_type_ids": torch.from_numpy(batch.token_type_ids).long(),
        "position_ids": torch.from_numpy(batch.position_ids).long() + position_offset,
        "window": torch.from_numpy(index).long(),
        "starts": torch.from_numpy(starts),
        "ends": torch.from_numpy(ends),
    }
    if layout == "flat":
        padding = batch.shape[1] - sum(map(len, ordered))
        made["window_lengths"] = [*map(len, ordered), *([padding] if padding else [])]
    elif layout == "packed":
        made["attention_mask"] = made["window"][:, None, :, None] == made["window"][:, None, None, :]
    else:
        made["attention_mask"] = (made["window"] != PADDING).long()
    return made


def span_loss(start_logits: Tensor, end_logits: Tensor, batch: dict[str, Any]) -> Tensor:
    """Return the mean over windows of half of -log P(a right start) - log P(a right end), each over its window's tokens.

    Logits `[rows, cols]`; `batch` is what `collate` made.
    """
    window, position = batch["window"], batch["position_ids"]
    there = window != PADDING
    cells = (window[there], position[there] - position.min())
    shape = (int(window.max()) + 1, int(cells[1].max()) + 1)
    loss = torch.zeros((), device=start_logits.device)
    for logits, right in ((start_logits, batch["starts"]), (end_logits, batch["ends"])):
        values = logits[there].float()
        every = torch.full(shape, -torch.inf, device=values.device).index_put(cells, values)
        kept = torch.where(right[there], values, -torch.inf)
        gold = torch.full(shape, -torch.inf, device=values.device).index_put(cells, kept)
        loss = loss + (every.logsumexp(1) - gold.logsumexp(1)).mean() / 2
    return loss
