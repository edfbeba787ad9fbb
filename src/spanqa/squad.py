"""SQuAD files: questions in, predictions out.

`read_squad` turns a SQuAD 1.1 or 2.0 JSON file, plain or gzipped, into examples. `JsonObjectWriter` writes the usual
`{question id: …}` files (predictions, n-best lists, null odds) entry by entry, so a whole file is never in memory. This module
computes no scores: that is `spanqa.evaluate`.

Format: Rajpurkar et al. 2018 (https://arxiv.org/abs/1806.03822).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from spanqa.errors import DatasetError
from spanqa.files import read_json, replacing


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """One reference answer: its text, and the position in the passage (in code points) where it starts."""

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


def read_squad(path: str | os.PathLike[str]) -> list[Example]:
    """Return the examples of a SQuAD 1.1 or 2.0 file (`.json` or `.json.gz`), in file order.

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
    examples: list[Example] = []
    seen: set[str] = set()
    for number, article in enumerate(articles):
        for example in _article(article, f"{str(path)!r}, data[{number}]"):
            if example.id in seen:
                raise DatasetError(
                    f"{str(path)!r} has the question id {example.id!r} twice. Question ids must be unique."
                )
            seen.add(example.id)
            examples.append(example)
    if not examples:
        raise DatasetError(f"{str(path)!r} has no question. Expected at least one.")
    return examples


def _article(article: Any, place: str) -> list[Example]:
    title = str(article.get("title") or "") if isinstance(article, dict) else ""
    examples = []
    for p, paragraph in enumerate(_field(article, "paragraphs", list, place)):
        at = f"{place}.paragraphs[{p}]"
        passage = _field(paragraph, "context", str, at)
        for q, qa in enumerate(_field(paragraph, "qas", list, at)):
            where = f"{at}.qas[{q}]"
            identity = str(_field(qa, "id", (str, int), where))
            golds = () if qa.get("is_impossible") else _field(qa, "answers", list, where)
            examples.append(
                Example(
                    id=identity,
                    question=_field(qa, "question", str, where),
                    passage=passage,
                    answers=tuple(
                        GoldAnswer(
                            _field(gold, "text", str, f"{where}.answers[{g}]"),
                            _field(gold, "answer_start", int, f"{where}.answers[{g}]"),
                        )
                        for g, gold in enumerate(golds)
                    ),
                    title=title,
                    cause=qa.get("cause"),
                )
            )
    return examples


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


class JsonObjectWriter:
    """Writes `{key: value, …}` to a file one entry at a time. The file appears under its name only when it is complete.

        with JsonObjectWriter("predictions.json") as out:
            out.write("q1", "Ada Lovelace")

    On an exception, it removes what it wrote and keeps an existing file unchanged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._open = replacing(path)
        self._file: IO[str] | None = None
        self._count = 0

    def __enter__(self) -> Self:
        self._file = self._open.__enter__()
        self._file.write("{")
        return self

    def write(self, key: str, value: Any) -> None:
        """Add one entry."""
        assert self._file is not None, "used outside its with block"
        self._file.write(",\n" if self._count else "\n")
        self._file.write(f"{json.dumps(key, ensure_ascii=False)}: ")
        self._file.write(json.dumps(value, ensure_ascii=False, allow_nan=False))
        self._count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._file is not None, "used outside its with block"
        if kind is None:
            self._file.write("\n}\n")
        self._open.__exit__(kind, error, tb)
