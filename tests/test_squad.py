import errno
import gzip
import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanqa.errors import DatasetError, InputError
from spanqa.files import (
    check_keeps,
    claimed,
    new_folder,
    read_json,
    read_standard_input,
    read_text,
    replacing,
    write_json,
)
from spanqa.squad import Example, GoldAnswer, json_object_writer, read_squad
from strategies import nasty_texts

PIER = "The pier was built by Anna Kestrel in 1891."
BUILDER = {"id": "q1", "question": "Who built it?", "answers": [{"text": "Anna Kestrel", "answer_start": 22}]}
LENGTH = {"id": "q2", "question": "How long is it?", "answers": [], "is_impossible": True, "cause": "E"}


def squad(*qas: Any, **changes: Any) -> dict[str, Any]:
    paragraph = {"context": PIER, "qas": list(qas)} | changes
    return {"version": "v2.0", "data": [{"title": "Piers", "paragraphs": [paragraph]}]}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_file_is_read_into_examples_in_its_order(tmp_path: Path) -> None:
    examples = read_squad(write(tmp_path / "dev.json", squad(BUILDER, LENGTH)))
    assert examples == [
        Example("q1", "Who built it?", PIER, (GoldAnswer("Anna Kestrel", 22),), "Piers"),
        Example("q2", "How long is it?", PIER, (), "Piers", "E"),
    ]
    assert examples[0].passage is examples[1].passage


