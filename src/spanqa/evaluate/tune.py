"""The no-answer threshold and the calibration of probabilities, fitted on data that the model was not trained on.

    questions -> Evidence -> Tuned -> spanqa.json

Evidence is what the fit needs of each question: the score of its best place, whether that place is right, and how much of
the belief lies on it at each temperature tried. The threshold is the one that serves the criterion best on the data. `a` and `b`
are a logistic regression of "there is no answer" on M* (Platt 1999); the temperature is the most likely one for the share of the
best place among questions that have an answer (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.answers import margins
from spanqa.calibration import Calibration, Probabilities, log_sum_exp
from spanqa.checkpoint import Checkpoint, write_settings
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate.metrics import QuestionScore, best_threshold, score_question
from spanqa.evaluate.run import read_all
from spanqa.reader import Reader
from spanqa.spans import distinct_spans
from spanqa.squad import Example

Criterion = Literal["f1", "exact", "precision"]

TEMPERATURES = np.geomspace(0.25, 16, 61)
"""The temperatures tried, each 7 % above the one before."""

RIGHT = 0.5
"""An answer with at least this official F1 counts as right, where it must be right or wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of a number of questions, an array of each `[question]`.

    `best` is M*; `f1` and `exact` are those of the best place, between 0 and 1; `answerable` whether there is a reference
    answer; `log_share` `[question, temperature]` the logarithm of the share of the best place, and those that it takes with it,
    in the sum of exp(M/T) over all places.
    """

    best: NDArray[np.float64]
    f1: NDArray[np.float64]
    exact: NDArray[np.float64]
    answerable: NDArray[np.bool_]
    log_share: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.best)

    def scores(self) -> list[QuestionScore]:
        """The questions as the official metrics take them."""
        rows = zip(self.exact, self.f1, self.answerable, self.best, strict=True)
        return [QuestionScore(float(e), float(f), bool(h), True, -float(b)) for e, f, h, b in rows]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was fitted, and how well it does on the data it was fitted on.

    `ece_before` and `ece_after`: expected calibration error of the outcome returned at the threshold, without and with the
    calibration.
    """

    no_answer_threshold: float | None
    calibration: Calibration
    criterion: Criterion
    value: float
    questions: int
    ece_before: float
    ece_after: float


def gather(reader: Reader, examples: Sequence[Example], progress: Callable[[int], None] | None = None) -> Evidence:
    """Answer the questions and keep what the fit needs."""
    if not examples:
        raise DatasetError("There is no question to tune on. Give at least one.")
    best, f1, exact, answerable, shares = [], [], [], [], []
    for done, (example, reading) in enumerate(read_all(reader, examples), 1):
        passage = reading.passages[0]
        band = margins(passage, reading.logits[0], reader.answers.max_answer_tokens)
        spans = list(distinct_spans(band, passage.tokens.offsets, 1))
        if not spans:  # a passage with nothing to read
            continue
        ((span, taken),) = spans
        start, end = passage.tokens.offsets[span.start_token, 0], passage.tokens.offsets[span.end_token, 1]
        found = score_question(example, passage.text[start:end])
        legal = band[np.isfinite(band)]
        best.append(span.score)
        f1.append(found.f1)
        exact.append(found.exact)
        answerable.append(bool(example.answers))
        shares.append([log_sum_exp(taken, each) - log_sum_exp(legal, each) for each in TEMPERATURES])
        if progress:
            progress(done)
    return Evidence(np.array(best), np.array(f1), np.array(exact), np.array(answerable), np.array(shares))


