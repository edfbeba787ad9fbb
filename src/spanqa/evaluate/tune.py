"""The no-answer threshold and the calibration of probabilities, fitted on data that the model was not trained on.

    questions -> gather -> outcomes -> fit -> Tuned -> store -> spanqa.json

The threshold is the one that serves the criterion best on the data. `a` and `b` are a logistic regression of "there is no
answer" on M* (Platt 1999). The temperature is the most likely one for the share of the best span, among questions that have
an answer (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.calibration import Calibration, Probabilities
from spanqa.checkpoint import Checkpoint, write_settings
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate.curves import expected_calibration_error
from spanqa.evaluate.metrics import best_threshold, column
from spanqa.evaluate.outcomes import RIGHT, Outcome, collect
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.squad import Example

Criterion = Literal["f1", "exact", "precision"]

TEMPERATURES = np.geomspace(0.25, 16, 61)
"""The temperatures that `fit` tries, each 7 % above the one before."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was fitted, and how well it does on the data it was fitted on.

    `no_answer_threshold` is None where there was none to fit. `value` is the criterion in percent. `ece_before` and
    `ece_after` are the expected calibration error of what is returned at the threshold, without and with the calibration.
    """

    no_answer_threshold: float | None
    calibration: Calibration
    criterion: Criterion
    value: float
    questions: int
    ece_before: float
    ece_after: float


def gather(reader: Reader, examples: Sequence[Example], progress: Progress = silent) -> list[Outcome]:
    """Return the outcomes that `fit` needs, without those whose passage holds nothing to read.

    Raises:
        DatasetError: no outcome is left.
    """
    collected = collect(reader, examples, temperatures=TEMPERATURES, progress=progress)
    outcomes = [outcome for _, _, outcome in collected if outcome.log_share is not None]
    if not outcomes:
        raise DatasetError("There is no question to tune on. Give at least one whose passage holds text.")
    return outcomes


def fit(
    outcomes: Sequence[Outcome],
    stored: float,
    data_sha256: str,
    criterion: Criterion = "f1",
    precision: float | None = None,
) -> Tuned:
    """Return the threshold and the calibration that fit the outcomes, which come from `gather`.

    `criterion` is the best F1, the best exact match, or the lowest threshold at which `precision` of the answers given are
    right. Where every question has an answer, there is no threshold to fit for F1 or exact match, and no `a` and `b`. The
    threshold then stays `stored`, and the probability of "no answer" stays uncalibrated.

    Raises:
        InputError: a precision is missing, or no threshold reaches it.
    """
    scores, answerable = column(outcomes, "score"), column(outcomes, "answerable")
    mixed = bool(answerable.any() and not answerable.all())
    threshold: float | None = None
    if criterion == "precision":
        if precision is None or not 0 < precision <= 1:
            raise InputError(f"precision is {precision!r}; expected a share above 0 and at most 1.")
        threshold, value = _lowest_threshold(scores, _best_is_right(outcomes), precision)
    elif mixed:
        value, no_answer_score = best_threshold(outcomes, criterion)
        threshold = 0.0 - no_answer_score
    else:
        value = 100 * float(column(outcomes, f"best_{criterion}").mean())
    a, b = _logistic(scores, ~answerable) if mixed else (0.0, 1.0)
    calibration = Calibration(a, b, _temperature(outcomes), data_sha256)
    least = stored if threshold is None else threshold
    before, after = (
        expected_calibration_error(*probabilities_at(outcomes, each, least)) for each in (Calibration(), calibration)
    )
    return Tuned(threshold, calibration, criterion, value, len(outcomes), before, after)


def probabilities_at(
    outcomes: Sequence[Outcome], calibration: Calibration, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return, for each question, the probability of what is returned at the threshold, and whether that is right.

    The outcomes come from `gather`, whatever threshold and calibration it used.
    """
    temperature = int(np.argmin(np.abs(TEMPERATURES - calibration.temperature)))
    scores, answerable = column(outcomes, "score"), column(outcomes, "answerable")
    answered = scores >= threshold
    probabilities = []
    for score, share, given in zip(scores, column(outcomes, "log_share")[:, temperature], answered, strict=True):
        known = Probabilities(float(score), 0.0, calibration)
        probabilities.append(known.of_answer(float(share)) if given else known.of_no_answer)
    return np.array(probabilities), np.where(answered, _best_is_right(outcomes), ~answerable)


def store(checkpoint: Checkpoint, tuned: Tuned) -> None:
    """Write the threshold and the calibration into the checkpoint's spanqa.json. The file is replaced as a whole.

    Raises:
        InputError: the folder cannot be written.
    """
    settings = dict(checkpoint.settings)
    if tuned.no_answer_threshold is not None:
        settings["answers"] = (settings.get("answers") or {}) | {"no_answer_threshold": tuned.no_answer_threshold}
    settings["calibration"] = asdict(tuned.calibration)
    write_settings(checkpoint.path, settings)


def _best_is_right(outcomes: Sequence[Outcome]) -> NDArray[np.bool_]:
    """Whether the best span of each question is right; never where the question has no answer."""
    right: NDArray[np.bool_] = column(outcomes, "answerable") & (column(outcomes, "best_f1") >= RIGHT)
    return right


def _lowest_threshold(scores: NDArray[np.float64], right: NDArray[np.bool_], precision: float) -> tuple[float, float]:
    """Return the lowest threshold at which this share of the answers is right, and the share it gives in percent."""
    order = np.argsort(-scores, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are answered together
    enough = np.flatnonzero((shares >= precision) & last)
    if not len(enough):
        raise InputError(
            f"No threshold makes {precision:.0%} of the answers right on this data. The most is {shares[last].max():.1%}. "
            "Ask for less."
        )
    return float(scores[order][enough[-1]]), 100 * float(shares[enough[-1]])


def _logistic(scores: NDArray[np.float64], no_answer: NDArray[np.bool_]) -> tuple[float, float]:
    """Return a and b of P(no answer) = 1 / (1 + exp(b score - a)), by Newton's method with a little ridge; b is above 0."""
    x = np.stack([np.ones_like(scores), -scores], axis=1)

    def loss(weights: NDArray[np.float64]) -> float:
        z = x @ weights
        return float(np.logaddexp(0, np.where(no_answer, -z, z)).sum() + 0.5e-6 * (weights**2).sum())

    weights = np.array([0.0, 1.0])
    for _ in range(100):
        p = np.exp(-np.logaddexp(0, -(x @ weights)))
        gradient = x.T @ (p - no_answer) + 1e-6 * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        before = loss(weights)
        while np.abs(step).max() > 1e-9 and loss(weights - step) > before:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return float(weights[0]), max(float(weights[1]), 1e-3)


def _temperature(outcomes: Sequence[Outcome]) -> float:
    """Return the most likely temperature, if the best span of an answerable question is right as often as its share says."""
    chosen = [outcome for outcome in outcomes if outcome.answerable]
    if not chosen:
        return 1.0
    logs = np.minimum(column(chosen, "log_share"), -1e-9)
    likelihood = np.where(_best_is_right(chosen)[:, None], logs, np.log(-np.expm1(logs)))
    return float(TEMPERATURES[int(likelihood.sum(axis=0).argmax())])
