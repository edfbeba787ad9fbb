"""Batch jobs: formats, columns, bad rows, and what survives a killed process."""

import csv
import gzip
import io
import json
import os
import random
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from spanqa.errors import DatasetError, InputError
from spanqa.extras import installed
from spanqa.progress import Progress
from spanqa.reader import Reader
from spanqa.scale import answer_chunks, batch, job, rows
from spanqa.scale.answering import AnswerRule, chunk_tokens, setup_of
from spanqa.scale.job import Chunk, Result, cut_chunks
from spanqa.scale.places import place_of
from spanqa.scale.questions import Asked
from spanqa.scale.rows import BadRow, Row, read_rows

Command = Callable[..., subprocess.CompletedProcess[str]]

PIER = "The pier was built in 1873 by Anna Kestrel. It is made of granite."
ROWS = [
    {
        "id": f"q{number}",
        "question": question,
        "context": PIER if number % 3 else f"{PIER} It has {number} lamps.",
        "n": number,
    }
    for number, question in enumerate(
        ["Who built the pier?", "When was it built?", "What is it made of?", "Who is she?"] * 5
    )
]
needs_pyarrow = pytest.mark.skipif(not installed("parquet"), reason="pyarrow is not installed")


def write(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    """Write rows as a user would, in the format of the ending."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return path
    text = io.StringIO(newline="")
    if name.endswith(".jsonl"):
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    if path.name.endswith(".zst"):
        import pyarrow

        data = bytes(pyarrow.Codec("zstd").compress(data))
    path.write_bytes(data)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read rows as a user would."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        import pyarrow.parquet

        found: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return found
    data = path.read_bytes()
    if path.name.endswith(".gz"):
        data = gzip.decompress(data)
    if path.name.endswith(".zst"):
        import pyarrow

        data = pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read()
    text = data.decode()
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if name.endswith(".tsv") else ","))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def run(command: Command, tiny: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """Run `spanqa batch` on the bundled model, and return its summary."""

    def batch_of(source: Path | str, out: Path | str, *options: str | Path) -> dict[str, Any]:
        done = command("batch", str(source), str(out), "--dtype", "fp32", "--json", *map(str, options))
        assert done.returncode == 0, done.stderr
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    return batch_of


@pytest.fixture(scope="module")
def expected(mini: Reader) -> list[dict[str, Any]]:
    pairs = [(row["question"], row["context"]) for row in ROWS]
    return [answer.as_json(pair[0]) for answer, pair in zip(mini.ask_many(pairs), pairs, strict=True)]


SOURCES = [
    "in.jsonl",
    "in.csv",
    "in.tsv.gz",
    pytest.param("in.jsonl.zst", marks=needs_pyarrow),
    pytest.param("in.parquet", marks=needs_pyarrow),
]
OUTPUTS = [
    "out.jsonl",
    "out.csv",
    "out.jsonl.gz",
    pytest.param("out.csv.zst", marks=needs_pyarrow),
    pytest.param("out.parquet", marks=needs_pyarrow),
]


def batched(reader: Reader, source: Path, out: Path) -> batch.Summary:
    place = place_of(str(out))
    given = batch.rows_input(place_of(str(source)), flat=place.form in ("csv", "tsv"))
    return batch.run_batch(reader, given, place)


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("source", SOURCES)
def test_answers_are_those_of_ask_many_in_every_format(
    source: str, out: str, tmp_path: Path, mini: Reader, expected: list[dict[str, Any]]
) -> None:
    counts = batched(mini, write(tmp_path / source), tmp_path / out).counts
    assert (counts.rows, counts.bad, counts.answered + counts.unanswered) == (20, 0, 20)
    found = read(tmp_path / out)
    as_text = ".csv" in source or ".tsv" in source or ".csv" in out
    assert [{name: row[name] for name in ROWS[0]} for row in found] == [
        {name: str(value) if as_text else value for name, value in row.items()} for row in ROWS
    ]
    for row, answer in zip(found, expected, strict=True):
        if ".csv" in out:
            assert (row["prediction_text"], row["prediction_question"]) == (answer["text"], answer["question"])
            assert float(row["prediction_probability"]) == pytest.approx(answer["probability"], abs=1e-5)
            assert row["prediction_start"] == ("" if answer["start"] is None else str(answer["start"]))
            assert (row["prediction_closest"] == "") == (answer["closest"] is None)
        else:
            assert list(row["prediction"]) == list(answer)
            assert row["prediction"]["text"] == answer["text"]
            assert row["prediction"]["score"] == pytest.approx(answer["score"], abs=1e-4)
            assert (row["prediction"]["closest"] or {}).get("text") == (answer["closest"] or {}).get("text")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, out])


def test_the_best_few_are_a_list_beside_the_best(
    tmp_path: Path, run: Callable[..., dict[str, Any]], mini: Reader
) -> None:
    source = write(tmp_path / "in.jsonl", ROWS[:3])
    run(source, tmp_path / "out.jsonl", "--top-k", "3", "--no-answer", "off", "--into", "found", "--drop", "context")
    run(source, tmp_path / "out.csv", "--top-k", "3", "--no-answer", "off")
    for row, given, cells in zip(read(tmp_path / "out.jsonl"), ROWS, read(tmp_path / "out.csv"), strict=False):
        texts = [answer.text for answer in mini.rank(given["question"], given["context"], 3, no_answer="off")]
        assert [answer["text"] for answer in row["founds"]] == texts
        assert [answer["text"] for answer in json.loads(cells["predictions"])] == texts
        assert row["found"] == row["founds"][0]
        assert "context" not in row


def test_a_threshold_and_a_probability_hold_as_in_ask(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    source = write(tmp_path / "in.jsonl")
    assert run(source, tmp_path / "a.jsonl", "--threshold", "1000")["answered"] == 0
    assert run(source, tmp_path / "b.jsonl", "--min-probability", "1")["answered"] == 0
    assert run(source, tmp_path / "c.jsonl", "--no-answer", "off")["answered"] == 20


def test_one_question_is_asked_of_every_row(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    source = write(tmp_path / "in.csv", [{"text": PIER, "question": ""}] * 2)
    run(source, tmp_path / "out.jsonl", "--ask", "Who built it?", "--ask", "When was it built?", "--context", "text")
    assert [row["prediction"]["text"] for row in read(tmp_path / "out.jsonl")] == ["Anna Kestrel", "1873"] * 2


def test_a_row_may_hold_several_questions_and_several_texts(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    row = {"question": ["Who built the pier?", "What is it made of?"], "context": ["Nothing here.", PIER]}
    source = write(tmp_path / "in.jsonl", [row])
    summary = run(source, tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert [(each["prediction"]["text"], each["prediction"]["passage_index"]) for each in found] == [
        ("Anna Kestrel", 1),
        ("granite", 1),
    ]
    assert (summary["rows"], summary["answered"]) == (1, 2)


# --- odd input


def test_bad_rows_are_listed_and_the_job_goes_on(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    good = json.dumps(ROWS[0]).encode()
    bad = [
        b'{"id": 3, "question": "Who?", "context": 7}',
        b'{"question": "", "context": "A pier."}',
        b'{"question": "Who?", "context": null}',
        b'{"question": "Who?"}',
        b'{"question": "Who',
        b"[1, 2]",
        b'{"question": "Who\xff?", "context": "A pier."}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"question": "Who?", "context": "' + b"x" * 99 + b'", "n": ' + b"9" * 5000 + b"}",
        b'{"question": [], "context": "A pier."}',
        b'{"question": "' + b"who " * 500 + b'?", "context": "A pier."}',
        b'{"question": "Wh\\ud800o?", "context": "A pier."}',
        b'{"question": "Who?", "context": "A pier.", "prediction": 1}',
    ]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + b"\n".join([good, *bad, b"", good]))
    summary = run(source, tmp_path / "out.jsonl")
    assert (summary["rows"], summary["bad"]) == (15, 13)
    assert len(read(tmp_path / "out.jsonl")) == 2
    listed = tmp_path / "out.jsonl.bad.jsonl"
    assert summary["bad_rows"] == str(listed)
    found = lines(listed)
    assert [row["line"] for row in found] == list(range(2, 15))
    wanted = [
        "context: expected a text, found int", "question: empty", "context: expected a text, found null", "context: missing",
        "not JSON: Invalid control character", "expected a JSON object, found list", "not UTF-8: byte 0xff", "nested too deeply",
        "not JSON: Exceeds", "question: holds no questions", "question", "surrogate", "already",
    ]  # fmt: skip
    for row, words in zip(found, wanted, strict=True):
        assert words in row["reason"], row
    assert found[0]["id"] == 3
    assert json.loads(found[0]["content"]) == json.loads(bad[0])
    if os.name == "posix":
        assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    run(source, tmp_path / "other.jsonl", "--no-text")
    assert "A pier" not in (tmp_path / "other.jsonl.bad.jsonl").read_text("utf-8")


def test_however_deep_a_row_is_the_job_goes_on(tmp_path: Path, mini: Reader) -> None:
    source = tmp_path / "in.jsonl"
    depths = [*range(450, 1000, 50), *range(900, 1000, 2)]
    with source.open("w") as file:
        for depth in depths:
            for opening, closing in (('{"a": ', "}"), ("[", "]")):
                value = opening * depth + "NaN" + closing * depth
                file.write(f'{{"question": "Who?", "context": "", "id": {value}}}\n')
    counts = batched(mini, source, tmp_path / "out.jsonl").counts
    assert counts.rows == counts.bad == 2 * len(depths) == len(lines(tmp_path / "out.jsonl.bad.jsonl"))


def test_a_line_that_is_too_long_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST", 100)
    monkeypatch.setattr(rows, "SHOWN", 10)
    monkeypatch.setattr(rows, "_PIECE", 7)
    path = tmp_path / "in.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 500 + '"}\n{"a": 2}\n' + "y" * 300)
    one, long, two, last = read_rows(place_of(str(path)))
    assert isinstance(one, Row) and isinstance(two, Row) and (one.values, two.values) == ({"a": 1}, {"a": 2})
    assert isinstance(long, BadRow) and (long.line, long.content) == (2, '{"a": "xxx')
    assert isinstance(last, BadRow) and (last.number, last.line) == (4, 4)
    assert sum(each.size for each in (one, long, two, last)) == path.stat().st_size
    path = tmp_path / "in.csv"
    path.write_text("a,b\n1,2\n" + "x" * 500 + ',3\n4,5\n"' + "x\n" * 90 + '",3\n6,7\n')
    found = list(read_rows(place_of(str(path))))
    assert isinstance(found[1], BadRow) and "more than 100 characters" in found[1].reason and found[1].line == 3
    assert isinstance(found[2], Row) and found[2].values == {"a": "4", "b": "5"}
    assert isinstance(found[3], BadRow) and "field larger" in found[3].reason


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("\ufeffquestion;context\nWho?;A pier.\n", [("Who?", "A pier.")]),
        (
            'question,context,x\r\n"Who, then?","A ""pier"".\r\nIt is old.",1\r\n',
            [("Who, then?", 'A "pier".\r\nIt is old.')],
        ),
        ("sep=;\r\nquestion;context\r\nWho?;A pier.\r\n", [("Who?", "A pier.")]),
        ("\n\nquestion\tcontext\n\nWho?\t=1+1 A pier.\n", [("Who?", "=1+1 A pier.")]),
    ],
)
def test_csv_as_spreadsheets_write_it(text: str, cells: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(text.encode())
    found = list(read_rows(place_of(str(path))))
    assert [(row.values["question"], row.values["context"]) for row in found if isinstance(row, Row)] == cells


def test_bad_rows_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b'question,context\nWho?\nWho?,A pier.,1\nWh\xffo?,A pier.\n"Who"?,A pier.\nWho?,"A pier.\nGo.",x\nWho?,A pier.\n'
    )
    *bad, good = read_rows(place_of(str(path)))
    assert isinstance(good, Row) and good.line == 8
    assert [(row.number, row.line) for row in bad] == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    for row, words in zip(bad, ["1 cells", "3 cells", "not UTF-8", "not valid CSV", "3 cells"], strict=True):
        assert isinstance(row, BadRow) and words in row.reason


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_numbers_of_a_table_are_those_of_the_file(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LONGEST", 40)
    path = tmp_path / "in.csv"
    path.write_bytes(
        end.join(["", "", "question,context", "", "Who?", "x" * 90, "Who?,A pier.", '"Who?,A', "pier."]).encode()
    )
    one, long, good, open_quote = read_rows(place_of(str(path)))
    assert [each.line for each in (one, long, good, open_quote)] == [5, 6, 7, 8]
    assert isinstance(good, Row) and isinstance(open_quote, BadRow)
    assert "in lines 8 to 9" in open_quote.reason and open_quote.content == '"Who?,A'


def test_empty_columns_behind_the_last_are_none(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("question;context;;\nWho?;A pier.;;\nWho?;A pier.\nWho?;A pier.;;x\n")
    place = place_of(str(path))
    assert rows.columns_of(place) == ["question", "context"]
    one, two, bad = read_rows(place)
    assert isinstance(one, Row) and isinstance(two, Row) and one.values == two.values
    assert isinstance(bad, BadRow) and "4 cells" in bad.reason


def test_a_carriage_return_stays_in_its_cell(tmp_path: Path, mini: Reader) -> None:
    source = write(tmp_path / "in.jsonl", [ROWS[0] | {"note": "a\rb"}])
    batched(mini, source, tmp_path / "out.csv")
    [row] = read(tmp_path / "out.csv")
    assert row["note"] == "a\rb"
    assert b"\r" not in (tmp_path / "out.csv").read_bytes().replace(b'"a\rb"', b"")


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_row_that_cannot_be_written_is_bad_once(out: str, tmp_path: Path, mini: Reader) -> None:
    both = {"question": ["Who built the pier?", "When?"], "context": PIER}
    source = write(tmp_path / "in.jsonl", [both | {"prediction": 1}, both])
    if ".csv" in out:
        with pytest.raises(InputError, match="has a column 'prediction' already"):
            batched(mini, source, tmp_path / out)
        return
    counts = batched(mini, source, tmp_path / out).counts
    assert (counts.rows, counts.bad, counts.answered + counts.unanswered) == (2, 1, 2)
    assert len(read(tmp_path / out)) == 2
    [bad] = lines(tmp_path / f"{out}.bad.jsonl")
    assert bad["row"] == 1 and "already" in bad["reason"]


@needs_pyarrow
@pytest.mark.parametrize("value", [{}, {"a": {}}, [{}], [[{}]], {"a": 1}])
def test_objects_without_a_field_become_text_in_parquet(value: Any, tmp_path: Path, mini: Reader) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROWS[0] | {"note": value, "\ud800": 1}))
    batched(mini, source, tmp_path / "out.parquet")
    [row] = read(tmp_path / "out.parquet")
    assert row["note"] == (value if value == {"a": 1} else json.dumps(value))
    assert row["\\ud800"] == 1


@needs_pyarrow
def test_parquet_with_lists_nulls_and_dates_keeps_its_types(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "question": ["Who built the pier?", None, "What is it made of?"],
            "context": [PIER, PIER, PIER],
            "day": pyarrow.array([datetime.date(2020, 1, 2), None, None]),
            "answers": pyarrow.array([{"text": ["x"], "start": [1]}, None, {"text": [], "start": []}]),
            "raw": pyarrow.array([b"\xff\x00", None, b""]),
            "small": pyarrow.array([1, 2, None], pyarrow.int8()),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    summary = run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert (summary["rows"], summary["bad"]) == (3, 1)
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found.drop_columns("prediction") == table.take([0, 2])
    assert found.schema.field("small").type == pyarrow.int8()
    run(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert [row["day"] for row in read(tmp_path / "out.jsonl")] == ["2020-01-02", None]


@needs_pyarrow
def test_parquet_with_times_that_python_does_not_have(tmp_path: Path, mini: Reader) -> None:
    import pyarrow
    import pyarrow.parquet

    far = pyarrow.array([2**60, None, 2**60, 2**60])
    table = pyarrow.table(
        {
            "question": ["Who built the pier?", "Who?", "", "Who?"],
            "context": [PIER] * 4,
            "day": far.cast(pyarrow.timestamp("us")),
            "nested": pyarrow.StructArray.from_arrays([far.cast(pyarrow.timestamp("us"))], ["at"]),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    assert batched(mini, tmp_path / "in.parquet", tmp_path / "out.parquet").counts.bad == 1
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found.drop_columns("prediction") == table.take([0, 1, 3])
    pyarrow.parquet.write_table(table.drop_columns("nested"), tmp_path / "in.parquet")
    assert batched(mini, tmp_path / "in.parquet", tmp_path / "out.jsonl").counts.bad == 1
    assert "out of range" in read(tmp_path / "out.jsonl")[0]["day"]


@needs_pyarrow
def test_parquet_that_expands_enormously_is_read_in_little_memory(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = "The pier. " * 100_000
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 50_000, pyarrow.int32()), pyarrow.array([text]))
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"context": column}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20  # 50 GB of text
    before = pyarrow.total_allocated_bytes()
    for number, row in enumerate(read_rows(place_of(str(path)))):
        assert isinstance(row, Row) and row.size > 1_000_000
        assert pyarrow.total_allocated_bytes() - before < 50 << 20
        if number == 200:
            break


@needs_pyarrow
def test_columns_of_json_become_the_types_that_hold_all_their_values(
    tmp_path: Path, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "chunk_tokens", lambda *_: 1)  # each row is a part of its own
    values: list[dict[str, Any]] = [
        {"a": 1, "b": "x", "c": [1]},
        {"a": 2.5, "b": 3, "d": None},
        {"a": None, "b": {"k": 1}, "c": [2]},
    ]
    write(tmp_path / "in.jsonl", [ROWS[0] | more for more in values])
    run(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    found = read(tmp_path / "out.parquet")
    assert [row["a"] for row in found] == [1.0, 2.5, None]
    assert [row["b"] for row in found] == ["x", "3", '{"k": 1}']
    assert [row["c"] for row in found] == [[1], None, [2]]
    assert list(found[0])[-1] == "prediction"
    run(tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert [(row["b"], row["c"], row["d"]) for row in read(tmp_path / "out.csv")] == [
        ("x", "[1]", ""), ("3", "", ""), ('{"k": 1}', "[2]", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("source", ["in.jsonl", "in.csv", pytest.param("in.parquet", marks=needs_pyarrow)])
def test_no_rows_are_an_output_without_rows(source: str, out: str, tmp_path: Path, mini: Reader) -> None:
    path = write(tmp_path / source, [ROWS[0]])
    if source == "in.parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.slice(0, 0), path)
    elif source == "in.csv":
        path.write_text(path.read_text().splitlines()[0])
    else:
        path.write_text("")
    assert batched(mini, path, tmp_path / out).counts.rows == 0
    assert read(tmp_path / out) == []


def test_what_cannot_begin_is_refused_by_name(tmp_path: Path, command: Command) -> None:
    source = write(tmp_path / "in.csv")

    def refused(words: str, *arguments: str | Path) -> None:
        done = command("batch", *map(str, arguments))
        assert done.returncode in (1, 2) and words in done.stderr, done.stderr
        assert not list(tmp_path.glob("out*"))

    out = tmp_path / "out.jsonl"
    refused("no column 'frage'", source, out, "--question", "frage")
    refused("It has: id, question, context, n", source, out, "--context", "text")
    refused("would replace it", source, source, "--overwrite")
    bad = write(tmp_path / "x.jsonl.bad.jsonl")
    refused("would replace it", bad, tmp_path / "x.jsonl")
    refused("already exists", source, write(tmp_path / "there.jsonl"))
    refused("no format of rows", source, tmp_path / "out.xlsx")
    refused("jq -c", tmp_path / "in.json", out)
    refused("Leave out .gz", source, tmp_path / "out.parquet.gz")
    refused("does not exist. Create it first", source, tmp_path / "nowhere" / "out.jsonl")
    refused("does not exist", tmp_path / "nothing.jsonl", out)
    refused("no column 'lamp' to drop", source, out, "--drop", "lamp")
    refused("has a column 'n' already", source, out, "--into", "n")
    refused("expected the name of a column", source, out, "--into", " ")
    refused("not both", source, out, "--ask", "Who?", "--question", "question")
    refused("not known before it has ended", "-", tmp_path / "out.csv")
    refused("is for texts", source, out, "--questions", source)
    refused("is for texts", source, out, "--encoding", "latin-1")
    refused("The question is empty", source, out, "--ask", " ")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(PIER)
    refused("is for rows", folder, out, "--ask", "Who?", "--context", "text")
    refused("would be one of the texts", folder, folder / "out.jsonl", "--ask", "Who?")
    write(folder / "b.jsonl")
    refused("would be one of the texts", folder / "*", folder / "b.jsonl", "--ask", "Who?", "--overwrite")
    refused("There is no file", tmp_path / "*.txt", out)
    refused("ask something", folder, out)
    twice = tmp_path / "twice.csv"
    twice.write_text("question,context,context\n")
    refused("twice", twice, out)
    broken_head = tmp_path / "head.csv"
    broken_head.write_text('"question"s,context\n')
    refused("has no readable head", broken_head, out)
    foreign = tmp_path / "foreign.csv"
    foreign.write_bytes("question,context,Größe\n".encode("latin-1"))
    refused("is not UTF-8", foreign, out)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"question": "Who?", "context": "A pier."}\n' * 500)[:60])
    refused("damaged gzip", broken, out)
    wide = tmp_path / "wide.jsonl"
    wide.write_bytes("{}".encode("utf-16"))
    refused("UTF-16", wide, out)
    table = tmp_path / "table.jsonl"
    table.write_bytes(b"PAR1 and more")
    refused("is a Parquet file", table, out)
    other = tmp_path / "other.jsonl"
    other.write_text("question,context\n" * 1000)
    refused("None of the first 1,000 rows", other, out)
    if installed("parquet"):
        wrong = tmp_path / "wrong.parquet"
        wrong.write_bytes(b"no table")
        refused("cannot be read as Parquet", wrong, out)
        wrong = tmp_path / "wrong.jsonl.zst"
        wrong.write_bytes(b"\x28\xb5\x2f\xfd no frame")
        refused("damaged Zstandard", wrong, out)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_no_file_of_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.jsonl")
    handle = os.open(tmp_path / "in.jsonl", os.O_RDWR)  # so that opening it does not wait
    try:
        with pytest.raises(DatasetError, match="is no plain file"):
            next(read_rows(place_of(str(tmp_path / "in.jsonl"))))
    finally:
        os.close(handle)


def test_errors_of_the_library_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no format of rows\. Expected \.jsonl"):
        place_of("rows.txt")


# --- standard input and output


def test_a_pipe_in_and_a_pipe_out(tmp_path: Path) -> None:
    given = "".join(json.dumps(row) + "\n" for row in [*ROWS[:2], {"question": "Who?"}])
    done = subprocess.run(
        [sys.executable, "-m", "spanqa", "batch", "-", "-"], input=given, capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["prediction"]["text"] for line in done.stdout.splitlines()] == ["Anna Kestrel", "1873"]
    assert '"row": 3' in done.stderr and "2 answered" in done.stderr


# --- texts


def test_questions_of_a_folder_are_ranked_over_all_its_texts(
    tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(PIER)
    (folder / "b.txt").write_text("The tower is 40 metres high.")
    (folder / "c.txt").write_text("")
    (tmp_path / "questions.txt").write_text("How high is the tower?\n\nWho built the pier?\n" + "who " * 500)
    summary = run(folder, tmp_path / "out.csv", "--questions", tmp_path / "questions.txt")
    assert (summary["rows"], summary["bad"]) == (3, 1)
    found = read(tmp_path / "out.csv")
    assert [(row["question"], row["prediction_text"], Path(row["prediction_source"]).name) for row in found] == [
        ("How high is the tower?", "40 metres high", "b.txt"),
        ("Who built the pier?", "Anna Kestrel", "a.txt"),
    ]
    assert found[0]["windows_read"] == found[0]["windows_total"] == "2"
    [bad] = lines(tmp_path / "out.csv.bad.jsonl")
    assert bad["line"] == 4
    run(str(folder / "*.txt"), tmp_path / "one.jsonl", "--ask", "Who built the pier?")
    assert read(tmp_path / "one.jsonl")[0]["prediction"]["text"] == "Anna Kestrel"


# --- chunks and interruptions


def test_a_chunk_is_a_matter_of_the_model_and_not_of_the_machine(
    mini: Reader, tiny_reader: Callable[..., Reader]
) -> None:
    ours = chunk_tokens(mini.checkpoint, setup_of(mini), 384)
    assert ours == pytest.approx(30 * 6e10 / (6 * (8 * 384**2 + 4 * 384 * 1536 + 4 * 384 * 384)), abs=1)
    assert chunk_tokens(tiny_reader().checkpoint, setup_of(tiny_reader()), 64) > ours


def test_rows_are_cut_into_the_same_chunks_whenever_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "CHUNK_ROWS", 3)
    monkeypatch.setattr(job, "CHUNK_BYTES", 100)

    def asked(number: int, tokens: int, size: int) -> Asked:
        return Asked(Row(number, None, {}, size), ("",), ("x" * int(3.5 * tokens),))

    given: list[Asked | BadRow] = [
        asked(1, 10, 1), asked(2, 10, 1), asked(3, 10, 1), asked(4, 10, 1),  # three rows are enough
        asked(5, 500, 1), asked(6, 10, 1),  # one is too long to share
        asked(7, 10, 90), BadRow(8, None, "", size=20),  # too many bytes
    ]  # fmt: skip

    def numbers(chunk: Chunk) -> list[int]:
        return [each.row.number if isinstance(each, Asked) else each.number for each in chunk.rows]

    chunks = list(cut_chunks(given, 300))
    assert [numbers(chunk) for chunk in chunks] == [[1, 2, 3], [4], [5], [6, 7], [8]]
    assert [chunk.number for chunk in chunks] == [1, 2, 3, 4, 5]


def test_no_batch_has_windows_of_two_chunks(mini: Reader) -> None:
    seen: list[int] = []
    mini.engine.observers.append(lambda record: seen.append(record.rows))
    try:
        chunks = [
            Chunk(number, tuple(Asked(Row(1, None, {}, 1), ("Who?",), (PIER,)) for _ in range(number)))
            for number in (1, 2, 3)
        ]
        results = list(answer_chunks(iter(chunks), mini, AnswerRule()))
    finally:
        mini.engine.observers.pop()
    assert seen == [1, 2, 3]
    assert [(result.number, len(result.answered)) for result in results] == [(1, 1), (2, 2), (3, 3)]


SMALL_CHUNKS = (
    "from spanqa.scale import batch; batch.chunk_tokens = lambda *_: 300; from spanqa.__main__ import main; main()"
)


def started(folder: Path, source: str, out: str, model: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        SMALL_CHUNKS,
        "batch",
        source,
        out,
        "--model",
        str(model),
        "--dtype",
        "fp32",
        "--json",
    ]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed_somewhere(folder: Path, out: str, times: int, model: Path, seed: int) -> int:
    """Start a job so many times, kill it somewhere, and let it end; return the rows that the last run found done."""
    chance, killed = random.Random(seed), 0
    log = folder / f"{out}.job" / "done.jsonl"
    for _ in range(times):
        before = log.stat().st_size if log.exists() else 0
        with started(folder, "in.jsonl", out, model) as process:
            while process.poll() is None and (log.stat().st_size if log.exists() else 0) <= before:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= times - 1  # a fast machine may be done before the last one
    with started(folder, "in.jsonl", out, model) as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    return int(json.loads(said)["resumed_rows"])


@pytest.mark.parametrize("out", ["out.jsonl.gz", "out.csv", pytest.param("out.parquet", marks=needs_pyarrow)])
def test_a_job_that_is_killed_five_times_gives_the_same_file(
    out: str, tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    write(tmp_path / "in.jsonl", ROWS * 20)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("broken\n")
    assert killed_somewhere(tmp_path, out, 5, tiny("bert"), seed=len(out)) > 0
    with started(tmp_path, "in.jsonl", f"whole-{out}", tiny("bert")) as process:
        process.communicate()
    assert len(read(tmp_path / out)) == 400
    if out.endswith("parquet"):
        assert read(tmp_path / out) == read(tmp_path / f"whole-{out}")
    else:
        assert (tmp_path / out).read_bytes() == (tmp_path / f"whole-{out}").read_bytes()
    assert (tmp_path / f"{out}.bad.jsonl").read_bytes() == (tmp_path / f"whole-{out}.bad.jsonl").read_bytes()
    assert not (tmp_path / f"{out}.job").exists()


def interrupted(chunks: int, reader: Reader) -> batch.Answering:
    """An answering that ends after some chunks, as Ctrl-C would end it."""

    def answering(given: Iterable[Chunk], progress: Progress) -> Iterator[Result]:
        for number, result in enumerate(answer_chunks(given, reader, AnswerRule())):
            if number == chunks:
                raise KeyboardInterrupt
            yield result

    return answering


@pytest.fixture
def half_done(tmp_path: Path, mini: Reader, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a job that was interrupted after three chunks."""
    monkeypatch.setattr(batch, "chunk_tokens", lambda *_: 100)
    write(tmp_path / "in.jsonl")
    given = batch.rows_input(place_of(str(tmp_path / "in.jsonl")))
    with pytest.raises(KeyboardInterrupt):
        batch.run_batch(mini, given, place_of(str(tmp_path / "out.jsonl")), answering=interrupted(3, mini))
    assert (tmp_path / "out.jsonl.job").exists() and not (tmp_path / "out.jsonl").exists()
    return tmp_path / "out.jsonl"


def test_a_job_goes_on_where_it_was(half_done: Path, run: Callable[..., dict[str, Any]]) -> None:
    with (half_done.parent / "out.jsonl.job" / "done.jsonl").open("a") as log:
        log.write('{"chunk": 4, "ro')  # the machine died here
    summary = run(half_done.parent / "in.jsonl", half_done)
    assert 0 < summary["resumed_rows"] < 20 == summary["rows"]
    assert [row["id"] for row in read(half_done)] == [row["id"] for row in ROWS]


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_job_that_is_interrupted_says_how_to_go_on(
    name: str, code: int, tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    write(tmp_path / "in.jsonl", ROWS * 100)
    with started(tmp_path, "in.jsonl", "out.jsonl", tiny("bert")) as process:
        while process.poll() is None and not (tmp_path / "out.jsonl.job" / "done.jsonl").exists():
            time.sleep(0.002)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate()
    assert process.returncode == code
    assert "Run the same command again to go on" in errors
    assert not list((tmp_path / "out.jsonl.job").glob(".*.partial"))


@pytest.mark.skipif(os.name != "posix", reason="needs descriptors")
def test_standard_output_that_is_closed(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS[:1])
    command = f"exec {shlex.quote(sys.executable)} -m spanqa batch in.jsonl - >&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("spanqa: Standard output is closed."), done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "3"], "threshold was null, is 3.0"),
        (["--top-k", "2"], "top_k was 1, is 2"),
        (["--drop", "n"], 'drop was [], is ["n"]'),
        (["--max-seq-length", "128"], "windows was"),
        (["--no-text"], "no_text was false, is true"),
    ],
)
def test_another_job_does_not_go_on_with_it(half_done: Path, options: list[str], words: str, command: Command) -> None:
    again = ["batch", str(half_done.parent / "in.jsonl"), str(half_done), "--dtype", "fp32", "--json"]
    done = command(*again, *options)
    assert done.returncode == 1 and words in done.stderr, done.stderr
    done = command(*again, *options, "--overwrite")
    assert done.returncode == 0 and json.loads(done.stdout)["resumed_rows"] == 0


