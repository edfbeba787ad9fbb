"""Labelled questions from the files people have them in: the one reader of evaluate, tune, train, check and quantize.

    SQuAD JSON: {"data": [articles]}, or a list of articles or of paragraphs
    JSON rows:  {"data": [rows]}, a list of rows, or one row a line (JSON Lines)
    CSV and TSV, Parquet, a folder saved by Hugging Face datasets

The content decides what a file is; .csv, .tsv and .parquet in a name help. Each file is read once, so it can be a pipe.

Columns of rows are found by their usual names: question; context or passage; answer, answers or text; start or answer_start;
is_impossible; id; title; cause. An answer is a text, a list of texts, an object with text and start, a list of such objects,
or SQuAD's {"text": [...], "answer_start": [...]}; in CSV, as JSON or as pandas and NumPy write it. A row whose answer is empty,
or that is_impossible, has none. `spanqa.train.labels` checks answers against passages; this module does not.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from spanqa.cells import is_missing, read_flag, read_start, read_structure
from spanqa.decoding import decode_text
from spanqa.errors import DatasetError
from spanqa.extras import require
from spanqa.files import describe, parse_json, read_bytes, shown, unzip
from spanqa.squad import WITHOUT_ANSWERS, Example, Label, Labelled, as_example, check_ids, of_article, of_paragraph

_NAMES = {
    "question": ("question", "query"),
    "passage": ("context", "passage", "document"),
    "answer": ("answers", "answer", "answer_text", "text"),
    "start": ("answer_start", "start", "start_char"),
    "impossible": ("is_impossible",),
    "id": ("id", "qid", "question_id"),
    "title": ("title",),
    "cause": ("cause",),
}
_UNNAMED = re.compile(r"(?:unnamed: [0-9]+)?(?:_level_[0-9]+)?", re.IGNORECASE)
"""What pandas calls the column of row numbers: it writes "", and reads that as "Unnamed: 0"."""

Item = tuple[str, Any]
"""The place of an article, a paragraph or a row in its file, for messages, and its content."""


def read_examples(path: str | os.PathLike[str], *, answers: bool = True) -> tuple[list[Example], dict[str, str]]:
    """Return the questions of a file with the answers as they are labelled, and the file's name and sha256.

    `answers=False` reads questions without answers, too, as a file to predict for has them.

    Raises:
        DatasetError: as for `read_labelled`, or two questions have the same id.
        NotInstalledError: Parquet files and datasets folders need the `train` extra.
    """
    questions, source = read_labelled(path, answers=answers)
    check_ids(questions, path)
    return [as_example(question) for question in questions], source


def read_labelled(path: str | os.PathLike[str], *, answers: bool = True) -> tuple[list[Labelled], dict[str, str]]:
    """Return the questions of a file or folder, and its name and sha256.

    Raises:
        DatasetError: it is missing, empty or of another kind, or a row lacks a question, a passage or (with `answers`) an
            answer; the message says where.
        NotInstalledError: Parquet files and datasets folders need the `train` extra.
    """
    path = Path(path)
    items: Iterable[Item]
    if path.is_dir():
        items, source = _dataset_folder(path), _describe_folder(path)
    else:
        data = read_bytes(path)
        items, source = _items(unzip(data, path), path), describe(path, data)
    questions = [
        question for number, item in enumerate(items, 1) for question in _questions(item, number, path, answers)
    ]
    if not questions:
        raise DatasetError(f"{str(path)!r} holds no rows. Expected rows with a question, a context and an answer.")
    return questions, source


# --- a file to items


def _items(data: bytes, path: Path) -> Iterable[Item]:
    name = path.name.removesuffix(".gz").lower()
    if data[:4] == b"PAR1" or name.endswith(".parquet"):
        return _parquet(data, path)
    text = decode_text(data, repr(str(path)))
    if name.endswith((".json", ".jsonl", ".ndjson")) or text.lstrip()[:1] in ("{", "["):
        return _json(text, path)
    if name.endswith((".csv", ".tsv")) or _is_table(text):
        return _csv(text, path)
    raise DatasetError(
        f"{str(path)!r} has a format that spanqa does not read. Expected SQuAD JSON, rows as JSON, JSON Lines, CSV, TSV or Parquet, "
        "or a folder saved by Hugging Face datasets."
    )


def _json(text: str, path: Path) -> Iterable[Item]:
    """Return the items of a JSON document, or one for each line of JSON Lines, whatever the file is called."""
    lines = text.split("\n")  # not splitlines: a text may hold other kinds of line ends
    filled = [line for line in lines if line.strip()]
    if not filled:
        return []
    if len(filled) > 1 and _is_json(filled[0]):
        return _json_lines(lines, path)
    value = parse_json(text, path)
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        return ((f"{str(path)!r}, data[{number}]", item) for number, item in enumerate(value["data"]))
    if isinstance(value, list):
        return ((f"{str(path)!r}, [{number}]", item) for number, item in enumerate(value))
    return [(repr(str(path)), value)]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _json_lines(lines: list[str], path: Path) -> Iterator[Item]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{str(path)!r}, line {number}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{place} is not JSON: {error}.") from None


def _csv(text: str, path: Path) -> Iterator[Item]:
    csv.field_size_limit(1 << 30)
    delimiter = delimiter_of(text)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in reader.fieldnames or () if not _UNNAMED.fullmatch(name.strip())]
        for name in names:
            if names.count(name) > 1:
                raise DatasetError(f"{str(path)!r} has the column {name!r} twice. Give each column its own name.")
        for number, row in enumerate(reader, 1):
            place = f"{str(path)!r}, row {number}"
            if None in row:
                raise DatasetError(
                    f"{place} has more cells than columns: {row[None]!r:.80}. Put quotes around texts that contain "
                    f"the separator {delimiter!r}."
                )
            if None in row.values():
                raise DatasetError(f"{place} has fewer cells than columns. Give each row {len(row)} cells.")
            yield place, row
    except csv.Error as error:
        raise DatasetError(f"{str(path)!r} is not valid CSV: {error}.") from None


def delimiter_of(text: str) -> str:
    """Return the character between the cells of a table: a tab, or what its first line has most of."""
    head = text.split("\n", 1)[0]
    return "\t" if "\t" in head else max(",;|", key=head.count)


def _is_table(text: str) -> bool:
    """Return whether the first line names the columns of a question and a passage."""
    head = text.split("\n", 1)[0].lower()
    names = {name.strip(' "\r') for name in head.split(delimiter_of(text))}
    return all(names.intersection(_NAMES[ours]) for ours in ("question", "passage"))


def _parquet(data: bytes, path: Path) -> Iterator[Item]:
    require("parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{str(path)!r}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read as Parquet: {error}") from None


def _dataset_folder(path: Path) -> Iterator[Item]:
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
    for number, row in enumerate(found, 1):
        yield f"{str(path)!r}, row {number}", row


def _describe_folder(path: Path) -> dict[str, str]:
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.arrow")):
        digest.update(file.read_bytes())
    return {"file": shown(path.resolve().name), "sha256": digest.hexdigest()}


# --- an item to questions


def _questions(item: Item, number: int, path: Path, answers: bool) -> Iterable[Labelled]:
    place, content = item
    if not isinstance(content, Mapping):
        raise DatasetError(f"{place}: expected an object, found {content!r:.60}.")
    if "paragraphs" in content:
        return of_article(content, place, answers=answers)
    if "qas" in content:
        return of_paragraph(content, place, str(content.get("title") or ""), answers=answers)
    return [_row(content, place, number, answers)]


def _row(row: Mapping[str, Any], place: str, number: int, answers: bool) -> Labelled:
    columns = usual_columns(tuple(row))
    given = {ours: row[theirs] for ours, theirs in columns.items()}
    impossible = read_flag(given.get("impossible"), columns.get("impossible", ""), place)
    needed = ("question", "passage", *(("answer",) if answers and not impossible else ()))
    lacking = [name for name in needed if name not in given]
    if lacking:
        wanted = "; ".join(f"{name}: {', '.join(_NAMES[name])}" for name in lacking)
        raise DatasetError(
            f"{place} lacks the column{'s' * (len(lacking) > 1)} for {' and '.join(lacking)}. It has {', '.join(map(str, row)) or 'none'}; "
            f"expected one of each of these ({wanted}).{f' {WITHOUT_ANSWERS}' if lacking == ['answer'] else ''}"
        )
    for name in ("question", "passage"):
        if not isinstance(given[name], str) or not given[name].strip():
            raise DatasetError(f"{place}: {columns[name]!r} is {given[name]!r:.60}; expected a text.")
    labels = () if impossible else _labels(given.get("answer"), given.get("start"), place)
    identity = "" if is_missing(given.get("id")) else str(given["id"])
    title, cause = ("" if is_missing(given.get(name)) else str(given[name]) for name in ("title", "cause"))
    return Labelled(identity or f"row-{number}", given["question"], given["passage"], labels, title, cause or None)


def usual_columns(names: Iterable[Any]) -> dict[str, Any]:
    """Return the columns that have usual names, by what they hold: "question", "passage", "answer", "id" and others."""
    return dict(_columns(tuple(names)))


@lru_cache(maxsize=64)
def _columns(names: tuple[Any, ...]) -> tuple[tuple[str, Any], ...]:
    """Return our names with the file's, for the columns that the file has. A column without a name is not looked at."""
    present = {str(name).strip().lower(): name for name in names if not _UNNAMED.fullmatch(str(name).strip())}
    found = {ours: next((present[name] for name in usual if name in present), None) for ours, usual in _NAMES.items()}
    return tuple((ours, theirs) for ours, theirs in found.items() if theirs is not None)


