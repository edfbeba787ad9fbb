"""Labelled questions from the files people have them in: SQuAD JSON, JSONL, CSV, Parquet, Hugging Face datasets folders.

Columns are found by their usual names: question; context or passage; answer, answers or text; start or answer_start; id;
title. An answer is a text, a list of texts, an object with text and start, a list of such objects, or SQuAD's
{"text": [...], "answer_start": [...]}. In CSV, lists and objects are written as JSON. An empty answer means that the
passage holds no answer. `spanqa.train.labels` checks answers against passages; this module does not.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanqa.errors import DatasetError
from spanqa.extras import require
from spanqa.files import read_text
from spanqa.squad import Example, read_squad

_NAMES = {
    "question": ("question", "query"),
    "passage": ("context", "passage", "document"),
    "answer": ("answers", "answer", "answer_text", "text"),
    "start": ("answer_start", "start", "start_char"),
    "id": ("id", "qid", "question_id"),
    "title": ("title",),
}


@dataclass(frozen=True, slots=True)
class Label:
    """An answer as it was labelled: its words, and the code point at which they start, if known."""

    text: str
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question with its passage and labels, before they are checked against the passage."""

    id: str
    question: str
    passage: str
    labels: tuple[Label, ...]
    title: str = ""


def read_labelled(path: str | os.PathLike[str]) -> Iterator[Labelled]:
    """Yield the questions of a file or folder.

    It can be .json (SQuAD), .jsonl, .csv or .tsv, with gzip or without, .parquet, or a folder saved by Hugging Face datasets.

    Raises:
        DatasetError: it is missing, empty or of another kind, or a row lacks a question or a passage; the message names the row.
        NotInstalledError: Parquet files and datasets folders need the `train` extra.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz").lower()
    if path.is_dir():
        yield from _rows(_dataset_folder(path), path)
    elif name.endswith(".json"):
        yield from as_labelled(read_squad(path))
    elif name.endswith((".jsonl", ".ndjson")):
        yield from _rows(_json_lines(path), path)
    elif name.endswith((".csv", ".tsv")):
        yield from _rows(_csv(path), path)
    elif name.endswith(".parquet"):
        yield from _rows(_parquet(path), path)
    elif not path.exists():
        raise DatasetError(f"File {str(path)!r} does not exist. Check the name, or give the full path.")
    else:
        raise DatasetError(
            f"{str(path)!r} has a format that spanqa does not read. Expected .json (SQuAD), .jsonl, .csv, .tsv, .parquet, or a "
            "folder saved by Hugging Face datasets."
        )


def as_labelled(examples: Iterable[Example]) -> Iterator[Labelled]:
    """Yield the questions of a SQuAD file with their answers as labels."""
    for example in examples:
        labels = tuple(Label(answer.text, answer.start) for answer in example.answers)
        yield Labelled(example.id, example.question, example.passage, labels, example.title)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{str(path)!r}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{str(path)!r}, line {number} should hold a JSON object, found {line!r:.60}.")
        yield row


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    text = read_text(path)
    if "\t" in text.split("\n", 1)[0]:
        delimiter = "\t"
    else:
        head = text.split("\n", 1)[0]
        delimiter = max(",;|", key=head.count)
    csv.field_size_limit(1 << 30)
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            if None in row:
                raise DatasetError(
                    f"{str(path)!r} has a row with more cells than columns: {row[None]!r:.80}. Put quotes around texts that contain "
                    f"the separator {delimiter!r}."
                )
            yield row
    except csv.Error as error:
        raise DatasetError(f"{str(path)!r} is not valid CSV: {error}.") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    require("parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read as Parquet: {error}") from None


def _dataset_folder(path: Path) -> Iterator[dict[str, Any]]:
    require("datasets")
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} is not a folder saved by Hugging Face datasets: {error}") from None
    if isinstance(found, datasets.DatasetDict):
        raise DatasetError(
            f"{str(path)!r} holds the splits {', '.join(found)}. Give the folder of one split, such as {str(path / next(iter(found)))!r}."
        )
    yield from found


def _rows(rows: Iterable[Mapping[str, Any]], path: Path) -> Iterator[Labelled]:
    """Turn rows into questions, by the names of their columns."""
    number = 0
    columns: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        columns = columns or _columns(row, path)
        where = f"{str(path)!r}, row {number}"
        question, passage = (_cell(row, columns[name], where) for name in ("question", "passage"))
        labels = _labels(row.get(columns["answer"]), row.get(columns.get("start", "")), where)
        given = row.get(columns.get("id", ""))
        title = row.get(columns.get("title", "")) or ""
        name = f"row-{number}" if given in (None, "") else str(given)
        yield Labelled(name, question, passage, labels, str(title))
    if not number:
        raise DatasetError(f"{str(path)!r} holds no rows. Expected rows with a question, a context and an answer.")


def _columns(row: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Map our names to the file's, for the columns that the file has."""
    present = {str(column).strip().lower(): column for column in row}
    columns = {}
    for ours, names in _NAMES.items():
        found = [present[name] for name in names if name in present]
        if found:
            columns[ours] = found[0]
    missing = [name for name in ("question", "passage", "answer") if name not in columns]
    if missing:
        wanted = "; ".join(f"{name}: {', '.join(_NAMES[name])}" for name in missing)
        raise DatasetError(
            f"{str(path)!r} lacks the column{'s' * (len(missing) > 1)} for {' and '.join(missing)}. It has {', '.join(map(str, row)) or 'none'}; "
            f"expected one of each of these ({wanted})."
        )
    return columns


def _cell(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{where}: {column!r} is {value!r:.60}; expected a text.")
    return value


def _labels(value: Any, start: Any, where: str) -> tuple[Label, ...]:
    """Return the labels of a row, whatever form its answer has."""
    if isinstance(value, str) and value[:1] in "[{" and value[-1:] in "]}":
        with suppress(ValueError):  # otherwise it is a text in brackets
            value = json.loads(value)
    if isinstance(value, Mapping):
        texts = value.get("text")
        starts = value.get("answer_start", value.get("start"))
        if isinstance(texts, str):
            return (Label(texts, _start(starts, where)),)
        if not isinstance(texts, list):
            raise DatasetError(f'{where}: the answer {value!r:.80} lacks "text".')
        return _pairs(texts, starts, where)
    if isinstance(value, list):
        if all(isinstance(each, Mapping) for each in value):
            return tuple(label for each in value for label in _labels(each, None, where))
        return _pairs(value, start, where)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ()
    return (_label(value, start, where),)


def _pairs(texts: list[Any], starts: Any, where: str) -> tuple[Label, ...]:
    """Return a label for each text; `starts` is a list of starts, or anything else where none are given."""
    if not isinstance(starts, list):
        starts = [None] * len(texts)
    if len(starts) != len(texts):
        raise DatasetError(
            f"{where}: the answer has {len(texts)} texts and {len(starts)} starts; expected one start per text."
        )
    return tuple(_label(text, start, where) for text, start in zip(texts, starts, strict=True))


def _label(text: Any, start: Any, where: str) -> Label:
    if not isinstance(text, str):
        raise DatasetError(f"{where}: the answer {text!r:.60} is a {type(text).__name__}; expected a text.")
    return Label(text, _start(start, where))


def _start(value: Any, where: str) -> int | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        start = int(value)
    except (TypeError, ValueError, OverflowError):
        start = None
    if start is None or start != float(value) or isinstance(value, bool):
        raise DatasetError(f"{where}: the answer's start is {value!r:.60}; expected a whole number of characters.")
    return None if start < 0 else start
