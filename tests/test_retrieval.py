"""Which parts of long texts are read for a question."""

import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spanqa.errors import InputError
from spanqa.reader import Reader
from spanqa.retrieval import LIKELY_WINDOWS, MANY_WINDOWS, TextIndex, split_words
from spanqa.windows import WindowSettings
from tiny import SENTENCES

PIER = "The pier was built by Anna Kestrel in 1891."
WEATHER = [f"The weather in week {i} was fair, and nothing else is known of it." for i in range(400)]
QUESTION = "Who built the pier?"


@pytest.fixture(scope="module")
def reader(mini: Reader) -> Reader:
    """Short windows: a long text need not be so long."""
    return mini.with_settings(windows=WindowSettings(64))


def test_the_windows_with_the_words_of_the_question_are_read(reader: Reader) -> None:
    text = "\n".join([*WEATHER[:300], PIER, *WEATHER[300:]])
    choice = TextIndex(reader, [text], ["weather.txt"]).choose(QUESTION, 3)
    assert 1 <= choice.windows_read <= 3 < choice.windows_total
    assert not choice.complete and choice.matched
    answer = reader.ranking(QUESTION, choice.passages, 1).answers[0]
    assert answer.text == text[answer.start : answer.end] == "Anna Kestrel"
    assert answer.sentence == PIER
    assert (answer.source, answer.passage_index) == ("weather.txt", 0)


def test_positions_count_the_texts_given_though_few_of_them_are_read(reader: Reader) -> None:
    texts = [*WEATHER[:70], PIER, *WEATHER[70:]]
    choice = TextIndex(reader, texts).choose(QUESTION, 2)
    assert len(choice.passages) == len(texts)
    answer = reader.ranking(QUESTION, choice.passages, 1).answers[0]
    assert (answer.text, answer.passage_index, answer.start) == ("Anna Kestrel", 70, 22)


def test_no_more_windows_are_read_than_asked_for_and_positions_are_right_in_any_text(
    tiny_reader: Callable[[str], Reader],
) -> None:
    """1,000 questions of texts in many scripts."""
    draw = random.Random(0)
    sentences = [sentence for sentence in SENTENCES.splitlines() if sentence] + [
        "灯台は白い。" * 30,
        "x" * 400,
        "🙂 " * 40,
    ]
    for round_ in range(100):
        reader = tiny_reader(draw.choice(["bert", "roberta", "xlm-roberta"]))
        texts = [
            "".join(draw.choice(sentences) + draw.choice([" ", "\n", ""]) for _ in range(draw.randrange(1, 9)))
            for _ in range(draw.randrange(1, 4))
        ]
        index = TextIndex(reader, [*texts, texts[0]])
        for _ in range(10):
            most = draw.randrange(1, 12)
            question = draw.choice(["Who built the lighthouse?", "灯台", "Кто?", "xyz", "!"])
            choice = index.choose(question, most)
            windows = sum(len(passage.parts or ()) for passage in choice.passages)
            assert windows <= choice.windows_read <= most or choice.complete
            assert choice.complete == (choice.windows_read == choice.windows_total)
            for passage in choice.passages:
                bounds = [
                    (passage.tokens.offsets[first, 0], passage.tokens.offsets[stop - 1, 1])
                    for first, stop in passage.parts or ()
                    if first < stop
                ]
                assert np.all(np.diff(np.ravel(bounds)) >= 0)
        if round_ % 10 == 0:
            for answer in reader.ranking(question, choice.passages, 9).answers:
                assert answer.text == [*texts, texts[0]][answer.passage_index][answer.start : answer.end]  # type: ignore[index]
                assert answer.passage_index != len(texts)


def test_an_answer_never_reaches_from_one_part_of_a_text_into_another(reader: Reader) -> None:
    text = " ".join(f"{PIER} {' '.join(WEATHER[20 * i : 20 * i + 20])}" for i in range(20))
    choice = TextIndex(reader, [text]).choose(QUESTION, 12)
    [passage] = choice.passages
    assert passage.parts is not None and len(passage.parts) > 3
    parts = [(passage.tokens.offsets[a, 0], passage.tokens.offsets[b - 1, 1]) for a, b in passage.parts]
    for answer in reader.ranking(QUESTION, choice.passages, 50).answers:
        assert any(start <= answer.start and answer.end <= end for start, end in parts)  # type: ignore[operator]