# --- a cell to labels


def _labels(answer: Any, start: Any, place: str) -> tuple[Label, ...]:
    """Return the labels of a row, whatever form its answer has; blank ones are none."""
    found = _found(_structure(answer, place), _structure(start, place), place)
    return tuple(label for label in found if label.text.strip())


def _structure(cell: Any, place: str) -> Any:
    """Return what a cell holds: the list or object that its text stands for, or else the cell."""
    if not isinstance(cell, str) or not re.match(r"\s*(?:[\[{]|(?:np\.)?array\()", cell):
        return cell
    try:
        return read_structure(cell.strip())
    except ValueError as error:
        if re.match(r"\s*(?:[\[{]\s*['\"{\[]|(?:np\.)?array\()", cell):
            raise DatasetError(
                f"{place}: {cell!r:.80} looks like a list or an object and cannot be read: {error}. Write it as JSON."
            ) from None
        return cell  # a text in brackets


def _found(answer: Any, start: Any, place: str) -> tuple[Label, ...]:
    if isinstance(answer, Mapping):
        if "text" not in answer:
            raise DatasetError(f'{place}: the answer {answer!r:.80} lacks "text".')
        return _found(answer["text"], answer.get("answer_start", answer.get("start", start)), place)
    if isinstance(answer, list) and answer and all(isinstance(each, Mapping) for each in answer):
        return tuple(label for each in answer for label in _found(each, None, place))
    if isinstance(answer, list):
        starts = start if isinstance(start, list) else [start]
        if not isinstance(start, list) and read_start(start, place) is None:
            starts = [None] * len(answer)
        if len(starts) != len(answer):
            raise DatasetError(
                f"{place}: the answer has {len(answer)} texts and {len(starts)} starts; expected one start per text."
            )
        return tuple(label for pair in zip(answer, starts, strict=True) for label in _found(*pair, place))
    if is_missing(answer):
        return ()
    if not isinstance(answer, str):
        raise DatasetError(f"{place}: the answer {answer!r:.60} is a {type(answer).__name__}; expected a text.")
    return (Label(answer, read_start(start, place)),)
