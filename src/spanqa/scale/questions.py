"""From a row to its questions: which columns hold them, and what makes a row bad."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spanqa.errors import DatasetError, InputError
from spanqa.scale.outputs import json_text
from spanqa.scale.rows import BadRow, Row
from spanqa.tables import usual_columns
from spanqa.tokens import Passage

_BYTES_PER_TOKEN, _SPECIAL_TOKENS = 3.5, 30  # for what a window costs however short its text is


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the question, the text to read and the row's id; None: there is none, as where one question is asked of all."""

    question: str | None
    context: str
    id: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A row and its questions; `passages` are the texts that each of them is asked of, ranked over all."""

    row: Row
    questions: tuple[str, ...]
    passages: tuple[str | Passage, ...]

    @property
    def tokens(self) -> int:
        """About how many tokens the model reads for it."""
        read = sum(map(_tokens, self.passages))
        return sum(_SPECIAL_TOKENS + _tokens(question) + read for question in self.questions)


def _tokens(text: str | Passage) -> int:
    if isinstance(text, Passage):
        return len(text.tokens) if text.parts is None else sum(stop - first for first, stop in text.parts)
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return int(size / _BYTES_PER_TOKEN)


def columns_among(
    names: Sequence[str], where: str, *, question: str | None, context: str | None, id: str | None, asks: bool
) -> Columns:
    """Return the columns with the names that were given, or else with their usual names; `asks`: the questions are given otherwise.

    Raises:
        DatasetError: a column is missing; the message lists those that there are.
    """
    usual = usual_columns(names)
    found = {
        "question": None if asks else question or usual.get("question"),
        "context": context or usual.get("passage"),
        "id": id or usual.get("id"),
    }
    given = {"question": question, "context": context, "id": id}
    for what, name in found.items():
        if name is None and (what == "id" or (what == "question" and asks)):
            continue
        if name is None or name not in names:
            says = f"no column {given[what]!r}" if given[what] else f"no column that is called like a {what}"
            raise DatasetError(
                f"{where} has {says}. It has: {', '.join(map(str, names)) or 'none'}. Name the right one with --{what}."
            )
    assert found["context"] is not None
    return Columns(found["question"], found["context"], found["id"])


def asked_of(rows: Iterable[Row | BadRow], columns: Columns, asks: Sequence[str]) -> Iterator[Asked | BadRow]:
    """Yield each row with its questions, those of its own column or `asks`; bad rows, and those that show to be bad, in their places."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            questions = asks or _texts(row, columns.question, several="questions")
            yield Asked(row, tuple(questions), _texts(row, columns.context, several="texts"))
        except InputError as error:
            yield bad(row, str(error), columns.id)


def _texts(row: Row, column: str | None, *, several: str) -> tuple[str, ...]:
    """Return the text of a cell, or its texts where it holds a list.

    Raises:
        InputError: it holds something else.
    """
    if column is None or column not in row.values:
        raise InputError(f"{column}: missing")
    value = row.values[column]
    if isinstance(value, list):
        if not value:
            raise InputError(f"{column}: holds no {several}")
        for number, each in enumerate(value, 1):
            _check(each, f"{column}, {number}")
        return tuple(value)
    _check(value, str(column))
    return (value,)


def _check(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a text, found {'null' if value is None else type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: empty")


def bad(row: Row, reason: str, id_column: str | None = None) -> BadRow:
    """Return a row as one that gets no answer."""
    try:
        content = json_text(row.values)
    except (RecursionError, ValueError, NotImplementedError):  # too deep to write; a value of Arrow without a text
        return BadRow(row.number, row.line, reason, size=row.size)
    return BadRow(
        row.number, row.line, reason, content, row.size, None if id_column is None else row.values.get(id_column)
    )
