"""Labelled questions from the files people have them in."""

import gzip
import hashlib
import json
import math
import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spanqa.cells import read_structure
from spanqa.errors import DatasetError
from spanqa.squad import Example, GoldAnswer, Label, Labelled
from spanqa.tables import read_examples, read_labelled

PASSAGE = "The pier, built in 1911; lit in 1954."


def rows(path: Path, text: str | bytes, name: str) -> list[Labelled]:
    file = path / name
    file.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return read_labelled(file)[0]


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
    assert read_labelled(tmp_path / "a.parquet")[0] == expected
    data.save_to_disk(tmp_path / "folder")
    assert read_labelled(tmp_path / "folder")[0] == expected
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DatasetError, match=r"holds the splits train. Give the folder of one split"):
        read_labelled(tmp_path / "splits")[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"is not a folder saved by Hugging Face datasets"):
        read_labelled(tmp_path / "empty")[0]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not quite")
    with pytest.raises(DatasetError, match=r"cannot be read as Parquet"):
        read_labelled(tmp_path / "bad.parquet")[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", r"holds no rows"),
        ("a.csv", "", r"holds no rows"),
        ("a.csv", "question,context,answer\n", r"holds no rows"),
        ("a.jsonl", "{", r"a.jsonl' is not JSON: Expecting property name"),
        ("a.jsonl", '{"question": "q", "context": "x", "answer": "x"}\n{', r"line 2 is not JSON"),
        ("a.jsonl", "[1]", r"\[0\]: expected an object, found 1"),
        ("a.jsonl", "{}\n[1]", r"line 1 lacks the columns for question and passage and answer"),
        (
            "a.jsonl",
            '{"question": "When?", "answer": "1911"}',
            r"lacks the column for passage. It has question, answer",
        ),
        ("a.jsonl", '{"a": 1}', r"lacks the columns for question and passage and answer"),
        ("a.jsonl", '{"question": "", "context": "x", "answer": ""}', r"a.jsonl': 'question' is ''; expected a text"),
        ("a.jsonl", '{"question": "q", "context": 3, "answer": ""}', r"a.jsonl': 'context' is 3; expected a text"),
        (
            "a.jsonl",
            '{"question": "q", "context": "x", "answer": 3}',
            r"a.jsonl': the answer 3 is a int; expected a text",
        ),
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
        ("a.csv", "question,context,answer\nWho?,a,b,c\n", r"row 1 has more cells than columns"),
        ("a.csv", "question,context,answer\nWho?,a\n", r"row 1 has fewer cells than columns. Give each row 3 cells"),
        ("a.csv", "question,answer,context,answer\n", r"has the column 'answer' twice"),
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
        read_labelled(tmp_path / name)[0]


def test_bad_rows_are_reported_by_their_place(tmp_path: Path) -> None:
    lines = ['{"question": "q", "context": "x", "answer": "x"}', '{"question": "q", "passage": null, "answer": "x"}']
    with pytest.raises(DatasetError, match=r"line 2: 'passage' is None; expected a text"):
        rows(tmp_path, "\n".join(lines), "a.jsonl")
    with pytest.raises(DatasetError, match=r"data\[1\]: 'passage' is None; expected a text"):
        rows(tmp_path, f'{{"data": [{",".join(lines)}]}}', "a.json")


def test_rows_may_have_other_columns_than_the_first_row(tmp_path: Path) -> None:
    lines = [
        {"question": "When?", "context": PASSAGE, "answer": "1911"},
        {"question": "When?", "context": PASSAGE, "answer": "1911", "start": 19},
        {"question": "When?", "context": PASSAGE, "is_impossible": True},
    ]
    found = rows(tmp_path, "\n".join(map(json.dumps, lines)), "a.jsonl")
    assert [question.labels for question in found] == [(Label("1911"),), (Label("1911", 19),), ()]


# --- what pandas and Hugging Face datasets write


def table(**columns: object) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"question": "When?", "context": PASSAGE, **columns})