def test_everything_is_read_up_to_a_number_of_windows_or_where_it_is_asked_for(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (MANY_WINDOWS, LIKELY_WINDOWS) == (2000, 300)
    monkeypatch.setattr("spanqa.retrieval.MANY_WINDOWS", 20)
    monkeypatch.setattr("spanqa.retrieval.LIKELY_WINDOWS", 3)
    short, long = " ".join(WEATHER[:20]), " ".join(WEATHER)
    assert TextIndex(reader, [short]).choose(QUESTION).complete
    index = TextIndex(reader, [long])
    assert index.choose(QUESTION).windows_read <= 3
    every = index.choose(QUESTION, read_all=True)
    assert every.complete and every.passages[0].parts is None
    estimated = index.choose(QUESTION).windows_total
    assert estimated == pytest.approx(every.windows_total, rel=0.1)
    assert index.choose(QUESTION, 10_000).complete


def test_everything_is_read_where_no_word_of_the_question_occurs(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanqa.retrieval.MANY_WINDOWS", 20)
    index = TextIndex(reader, [" ".join(WEATHER)])
    choice = index.choose("Xylophone?")
    assert choice.complete and not choice.matched
    first = index.choose("Xylophone?", 5)
    assert (first.matched, first.complete) == (False, False)
    assert first.passages[0].parts is not None and first.passages[0].tokens.offsets[0, 0] == 0
    assert not TextIndex(reader, ["!? " * 5000]).choose(QUESTION).matched


@pytest.mark.parametrize(
    ("others", "wanted", "question"),
    [
        ("天気は晴れでした。特に何もありません。", "灯台はアンナが建てました。", "誰が灯台を建てましたか"),
        ("那天天气很好，没有发生什么事情。", "这座灯塔由安娜建造。", "谁建造了灯塔"),
        ("วันนี้อากาศดีและไม่มีอะไรเกิดขึ้น ", "แอนนาสร้างประภาคารนี้ ", "ใครสร้างประภาคาร"),
        ("អាកាសធាតុថ្ងៃនេះល្អណាស់។ ", "អាណាបានសាងសង់បណ្ណាល័យនេះ។ ", "តើអ្នកណាសាងសង់បណ្ណាល័យ"),
        ("그날은 날씨가 맑았고 아무 일도 없었다. ", "등대는 안나가 지었다. ", "누가 등대를 지었습니까?"),
        ("El tiempo era bueno y no pasó nada. ", "El faro lo construyó Ana. ", "¿QUIÉN CONSTRUYO\u0301 el faro?"),
    ],
)
def test_a_question_finds_its_window_in_every_script(
    tiny_reader: Callable[[str], Reader], others: str, wanted: str, question: str
) -> None:
    reader = tiny_reader("xlm-roberta")
    text = others * 30 + wanted + others * 30
    choice = TextIndex(reader, [text]).choose(question, 2)
    start = text.index(wanted)
    [passage] = choice.passages
    assert any(
        passage.tokens.offsets[first, 0] <= start and start + len(wanted.strip()) <= passage.tokens.offsets[stop - 1, 1]
        for first, stop in passage.parts or ()
    )


def test_words_are_what_lies_between_spaces_or_characters_and_their_pairs() -> None:
    assert list(split_words("Prices (2011): İ, ﬁne, हिन्दी")) == ["prices", "2011", "i̇", "fine", "हिन्दी"]
    assert list(split_words("ABCと等")) == ["abc", "と", "等", "と等"]
    assert list(split_words("?!")) == []


def test_a_number_of_windows_that_makes_no_sense_is_refused(reader: Reader) -> None:
    index = TextIndex(reader, [PIER])
    for most, read_all in ((0, False), (3, True), (2.5, False)):
        with pytest.raises(InputError, match=r"max_windows is .* Give read_all alone, or a whole number of windows"):
            index.choose(QUESTION, most, read_all=read_all)  # type: ignore[arg-type]


def test_the_command_says_how_much_it_reads(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "weather.txt").write_text("\n".join([*WEATHER, PIER]))
    arguments = ("ask", QUESTION, tmp_path / "weather.txt", "--max-seq-length", "64", "--max-windows", "3")
    done = command(*arguments, "--json")
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["windows_read"] <= 3) == ("Anna Kestrel", True)
    assert done.stderr == (
        f"spanqa: reading the {answer['windows_read']} most likely of {answer['windows_total']} windows, by their words "
        "(--max-windows, --read-all)\n"
    )
    nothing = command(*arguments, "--threshold", "99")
    first = nothing.stdout.splitlines()[0]
    which = f"found in the {answer['windows_read']} most likely of {answer['windows_total']} windows"
    assert re.fullmatch(rf"Probably not {which} \(\d+%\); use --read-all\. Closest: Anna Kestrel \(\d+%\):", first)
    unknown = command("ask", "Xylophone?", *arguments[2:])
    assert "no word of the question occurs in the text; reading the first" in unknown.stderr
    every = command(*arguments[:3], "--json")
    assert every.stderr == ""
    record = json.loads(every.stdout)
    assert record["windows_read"] == record["windows_total"]
    both = command(*arguments, "--read-all")
    assert both.returncode == 2 and "give this or --max-windows, not both" in both.stderr
