"""How to train: the settings, and presets for few labels, for many, and for plain text. No framework is loaded here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spanqa.batches import BatchLayout
from spanqa.errors import InputError
from spanqa.train.masking import Masking

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "qa_dropout")
"""The names of dropout in the config.json of each architecture."""

FEW = 1000
"""Up to this many questions, `preset` chooses the settings for few labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What every kind of training has.

    `batch_size`: windows in one optimizer step of one process, before `accumulation`; the same in every layout.
    `learning_rate`: the peak; it rises over a tenth of the steps, then falls to 0 linearly. `evaluations`: how often the model
    is measured. `layout`: flat has no padding; padded is for models that need it; None chooses. `save_steps`: steps between
    checkpoints. `device`: auto uses every GPU that the launcher gives, or else the CPU.
    """

    epochs: float = 2.0
    learning_rate: float = 5e-5
    batch_size: int = 32
    accumulation: int = 1
    weight_decay: float = 0.01
    dtype: str = "auto"
    seed: int = 0
    max_steps: int | None = None
    evaluations: int = 4
    layout: BatchLayout | None = None
    save_steps: int = 500
    gradient_checkpointing: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, values in (("dtype", ("auto", "fp32", "bf16", "fp16")), ("device", ("auto", "cpu"))):
            if getattr(self, name) not in values:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(values)}.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed!r}; expected a whole number from 0 to {2**32 - 1}.")
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected a number above 0.")
        for name in ("batch_size", "accumulation", "max_steps", "evaluations", "save_steps"):
            _check_count(name, getattr(self, name))


def _check_count(name: str, value: int | None) -> None:
    if value is not None and not value >= 1:
        raise InputError(f"{name} is {value!r}; expected a whole number, at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings(LoopSettings):
    """How to train on questions. `preset` chooses these by the number of questions.

    `dropout`: for the whole model; None keeps the base model's. `patience`: stop after this many evaluations without a better
    F1. `empty_windows`: windows without an answer that are kept for each question. `half_weights`: write fp16 weights.

    With a teacher: `temperature` divides the logits of teacher and student before their softmax; `teacher_weight` is the share of
    the teacher's loss, and the rest is that of the labels. Source: Hinton et al. 2015 (https://arxiv.org/abs/1503.02531).
    """

    dropout: float | None = None
    patience: int | None = None
    empty_windows: int = 1
    half_weights: bool = False
    temperature: float = 2.0
    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        LoopSettings.__post_init__(self)
        _check_count("patience", self.patience)
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature!r}; expected a number above 0.")
        if not 0 < self.teacher_weight <= 1:
            raise InputError(f"teacher_weight is {self.teacher_weight!r}; expected a number above 0, at most 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSettings(LoopSettings):
    """How to adapt an encoder to plain text. `adapt_preset` chooses these by the hidden size.

    `masking`: "word" masks whole words, "token" tokens independently of each other. `max_seq_length`: tokens of the longest
    window, special tokens counted; None is 256, or what the model can read if that is less.
    """

    epochs: float = 3.0
    masking: Masking = "word"
    max_seq_length: int | None = None

    def __post_init__(self) -> None:
        LoopSettings.__post_init__(self)
        if self.masking not in ("word", "token"):
            raise InputError(f"masking is {self.masking!r}; expected word or token.")
        if self.max_seq_length is not None and not self.max_seq_length >= 8:
            raise InputError(f"max_seq_length is {self.max_seq_length!r}; expected a whole number, at least 8.")


def hidden_size_of(config: Mapping[str, Any]) -> int:
    """Return the hidden size that a config.json names, 768 where it names none."""
    return int(config.get("hidden_size") or config.get("dim") or 768)


def preset(questions: int, hidden_size: int) -> TrainSettings:
    """Return the settings for a number of questions and a hidden size.

    The learning rate is 3e-5 for a hidden size of 1,024, and inversely proportional to it. Up to `FEW` questions there are
    more epochs, and an evaluation after every second one.
    """
    rate = 3e-5 * 1024 / hidden_size
    if questions <= FEW:
        epochs = 10.0 if questions <= 300 else 6.0
        return TrainSettings(
            epochs=epochs, learning_rate=rate, batch_size=16, evaluations=int(epochs) // 2, dropout=0.1
        )
    return TrainSettings(learning_rate=rate)


def adapt_preset(hidden_size: int) -> AdaptSettings:
    """Return the settings to adapt an encoder of a hidden size: the learning rate is 1e-4 for 768, and inversely proportional."""
    return AdaptSettings(learning_rate=1e-4 * 768 / hidden_size)
