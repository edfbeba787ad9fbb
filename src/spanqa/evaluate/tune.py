"""The no-answer threshold and the calibration of probabilities, fitted on data that the model was not trained on.

    questions -> gather -> outcomes of each domain -> fit -> Tuned

The threshold is the one that serves the criterion best on the data. `a` and `b` are a logistic regression of "there is no
answer" on M* (Platt 1999). The temperature is the most likely one for the share of the best span, among questions that have
an answer (Guo et al. 2017, https://arxiv.org/abs/1706.04599). Several domains have equal weight, however many questions each has.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from spanqa.calibration import Calibration, Probabilities
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate.curves import expected_calibration_error
from spanqa.evaluate.metrics import best_cut, column
from spanqa.evaluate.outcomes import RIGHT, Outcome, collect
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.squad import Example

Criterion = Literal["f1", "exact", "precision"]

TEMPERATURES = np.geomspace(0.25, 16, 61)
"""The temperatures that `fit` tries, each 7 % above the one before."""


DRAWS = 200
"""How often `fit` fits again, each time to as many questions, drawn with replacement."""

FEWEST = 10
"""Of fewer questions with an answer, or without one, nothing is fitted that depends on both."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fitted value: what fits the data best, its 95 % interval, what was stored before, and whether it replaces that.

    The interval is that of a percentile bootstrap (Efron 1979). `gain` is how much better than `before` a new value is on
    questions that it was not fitted to: in points of the criterion for the threshold, in log-likelihood per question for
    the others. `gain_error` is its standard error.
    """

    best: float
    low: float
    high: float
    before: float
    gain: float
    gain_error: float
    stored: bool


@dataclass(frozen=True, slots=True)
class Domain:
    """How well one of several domains does with what is stored from now on.

    `value` is the criterion there, in percent. `ece_before` and `ece_after` are the expected calibration error with the settings
    from before and with these. `ece_left_out` is that with what fits the other domains best: what to expect on texts of a kind
    that is not among these.
    """

    questions: int
    value: float
    ece_before: float
    ece_after: float
    ece_left_out: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """What is stored from now on, and how well it does on the data it was fitted on.

    `no_answer_threshold` and `calibration` are the fitted values where the data decide them, else those from before.
    `value` is the criterion at the threshold, in percent. `ece_before` and `ece_after` are the expected calibration error of
    what is returned, with the settings from before and with these. `fitted` has one entry for each value that could be
    fitted: "no_answer_threshold", "a", "b", "temperature". `domains` has one for each domain, where there are several; the value and
    the errors above are then the means of theirs.
    """

    no_answer_threshold: float
    calibration: Calibration
    criterion: Criterion
    value: float
    questions: int
    ece_before: float
    ece_after: float
    fitted: Mapping[str, Fitted]
    domains: Sequence[Domain] = ()


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
    threshold: float,
    calibration: Calibration,
    data_sha256: str,
    criterion: Criterion = "f1",
    precision: float | None = None,
    *,
    sizes: Sequence[int] = (),
) -> Tuned:
    """Return the threshold and the calibration that fit the outcomes, which come from `gather`.

    `criterion` is the best F1, the best exact match, or the lowest threshold at which `precision` of the answers given are
    right. `threshold` and `calibration` are those from before. A value from before stays unless the new one gains more than
    one standard error on questions that it was not fitted to, and unless there are `FEWEST` questions with an answer and as
    many without one (the temperature needs the former only). A threshold for a precision is stored whatever it gains. Where
    every question has an answer, there is no threshold to fit for F1 or exact match, and no `a` and `b`.

    `sizes` says how many of the outcomes, in their order, belong to each of several domains.

    Raises:
        InputError: a precision is missing, or no threshold reaches it.
    """
    if criterion == "precision" and (precision is None or not 0 < precision <= 1):
        raise InputError(f"precision is {precision!r}; expected a share above 0 and at most 1.")
    data, rows = _Data.of(outcomes), _rows_of(sizes or [len(outcomes)])
    fitted: dict[str, Fitted] = {}
    for part in _parts(data, threshold, calibration, criterion, precision):
        fitted |= _fit_part(part, rows)
    now = {name: each.best if each.stored else each.before for name, each in fitted.items()}
    least = now.pop("no_answer_threshold", threshold)
    decided = any(fitted[name].stored for name in now)
    new = replace(calibration, **now, data_sha256=data_sha256) if decided else calibration
    before, after = (calibration, threshold), (new, least)
    domains = []
    for number, of_domain in enumerate(rows):
        some = [outcomes[row] for row in of_domain]
        others = [[outcomes[row] for row in each] for each in (*rows[:number], *rows[number + 1 :])]
        left_out = _best(others, before, criterion, precision) if others else after
        errors = (expected_calibration_error(*probabilities_at(some, *each)) for each in (before, after, left_out))
        domains.append(Domain(len(some), float(_values(_Data.of(some), least, criterion).mean()), *errors))
    return Tuned(
        no_answer_threshold=least,
        calibration=new,
        criterion=criterion,
        value=float(np.mean([domain.value for domain in domains])),
        questions=len(outcomes),
        ece_before=float(np.mean([domain.ece_before for domain in domains])),
        ece_after=float(np.mean([domain.ece_after for domain in domains])),
        fitted=fitted,
        domains=domains if sizes else (),
    )


def _best(
    domains: Sequence[Sequence[Outcome]],
    before: tuple[Calibration, float],
    criterion: Criterion,
    precision: float | None,
) -> tuple[Calibration, float]:
    """Return the calibration and the threshold that fit these domains best, whatever the data decide."""
    calibration, threshold = before
    data = _Data.of([outcome for domain in domains for outcome in domain])
    values: dict[str, Any] = {"no_answer_threshold": threshold}
    for part in _parts(data, threshold, calibration, criterion, precision):
        with suppress(InputError):  # no threshold reaches the precision on these
            values |= zip(part.names, part.fit(_evenly(_rows_of([len(domain) for domain in domains]))), strict=True)
    threshold = values.pop("no_answer_threshold")
    return replace(calibration, **values), threshold


Rows = NDArray[np.integer[Any]]
"""Which questions to fit to; one that is drawn twice counts twice."""


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """Outcomes as arrays, one row for each question. `likelihood` is that of right and wrong best spans, by temperature."""

    scores: NDArray[np.float64]
    answerable: NDArray[np.bool_]
    f1: NDArray[np.float64]
    exact: NDArray[np.float64]
    right: NDArray[np.bool_]
    likelihood: NDArray[np.float64]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Self:
        answerable, right = column(outcomes, "answerable"), _best_is_right(outcomes)
        logs = np.minimum(column(outcomes, "log_share"), -1e-9)
        likelihood = np.where(right[:, None], logs, np.log(-np.expm1(logs))) * answerable[:, None]
        f1, exact = column(outcomes, "best_f1"), column(outcomes, "best_exact")
        return cls(column(outcomes, "score"), answerable, f1, exact, right, likelihood)


@dataclass(frozen=True, slots=True)
class _Part:
    """Values that are fitted together, and how: `quality` is how well they do on each question, higher is better."""

    names: tuple[str, ...]
    before: tuple[float, ...]
    fit: Callable[[Rows], tuple[float, ...]]
    quality: Callable[[tuple[float, ...]], NDArray[np.float64]]
    enough: bool
    asked: bool = False


def _parts(
    data: _Data, threshold: float, calibration: Calibration, criterion: Criterion, precision: float | None
) -> Iterator[_Part]:
    """Yield what the data allow to fit."""
    with_answer = int(np.count_nonzero(data.answerable))
    both = min(with_answer, len(data.answerable) - with_answer)

    def fit_threshold(rows: Rows) -> tuple[float]:
        scores, answerable = data.scores[rows], data.answerable[rows]
        if criterion == "precision":
            return (_lowest_threshold(scores, data.right[rows], precision or 1.0),)
        gains = np.where(answerable, getattr(data, criterion)[rows], -1.0)
        return (0.0 - best_cut(-scores, answerable, gains)[1],)

    def fit_logistic(rows: Rows) -> tuple[float, float]:
        return _logistic(data.scores[rows], ~data.answerable[rows])

    def fit_temperature(rows: Rows) -> tuple[float]:
        """Return the most likely temperature, if the best span of an answerable question is right as often as its share says."""
        counts = np.bincount(rows, minlength=len(data.likelihood))
        return (float(TEMPERATURES[int((counts @ data.likelihood).argmax())]),)

    def threshold_quality(values: tuple[float, ...]) -> NDArray[np.float64]:
        return _values(data, values[0], criterion)

    def logistic_quality(values: tuple[float, ...]) -> NDArray[np.float64]:
        z = values[0] - values[1] * data.scores
        likelihood: NDArray[np.float64] = -np.logaddexp(0, np.where(data.answerable, z, -z))
        return likelihood

    def temperature_quality(values: tuple[float, ...]) -> NDArray[np.float64]:
        return data.likelihood[:, int(np.argmin(np.abs(TEMPERATURES - values[0])))]

    if both or criterion == "precision":
        enough, asked = (with_answer if criterion == "precision" else both) >= FEWEST, criterion == "precision"
        yield _Part(("no_answer_threshold",), (threshold,), fit_threshold, threshold_quality, enough, asked)
    if both:
        yield _Part(("a", "b"), (calibration.a, calibration.b), fit_logistic, logistic_quality, both >= FEWEST)
    if with_answer:
        before = (calibration.temperature,)
        yield _Part(("temperature",), before, fit_temperature, temperature_quality, with_answer >= FEWEST)


def _rows_of(sizes: Sequence[int]) -> list[Rows]:
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def _evenly(domains: Sequence[Rows]) -> Rows:
    """Return the rows of all domains, those of the smaller ones repeated evenly until each has as many as the largest."""
    most = max(map(len, domains))
    return np.concatenate([rows[np.arange(most) * len(rows) // most] for rows in domains])


def _fit_part(part: _Part, domains: Sequence[Rows]) -> dict[str, Fitted]:
    """Fit the values to all questions, and again to many draws of them; score each of these on what was not drawn."""
    best, before = part.fit(_evenly(domains)), part.quality(part.before)
    generator = np.random.default_rng(0)
    fits, gains = [best], []
    for _ in range(DRAWS):
        drawn = [rows[generator.integers(0, len(rows), len(rows))] for rows in domains]
        try:
            values = part.fit(_evenly(drawn))
        except InputError:  # no threshold reaches the precision on these
            continue
        fits.append(values)
        left = [np.setdiff1d(rows, some) for rows, some in zip(domains, drawn, strict=True)]
        if all(map(len, left)):
            gain = part.quality(values) - before
            gains.append(float(np.mean([gain[rows].mean() for rows in left])))
    change = part.quality(best) - before
    error = math.sqrt(sum(change[rows].var() / len(rows) for rows in domains)) / len(domains)
    gained = float(np.mean(gains or 0.0))
    stored = part.enough and (part.asked or gained > error)
    low, high = np.quantile(fits, [0.025, 0.975], axis=0)
    return {
        name: Fitted(best[k], float(low[k]), float(high[k]), part.before[k], gained, error, stored)
        for k, name in enumerate(part.names)
    }


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


def _values(data: _Data, threshold: float, criterion: Criterion) -> NDArray[np.float64]:
    """Return the criterion of each question at a threshold, in percent; their mean is its value on all of them."""
    answered = data.scores >= threshold
    if criterion == "precision":
        values = data.right * answered / max(float(answered.mean()), 1e-9)
    else:
        values = np.where(answered, getattr(data, criterion) * data.answerable, ~data.answerable)
    return 100.0 * np.asarray(values, np.float64)


def _best_is_right(outcomes: Sequence[Outcome]) -> NDArray[np.bool_]:
    """Whether the best span of each question is right; never where the question has no answer."""
    right: NDArray[np.bool_] = column(outcomes, "answerable") & (column(outcomes, "best_f1") >= RIGHT)
    return right


def _lowest_threshold(scores: NDArray[np.float64], right: NDArray[np.bool_], precision: float) -> float:
    """Return the lowest threshold at which this share of the answers is right."""
    order = np.argsort(-scores, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are answered together
    enough = np.flatnonzero((shares >= precision) & last)
    if not len(enough):
        raise InputError(
            f"No threshold makes {precision:.0%} of the answers right on this data. The most is {shares[last].max():.1%}. "
            "Ask for less."
        )
    return float(scores[order][enough[-1]])


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