def test_another_input_does_not_go_on_with_it(half_done: Path, mini: Reader) -> None:
    write(half_done.parent / "in.jsonl", ROWS[::-1])
    place, out = place_of(str(half_done.parent / "in.jsonl")), place_of(str(half_done))
    with pytest.raises(InputError, match="unfinished job with other settings: input was"):
        batch.run_batch(mini, batch.rows_input(place), out)
    piped = batch.Input(iter(()), {"name": "standard input"}, resumable=False)
    with pytest.raises(InputError, match="standard input cannot be read again"):
        batch.run_batch(mini, piped, out)


def test_files_of_others_are_never_removed(tmp_path: Path, mini: Reader) -> None:
    source, out = write(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    folder = tmp_path / "out.jsonl.job"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"holds 'thesis\.txt', which is of no job"):
        batched(mini, source, out)
    assert (folder / "thesis.txt").read_text() == "precious"


def test_an_output_that_appeared_meanwhile_is_not_replaced(half_done: Path, mini: Reader) -> None:
    half_done.write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        batched(mini, half_done.parent / "in.jsonl", half_done)
    assert half_done.read_text() == "precious"


def test_a_job_whose_files_are_damaged_does_the_missing_chunks_again(half_done: Path, mini: Reader) -> None:
    folder = half_done.parent / "out.jsonl.job"
    (folder / "00000001.part").unlink()
    log = (folder / "done.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "done.jsonl").write_bytes(log[0] + b"\0" * 20 + b"\n[1]\n" + b"".join(log[2:]))
    batched(mini, half_done.parent / "in.jsonl", half_done)
    assert [row["id"] for row in read(half_done)] == [row["id"] for row in ROWS]


def test_a_list_of_bad_rows_that_is_lost_is_made_again(tmp_path: Path, mini: Reader) -> None:
    source, out = write(tmp_path / "in.jsonl", [{"question": "", "context": PIER}, *ROWS]), tmp_path / "out.jsonl"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch, "chunk_tokens", lambda *_: 100)
        given = batch.rows_input(place_of(str(source)))
        with pytest.raises(KeyboardInterrupt):
            batch.run_batch(mini, given, place_of(str(out)), answering=interrupted(2, mini))
        (tmp_path / "out.jsonl.job" / "00000001.bad").unlink()
        assert batched(mini, source, out).counts.bad == 1
    assert len(lines(tmp_path / "out.jsonl.bad.jsonl")) == 1


