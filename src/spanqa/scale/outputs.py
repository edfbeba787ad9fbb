"""Answered rows to bytes, and the parts of a job to one file: JSON Lines, CSV and Parquet.

Each part holds the rows of one chunk, complete in itself, so that the whole is made by putting parts one behind the other:

    JSON Lines  lines; compressed parts are members of one gzip file, or frames of one Zstandard file
    CSV         lines without a head; lists and objects as JSON
    Parquet     a file; its rows become row groups, in the types that hold the values of all parts
"""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from spanqa.scale.places import Place
from spanqa.scale.rows import Row

ANSWER_FIELDS: Mapping[str, str] = {
    "text": "string",
    "start": "int64",
    "end": "int64",
    "score": "float64",
    "probability": "float64",
    "no_answer_probability": "float64",
    "sentence": "string",
    "sentence_start": "int64",
    "passage_index": "int64",
    "source": "string",
}
"""The fields of `Answer`, with their types in Parquet; `question` goes before them, and `closest`, an answer again, behind."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A row and one of its questions: the best answer, or none, and the best `top_k`, all as JSON."""

    row: Row
    prediction: Mapping[str, Any]
    predictions: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a row of the output holds.

    `columns` are those of the input that every row has, in order; None: each row has its own. `dropped` are left out. `prediction`
    names the column of the answer; with `several`, there is one of the best few, with an "s" behind. `schema` is that of the input
    where it is Parquet.
    """

    place: Place
    prediction: str
    several: bool
    columns: Sequence[str] | None = None
    dropped: frozenset[str] = frozenset()
    delimiter: str = ","
    schema: Any = None

    def encode(self, rows: Sequence[Answered]) -> bytes:
        """Return a part with these rows.

        Raises:
            ValueError, TypeError, NotImplementedError, RecursionError, OverflowError: a row has something that this format cannot hold.
        """
        form = self.place.form
        if form == "parquet":
            return self._parquet(rows)
        text = "".join(map(self._json, rows)) if form == "jsonl" else self._csv(rows)
        return _compressed(text.encode("utf-8", "backslashreplace"), self.place.compression)

    def _kept(self, row: Row) -> dict[str, Any]:
        names = row.values if self.columns is None else self.columns
        kept = {name: row.values.get(name) for name in names if name not in self.dropped}
        twice = {self.prediction, f"{self.prediction}s"} & set(kept)
        if twice:
            raise ValueError(f"it has a column {min(twice)!r} already; --into names that of the answers")
        return kept

    def _values(self, each: Answered) -> dict[str, Any]:
        values = self._kept(each.row)
        values[self.prediction] = each.prediction
        return values | {f"{self.prediction}s": list(each.predictions)} if self.several else values

    def _json(self, each: Answered) -> str:
        return json_text(self._values(each)) + "\n"

    # --- CSV

    def _csv(self, rows: Sequence[Answered]) -> str:
        text = io.StringIO()
        writer = self._writer(text)
        for each in rows:
            cells = [*self._kept(each.row).values(), each.prediction["question"]]
            cells += [each.prediction[name] for name in (*ANSWER_FIELDS, "closest")]
            writer.writerow([_cell(value) for value in cells + ([list(each.predictions)] if self.several else [])])
        return text.getvalue()

    def _writer(self, text: io.StringIO) -> Any:
        return csv.writer(_Lines(text), delimiter=self.delimiter, lineterminator="\r\n")

    def _csv_head(self) -> bytes:
        text = io.StringIO()
        names = [name for name in self.columns or () if name not in self.dropped]
        names += [f"{self.prediction}_{name}" for name in ("question", *ANSWER_FIELDS, "closest")]
        names += [f"{self.prediction}s"] if self.several else []
        self._writer(text).writerow(names)
        return _compressed(text.getvalue().encode("utf-8", "backslashreplace"), self.place.compression)

    # --- Parquet

    def _parquet(self, rows: Sequence[Answered]) -> bytes:
        import pyarrow
        import pyarrow.parquet

        kept = [self._kept(each.row) for each in rows]
        names = list(dict.fromkeys(name for row in kept for name in row)) if self.columns is None else [*self.columns]
        fields, arrays = [], []
        for name in names:
            if name in self.dropped:
                continue
            values = [row.get(name) for row in kept]
            if self.schema is not None:
                array = pyarrow.array(values, self.schema.field(name).type)
            else:
                array = _inferred(values)
            fields.append(pyarrow.field(_sound(name), array.type))
            arrays.append(array)
        answer = answer_type()
        fields.append(pyarrow.field(self.prediction, answer))
        arrays.append(answer_array([each.prediction for each in rows]))
        if self.several:
            fields.append(pyarrow.field(f"{self.prediction}s", pyarrow.list_(answer)))
            arrays.append(answers_array([each.predictions for each in rows]))
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields)), sink)
        return bytes(sink.getvalue())

    # --- the whole

    def join(self, parts: Sequence[Path], into: IO[bytes]) -> None:
        """Write the whole of these parts."""
        if self.place.form == "parquet":
            self._join_parquet(parts, into)
            return
        if self.place.form != "jsonl":
            into.write(self._csv_head())
        elif not parts and self.place.compression:
            into.write(_compressed(b"", self.place.compression))
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, into, 1 << 20)

    def _join_parquet(self, parts: Sequence[Path], into: IO[bytes]) -> None:
        import pyarrow
        import pyarrow.parquet

        if not parts:
            pyarrow.parquet.write_table(pyarrow.parquet.read_table(pyarrow.BufferReader(self._parquet([]))), into)
            return
        schema = None
        for part in parts:
            found = pyarrow.parquet.read_schema(part)
            schema = found if schema is None else _united(schema, found)
        assert schema is not None
        last = [name for name in (self.prediction, f"{self.prediction}s") if name in schema.names]
        schema = pyarrow.schema(
            [each for each in schema if each.name not in last] + [schema.field(name) for name in last]
        )
        with pyarrow.parquet.ParquetWriter(into, schema) as writer:
            for part in parts:
                table = pyarrow.parquet.read_table(part, partitioning=None)
                writer.write_table(pyarrow.Table.from_arrays([_cast(table, field) for field in schema], schema=schema))


class _Lines:
    """What the CSV writer writes to: its lines end in a line feed. It puts quotes around what is in its own line end, a carriage return too."""

    def __init__(self, text: io.StringIO) -> None:
        self._text = text

    def write(self, line: str) -> None:
        self._text.write(line.removesuffix("\r\n") + "\n")


def answer_type() -> Any:
    """Return the type of an answer in Arrow."""
    import pyarrow

    fields = [(name, getattr(pyarrow, kind)()) for name, kind in ANSWER_FIELDS.items()]
    return pyarrow.struct([("question", pyarrow.string()), *fields, ("closest", pyarrow.struct(fields))])


def answer_array(answers: Sequence[Mapping[str, Any] | None]) -> Any:
    """Return answers, as JSON or None, as an array of Arrow."""
    import pyarrow

    return pyarrow.array(list(map(_sound, answers)), answer_type())


def answers_array(answers: Sequence[Sequence[Mapping[str, Any]] | None]) -> Any:
    """Return lists of answers as an array of Arrow."""
    import pyarrow

    return pyarrow.array(list(map(_sound, answers)), pyarrow.list_(answer_type()))


def json_text(value: Any) -> str:
    """Return a value as one line of JSON, whatever a data file held: no NaN, dates as ISO 8601, bytes as text."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # NaN or infinity, which become null
        text = json.dumps(value, ensure_ascii=False, default=_plain)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if hasattr(value, "cast"):  # a value of Arrow that Python does not have
        return str(value.cast("string").as_py())
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _cell(value: Any) -> Any:
    """Return a value as a cell of CSV; None is an empty one."""
    if value is None or isinstance(value, (str, int, float)):
        return json.dumps(value) if isinstance(value, bool) else value
    return json_text(value) if isinstance(value, (Mapping, list, tuple)) else _plain(value)


