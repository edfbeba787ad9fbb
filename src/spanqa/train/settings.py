"""How to train: the settings, and presets for few labels and for many. No framework is loaded here."""

from dataclasses import dataclass

from spanqa.batches import BatchLayout
from spanqa.errors import InputError

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "qa_dropout")
"""The names of dropout in the config.json of each architecture."""

FEW = 1000
"""Up to this many questions, `preset` chooses the settings for few labels."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. `preset` chooses these by the number of questions.

    `batch_size`: windows in one optimizer step of one process, before `accumulation`; the same in every layout.
    `learning_rate`: the peak; it rises over a tenth of the steps, then falls to 0 linearly. `dropout`: for the whole model;
    None keeps the base model's. `evaluations`: how often the dev questions are answered. `patience`: stop after this many
    evaluations without a better F1. `layout`: flat has no padding; padded is for models that need it; None chooses.
    `empty_windows`: windows without an answer that are kept for each question. `save_steps`: steps between checkpoints.
    `half_weights`: write fp16 weights. `device`: auto uses every GPU that the launcher gives, or else the CPU.

    With a teacher: `temperature` divides the logits of teacher and student before their softmax; `teacher_weight` is the share of
    the teacher's loss, and the rest is that of the labels. Hinton et al. 2015 (https://arxiv.org/abs/1503.02531) tried
    temperatures from 1 to 10 beside labels of weight 0.5, and found low ones best for small students, which cannot follow a
    teacher in all that it holds improbable.
    """

    epochs: float = 2.0
    learning_rate: float = 5e-5
    batch_size: int = 32
    accumulation: int = 1
    weight_decay: float = 0.01
    dropout: float | None = None
    dtype: str = "auto"
    seed: int = 0
    max_steps: int | None = None
    evaluations: int = 4
    patience: int | None = None
    layout: BatchLayout | None = None
    empty_windows: int = 1
    save_steps: int = 500
    gradient_checkpointing: bool = False
    half_weights: bool = False
    device: str = "auto"
    temperature: float = 2.0
    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        for name, values in (("dtype", ("auto", "fp32", "bf16", "fp16")), ("device", ("auto", "cpu"))):
            if getattr(self, name) not in values:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(values)}.")
        for name in ("epochs", "learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected a number above 0.")
        if not 0 < self.teacher_weight <= 1:
            raise InputError(f"teacher_weight is {self.teacher_weight!r}; expected a number above 0, at most 1.")
        for name in ("batch_size", "accumulation", "max_steps", "evaluations", "patience", "save_steps"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise InputError(f"{name} is {value!r}; expected a whole number, at least 1.")


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
