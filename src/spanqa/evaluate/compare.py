"""Two runs on the same questions: how large the difference is, and whether chance explains it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spanqa.errors import DatasetError
from spanqa.evaluate.metrics import column
from spanqa.evaluate.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two runs' F1 in percent, its 95 % interval, and on how many questions each run is better."""

    f1: float
    other_f1: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    questions: int

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare_runs(
    outcomes: Sequence[Outcome], others: Sequence[Outcome], draws: int = 2000, seed: int = 0
) -> Difference:
    """Return the difference in F1 with a paired bootstrap interval: each draw takes the same questions from both runs.

    Source: Berg-Kirkpatrick, Burkett & Klein 2012.

    Raises:
        DatasetError: the runs are not on the same questions.
    """
    theirs = {outcome.id: outcome for outcome in others}
    mine = {outcome.id for outcome in outcomes}
    if mine != set(theirs):
        odd = sorted(mine ^ set(theirs))
        raise DatasetError(
            f"The runs are not on the same questions: {len(odd)} are in only one of them, for example {odd[0]!r}. "
            "Compare runs on the same file."
        )
    f1 = column(outcomes, "f1")
    other = column([theirs[outcome.id] for outcome in outcomes], "f1")
    gaps = f1 - other
    generator = np.random.default_rng(seed)
    means = [float(gaps[generator.integers(0, len(gaps), len(gaps))].mean()) for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(
        f1=100 * float(f1.mean()),
        other_f1=100 * float(other.mean()),
        difference=100 * float(gaps.mean()),
        low=100 * float(low),
        high=100 * float(high),
        better=int((gaps > 0).sum()),
        worse=int((gaps < 0).sum()),
        questions=len(gaps),
    )
