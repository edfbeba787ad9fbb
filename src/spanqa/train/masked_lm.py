"""Masked language modelling as an objective: windows of text with hidden words, and the loss of predicting these.

    TextWindow -> MaskedWords.collate -> StepBatch -> network -> MaskedWords.loss

Masks are drawn anew for each window in each epoch, from the seed, the epoch and the window's number alone. So they do not depend on
the order of windows, on the process that reads them, or on whether the run was resumed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from spanqa.files import write_json
from spanqa.template import Template
from spanqa.tokens import Tokens
from spanqa.train.corpus import Corpus, TextWindow
from spanqa.train.masking import Masking, MaskTokens, choose, replace
from spanqa.train.objective import InputFormat, LaidOutWindows, StepBatch
from spanqa.windows import Window

_NO_QUESTION = Tokens(np.empty(0, np.int32), np.empty((0, 2), np.int32))
_MEASURED_AT_ONCE = 32


class ChosenWindows(Sequence[TextWindow]):
    """Some windows of a corpus, as the items of a training set."""

    def __init__(self, corpus: Corpus, numbers: NDArray[np.int64]) -> None:
        self._corpus, self._numbers = corpus, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        return self._corpus[int(self._numbers[place])]


@dataclass(slots=True)
class MaskedWords:
    """Predict the chosen tokens of each window. `template` is that of a text.

    `epoch` changes as training goes on (`new_masks`).
    """

    format: InputFormat
    template: Template
    tokens: MaskTokens
    kind: Masking = "word"
    seed: int = 0
    epoch: int = 0

    def collate(self, windows: Sequence[TextWindow]) -> StepBatch:
        """Return the network's inputs, and the ids to predict as `labels` int64 `[token]`.

        `predicted` among the inputs holds the places of these tokens in the batch, row by row; see `predict_only_chosen`.
        """
        chosen, read = [], []
        for window in windows:
            draw = np.random.default_rng((self.seed, self.epoch, window.number))
            chosen.append(choose(window.words, draw, self.kind))
            read.append(replace(window.ids, chosen[-1], self.tokens, draw))
        laid_out = lay_out(self.format, read, self.template)
        places, labels = places_of(laid_out, self.template, [window.ids for window in windows], chosen)
        inputs = {**laid_out.inputs, "predicted": torch.from_numpy(places)}
        return {"inputs": inputs, "targets": {"labels": torch.from_numpy(labels)}}

    def loss(self, output: Any, batch: StepBatch) -> Tensor:
        """Return the mean cross-entropy over the chosen tokens."""
        labels = batch["targets"]["labels"]
        total = cross_entropy(output.logits[0].float(), labels, reduction="sum")
        return total / max(1, len(labels))

    def new_masks(self) -> TrainerCallback:
        """Return a callback of the Trainer that sets the epoch."""
        return _Epochs(self)


class _Epochs(TrainerCallback):  # type: ignore[misc]
    def __init__(self, objective: MaskedWords) -> None:
        self._objective = objective

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._objective.epoch = int((state.epoch or 0) + 1e-6)


def lay_out(form: InputFormat, texts: Sequence[NDArray[np.int32]], template: Template) -> LaidOutWindows:
    """Lay the token ids of texts out as a batch, each with the special tokens of the template."""
    tokens = [Tokens(ids, np.empty((0, 2), np.int32), _NO_QUESTION.words) for ids in texts]
    return form.lay_out([Window(_NO_QUESTION, each, 0, len(each), template) for each in tokens])


def places_of(
    laid_out: LaidOutWindows,
    template: Template,
    texts: Sequence[NDArray[np.int32]],
    chosen: Sequence[NDArray[np.intp]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the chosen tokens in a batch, as if its rows were one, and the ids that the texts have there."""
    cols = laid_out.batch.shape[1]
    places, labels = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for i, (row, first) in zip(laid_out.order, laid_out.corners, strict=True):
        places.append(row * cols + first + len(template.before) + chosen[i])
        labels.append(texts[i][chosen[i]].astype(np.int64))
    return np.concatenate(places), np.concatenate(labels)