def test_a_gzipped_file_is_read_the_same(tmp_path: Path) -> None:
    plain = write(tmp_path / "dev.json", squad(BUILDER, LENGTH))
    (tmp_path / "dev.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read_squad(tmp_path / "dev.json.gz") == read_squad(plain)


def test_version_1_files_have_no_is_impossible_and_may_have_numbers_as_ids(tmp_path: Path) -> None:
    (example,) = read_squad(write(tmp_path / "dev.json", squad(BUILDER | {"id": 17})))
    assert (example.id, len(example.answers)) == ("17", 1)


def test_answers_of_an_impossible_question_do_not_count(tmp_path: Path) -> None:
    """SQuAD 2.0 stores plausible answers separately; some files put them here."""
    (example,) = read_squad(write(tmp_path / "dev.json", squad(BUILDER | {"is_impossible": True})))
    assert example.answers == ()


def test_a_missing_title_is_empty(tmp_path: Path) -> None:
    data = squad(BUILDER)
    del data["data"][0]["title"]
    assert read_squad(write(tmp_path / "dev.json", data))[0].title == ""


def test_the_byte_order_mark_is_dropped_and_line_ends_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(tmp_path / "a.txt") == "one\r\ntwo\rthree\n"


def where(value: Any, message: str) -> Any:
    return pytest.param(value, message, id=message[:40])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        where([], r'is not a SQuAD file: expected an object with a list under "data", found a list\. See docs/guide'),
        where({"version": "2"}, r'expected an object with a list under "data", found an object without it\.'),
        where({"data": {}}, r'expected an object with a list under "data", found an object without it\.'),
        where({"data": []}, "has no question. Expected at least one"),
        where(squad(), "has no question"),
        where({"data": [7]}, r"data\[0\]: expected an object, found a whole number"),
        where({"data": [{}]}, r'data\[0\] has no "paragraphs", which SQuAD files must have. See docs/guide/evaluate.md'),
        where({"data": [{"paragraphs": {}}]}, r'data\[0\]: expected "paragraphs" to be a list, found an object'),
        where(squad(context=None), r'data\[0\].paragraphs\[0\]: expected "context" to be a string, found null'),
        where(squad("who?"), r"data\[0\].paragraphs\[0\].qas\[0\]: expected an object, found a string"),
        where(squad(BUILDER, BUILDER), "has the question id 'q1' twice. Question ids must be unique"),
        where(squad(BUILDER | {"id": True}), r'expected "id" to be a string or a whole number, found true or false'),
        where(squad(BUILDER | {"question": ["x"]}), r'qas\[0\]: expected "question" to be a string, found a list'),
        where(squad({"id": "q", "question": "?"}), r'qas\[0\] has no "answers"'),
        where(squad(BUILDER | {"answers": ["Anna"]}), r"qas\[0\].answers\[0\]: expected an object, found a string"),
        where(squad(BUILDER | {"answers": [{"text": "Anna"}]}), r'answers\[0\] has no "answer_start"'),
        where(squad(BUILDER | {"answers": [{"text": "A", "answer_start": 1.5}]}), r"answers\[0\]: the answer's start is 1.5; expected a whole number"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_squad_file_is_refused_with_the_location(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read_squad(write(tmp_path / "dev.json", data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{'data': []}", "is not JSON: Expecting property name .*line 1"),
        (b"", "is not JSON: Expecting value"),
        (b"[" * 100_000, "contains JSON that Python cannot read: maximum recursion depth"),
        (b"1" * 10_000, "contains JSON that Python cannot read: Exceeds the limit"),
        (b"\x1f\x8bnot gzip at all", r"is a damaged gzip file \("),
        (gzip.compress(b"{}" * 99)[:-9], r"is a damaged gzip file \(.*Download or create it again"),
        (gzip.compress(b"{}")[:-6] + b"\x00" * 6, r"is a damaged gzip file \(CRC check failed"),
        (b"\x7fELF\x00\x00", "is a binary file. Expected plain UTF-8 text; extract the text from it first"),
        ("{\"a\": \"é\"}".encode("latin1"), "is not UTF-8: found byte 0xe9 at position 7. Convert it first, .* iconv -f cp1252"),
    ],
)  # fmt: skip
def test_a_file_without_json_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_json(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"File '.*nowhere.json' does not exist. Check the name, or give the full path"
    ):
        read_squad(tmp_path / "nowhere.json")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is a folder. Expected a file; give the files in it"):
        read_text(tmp_path)


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"'x+' cannot be read: File name too long"):
        read_text("x" * 5000)


@pytest.mark.parametrize("path", ["a\x00b", "/dev/null/file"])
def test_a_name_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(DatasetError, match="cannot be read: "):
        read_text(path)


# --- writing


@settings(max_examples=25)
@given(st.dictionaries(nasty_texts(4), st.one_of(nasty_texts(6), st.floats(allow_nan=False, allow_infinity=False))))
def test_what_is_written_entry_by_entry_is_one_json_object(tmp_path: Path, entries: dict[str, Any]) -> None:
    with json_object_writer(tmp_path / "out.json") as write_entry:
        for key, value in entries.items():
            write_entry(key, value)
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == entries
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with json_object_writer(tmp_path / "out.json") as write_entry:
        write_entry("q1", "Anna")
        assert not (tmp_path / "out.json").exists()
    assert json.loads((tmp_path / "out.json").read_text()) == {"q1": "Anna"}


def test_a_writer_left_by_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(RuntimeError, match="power cut"), json_object_writer(tmp_path / "out.json") as write_entry:
        write_entry("q1", "Anna")
        raise RuntimeError("power cut")
    assert (tmp_path / "out.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


@contextmanager
def disk_of(most: int) -> Iterator[None]:
    """Limit the size of files that this process writes: what is longer fails, as on a full disk. (The output of pytest may be one.)"""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    written = 0
    for seed in range(1000):
        draw = random.Random(seed)
        limit, entries = draw.randrange(1, 40_000), draw.randrange(1, 300)
        try:
            with disk_of(limit), json_object_writer(tmp_path / "out.json") as write_entry:
                for key in range(entries):
                    write_entry(str(key), "x" * draw.randrange(200))
            written += 1
            (tmp_path / "out.json").unlink()
        except OSError as error:
            assert error.errno == errno.EFBIG
        assert list(tmp_path.iterdir()) == []
    assert 100 < written < 900


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    for seed in range(1000):
        draw = random.Random(seed)
        key, value = ("".join(draw.choices('\ud800\udbff\udc80\udfffa\\"é𝒳\u2028', k=5)) for _ in range(2))
        key += "-"  # a high and a low surrogate that meet are one character in JSON
        with json_object_writer(tmp_path / "out.json") as write_entry:
            write_entry(key, value)
        text = (tmp_path / "out.json").read_text("utf-8")
        assert json.loads(text) == json.loads(json.dumps({key: value}))


def test_closed_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DatasetError, match=r"Standard input is closed. Give a file, or pipe text to standard input"):
        read_standard_input()


def test_standard_input_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "r") as stream, os.fdopen(reading):
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(DatasetError, match=r"Standard input cannot be read: Bad file descriptor. Give a file"):
            read_standard_input()


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text("{}")
    with pytest.raises(InputError, match=r"is an input of this command, which would replace it. Choose another"):
        check_keeps([None, tmp_path / "predictions.json"], tmp_path, ["record.json", "predictions.json"])


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "out"),
        pytest.raises(InputError, match=r"Another run writes to .*out'\. Wait until it is done"),
        claimed(tmp_path / "out"),
    ):
        raise AssertionError("not reached")
    with claimed(tmp_path / "out"):
        assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"The results cannot be written to .*: File exists"),
        claimed(tmp_path / "file"),
    ):
        raise AssertionError("not reached")


def test_a_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "out").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert (tmp_path / "a" / "out").stat().st_mode & 0o777 == 0o777 & ~umask()
    with (
        pytest.raises(InputError, match=r"Output folder .*out' already exists. Choose a new path"),
        new_folder(tmp_path / "a" / "out"),
    ):
        raise AssertionError("not reached")
    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "a" / "other"):
        (tmp_path / "a" / "other").mkdir()  # another run was faster
    with pytest.raises(RuntimeError, match="power cut"), new_folder(tmp_path / "a" / "more"):
        raise RuntimeError("power cut")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: Not a directory"), new_folder(tmp_path / "file" / "out"):
        raise AssertionError("not reached")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["other", "out"]


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_numbers_that_json_cannot_represent_are_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not JSON compliant"),
        json_object_writer(tmp_path / "out.json") as write_entry,
    ):
        write_entry("q1", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_value_is_written_completely(tmp_path: Path) -> None:
    write_json(tmp_path / "record.json", {"f1": 83.5, "model": "é"})
    assert json.loads((tmp_path / "record.json").read_text("utf-8")) == {"f1": 83.5, "model": "é"}
    assert list(tmp_path.iterdir()) == [tmp_path / "record.json"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"), replacing(tmp_path):
        raise AssertionError("not reached")
    assert list(tmp_path.iterdir()) == []
