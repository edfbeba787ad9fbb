"""Rows of files, one at a time: JSON Lines, CSV and Parquet, plain or compressed.

A row that cannot be read is a `BadRow`, and the rows behind it are read. Memory is bounded by the longest row, whatever the file is.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

from spanqa.errors import DatasetError
from spanqa.extras import require
from spanqa.scale.places import Place, decompressed, opened
from spanqa.tables import delimiter_of

LONGEST = 32 << 20
"""Bytes of the longest line, or characters of the longest cell. A longer one is a bad row."""

SHOWN = 1000
"""Characters of a row that is too long which are kept, so that it can be found again."""

_PIECE = 1 << 20
_SEPARATOR = re.compile(r'"?sep=.?"?\s*', re.IGNORECASE)  # a first line for Excel
_PARQUET_ROWS = 64  # read at a time


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its number from 1, the line on which it begins (None in Parquet), its values by column, and its size in bytes."""

    number: int
    line: int | None
    values: Mapping[str, Any]
    size: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that gets no answer, and why. `content` is what it holds, as far as it can be shown; `id` is its id, where it has one."""

    number: int
    line: int | None
    reason: str
    content: str = ""
    size: int = 0
    id: Any = None


@dataclass(frozen=True, slots=True)
class Survey:
    """What identifies a file: its sha256 and its size in bytes; and how many lines, or in Parquet rows, it has."""

    sha256: str
    bytes: int
    lines: int


def survey(place: Place) -> Survey:
    """Read a file once from end to end.

    Raises:
        DatasetError: it cannot be read, or is damaged.
    """
    assert place.path is not None
    with opened(place.path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    if place.form == "parquet":
        with _parquet(place) as table:
            return Survey(sha256, size, table.metadata.num_rows)
    lines, last = 0, b"\n"
    with decompressed(place) as stream:
        while piece := stream.read(_PIECE):
            lines, last = lines + piece.count(b"\n"), piece[-1:]
    return Survey(sha256, size, lines + (last != b"\n"))


def columns_of(place: Place) -> list[str] | None:
    """Return the columns of a file whose head names them; None for JSON Lines, where each row has its own.

    Raises:
        DatasetError: it cannot be read, or has a column twice.
    """
    if place.form == "jsonl":
        return None
    if place.form == "parquet":
        with _parquet(place) as table:
            return _checked(table.schema_arrow.names, place)
    with decompressed(place) as stream, _text(stream) as text:
        return _csv_head(text, place)[0]


def delimiter_among(place: Place) -> str:
    """Return the character between the cells of a table."""
    with decompressed(place) as stream, _text(stream) as text:
        return delimiter_of(_first_line(_Lines(text)))


def all_columns(place: Place) -> list[str]:
    """Return the columns that any row of a file has, in order of their first row."""
    names = columns_of(place)
    if names is not None:
        return names
    return list(dict.fromkeys(name for row in read_rows(place) if isinstance(row, Row) for name in row.values))


def read_rows(place: Place) -> Iterator[Row | BadRow]:
    """Yield the rows of a file, and in their places the bad ones.

    Raises:
        DatasetError: the file cannot be read, is damaged, or is in another format.
    """
    if place.form == "parquet":
        yield from _parquet_rows(place)
        return
    with decompressed(place) as stream:
        if place.form == "jsonl":
            yield from _json_rows(stream)
            return
        with _text(stream) as text:
            yield from _csv_rows(text, place)


# --- JSON Lines


def _json_rows(stream: IO[bytes]) -> Iterator[Row | BadRow]:
    number = line = 0
    while data := stream.readline(LONGEST + 1):
        line += 1
        size = len(data)
        if line == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if not data.strip():
            continue
        number += 1
        if len(data) > LONGEST and not data.endswith(b"\n"):
            size += _skip_line(stream)
            yield BadRow(number, line, f"the line has more than {LONGEST:,} bytes", _shown(data[:SHOWN]), size)
            continue
        try:
            values = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield BadRow(number, line, f"not UTF-8: byte 0x{data[error.start]:02x}", _shown(data), size)
        except RecursionError:
            yield BadRow(number, line, "not JSON: nested too deeply", _shown(data), size)
        except ValueError as error:
            yield BadRow(number, line, f"not JSON: {error}", _shown(data), size)
        else:
            if isinstance(values, dict):
                yield Row(number, line, values, size)
            else:
                yield BadRow(number, line, f"expected a JSON object, found {type(values).__name__}", _shown(data), size)


def _skip_line(stream: IO[bytes]) -> int:
    """Read on to the end of the line, and keep nothing of it; return its bytes."""
    size = 0
    while data := stream.readline(_PIECE):
        size += len(data)
        if data.endswith(b"\n"):
            break
    return size


def _shown(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").rstrip("\r\n")


# --- CSV


class _Lines:
    """The lines of a text for the CSV reader, which would hide them: counted, and the first one of a row is kept for bad rows."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.number, self.first = 0, ""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(LONGEST)
        if not line:
            raise StopIteration
        self.number += 1
        self.first = self.first or line[:SHOWN].rstrip("\r\n")
        if len(line) == LONGEST and not line.endswith(("\n", "\r")):
            while (more := self._text.readline(_PIECE)) and not more.endswith(("\n", "\r")):
                pass
            raise csv.Error(f"a line has more than {LONGEST:,} characters")
        return line


