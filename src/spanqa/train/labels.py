"""Labels as people write them, to answers that are in the passage: checked, repaired where possible, and reported.

A label is the words of an answer and perhaps where they start. In many files the start is off by white space or a few
characters, or missing. `align` settles the labels of one question; `align_all` those of a data set, with a report.
It reads no files (`spanqa.tables`) and cuts no windows (`spanqa.train.targets`).
"""

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from spanqa.errors import DatasetError, InputError
from spanqa.squad import Example, GoldAnswer, Label, Labelled
from spanqa.tokens import Tokenizer

NEAR = 20
"""A start that is off by at most this many characters is repaired."""

LabelStatus = Literal["unanswerable", "exact", "repaired", "placed", "ambiguous", "dropped"]
"""What happened to a label, or to a question by its worst label; see `LabelReport`."""


@dataclass(slots=True)
class LabelReport:
    """What happened to the labels of a data set, as question ids by status; each question counts once, by its worst label.

    unanswerable: the question has no label. exact: the words are where the label says. repaired: the start, or the white
    space or case of the words, was off. placed: the label has no start, and the words occur once in the passage. ambiguous:
    the words occur several times, and nothing says where; all occurrences count as right. dropped: no label's words are in
    the passage.
    """

    ids: dict[LabelStatus, list[str]] = field(default_factory=lambda: {status: [] for status in get_args(LabelStatus)})

    @property
    def counts(self) -> dict[str, int]:
        """The number of questions of each status."""
        return {status: len(ids) for status, ids in self.ids.items()}

    def __str__(self) -> str:
        parts = [f"{count:,} {status}" for status, count in self.counts.items() if count]
        listed = []
        for status in ("ambiguous", "dropped"):
            ids = self.ids[status]
            if ids:
                listed.append(f"; {status}: {', '.join(ids[:5])}" + (", ..." if len(ids) > 5 else ""))
        return f"labels: {', '.join(parts)}{''.join(listed)}"


def align(question: Labelled) -> tuple[Example | None, LabelStatus]:
    """Return the question with answers that are in its passage, and its status; None if no label is in the passage.

    >>> found, status = align(Labelled("1", "Who?", "It was  Anna K.", (Label("Anna K", 6),)))
    >>> found.answers, status
    ((GoldAnswer(text='Anna K', start=8),), 'repaired')
    """
    labels = [label for label in question.labels if label.text.strip()]
    made = Example(question.id, question.question, question.passage, (), question.title, question.cause)
    if not labels:
        return made, "unanswerable"
    statuses: list[LabelStatus] = []
    answers: list[GoldAnswer] = []
    for label in labels:
        found, status = _find_label(label, question.passage)
        statuses.append(status)
        answers += [answer for answer in found if answer not in answers]
    if not answers:
        return None, "dropped"
    order = get_args(LabelStatus)[:-1]  # a label that was not found does not matter if another one was
    worst = max((status for status in statuses if status != "dropped"), key=order.index)
    return replace(made, answers=tuple(answers)), worst


def _find_label(label: Label, passage: str) -> tuple[list[GoldAnswer], LabelStatus]:
    """Return the answers that a label stands for, and its status."""
    exact = label.start is not None and passage[label.start : label.start + len(label.text)] == label.text
    if exact and label.text == label.text.strip():
        return [GoldAnswer(label.text, label.start or 0)], "exact"
    words = label.text.split()
    spans = _find(re.escape(label.text.strip()), passage)
    as_labelled = bool(spans)
    if not spans:
        pattern = r"\s+".join(map(re.escape, words))
        spans = _find(pattern, passage) or _find(pattern, passage, re.IGNORECASE)
    if not spans:
        return [], "dropped"
    answers = [GoldAnswer(passage[start:end], start) for start, end in spans]
    if label.start is not None:
        nearest = min(answers, key=lambda answer: abs(answer.start - (label.start or 0)))
        if abs(nearest.start - label.start) <= NEAR + len(label.text) - len(label.text.lstrip()):
            return [nearest], "repaired"
    if len(answers) > 1:
        return answers, "ambiguous"
    return answers, "placed" if as_labelled and label.start is None else "repaired"