@pytest.mark.parametrize("damaged", ["", "[]", "{"])
def test_a_job_whose_record_is_damaged_is_not_forgotten_silently(damaged: str, half_done: Path, mini: Reader) -> None:
    (half_done.parent / "out.jsonl.job" / "job.json").write_text(damaged)
    with pytest.raises(InputError, match=r"job\.json' is damaged"):
        batched(mini, half_done.parent / "in.jsonl", half_done)
    assert list((half_done.parent / "out.jsonl.job").glob("*.part"))


def test_a_kill_while_the_job_ends_leaves_no_job(
    half_done: Path, mini: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        batched(mini, half_done.parent / "in.jsonl", half_done)
    assert not (half_done.parent / "out.jsonl.job" / "job.json").exists()
    half_done.unlink()
    batched(mini, half_done.parent / "in.jsonl", half_done)  # what was left is removed
    assert not (half_done.parent / "out.jsonl.job").exists()


def test_a_finished_output_is_replaced_only_at_the_end(half_done: Path, run: Callable[..., dict[str, Any]]) -> None:
    source = half_done.parent / "in.jsonl"
    run(source, half_done)
    before = half_done.read_bytes()
    run(source, half_done, "--overwrite")
    assert half_done.read_bytes() == before


def test_a_full_disk_stops_at_the_last_whole_chunk(
    half_done: Path, mini: Reader, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, out = place_of(str(half_done.parent / "in.jsonl")), place_of(str(half_done))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"the disk is full\. The chunks that are done are kept"):
            batch.run_batch(mini, batch.rows_input(place), out)
    with monkeypatch.context() as patched:
        patched.setattr(job, "_LEAST_FREE", 1 << 62)
        with pytest.raises(InputError, match=r"is full: .* MB are free"):
            batch.run_batch(mini, batch.rows_input(place), out)
    assert run(place.path, half_done)["resumed_rows"] > 0
    assert len(read(half_done)) == 20
    folder = half_done.parent / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(InputError, match=r"is a folder\. Give the name of a file"):
        batch.run_batch(mini, batch.rows_input(place), place_of(str(folder)))


def test_progress_is_shown_within_a_chunk_and_never_goes_back(
    tmp_path: Path, mini: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "chunk_tokens", lambda *_: 300)
    given = batch.rows_input(place_of(str(write(tmp_path / "in.jsonl"))))
    shown: list[tuple[int, int]] = []
    batch.run_batch(
        mini,
        given,
        place_of(str(tmp_path / "out.jsonl")),
        progress=lambda done, total, note="": shown.append((done, total)),
    )
    done = [each[0] for each in shown]
    assert done == sorted(done) and done[-1] == 20
    assert {each[1] for each in shown} == {20}
    assert len(shown) > 6


def test_two_runs_do_not_write_one_output(half_done: Path, mini: Reader) -> None:
    place, out = place_of(str(half_done.parent / "in.jsonl")), place_of(str(half_done))

    def answering(chunks: Iterable[Chunk], progress: Progress) -> Iterator[Result]:
        with pytest.raises(InputError, match="Another run writes to"):
            batch.run_batch(mini, batch.rows_input(place), out)
        return answer_chunks(chunks, mini, AnswerRule())

    batch.run_batch(mini, batch.rows_input(place), out, answering=answering)
    assert len(read(half_done)) == 20


IN_LITTLE_MEMORY = """
import resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_AS, (600_000_000, 600_000_000))
from spanqa.batches import SpanLogits
from spanqa.checkpoint import open_checkpoint
from spanqa.progress import Progress
from spanqa.reader import Reader
from spanqa.scale import place_of, rows_input, run_batch

class AtOnce:
    name, device, dtype, layouts, batch_tokens, batches_at_once = "at once", "cpu", "fp32", ("padded",), 4096, 1

    def forward(self, batch, *, capture=None):
        zeros = np.zeros(batch.input_ids.shape, np.float32)
        return SpanLogits(zeros, zeros)

reader = Reader(open_checkpoint(sys.argv[1]), AtOnce())
print(run_batch(reader, rows_input(place_of("in.jsonl.gz")), place_of("out.jsonl.gz")).counts.rows)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems count memory otherwise")
def test_a_file_that_is_larger_than_the_memory(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    row = json.dumps({"question": "Who?", "context": PIER, "note": "x" * 1_000_000}).encode() + b"\n"
    with gzip.open(tmp_path / "in.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(1000):
            file.write(row)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, str(tiny("bert"))]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr
