"""Labelled questions from the files people have them in."""

import gzip
import json
from pathlib import Path

import pytest

from spanqa.errors import DatasetError
from spanqa.tables import Label, Labelled, read_labelled

PASSAGE = "The pier, built in 1911; lit in 1954."


def rows(path: Path, text: str | bytes, name: str) -> list[Labelled]:
    file = path / name
    file.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return list(read_labelled(file))


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"answer": "1911"}, (Label("1911"),)),
        ({"answer": "1911", "start": 19}, (Label("1911", 19),)),
        ({"answer": "1911", "answer_start": "19"}, (Label("1911", 19),)),
        ({"answer": "1911", "start": -1}, (Label("1911"),)),
        ({"answers": ["1911", "in 1911"]}, (Label("1911"), Label("in 1911"))),
        ({"answers": ["1911"], "start": [19]}, (Label("1911", 19),)),
        ({"answers": {"text": ["1911"], "answer_start": [19]}}, (Label("1911", 19),)),
        ({"answers": {"text": [], "answer_start": []}}, ()),
        ({"answers": {"text": "1911", "start": 19}}, (Label("1911", 19),)),
        ({"answers": [{"text": "1911", "answer_start": 19}, {"text": "pier"}]}, (Label("1911", 19), Label("pier"))),
        ({"answer": ""}, ()),
        ({"answer": None}, ()),
        ({"answers": []}, ()),
    ],
)
def test_answers_of_every_form(tmp_path: Path, row: dict[str, object], labels: tuple[Label, ...]) -> None:
    line = json.dumps({"id": 7, "question": "When?", "context": PASSAGE, **row})
    assert rows(tmp_path, line, "a.jsonl") == [Labelled("7", "When?", PASSAGE, labels)]


def test_csv_with_a_byte_order_mark_semicolons_quotes_and_line_breaks(tmp_path: Path) -> None:
    text = (
        f'\ufeffId;Question;Context;Answer;Start\r\n1;When?;"{PASSAGE}";1911;19\r\n2;"Who\nwas it?";"{PASSAGE}";;\r\n'
    )
    assert rows(tmp_path, text, "a.csv") == [
        Labelled("1", "When?", PASSAGE, (Label("1911", 19),)),
        Labelled("2", "Who\nwas it?", PASSAGE, ()),
    ]


def test_csv_answers_written_as_json_and_rows_without_ids(tmp_path: Path) -> None:
    quoted = '"[""1911"", ""1954""]"'
    text = f'question,context,answers\nWhen?,"{PASSAGE}",{quoted}\nWhen?,"{PASSAGE}",[sic]\n'
    assert rows(tmp_path, text, "a.csv") == [
        Labelled("row-1", "When?", PASSAGE, (Label("1911"), Label("1954"))),
        Labelled("row-2", "When?", PASSAGE, (Label("[sic]"),)),
    ]


def test_tabs_and_gzip(tmp_path: Path) -> None:
    text = gzip.compress(f"question\tpassage\ttext\ttitle\nWhen?\t{PASSAGE}\t1911\tPier\n".encode())
    assert rows(tmp_path, text, "a.tsv.gz") == [Labelled("row-1", "When?", PASSAGE, (Label("1911"),), "Pier")]


def test_squad_files(tmp_path: Path) -> None:
    answer = {"text": "1911", "answer_start": 19}
    paragraph = {"context": PASSAGE, "qas": [{"id": "1", "question": "When?", "answers": [answer]}]}
    text = json.dumps({"data": [{"title": "Pier", "paragraphs": [paragraph]}]})
    assert rows(tmp_path, text, "a.json") == [Labelled("1", "When?", PASSAGE, (Label("1911", 19),), "Pier")]


