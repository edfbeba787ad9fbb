"""How faithful the scores of words are, measured on the model itself.

    comprehensiveness   drop of the decision's probability when the words with the highest scores are hidden: high is good
    sufficiency         drop when all others are hidden: low is good
    advantage           (comprehensiveness - sufficiency) minus the same of random orders

Both are means over the shares of words in `SHARES`. Words of the spans themselves are never hidden: without its own words no answer
can stand, which says nothing about why it was chosen. The probability is that of the chosen side against the other one, sigmoid(g),
g taken from the threshold where "no answer" is one of them.

Source: DeYoung et al. 2020 (https://arxiv.org/abs/1911.03429), with the bins of ERASER; random orders as the scale, because the
numbers of two models cannot be compared otherwise: Edin et al. 2024 (https://arxiv.org/abs/2408.08137). Masked texts are not what the
model was trained on (Hase et al. 2021, https://arxiv.org/abs/2106.00786): the random orders meet the same difficulty.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spanqa.answers import Answer
from spanqa.batches import WindowLogits
from spanqa.explain.decision import Decision
from spanqa.explain.explanation import CurvePoint, Flip, Trust, Verdict
from spanqa.explain.occlusion import Occluder
from spanqa.explain.words import Word
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.stream import Reading

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
RANDOM_ORDERS = 10
FLIP_PASSES = 200
"""The search for words that change the answer ends after this many windows."""

RELIABLE, WEAK = 2.0, 1.0
"""Standard deviations of random orders by which an explanation must beat them to be called reliable, or weak."""

LEAST_ADVANTAGE = 0.05
"""It must also beat them by this much: where hiding words changes next to nothing, ten orders can be close together by chance."""


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """Comprehensiveness and sufficiency of one order of the words, for each size."""

    comprehensiveness: tuple[float, ...]
    sufficiency: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Mean comprehensiveness minus mean sufficiency."""
        return float(np.mean(self.comprehensiveness) - np.mean(self.sufficiency))


def probability(decision: Decision, value: float) -> float:
    """Return the probability of the chosen side against the other, from g."""
    threshold = decision.threshold if math.isfinite(decision.threshold) else 0.0
    shift = (
        0.0 if None not in (decision.chosen, decision.other) else -threshold if decision.other is None else threshold
    )
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, value + shift))))


def sizes_of(count: int) -> dict[int, float]:
    """Return how many of `count` words are hidden, each number once, and the share that it was made from: at least one word.

    >>> sizes_of(30)
    {1: 0.01, 2: 0.05, 3: 0.1, 6: 0.2, 15: 0.5}
    """
    sizes: dict[int, float] = {}
    for share in SHARES:
        sizes.setdefault(min(count, math.ceil(share * count)), share)
    return sizes


def faithfulness(
    occluder: Occluder, orders: Sequence[Sequence[Word]], progress: Progress = silent
) -> list[Faithfulness]:
    """Return the faithfulness of some orders of the same words, the most important first; fewer when the deadline passes."""
    decision = occluder.decision
    before = probability(decision, decision.value(decision.logits))
    sizes = list(sizes_of(len(orders[0])))
    sets = [part for order in orders for size in sizes for part in (order[:size], order[size:])]
    drops = [before - probability(decision, value) for value in occluder.values(sets, progress)]
    step = 2 * len(sizes)
    whole = [drops[i : i + step] for i in range(0, len(drops) - step + 1, step)]
    return [Faithfulness(tuple(each[::2]), tuple(each[1::2])) for each in whole]


def verdict_of(deviations: float, advantage: float) -> Verdict:
    """Return what an explanation is called whose advantage over random orders is `advantage`, or `deviations` of theirs."""
    if advantage < LEAST_ADVANTAGE:
        return "no better than chance"
    return "reliable" if deviations >= RELIABLE else "weak" if deviations >= WEAK else "no better than chance"


def measure_trust(
    occluder: Occluder,
    words: Sequence[Word],
    scores: Sequence[float],
    protected: Sequence[bool],
    *,
    progress: Progress = silent,
) -> Trust | None:
    """Return how far the scores can be trusted.

    None if there are no words to hide, or if the deadline left time for fewer than three random orders.
    """
    free = [i for i, kept in enumerate(protected) if not kept]
    if not free:
        return None
    order = sorted(free, key=lambda i: (-scores[i], i))
    draw = random.Random(0)  # the same orders each time
    orders = [order, *(draw.sample(free, len(free)) for _ in range(RANDOM_ORDERS))]
    found = faithfulness(occluder, [[words[i] for i in each] for each in orders], progress)
    if len(found) < 4:
        return None
    own, *chance = found
    differences = [each.difference for each in chance]
    advantage = own.difference - float(np.mean(differences))
    deviations = advantage / max(float(np.std(differences, ddof=1)), 1e-6)
    flip, note = find_flip(occluder, words, [i for i in order if scores[i] > 0])
    means = [np.mean([getattr(each, name) for each in chance], axis=0) for name in ("comprehensiveness", "sufficiency")]
    rows = zip(sizes_of(len(free)).items(), own.comprehensiveness, own.sufficiency, *means, strict=True)
    return Trust(
        curve=tuple(CurvePoint(share, size, *map(float, numbers)) for (size, share), *numbers in rows),
        comprehensiveness=float(np.mean(own.comprehensiveness)),
        sufficiency=float(np.mean(own.sufficiency)),
        advantage=advantage,
        deviations=deviations,
        random_orders=len(chance),
        verdict=verdict_of(deviations, advantage),
        flip=flip,
        flip_note=note,
    )


# --- the words that change the answer


_FEW = 2  # words: with more, words of the question may do with fewer


def find_flip(occluder: Occluder, words: Sequence[Word], order: Sequence[int]) -> tuple[Flip | None, str]:
    """Return a set of words whose hiding changes the answer and of which no word can be spared, or None and why there is none.

    `order` gives the positions of words that may be hidden, most important first. Words of the passage are tried first; those of
    the question, without which there is not much to answer, only where it takes more than two words of the passage. The answer has
    changed when there is none any more, when there is one where there was none, or when it shares no character with what it was.
    """
    search = _Search(occluder, words)
    best: Flip | None = None
    for some in ([i for i in order if words[i].part == "passage"], order):
        found = search.first_change(some)
        if found is not None and (best is None or len(found.words) < len(best.words)):
            best = found
        if search.over or (best is not None and len(best.words) <= _FEW):
            break
    if best is not None:
        return best, ""
    if search.over:
        return None, f"No words that change the answer were found before the {search.limit} ran out."
    what = "that speak for it" if occluder.decision.answer else "that speak against an answer"
    return None, f"The answer stays the same with all words {what} hidden."


class _Search:
    def __init__(self, occluder: Occluder, words: Sequence[Word]) -> None:
        self.occluder = occluder
        self.words = words
        self.most = occluder.passes + FLIP_PASSES

    @property
    def over(self) -> bool:
        return self.occluder.late or self.occluder.passes >= self.most

    @property
    def limit(self) -> str:
        return "time" if self.occluder.late else f"{FLIP_PASSES} passes"

    def answers(self, sets: Sequence[Sequence[int]]) -> list[Answer]:
        """Return the answer with each set hidden; fewer when the passes or the time run out."""
        windows = range(len(self.occluder.decision.windows))
        found = []
        for few in (sets[i : i + 8] for i in range(0, len(sets), 8)):
            if self.over:
                break
            for logits in self.occluder.read([[self.words[i] for i in each] for each in few], windows):
                found.append(answer_from(self.occluder.reader, self.occluder.decision, logits))
        return found

    def changed(self, answer: Answer) -> bool:
        return differs(self.occluder.decision.answer, answer)

    def first_change(self, order: Sequence[int]) -> Flip | None:
        """Hide the first words, always more, until the answer changes; then leave out those that can be spared."""
        size, tried = 1, 0
        while tried < len(order) and not self.over:
            sizes = range(tried + 1, min(len(order), size) + 1)
            answers = self.answers([order[:each] for each in sizes])
            for each, answer in zip(sizes, answers, strict=False):
                if self.changed(answer):
                    return self.smallest(list(order[:each]), answer)
            tried, size = sizes[-1], 2 * size
        return None

    def smallest(self, chosen: list[int], answer: Answer) -> Flip:
        """Leave out one word after the other, the least important first, as long as the answer stays changed."""
        while len(chosen) > 1:
            spared = False
            for each in reversed(chosen.copy()):
                rest = [i for i in chosen if i != each]
                found = self.answers([rest]) if rest else []
                if rest and not found:
                    return Flip(tuple(chosen), answer, minimal=False)
                if found and self.changed(found[0]):
                    chosen, answer, spared = rest, found[0], True
            if not spared:
                break
        return Flip(tuple(chosen), answer, minimal=True)


def answer_from(reader: Reader, decision: Decision, logits: Sequence[WindowLogits]) -> Answer:
    """Return what the reader answers when its windows have these logits."""
    reading = Reading(decision.question, (decision.passage,), (tuple(logits),))
    return reader.decode(reading).best(decision.threshold)


def differs(before: Answer, after: Answer) -> bool:
    """Return whether an answer is another one: there is none any more, or one where there was none, or it lies elsewhere."""
    if not before or not after:
        return bool(before) != bool(after)
    assert before.start is not None and before.end is not None and after.start is not None and after.end is not None
    return after.end <= before.start or before.end <= after.start