def test_the_column_of_row_numbers_is_not_looked_at(tmp_path: Path) -> None:
    table(answer=["1911", "1954"]).to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().startswith(",question")
    expected = [Labelled(f"row-{n}", "When?", PASSAGE, (Label(text),)) for n, text in ((1, "1911"), (2, "1954"))]
    assert read_labelled(tmp_path / "a.csv")[0] == expected
    pytest.importorskip("pandas").read_csv(tmp_path / "a.csv").to_csv(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text().startswith(",Unnamed: 0,")
    assert read_labelled(tmp_path / "again.csv")[0] == expected


def test_a_start_beside_a_missing_one_is_a_float(tmp_path: Path) -> None:
    table(answer=["1911", "1954", None], start=[19, None, None]).to_csv(tmp_path / "a.csv", index=False)
    assert "19.0" in (tmp_path / "a.csv").read_text()
    found = read_labelled(tmp_path / "a.csv")[0]
    assert [question.labels for question in found] == [(Label("1911", 19),), (Label("1954"),), ()]


def test_lists_in_two_columns_belong_together(tmp_path: Path) -> None:
    text = f'question,context,answers,answer_start\nWhen?,"{PASSAGE}","[""1911"", ""1954""]","[19, 32]"\n'
    (found,) = rows(tmp_path, text, "a.csv")
    assert found.labels == (Label("1911", 19), Label("1954", 32))


def test_lists_and_objects_are_read_however_they_were_written() -> None:
    """As JSON, and as pandas and NumPy write lists, arrays and objects into a cell; the words may hold every mark."""
    for seed in range(1000):
        check_structures(random.Random(seed))


def check_structures(draw: random.Random) -> None:
    texts = [
        "".join(draw.choices("ab'\"\\\n [](){},:=.-1\u2028é𝒳", k=draw.randint(1, 8))) for _ in range(draw.randint(0, 3))
    ]
    starts = [draw.randrange(100) for _ in texts]
    arrays = {"text": np.array(texts, dtype=object), "answer_start": np.array(starts, dtype="int32")}
    whole = {"text": texts, "answer_start": starts}
    for written in (json.dumps(whole), str(whole), str(arrays)):
        assert read_structure(written) == whole
    for written, expected in (
        (repr(texts), texts),
        (str(arrays["text"]), texts),
        (str(arrays["answer_start"]), starts),
    ):
        assert read_structure(written) == expected
    assert read_structure(str([*map(np.int64, starts), *texts])) == [*starts, *texts]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "recursion"),
        ("[1, 2", "was never closed"),
        ("['a']['b']", "is neither a list nor an object"),
        ("[1 ; 2]", "'; 2]' is not part of a list or object"),
        ("[x]", "'x' is not part of a list or object"),
    ],
)
def test_a_text_that_is_no_list_or_object_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_structure(text)