def _compressed(data: bytes, compression: str) -> bytes:
    if compression == "gz":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zst":
        import pyarrow

        return bytes(pyarrow.Codec("zstd").compress(data))
    return data


def _sound(value: Any) -> Any:
    """Return a value whose texts Arrow can hold: half a surrogate pair becomes its escape."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_sound(key): _sound(each) for key, each in value.items()}
    return list(map(_sound, value)) if isinstance(value, (list, tuple)) else value


def _inferred(values: list[Any]) -> Any:
    """Return an array of values in the type that suits them, or as JSON where there is none."""
    import pyarrow

    values = list(map(_sound, values))
    try:
        array = pyarrow.array(values)
        if not _has_empty_struct(array.type):
            return array
    except (pyarrow.ArrowException, OverflowError, TypeError):
        pass
    return pyarrow.array(list(map(_as_text, values)), pyarrow.string())


def _has_empty_struct(kind: Any) -> bool:
    """Return whether a type holds objects without a field, which Parquet does not have."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(kind.field(each).type) for each in range(kind.num_fields))
    return pyarrow.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_text(value)


def _united(one: Any, other: Any) -> Any:
    """Return the schema that holds the values of two; a column without a common type becomes text."""
    import pyarrow

    fields = {field.name: field for field in one}
    for field in other:
        mine = fields.get(field.name)
        try:
            pair = [pyarrow.schema([each]) for each in (mine, field) if each is not None]
            fields[field.name] = pyarrow.unify_schemas(pair, promote_options="permissive").field(0)
        except pyarrow.ArrowTypeError:
            fields[field.name] = pyarrow.field(field.name, pyarrow.string())
    return pyarrow.schema(list(fields.values()))


def _cast(table: Any, field: Any) -> Any:
    """Return the column of a part in the type that it has in the whole."""
    import pyarrow

    if field.name not in table.schema.names:
        return pyarrow.nulls(table.num_rows, field.type)
    column = table.column(field.name)
    if column.type == field.type:
        return column
    if pyarrow.types.is_string(field.type):
        return pyarrow.array(list(map(_as_text, column.to_pylist())), field.type)
    try:
        return column.cast(field.type, safe=False)  # a whole number beyond 2**53 becomes the nearest float
    except pyarrow.ArrowNotImplementedError:  # some casts of nested types
        return pyarrow.array(column.to_pylist(), field.type)