def _find(pattern: str, passage: str, flags: int = 0) -> list[tuple[int, int]]:
    """Return where a pattern occurs as whole words or, if it never does, where it occurs at all."""
    whole = [match.span() for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", passage, flags)]
    return whole or [match.span() for match in re.finditer(pattern, passage, flags)]


def align_all(questions: Iterable[Labelled], *, strict: bool = False) -> tuple[list[Example], LabelReport]:
    """Return the questions whose labels are in their passages, and the report on all of them.

    Raises:
        DatasetError: two questions have the same id; or `strict`, and a label is ambiguous or not in its passage.
    """
    report = LabelReport()
    seen: set[str] = set()
    examples = []
    for question in questions:
        if question.id in seen:
            raise DatasetError(f"Two questions have the id {question.id!r}. Give each question its own id.")
        seen.add(question.id)
        example, status = align(question)
        report.ids[status].append(question.id)
        if strict and status in ("ambiguous", "dropped"):
            why = "occurs several times in the passage" if status == "ambiguous" else "is not in the passage"
            texts = ", ".join(repr(label.text[:60]) for label in question.labels)
            raise DatasetError(
                f"Question {question.id!r}: the answer {texts} {why}. Correct it, or leave out --strict."
            )
        if example is not None:
            examples.append(example)
    return examples, report


def hold_out(examples: Sequence[Example], share: float = 0.05, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split examples: first those to keep, then those of a share of the articles, drawn by seed.

    An article is all questions on one passage, and all passages with one title. It is never on both sides, so that a model
    is never measured on text that it was trained on. Where one title covers everything, an article is a passage. Passages
    that differ in white space or case alone are the same.

    Raises:
        InputError: all questions are on one passage.
    """
    articles = _articles(examples, by_title=True)
    if len(set(articles)) < 2:
        articles = _articles(examples, by_title=False)
    names = sorted(set(articles))
    if len(names) < 2:
        raise InputError(
            f"All {len(examples)} questions are on one passage, so none can be held out to measure on. Give dev questions (--dev)."
        )
    chosen = set(random.Random(seed).sample(names, max(1, round(share * len(names)))))
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example, article in zip(examples, articles, strict=True):
        sides[article in chosen].append(example)
    return sides


def shared_passages(examples: Iterable[Example], others: Iterable[Example]) -> int:
    """Return how many of the second examples are on a passage of the first ones."""
    passages = {_normal(example.passage) for example in examples}
    return sum(_normal(example.passage) in passages for example in others)


def on_other_passages(examples: Iterable[Example], others: Iterable[Example]) -> list[Example]:
    """Return those of the examples that are on no passage of the second ones."""
    passages = {_normal(other.passage) for other in others}
    return [example for example in examples if _normal(example.passage) not in passages]


def _normal(passage: str) -> str:
    return " ".join(passage.split()).casefold()


Mark = tuple[int, str]
"""What examples of one article share: (0, title) or (1, passage)."""


def _articles(examples: Sequence[Example], *, by_title: bool) -> list[Mark]:
    """Return the first mark of each example's article. Examples that share a mark are in one article, also through others."""
    parents: dict[Mark, Mark] = {}

    def first(mark: Mark) -> Mark:
        while parents.setdefault(mark, mark) != mark:
            parents[mark] = mark = parents[parents[mark]]
        return mark

    passages: list[Mark] = [(1, _normal(example.passage)) for example in examples]
    for example, passage in zip(examples, passages, strict=True):
        if by_title and example.title:
            low, high = sorted((first((0, example.title)), first(passage)))
            parents[high] = low
    return [first(passage) for passage in passages]


def answer_length_tokens(examples: Iterable[Example], tokenizer: Tokenizer, share: float = 0.99) -> int:
    """Return the length in tokens that this share of the answers does not exceed; 0 if there are no answers.

    If a question has several answers, each one counts.
    """
    texts = {answer.text for example in examples for answer in example.answers}
    lengths = {text: len(tokenizer.encode(text)) for text in texts}
    sizes = sorted(lengths[answer.text] for example in examples for answer in example.answers)
    return sizes[math.ceil(share * len(sizes)) - 1] if sizes else 0
