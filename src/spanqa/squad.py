"""SQuAD files: questions in, predictions out.

`read_squad` turns a SQuAD 1.1 or 2.0 JSON file, plain or gzipped, into examples. `json_object_writer` writes the usual
`{question id: …}` files (predictions, n-best lists, null odds) entry by entry, so a whole file is never in memory. This module
computes no scores: that is `spanqa.evaluate`.

Format: Rajpurkar et al. 2018 (https://arxiv.org/abs/1806.03822).
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spanqa.cells import read_flag, read_start
from spanqa.errors import DatasetError
from spanqa.files import read_json, replacing


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """One reference answer: its text, and the code point of the passage where it starts; -1 if the words are not there."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Example:
    """One question, its passage ("context" in the files), and the reference answers.

    `answers` is empty exactly when the passage has no answer. `cause` says why it has none, if the file labels it (as SQuAD2-CR
    does). Examples of one paragraph share one passage string.
    """

    id: str
    question: str
    passage: str
    answers: tuple[GoldAnswer, ...] = ()
    title: str = ""
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """An answer as it was labelled: its words, and the code point at which they start, if known."""

    text: str
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question with its passage and labels as a file holds them, before they are checked against the passage."""

    id: str
    question: str
    passage: str
    labels: tuple[Label, ...]
    title: str = ""
    cause: str | None = None


def as_example(question: Labelled) -> Example:
    """Return the question with its labels as answers. A label without a start gets the first place of its words, or -1.

    Nothing else is changed, so that official scores stay what they are. `spanqa.train.labels.align` repairs labels.
    """
    passage = question.passage
    answers = tuple(
        GoldAnswer(label.text, passage.find(label.text) if label.start is None else label.start)
        for label in question.labels
    )
    return Example(question.id, question.question, passage, answers, question.title, question.cause)


def read_squad(path: str | os.PathLike[str]) -> list[Example]:
    """Return the examples of a SQuAD 1.1 or 2.0 file (`.json` or `.json.gz`), in file order.

    `spanqa.tables.read_examples` also reads questions in other forms.

    Raises:
        DatasetError: the file cannot be read, is not SQuAD JSON, has no question, or has the same id twice. The message
            says where.
    """
    data = read_json(path)
    articles = data.get("data") if isinstance(data, dict) else None
    if not isinstance(articles, list):
        raise DatasetError(
            f'{str(path)!r} is not a SQuAD file: expected an object with a list under "data", '
            f"found {_kind(data)}{' without it' if isinstance(data, dict) else ''}. See docs/guide/evaluate.md for the format."
        )
    places = (f"{str(path)!r}, data[{number}]" for number in range(len(articles)))
    questions = [
        question for article, place in zip(articles, places, strict=True) for question in of_article(article, place)
    ]
    check_ids(questions, path)
    return [as_example(question) for question in questions]


def check_ids(questions: Sequence[Labelled], path: str | os.PathLike[str]) -> None:
    """Check that there are questions, and that no two of them have the same id.

    Raises:
        DatasetError: otherwise.
    """
    if not questions:
        raise DatasetError(f"{str(path)!r} has no question. Expected at least one.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DatasetError(f"{str(path)!r} has the question id {question.id!r} twice. Question ids must be unique.")
        seen.add(question.id)


def of_article(article: Any, place: str, *, answers: bool = True) -> Iterator[Labelled]:
    """Yield the questions of an article: a title and paragraphs. `answers` says whether each question must have labels."""
    title = str(article.get("title") or "") if isinstance(article, dict) else ""
    for number, paragraph in enumerate(_field(article, "paragraphs", list, place)):
        yield from of_paragraph(paragraph, f"{place}.paragraphs[{number}]", title, answers=answers)


def of_paragraph(paragraph: Any, place: str, title: str = "", *, answers: bool = True) -> Iterator[Labelled]:
    """Yield the questions of a paragraph: a context and questions."""
    passage = _field(paragraph, "context", str, place)
    for number, qa in enumerate(_field(paragraph, "qas", list, place)):
        where = f"{place}.qas[{number}]"
        identity = str(_field(qa, "id", (str, int), where))
        question = _field(qa, "question", str, where)
        impossible = read_flag(qa.get("is_impossible"), "is_impossible", where)
        if not impossible and "answers" not in qa and answers:
            raise DatasetError(f'{where} has no "answers", which SQuAD files must have. {WITHOUT_ANSWERS}')
        golds = [] if impossible or "answers" not in qa else _field(qa, "answers", list, where)
        labels = tuple(_label(gold, f"{where}.answers[{g}]") for g, gold in enumerate(golds))
        yield Labelled(identity, question, passage, labels, title, qa.get("cause"))


WITHOUT_ANSWERS = (
    "For predictions of questions without answers: spanqa evaluate FILE --predict-only --out DIR. "
    "See docs/guide/evaluate.md for the formats."
)
"""What to do with a file that has no answers: the end of an error message."""


def _label(gold: Any, place: str) -> Label:
    text = _field(gold, "text", str, place)
    if "answer_start" not in gold:
        _field(gold, "answer_start", int, place)
    return Label(text, read_start(gold["answer_start"], place))


def _field(record: Any, name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """Return `record[name]` if it has the right type; otherwise raise an error that says where the file is wrong."""
    if not isinstance(record, dict):
        raise DatasetError(f"{place}: expected an object, found {_kind(record)}.")
    if name not in record:
        raise DatasetError(
            f'{place} has no "{name}", which SQuAD files must have. See docs/guide/evaluate.md for the format.'
        )
    if not isinstance(record[name], kind) or isinstance(record[name], bool):
        wanted = " or ".join(_KINDS[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise DatasetError(f'{place}: expected "{name}" to be {wanted}, found {_kind(record[name])}.')
    return record[name]


_KINDS: Mapping[type, str] = {
    dict: "an object", list: "a list", str: "a string", bool: "true or false",
    int: "a whole number", float: "a number", type(None): "null",
}  # fmt: skip


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


@contextmanager
def json_object_writer(path: str | os.PathLike[str]) -> Iterator[Callable[[str, Any], None]]:
    """Write `{key: value, …}` to a file one entry at a time, with the function that the `with` block gets.

        with json_object_writer("predictions.json") as write:
            write("q1", "Ada Lovelace")

    The file appears under its name only when it is complete. On an exception, what was written is removed, and an existing
    file stays as it is.
    """
    with replacing(path) as file:
        file.write("{")
        separator = "\n"

        def write(key: str, value: Any) -> None:
            nonlocal separator
            entry = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            file.write(separator + entry)
            separator = ",\n"

        yield write
        file.write("\n}\n")
