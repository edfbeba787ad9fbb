"""What an explanation holds: a score for every word, how faithful the scores are, and how they were made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from spanqa.answers import Answer
from spanqa.explain.words import Word, lies_in

FORMAT = "spanqa.explanation/1"

Verdict = Literal["reliable", "weak", "no better than chance"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two things that an explanation weighs against each other: a span of the passage, or "no answer".

    For "no answer" `text` is "" and `start` and `end` are None. `margin` is its score over "no answer": 0 for that itself.
    """

    text: str
    start: int | None
    end: int | None
    margin: float


@dataclass(frozen=True, slots=True)
class Convergence:
    """Whether integrated gradients add up: `gap` is |sum of scores - (g(x) - g(baseline))|, `relative_gap` its share of g(x) - g(baseline).

    The share is of at least 0.1. `converged` is that the relative gap is below 0.05 after `steps` steps.
    """

    steps: int
    gap: float
    relative_gap: float
    converged: bool


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The drop in the probability of the decision when the `words` (`share` of all) with the highest scores are hidden, or alone kept.

    `random_…` is the mean over random orders of the same words.
    """

    share: float
    words: int
    comprehensiveness: float
    sufficiency: float
    random_comprehensiveness: float
    random_sufficiency: float


@dataclass(frozen=True, slots=True)
class Flip:
    """A set of words whose hiding changes the answer. `words` are positions in the explanation's words.

    `answer` is what the reader answers instead (`start` None: no answer). `minimal`: leaving out each of them was tried, and none
    can be spared; otherwise the passes or the time ran out first.
    """

    words: tuple[int, ...]
    answer: Answer
    minimal: bool


@dataclass(frozen=True, slots=True)
class Trust:
    """How far an explanation can be trusted.

    `comprehensiveness` (higher is better) and `sufficiency` (lower is better) are means over `curve`. `advantage` is by how much their
    difference beats that of random orders, and `deviations` the same in standard deviations of these. `flip` is None where no
    change of the answer was found; `flip_note` says why.
    """

    curve: tuple[CurvePoint, ...]
    comprehensiveness: float
    sufficiency: float
    advantage: float
    deviations: float
    random_orders: int
    verdict: Verdict
    flip: Flip | None
    flip_note: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which words carried a decision.

    `words` are all words of the question and of the windows in play (`Decision.in_play`), in order; `scores` one number for each: by
    how much it speaks for `chosen` and against `other`, in logits. Where `signed` is false, scores are at least 0, in a unit of the
    method's own, and have no direction. `refined` says of each word whether it was measured by itself; otherwise its score is a
    share of that of its sentence, or 0 where time was short. `value` is g, the margin of `chosen` minus that of `other`. `passes`
    counts the windows read after the decision; `note` says what was left out, "" for nothing.
    """

    question: str
    passage: str = field(repr=False)
    source: str | None
    answer: Answer
    chosen: Side
    other: Side
    value: float
    method: str
    signed: bool
    words: tuple[Word, ...] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    refined: tuple[bool, ...] = field(repr=False)
    mask: str
    passes: int
    seconds: float
    note: str
    convergence: Convergence | None
    trust: Trust | None
    made_with: Mapping[str, Any] = field(repr=False)

    def is_protected(self, word: Word) -> bool:
        """Return whether a word lies in one of the two spans, which are never hidden when faithfulness is measured."""
        sides = ((side.start, side.end) for side in (self.chosen, self.other))
        return lies_in(word, [(start, end) for start, end in sides if start is not None and end is not None])

    def _repr_html_(self) -> str:
        from spanqa.explain.notebook import repr_html

        return repr_html(self)

    def order(self) -> list[int]:
        """Return the positions of the words, highest score first; equal scores by place."""
        return sorted(range(len(self.words)), key=lambda i: (-self.scores[i], i))

    def strongest(self) -> list[int]:
        """Return the positions of the words, largest score first whatever its sign; equal scores by place."""
        return sorted(range(len(self.words)), key=lambda i: (-abs(self.scores[i]), i))

    def as_json(self, *, text: bool = True) -> dict[str, Any]:
        """Return the fields in a form that JSON can write; without `text`, no word of question or passage is in it."""
        words = []
        for word, score, refined in zip(self.words, self.scores, self.refined, strict=True):
            row = {"part": word.part, "text": word.text, "start": word.start, "end": word.end, "score": score}
            row |= {"refined": refined, "in_answer": self.is_protected(word)}
            words.append(row)
        found: dict[str, Any] = {
            "format": FORMAT,
            "question": self.question,
            "passage": self.passage,
            "source": self.source,
            "answer": self.answer.as_json(self.question),
            "chosen": asdict(self.chosen),
            "other": asdict(self.other),
            "value": self.value,
            "method": self.method,
            "signed": self.signed,
            "words": words,
            "mask": self.mask,
            "passes": self.passes,
            "seconds": round(self.seconds, 3),
            "note": self.note,
            "convergence": None if self.convergence is None else asdict(self.convergence),
            "trust": None if self.trust is None else self._trust(self.trust),
            "made_with": dict(self.made_with),
        }
        return found if text else _without_text(found)

    def _trust(self, trust: Trust) -> dict[str, Any]:
        flip = trust.flip
        found = {name: getattr(trust, name) for name in trust.__slots__ if name not in ("curve", "flip")}
        return {
            **found,
            "curve": [asdict(point) for point in trust.curve],
            "flip": None
            if flip is None
            else {"words": list(flip.words), "answer": flip.answer.as_json(self.question), "minimal": flip.minimal},
        }


_TEXTS = ("question", "passage", "text", "sentence", "source")


def _without_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_text(each) for name, each in value.items() if name not in _TEXTS}
    if isinstance(value, list):
        return [_without_text(each) for each in value]
    return value
