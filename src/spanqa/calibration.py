"""Scores to probabilities.

    no_answer_probability = 1 / (1 + exp(b M* - a))
    probability(p)        = (1 - no_answer_probability) * sum of exp(M(q)/T) over p and the spans it takes with it
                                                        / sum of exp(M(q)/T) over every span q

M(p) is the margin of a span over "no answer", M* the largest margin. With a = 0 and b = T = 1 probabilities are uncalibrated;
`spanqa.evaluate.tune` fits the three. Source: Platt 1999 for a and b, Guo et al. 2017 (https://arxiv.org/abs/1706.04599) for T.
"""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanqa import bounds
from spanqa.errors import InputError


@dataclass(frozen=True, slots=True)
class Calibration:
    """The three numbers that turn scores into probabilities; the defaults give uncalibrated ones.

    `data_sha256` names the data that a, b and the temperature were fitted on.
    """

    a: float = 0.0
    b: float = 1.0
    temperature: float = 1.0
    data_sha256: str | None = None

    def __post_init__(self) -> None:
        bounds.check(("a", "b", "temperature"), asdict(self))
        if not isinstance(self.data_sha256, str | None):
            raise InputError(f"data_sha256 is {bounds.show(self.data_sha256)}; expected a text or null.")


@dataclass(frozen=True)
class Probabilities:
    """The probabilities of one question's answers.

    `best` is M*, `log_mass` the logarithm of the sum of exp(M(q)/T) over every span q.
    """

    best: float
    log_mass: float
    calibration: Calibration

    @cached_property
    def of_no_answer(self) -> float:
        """The probability that no span is the answer."""
        x = self.calibration.a - self.calibration.b * self.best
        return 1 / (1 + math.exp(-x)) if x > -700 else 0.0

    def of_answer(self, log_mass: float) -> float:
        """The probability that the answer is one of the spans whose sum of exp(M(q)/T) has this logarithm."""
        return (1 - self.of_no_answer) * math.exp(min(0.0, log_mass - self.log_mass))


def log_sum_exp(values: NDArray[Any], temperature: float = 1.0) -> float:
    """Return log(sum(exp(values / temperature))) without overflow; -inf for no values at all."""
    top = float(values.max(initial=-np.inf))
    if top == -math.inf:
        return top
    return top / temperature + math.log(float(exponentials(values, temperature, top).sum()))


def exponentials(values: NDArray[Any], temperature: float, largest: float) -> NDArray[Any]:
    """Return exp((values - largest) / temperature), which cannot overflow."""
    shifted = values - largest
    if temperature != 1:
        shifted *= 1 / temperature
    return np.exp(shifted, out=shifted)