def fit(
    evidence: Evidence, stored: float, data_sha256: str, criterion: Criterion = "f1", precision: float | None = None
) -> Tuned:
    """Return the threshold and the calibration that fit the evidence.

    `criterion` is best F1, best exact match, or the lowest threshold at which `precision` of the answers given are right. Where
    every question has an answer there is no threshold to fit for F1, and no `a` and `b`: `stored` stays, and "no answer"
    keeps its raw belief.

    Raises:
        InputError: a precision is missing, or no threshold reaches it.
    """
    threshold: float | None = None
    mixed = bool(evidence.answerable.any() and not evidence.answerable.all())
    if criterion == "precision":
        if precision is None or not 0 < precision <= 1:
            raise InputError(f"precision is {precision!r}; expected a share above 0, at most 1.")
        threshold, value = _threshold_for(evidence, precision)
    elif mixed:
        value, most = best_threshold(evidence.scores(), criterion)
        threshold = 0.0 - most
    else:
        value = 100 * float(getattr(evidence, criterion).mean())
    a, b = _logistic(evidence.best, ~evidence.answerable) if mixed else (0.0, 1.0)
    calibration = Calibration(a, b, _temperature(evidence), data_sha256)
    least = stored if threshold is None else threshold
    before, after = (
        expected_calibration_error(*outcomes(evidence, each, least)) for each in (Calibration(), calibration)
    )
    return Tuned(threshold, calibration, criterion, value, len(evidence), before, after)


def outcomes(
    evidence: Evidence, calibration: Calibration, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return, for each question, the probability of the outcome returned at the threshold, and whether it is right."""
    column = int(np.argmin(np.abs(TEMPERATURES - calibration.temperature)))
    probabilities = []
    for best, share in zip(evidence.best, evidence.log_share[:, column], strict=True):
        probabilities_of = Probabilities(float(best), 0.0, calibration)
        answered = best >= threshold
        probabilities.append(probabilities_of.of_answer(float(share)) if answered else probabilities_of.of_no_answer)
    right = np.where(evidence.best >= threshold, evidence.answerable & (evidence.f1 >= RIGHT), ~evidence.answerable)
    return np.array(probabilities), right


def expected_calibration_error(probabilities: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the mean distance between probability and share of right ones, over equal bins weighted by their number.

    Source: Naeini et al. 2015, as in Guo et al. 2017.

    >>> expected_calibration_error(np.array([0.95, 0.95, 0.05, 0.05]), np.array([True, True, False, True]))
    0.25
    """
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [abs(float(probabilities[place == each].sum()) - int(right[place == each].sum())) for each in range(bins)]
    return round(math.fsum(gaps) / len(probabilities), 12)


def store(checkpoint: Checkpoint, tuned: Tuned) -> None:
    """Write the threshold and the calibration into the checkpoint's spanqa.json; it is replaced as a whole.

    Raises:
        InputError: the folder cannot be written.
    """
    settings = dict(checkpoint.settings)
    if tuned.no_answer_threshold is not None:
        settings["answers"] = (settings.get("answers") or {}) | {"no_answer_threshold": tuned.no_answer_threshold}
    settings["calibration"] = asdict(tuned.calibration)
    write_settings(checkpoint.path, settings)


def _threshold_for(evidence: Evidence, precision: float) -> tuple[float, float]:
    """The lowest threshold at which so large a share of the answers is right, and that share in percent."""
    order = np.argsort(-evidence.best, kind="stable")
    right = (evidence.answerable & (evidence.f1 >= RIGHT))[order]
    shares = np.cumsum(right) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(evidence.best[order]) != 0, True)  # equal scores are answered together
    enough = np.flatnonzero((shares >= precision) & last)
    if not len(enough):
        raise InputError(
            f"No threshold makes {precision:.0%} of the answers right on this data; the most is {shares[last].max():.1%}. Ask for less."
        )
    return float(evidence.best[order][enough[-1]]), 100 * float(shares[enough[-1]])


def _logistic(scores: NDArray[np.float64], no_answer: NDArray[np.bool_]) -> tuple[float, float]:
    """A and b of P(no answer) = 1 / (1 + exp(b score - a)), by Newton's method with a touch of ridge; b stays above 0."""
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


def _temperature(evidence: Evidence) -> float:
    """The most likely temperature, the best place of an answerable question being right with the probability of its share."""
    chosen = evidence.answerable
    if not chosen.any():
        return 1.0
    right = (evidence.f1 >= RIGHT)[chosen][:, None]
    logs = np.minimum(evidence.log_share[chosen], -1e-9)
    likelihood = np.where(right, logs, np.log(-np.expm1(logs)))
    return float(TEMPERATURES[int(likelihood.sum(axis=0).argmax())])