@pytest.mark.parametrize("kind", ["plain", "numpy"])
def test_a_dataset_written_as_csv_keeps_its_labels(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    given = {
        "id": ["1", "2"], "question": ["When?", "Who?"], "context": [PASSAGE, PASSAGE],
        "answers": [{"text": ["1911", "in 1911"], "answer_start": [19, 16]}, {"text": [], "answer_start": []}],
    }  # fmt: skip
    data = datasets.Dataset.from_dict(given)
    if kind == "plain":
        data.to_csv(tmp_path / "a.csv")
    else:
        data.to_pandas().to_csv(tmp_path / "a.csv")
    first, second = read_labelled(tmp_path / "a.csv")[0]
    assert (first.labels, second.labels) == ((Label("1911", 19), Label("in 1911", 16)), ())


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("['1911' ... '1954']", r"row 1: .* looks like a list or an object and cannot be read: .* Write it as JSON"),
        ("{'text': ['1911'", r"row 1: .* looks like a list or an object"),
        ("[1911]", r"row 1: the answer 1911 is a int; expected a text"),
    ],
)
def test_a_list_that_was_cut_is_not_taken_for_a_text(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        rows(tmp_path, f'question,context,answers\nWhen?,"{PASSAGE}","{cell}"\n', "a.csv")


# --- questions without answers

FLAGS = {
    True: ("true", "True", "TRUE", " true ", "1", "1.0", True, 1, 1.0),
    False: ("false", "False", "FALSE", "0", "0.0", "", "nan", False, 0, 0.0, None, math.nan),
}
NO_FLAGS = ("yes", "no", "2", "-1", "t", 2, -1, 0.5, math.inf, [True], {"a": 1})


@pytest.mark.parametrize("flag", [True, False])
def test_is_impossible_is_read_in_all_its_spellings(tmp_path: Path, flag: bool) -> None:
    for value in FLAGS[flag]:
        row = {
            "id": "1",
            "question": "When?",
            "context": PASSAGE,
            "answer": "1911",
            "start": 19,
            "is_impossible": value,
        }
        qa = {"id": "1", "question": "When?", "answers": [{"text": "1911", "answer_start": 19}], "is_impossible": value}
        article = {"paragraphs": [{"context": PASSAGE, "qas": [qa]}]}
        expected = [Labelled("1", "When?", PASSAGE, () if flag else (Label("1911", 19),))]
        assert rows(tmp_path, json.dumps(row), "a.jsonl") == expected
        assert rows(tmp_path, json.dumps({"data": [article]}), "a.json") == expected
        if isinstance(value, str):
            text = f'id,question,context,answer,start,is_impossible\n1,When?,"{PASSAGE}",1911,19,{value}\n'
            assert rows(tmp_path, text, "a.csv") == expected


@pytest.mark.parametrize("value", NO_FLAGS, ids=str)
def test_another_is_impossible_is_refused_with_its_place(tmp_path: Path, value: object) -> None:
    row = {"question": "When?", "context": PASSAGE, "answer": "1911", "is_impossible": value}
    with pytest.raises(DatasetError, match=r'data\[1\]: "is_impossible" is .*; expected true or false, or 1 or 0'):
        rows(tmp_path, json.dumps({"data": [row | {"is_impossible": 0}, row]}), "a.json")
    qa = {"id": "1", "question": "When?", "answers": [], "is_impossible": value}
    with pytest.raises(DatasetError, match=r'paragraphs\[0\].qas\[0\]: "is_impossible" is'):
        rows(tmp_path, json.dumps({"data": [{"paragraphs": [{"context": PASSAGE, "qas": [qa]}]}]}), "a.json")


def test_a_file_without_answers_names_the_way_to_predictions(tmp_path: Path) -> None:
    row = json.dumps({"id": "1", "question": "When?", "context": PASSAGE})
    qa = {"id": "1", "question": "When?"}
    article = json.dumps({"data": [{"paragraphs": [{"context": PASSAGE, "qas": [qa]}]}]})
    for text in (row, article):
        with pytest.raises(DatasetError, match=r"For predictions .* spanqa evaluate FILE --predict-only --out DIR"):
            rows(tmp_path, text, "a.json")
        assert read_examples(tmp_path / "a.json", answers=False)[0] == [Example("1", "When?", PASSAGE)]


# --- the content decides what a file is

ROW = {"id": "1", "question": "When?", "context": PASSAGE, "answers": {"text": ["1911"], "answer_start": [19]}}
QA = {"id": "1", "question": "When?", "answers": [{"text": "1911", "answer_start": 19}]}
PARAGRAPH = {"context": PASSAGE, "qas": [QA]}
LINES = json.dumps(ROW) + "\n" + json.dumps({**ROW, "id": "2"}) + "\r\n\n"
FORMS = {
    "SQuAD": json.dumps({"data": [{"title": "", "paragraphs": [PARAGRAPH]}]}, indent=1),
    "a list of articles": json.dumps([{"title": "", "paragraphs": [PARAGRAPH]}]),
    "a list of paragraphs": json.dumps([PARAGRAPH], indent=1),
    "run_qa's rows": json.dumps({"version": "1", "data": [ROW]}),
    "a list of rows": json.dumps([ROW], indent=2),
    "one row": json.dumps(ROW, indent=2),
    "lines": LINES,
    "lines of paragraphs": json.dumps(PARAGRAPH) + "\n",
    "CSV": f'id,question,context,answer,start\n1,When?,"{PASSAGE}",1911,19\n',
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a", "63"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_under_every_name(tmp_path: Path, form: str, name: str) -> None:
    if form == "CSV" and "json" in name:
        pytest.skip("JSON in its name, and CSV in it")
    data = FORMS[form].encode()
    found = rows(tmp_path, gzip.compress(data) if name.endswith(".gz") else data, name)
    assert found[0] == Labelled("1", "When?", PASSAGE, (Label("1911", 19),))
    assert len(found) == 1 + (form == "lines")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_lines_end_at_line_feeds_only(tmp_path: Path, mark: str) -> None:
    row = {"id": "1", "question": f"When{mark}?", "context": PASSAGE + mark, "answer": "1911"}
    ascii = mark < " "  # JSON writes these as escapes
    lines = json.dumps(row, ensure_ascii=ascii) + "\r\n" + json.dumps({**row, "id": "2"}, ensure_ascii=ascii)
    for name in ("a.jsonl", "a.json"):
        one, two = rows(tmp_path, lines, name)
        assert one.passage == two.passage == PASSAGE + mark


def test_questions_as_labelled_are_examples_and_the_bytes_that_were_read_are_hashed(tmp_path: Path) -> None:
    lines = [{**ROW, "answers": ["1911", "1999"]}, {**ROW, "id": "2", "answers": []}]
    data = "\n".join(map(json.dumps, lines)).encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    examples, source = read_examples(tmp_path / "a.jsonl")
    assert examples[0].answers == (GoldAnswer("1911", PASSAGE.index("1911")), GoldAnswer("1999", -1))
    assert examples[1].answers == ()
    assert source == {"file": "a.jsonl", "sha256": hashlib.sha256(data).hexdigest()}
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    assert read_examples(tmp_path / "pipe") == (examples, source | {"file": "pipe"})
    writer.join()
    (tmp_path / "twice.jsonl").write_bytes(data.replace(b'"2"', b'"1"'))
    with pytest.raises(DatasetError, match="has the question id '1' twice"):
        read_examples(tmp_path / "twice.jsonl")


def test_one_passage_of_a_megabyte(tmp_path: Path) -> None:
    passage = "word " * 200_000 + "1911"
    line = json.dumps({"question": "When?", "context": passage, "answer": "1911"})
    (found,) = rows(tmp_path, f"question,context,answer\nWhen?,{passage},1911\n", "a.csv")
    assert found.passage == passage
    assert rows(tmp_path, line, "a.jsonl") == [found]