@contextmanager
def _text(stream: IO[bytes]) -> Iterator[io.TextIOWrapper]:
    """Read bytes as text, and leave them open."""
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    try:
        yield text
    finally:
        text.detach()


def _csv_head(text: io.TextIOWrapper, place: Place) -> tuple[list[str], Any, _Lines]:
    """Return the columns, the reader, which is behind them, and its lines."""
    csv.field_size_limit(LONGEST)
    lines = _Lines(text)
    try:
        first = _first_line(lines)
        reader = csv.reader(chain([first], lines), delimiter=delimiter_of(first), strict=True)
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DatasetError(f"{place.name!r} has no readable head: {error}.") from None
    if any(map(_has_other_bytes, names)):
        raise DatasetError(
            f"{place.name!r} is not UTF-8: its columns are {', '.join(names)}. Convert it first, for example: iconv -f windows-1252 -t utf-8 OLD > NEW"
        )
    while names and not names[-1]:  # a spreadsheet writes empty columns behind the last one
        names.pop()
    return _checked(names, place), reader, lines


def _first_line(lines: Iterable[str]) -> str:
    """Return the line that names the columns."""
    return next((line for line in lines if line.strip() and not _SEPARATOR.fullmatch(line)), "")


def _checked(names: list[str], place: Place) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(f"{place.name!r} has the column {name!r} twice. Give each column its own name.")
    return names


def _csv_rows(text: io.TextIOWrapper, place: Place) -> Iterator[Row | BadRow]:
    names, reader, lines = _csv_head(text, place)
    number = 0
    while True:
        line, lines.first = lines.number + 1, ""
        try:
            cells = next(reader, None)
        except csv.Error as error:
            number += 1
            where = f", in lines {line:,} to {lines.number:,}" if lines.number > line else ""
            content = lines.first.encode("utf-8", "surrogateescape")
            yield BadRow(number, line, f"not valid CSV: {error}{where}", _shown(content))
            continue
        if cells is None:
            break
        if not cells:  # a blank line
            continue
        number += 1
        size = sum(map(len, cells)) + len(cells)
        while len(cells) > len(names) and not cells[-1]:
            cells.pop()
        if len(cells) != len(names):
            reason = f"it has {len(cells):,} cells; the file has {len(names):,} columns"
        elif any(map(_has_other_bytes, cells)):
            reason = "not UTF-8"
        else:
            yield Row(number, line, dict(zip(names, cells, strict=True)), size)
            continue
        content = json.dumps(cells, ensure_ascii=False).encode("utf-8", "surrogateescape")
        yield BadRow(number, line, reason, _shown(content), size)


def _has_other_bytes(cell: str) -> bool:
    return not cell.isascii() and any("\udc80" <= each <= "\udcff" for each in cell)


# --- Parquet


@contextmanager
def _parquet(place: Place) -> Iterator[Any]:
    """Open a Parquet file; texts stay indices into their dictionary, where they have one, so that they take no more than in the file."""
    require("parquet")
    import pyarrow
    import pyarrow.parquet

    assert place.path is not None
    with opened(place.path) as file:
        try:
            names = [
                field.name
                for field in pyarrow.parquet.read_schema(file)
                if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
            ]
            file.seek(0)
            yield pyarrow.parquet.ParquetFile(file, read_dictionary=names)
        except MemoryError:
            raise DatasetError(
                f"{place.name!r} does not fit in memory: one page of it expands too far. Write it with smaller pages."
            ) from None
        except (pyarrow.ArrowException, OSError) as error:
            raise DatasetError(f"{place.name!r} cannot be read as Parquet: {error}") from None


def parquet_schema(place: Place) -> Any:
    """Return the Arrow schema of a Parquet file."""
    import pyarrow.parquet

    with _parquet(place):
        return pyarrow.parquet.read_schema(place.path)


def _parquet_rows(place: Place) -> Iterator[Row | BadRow]:
    with _parquet(place) as table:
        number = 0
        for batch in table.iter_batches(_PARQUET_ROWS, use_threads=False):
            names, columns = batch.schema.names, batch.columns
            for position in range(batch.num_rows):
                number += 1
                try:
                    values = {name: _value(column[position]) for name, column in zip(names, columns, strict=True)}
                except UnicodeDecodeError:
                    yield BadRow(number, None, "not UTF-8")
                    continue
                yield Row(number, None, values, _size(values))


def _value(scalar: Any) -> Any:
    """Return a value of Arrow as Python has it, or as it is where Python has none: a nanosecond, the year 20,000.

    Raises:
        UnicodeDecodeError: a text is not UTF-8.
    """
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        return scalar


def _size(value: Any) -> int:
    """Return about how many bytes a value takes."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        return 8 + sum(len(key) + _size(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return 8 + sum(map(_size, value))
    return 8
