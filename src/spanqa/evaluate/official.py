"""The decision rule of transformers' run_qa, from the logits of a question's windows.

    S   the best start logit + end logit of a span, over the windows
    N   the smallest null score, over the windows
    answer  "" when N - S > the threshold, else the best span        no-answer score  sigmoid(N - S)

`spanqa.answers` decides differently: it compares each span with the null score of its own window. This rule is here so that
numbers can be compared with published ones. The module loads nothing and writes no file.

run_qa looks for S among pairs of the 20 best starts and the 20 best ends of a window, question and padding included. Here
every span of the passage is looked at. So answers differ only where the best span is not such a pair (never, on 800
questions of SQuAD's dev set), and the tails of n-best lists differ more often (on every fourth question). As in run_qa, a
span that two windows see gives two candidates, and probabilities are shares among the candidates kept.

Source: transformers, examples/pytorch/question-answering/utils_qa.py, `postprocess_qa_predictions`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.batches import WindowLogits
from spanqa.errors import InputError
from spanqa.spans import IMPOSSIBLE, forbid_blank, span_band
from spanqa.tokens import Passage

Rule = Literal["squad_v1", "squad_v2"]
"""With squad_v2 (run_qa's --version_2_with_negative) the answer may be ""; with squad_v1 it is always the best span."""

NOTHING_TO_READ = 1e9
"""The null odds of a passage without any span: above every threshold, and a number that JSON can write."""


@dataclass(frozen=True, slots=True)
class OfficialSettings:
    """run_qa's n_best_size, max_answer_length and null_score_diff_threshold."""

    n_best: int = 20
    max_answer_tokens: int = 30
    null_score_diff_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_best", "max_answer_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; expected a whole number, at least 1.")
        if not math.isfinite(self.null_score_diff_threshold):
            raise InputError(
                f"null_score_diff_threshold is {self.null_score_diff_threshold!r}; expected a finite number of logits."
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of an n-best list. `text` is `passage[start:end]`, or "" with `start` and `end` None for "no answer"."""

    text: str
    start: int | None
    end: int | None
    score: float
    probability: float
    start_logit: float
    end_logit: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What run_qa writes for a question: the prediction, N - S, and the candidates, best first (at least one)."""

    text: str
    null_odds: float
    candidates: tuple[Candidate, ...]

    @property
    def no_answer_probability(self) -> float:
        """The null odds between 0 and 1: the no-answer probability of the official script."""
        return 1 / (1 + math.exp(-self.null_odds)) if self.null_odds > -700 else 0.0


def official_answer(
    passage: Passage,
    windows: Sequence[WindowLogits],
    settings: OfficialSettings = OfficialSettings(),
    rule: Rule = "squad_v2",
) -> Decision:
    """Decide a question as run_qa does.

    The candidates are the best `n_best` among the spans and, with squad_v2, "no answer", which is added at the end if it is
    not among them. Of equal scores the earlier window comes first, then the earlier and shorter span. A passage without
    any span is answered "".
    """
    null = min(windows, key=lambda window: window.null_score, default=None)
    null_logits = np.array([null.null_start, null.null_end] if null else [0, 0], np.float32)
    bounds, logits = _best_spans(windows, passage.tokens.offsets, settings)
    if not len(bounds):
        return Decision("", NOTHING_TO_READ, _candidates(passage, np.array([[-1, -1]]), null_logits[None]))
    null_odds = float(null_logits.sum(dtype=np.float64) - logits[0].sum(dtype=np.float64))
    best = passage.text[bounds[0, 0] : bounds[0, 1]]
    if rule == "squad_v1":
        return Decision(best, null_odds, _candidates(passage, bounds, logits))
    logits = np.concatenate([logits, null_logits[None]])
    kept = np.argsort(-logits.sum(1), kind="stable")[: settings.n_best]
    if len(bounds) not in kept:
        kept = np.append(kept, len(bounds))
    candidates = _candidates(passage, np.append(bounds, [[-1, -1]], 0)[kept], logits[kept])
    return Decision("" if null_odds > settings.null_score_diff_threshold else best, null_odds, candidates)


def _candidates(
    passage: Passage, bounds: NDArray[np.integer[Any]], logits: NDArray[np.float32]
) -> tuple[Candidate, ...]:
    """Return the candidates for these bounds, characters `[start, end)`; (-1, -1) is "no answer"."""
    scores = logits.sum(1)
    shares = np.exp(scores - scores.max(), dtype=np.float64)
    rows = zip(bounds.tolist(), scores.tolist(), (shares / shares.sum()).tolist(), logits.tolist(), strict=True)
    return tuple(
        Candidate("", None, None, score, probability, *pair)
        if start < 0
        else Candidate(passage.text[start:end], start, end, score, probability, *pair)
        for (start, end), score, probability, pair in rows
    )


def _best_spans(
    windows: Sequence[WindowLogits], offsets: NDArray[np.int32], settings: OfficialSettings
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the best spans of all windows, best first: their characters `[start, end)` and their two logits, `[span, 2]`."""
    bounds, logits = [np.empty((0, 2), np.int32)], [np.empty((0, 2), np.float32)]
    for window in windows:
        tokens = offsets[window.first : window.first + len(window.start)]
        band = span_band(window.start, window.end, settings.max_answer_tokens)
        forbid_blank(band, tokens)
        first, extent = _largest(band, settings.n_best)
        bounds.append(np.stack([tokens[first, 0], tokens[first + extent, 1]], 1))
        logits.append(np.stack([window.start[first], window.end[first + extent]], 1))
    bound, logit = np.concatenate(bounds), np.concatenate(logits)
    order = np.argsort(-logit.sum(1), kind="stable")[: settings.n_best]
    return bound[order], logit[order]


def _largest(band: NDArray[np.float32], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows and columns of the `count` largest possible entries, best first; equal ones by row, then column.

    They are in the rows with the largest maxima, so only those are searched.
    """
    rows = _at_least_nth(band.max(1), count)
    chosen = band[rows].ravel()
    found = _at_least_nth(chosen, count)
    row, column = np.divmod(found[np.argsort(-chosen[found], kind="stable")[:count]], band.shape[1])
    return rows[row], column


def _at_least_nth(values: NDArray[np.float32], n: int) -> NDArray[np.intp]:
    """Return the indices of the possible values that are not below the n-th largest; ties can make these more than n."""
    least = np.partition(values, -n)[-n] if n < len(values) else IMPOSSIBLE
    return np.flatnonzero((values >= least) & (values > IMPOSSIBLE))