def test_parquet_and_datasets_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    given = {
        "id": ["1", "2"],
        "question": ["When?", "Who?"],
        "context": [PASSAGE, PASSAGE],
        "answers": [{"text": ["1911"], "answer_start": [19]}, {"text": [], "answer_start": []}],
    }
    expected = [Labelled("1", "When?", PASSAGE, (Label("1911", 19),)), Labelled("2", "Who?", PASSAGE, ())]
    data = datasets.Dataset.from_dict(given)
    data.to_parquet(tmp_path / "a.parquet")
    assert list(read_labelled(tmp_path / "a.parquet")) == expected
    data.save_to_disk(tmp_path / "folder")
    assert list(read_labelled(tmp_path / "folder")) == expected
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DatasetError, match=r"holds the splits train. Give the folder of one split"):
        list(read_labelled(tmp_path / "splits"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"is not a folder saved by Hugging Face datasets"):
        list(read_labelled(tmp_path / "empty"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not quite")
    with pytest.raises(DatasetError, match=r"cannot be read as Parquet"):
        list(read_labelled(tmp_path / "bad.parquet"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", r"holds no rows"),
        ("a.csv", "", r"holds no rows"),
        ("a.csv", "question,context,answer\n", r"holds no rows"),
        ("a.jsonl", "{", r"line 1 is not JSON"),
        ("a.jsonl", "[1]", r"line 1 should hold a JSON object"),
        (
            "a.jsonl",
            '{"question": "When?", "answer": "1911"}',
            r"lacks the column for passage. It has question, answer",
        ),
        ("a.jsonl", '{"a": 1}', r"lacks the columns for question and passage and answer"),
        ("a.jsonl", '{"question": "", "context": "x", "answer": ""}', r"row 1: 'question' is ''; expected a text"),
        ("a.jsonl", '{"question": "q", "context": 3, "answer": ""}', r"row 1: 'context' is 3; expected a text"),
        ("a.jsonl", '{"question": "q", "context": "x", "answer": 3}', r"row 1: the answer 3 is a int; expected a text"),
        (
            "a.jsonl",
            '{"question": "q", "context": "x", "answer": "x", "start": "b"}',
            r"start is 'b'; expected a whole",
        ),
        (
            "a.jsonl",
            '{"question": "q", "context": "x", "answer": "x", "start": 1.5}',
            r"start is 1.5; expected a whole",
        ),
        ("a.jsonl", '{"question": "q", "context": "x", "answers": ["x"], "start": [1, 2]}', r"1 texts and 2 starts"),
        (
            "a.jsonl",
            '{"question": "q", "context": "x", "answers": {"text": ["x"], "answer_start": []}}',
            "1 texts and 0 starts",
        ),
        ("a.jsonl", '{"question": "q", "context": "x", "answers": {"words": "x"}}', 'lacks "text"'),
        ("a.csv", "question,context,answer\nWho?,a,b,c\n", r"a row with more cells than columns"),
        ("a.csv", 'question,context,answer\nWho?,"a,b\n', r"is not valid CSV"),
        ("a.txt", "hello", r"has a format that spanqa does not read"),
    ],
)
def test_bad_files_are_reported(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        rows(tmp_path, text, name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.txt"])
def test_a_missing_file_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"File .* does not exist. Check the name"):
        list(read_labelled(tmp_path / name))


def test_bad_rows_are_reported_by_number(tmp_path: Path) -> None:
    lines = ['{"question": "q", "context": "x", "answer": "x"}', '{"question": "q", "passage": "x", "answer": "x"}']
    with pytest.raises(DatasetError, match=r"row 2: 'context' is None; expected a text"):
        rows(tmp_path, "\n".join(lines), "a.jsonl")


def test_one_passage_of_a_megabyte(tmp_path: Path) -> None:
    passage = "word " * 200_000 + "1911"
    line = json.dumps({"question": "When?", "context": passage, "answer": "1911"})
    (found,) = rows(tmp_path, f"question,context,answer\nWhen?,{passage},1911\n", "a.csv")
    assert found.passage == passage
    assert rows(tmp_path, line, "a.jsonl") == [found]
