"""How to train: the settings, and the presets for few labels and for many. It loads no framework."""

from dataclasses import dataclass

from spanqa.batches import BatchLayout
from spanqa.errors import InputError

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "qa_dropout")
"""What the architectures call their dropouts in config.json."""

FEW = 1000
"""Up to so many questions, training is set for few labels."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. `preset` gives the settings for few labels and for many.

    `batch_size`: windows of an optimizer step in one process, times `accumulation`, whatever the layout.
    `learning_rate`: the highest; it rises over a tenth of the steps and falls to 0 linearly. `dropout`: that of the whole
    model; None keeps the base's. `evaluations`: how often the dev questions are answered. `patience`: stop after so many
    evaluations without a better F1. `layout`: flat has no padding; padded is for models that need it.
    `empty_windows`: windows without its answer that are kept of each question. `save_steps`: steps between checkpoints.
    `half_weights`: write fp16. `device`: auto is every GPU that the launcher gives, or else the CPU.
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

    def __post_init__(self) -> None:
        for name, values in (("dtype", ("auto", "fp32", "bf16", "fp16")), ("device", ("auto", "cpu"))):
            if getattr(self, name) not in values:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(values)}.")
        least = {"epochs": 0, "learning_rate": 0, "batch_size": 1, "accumulation": 1, "evaluations": 1, "save_steps": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not value >= low or value == 0:
                raise InputError(f"{name} is {value!r}; expected a number above 0.")


def preset(questions: int, hidden_size: int) -> TrainSettings:
    """Return the settings for a number of questions and a width of model.

    Narrow models want higher rates: 3e-5 at 1,024 hidden units, and in inverse proportion elsewhere. Up to `FEW` questions:
    more epochs, an evaluation after each second one, and the best of them is kept.
    """
    rate = 3e-5 * 1024 / hidden_size
    if questions <= FEW:
        epochs = 10.0 if questions <= 300 else 6.0
        return TrainSettings(
            epochs=epochs, learning_rate=rate, batch_size=16, evaluations=int(epochs) // 2, dropout=0.1
        )
    return TrainSettings(learning_rate=rate)