def predict_only_chosen(network: Any) -> None:
    """Let a masked language model compute logits for the tokens `predicted` alone, as `[1, token, vocabulary]`.

    The vocabulary makes the head as expensive as the encoder of a small model, and its logits larger than all else in memory.
    """
    asked: list[Tensor] = []

    def take(module: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        asked[:] = [options.pop("predicted")]
        return args, options

    def give(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[asked.pop()][None]
        return output

    network.register_forward_pre_hook(take, with_kwargs=True)
    network.base_model.register_forward_hook(give)


@dataclass(frozen=True, slots=True)
class Predictions:
    """How well hidden words are predicted.

    `words`: the share of hidden words of which all tokens are right, in percent. `tokens`: the share of hidden tokens that are
    right, in percent. `loss`: the mean cross-entropy of hidden tokens, in nats.
    """

    words: float
    tokens: float
    loss: float


def measure(
    network: Any,
    form: InputFormat,
    template: Template,
    mask: int,
    windows: Sequence[TextWindow],
) -> Predictions:
    """Hide whole words of each window behind the mask token, always the same ones, and see how well they are predicted."""
    right, of_word, total = [np.empty(0, np.bool_)], [np.empty(0, np.int64)], 0.0
    device = next(network.parameters()).device
    network.eval()
    for first in range(0, len(windows), _MEASURED_AT_ONCE):
        batch = windows[first : first + _MEASURED_AT_ONCE]
        chosen = [choose(each.words, np.random.default_rng(each.number)) for each in batch]
        hidden = [each.ids.copy() for each in batch]
        for ids, places in zip(hidden, chosen, strict=True):
            ids[places] = mask
        laid_out = lay_out(form, hidden, template)
        places, labels = places_of(laid_out, template, [each.ids for each in batch], chosen)
        inputs = {**laid_out.inputs, "predicted": torch.from_numpy(places)}
        with torch.no_grad():
            moved = {name: each.to(device) if torch.is_tensor(each) else each for name, each in inputs.items()}
            logits = network(**moved).logits[0].float().cpu()
        answers = torch.from_numpy(labels)
        total += float(cross_entropy(logits, answers, reduction="sum"))
        right.append((logits.argmax(-1) == answers).numpy())
        of_word += [(first + i) * (1 << 32) + batch[i].words[chosen[i]].astype(np.int64) for i in laid_out.order]
    network.train()
    hits, words = np.concatenate(right), np.concatenate(of_word)
    if not len(hits):
        return Predictions(0.0, 0.0, 0.0)
    begins = np.flatnonzero(np.diff(words, prepend=-1))
    whole = np.logical_and.reduceat(hits, begins)
    return Predictions(100 * float(whole.mean()), 100 * float(hits.mean()), total / len(hits))


@dataclass(slots=True)
class HeldOut:
    """Measures a network on the windows that were held out, and keeps what it found in `path`: by step, so that none is done twice."""

    network: Any
    form: InputFormat
    template: Template
    mask: int
    windows: Sequence[TextWindow]
    path: Path
    found: dict[int, Predictions] = field(default_factory=dict)
    name: str = "Accuracy"

    def __post_init__(self) -> None:
        if self.path.exists():  # the run was stopped, and is resumed
            before = json.loads(self.path.read_text("utf-8"))
            self.found = {int(step): Predictions(**each) for step, each in before.items()}

    def __call__(self, step: int) -> float:
        """Return the share of hidden words that are predicted, in percent."""
        if step not in self.found:
            self.found[step] = measure(self.network, self.form, self.template, self.mask, self.windows)
            write_json(self.path, {str(at): asdict(each) for at, each in self.found.items()})
        return self.found[step].words
