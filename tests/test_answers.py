import json
import math
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import byhand
from spanqa.answers import Answer, AnswerSettings, Ranking, rank_spans
from spanqa.batches import WindowLogits
from spanqa.calibration import Calibration
from spanqa.errors import InputError
from spanqa.sentences import context_around, sentence_around
from spanqa.tokens import Passage, Tokens
from strategies import logits, nasty_passages, offsets


@st.composite
def readings(draw: st.DrawFn) -> tuple[list[Passage], list[list[WindowLogits]]]:
    """Up to three passages with the logits of windows that cover each."""
    passages, windows = [], []
    for _ in range(draw(st.integers(0, 3))):
        length = draw(st.integers(1, 8))
        where = draw(offsets(length))
        passages.append(Passage("x" * int(where[-1, 1]), Tokens(np.zeros(length, np.int32), where)))
        room = draw(st.integers(1, length))
        step = draw(st.integers(1, room))
        starts = [first for first in range(0, length, step) if first == 0 or first - step + room < length]
        windows.append(
            [
                WindowLogits(
                    first,
                    draw(logits(min(room, length - first))),
                    draw(logits(min(room, length - first))),
                    draw(st.integers(-8, 8)) / 2,
                    0.25,
                )
                for first in starts
            ]
        )
    return passages, windows


CALIBRATIONS = [Calibration(), Calibration(a=-1.5, b=0.4, temperature=2.5), Calibration(a=2, b=3, temperature=0.5)]


@given(readings(), st.sampled_from(CALIBRATIONS), st.integers(1, 6))
def test_scores_and_probabilities_are_those_of_the_formula_over_every_place(
    reading: tuple[list[Passage], list[list[WindowLogits]]], calibration: Calibration, longest: int
) -> None:
    passages, windows = reading
    margins = byhand.margins(passages, windows, longest)
    expected, no_answer = byhand.probabilities(margins, calibration)
    ranking = rank_spans(passages, windows, top_k=99, settings=AnswerSettings(longest), calibration=calibration)
    assert no_answer + sum(expected.values()) == pytest.approx(1, abs=1e-12)
    assert ranking.best_score == max(margins.values(), default=-math.inf)  # exact: the logits are halves
    # measured: 1.2e-7, the float32 step of M / T
    assert ranking.no_answer_probability == pytest.approx(no_answer, abs=1e-6)
    taken = byhand.places_taken(ranking.answers, passages, margins)
    for answer, here in zip(ranking.answers, taken, strict=True):
        assert answer.score == max(margins[place] for place in here)
        assert answer.probability == pytest.approx(sum(expected[place] for place in here), abs=1e-6)
        assert answer.no_answer_probability == ranking.no_answer_probability
        assert 0 <= answer.probability <= 1
    assert sum(map(len, taken)) == len(margins)
    assert sum(answer.probability for answer in ranking.answers) + no_answer == pytest.approx(1, abs=1e-5)


@given(readings(), st.integers(1, 6))
def test_top_k_changes_nothing_but_how_many(
    reading: tuple[list[Passage], list[list[WindowLogits]]], top_k: int
) -> None:
    every, some = rank_spans(*reading, top_k=99), rank_spans(*reading, top_k=top_k)
    assert some.answers == every.answers[:top_k]
    assert (some.best_score, some.no_answer_probability) == (every.best_score, every.no_answer_probability)


@given(readings())
def test_answers_are_distinct_do_not_overlap_and_come_best_first(
    reading: tuple[list[Passage], list[list[WindowLogits]]],
) -> None:
    answers = rank_spans(*reading, top_k=99).answers
    assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)
    for n, one in enumerate(answers):
        for other in answers[n + 1 :]:
            assert one.passage_index != other.passage_index or one.end <= other.start or other.end <= one.start


@given(readings())
def test_windows_joined_twice_or_in_another_order_change_nothing(
    reading: tuple[list[Passage], list[list[WindowLogits]]],
) -> None:
    passages, windows = reading
    twice = [[*reversed(of_passage), *of_passage] for of_passage in windows]
    assert rank_spans(passages, twice, top_k=9) == rank_spans(passages, windows, top_k=9)


@given(readings())
def test_a_further_passage_multiplies_all_other_probabilities_by_one_factor(
    reading: tuple[list[Passage], list[list[WindowLogits]]],
) -> None:
    passages, windows = reading
    before = rank_spans(passages[:-1], windows[:-1], top_k=99).answers
    after = [a for a in rank_spans(passages, windows, top_k=999).answers if a.passage_index < len(passages) - 1]
    assert [(a.passage_index, a.start, a.end, a.score) for a in after] == [
        (a.passage_index, a.start, a.end, a.score) for a in before
    ]
    if before and before[0].probability > 1e-6:
        factor = after[0].probability / before[0].probability
        for old, new in zip(before, after, strict=True):
            # measured: 2e-15 of the probability
            assert new.probability == pytest.approx(old.probability * factor, rel=1e-9, abs=1e-12)


def peaked(words: list[str], scores: dict[tuple[int, int], float]) -> tuple[list[Passage], list[list[WindowLogits]]]:
    """One window over words with single spaces; start logits of the firsts, end logits of the lasts; null is 0."""
    start, end = (np.full(len(words), -20, np.float32) for _ in range(2))
    for (first, last), score in scores.items():
        start[first] = end[last] = score / 2
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    where = np.stack([ends - [len(word) for word in words], ends], axis=1).astype(np.int32)
    passage = Passage(" ".join(words), Tokens(np.zeros(len(words), np.int32), where), source="letter.txt")
    return [passage], [[WindowLogits(0, start, end, 0.0, 0.0)]]


def test_an_answer_tells_its_words_its_place_and_its_sentence() -> None:
    words = ["It", "is", "old.", "It", "was", "built", "by", "Anna", "Kestrel", "in", "1891.", "It", "stands."]
    answer = rank_spans(*peaked(words, {(7, 8): 4.0})).best(0.0)
    assert answer
    assert (answer.text, answer.start, answer.end) == ("Anna Kestrel", 27, 39)
    assert (answer.sentence, answer.sentence_start) == ("It was built by Anna Kestrel in 1891.", 11)
    assert (answer.score, answer.passage_index, answer.source) == (4.0, 0, "letter.txt")
    assert answer.no_answer_probability == pytest.approx(1 / (1 + math.exp(4)))


def test_equal_words_at_different_places_stay_different_answers() -> None:
    ranking = rank_spans(*peaked(["Berlin", "is", "Berlin"], {(0, 0): 4.0, (2, 2): 3.0}), top_k=2)
    assert [(answer.text, answer.start) for answer in ranking.answers] == [("Berlin", 0), ("Berlin", 10)]
    assert ranking.answers[0].probability > ranking.answers[1].probability


def test_below_the_threshold_there_is_no_answer() -> None:
    ranking = rank_spans(*peaked(["by", "Anna"], {(1, 1): -1.0}))
    assert ranking.best(-1.0).text == "Anna"
    nothing = ranking.best(-0.9)
    assert not nothing
    none = ranking.no_answer_probability
    assert nothing == Answer("", None, None, -1.0, none, none, closest=ranking.answers[0])
    assert (nothing.sentence_start, nothing.passage_index) == (None, None)
    assert ranking.above(-0.9) == []
    assert len(ranking.above(-1.0)) == 1


def test_with_nothing_to_read_no_answer_is_certain() -> None:
    ranking = rank_spans([], [])
    assert ranking == Ranking((), -math.inf, 1.0)
    assert ranking.best(-math.inf).probability == 1.0
    assert ranking.best(-math.inf).text == ""


@pytest.mark.parametrize("score", [2000.0, -2000.0])
def test_extreme_scores_give_probabilities_without_overflow(score: float) -> None:
    ranking = rank_spans(*peaked(["Anna"], {(0, 0): score}), calibration=Calibration(b=5, temperature=0.01))
    assert ranking.no_answer_probability == (0.0 if score > 0 else 1.0)
    assert ranking.answers[0].probability == (1.0 if score > 0 else 0.0)


def test_equal_scores_are_settled_by_the_order_of_the_passages() -> None:
    (passage,), (windows,) = peaked(["Anna"], {(0, 0): 1.0})
    answers = rank_spans([passage, passage], [windows, windows], top_k=2).answers
    assert [answer.passage_index for answer in answers] == [0, 1]


def test_json_has_the_fields_of_an_answer_and_the_question_first() -> None:
    answer = rank_spans(*peaked(["by", "Anna"], {(1, 1): 2.0})).best(0.0)
    record = answer.as_json("Who?")
    assert list(record) == [
        "question", "text", "start", "end", "score", "probability", "no_answer_probability", "sentence",
        "sentence_start", "passage_index", "source", "closest",
    ]  # fmt: skip
    assert (record["question"], record["text"], record["score"]) == ("Who?", "Anna", 2.0)
    json.dumps(record, allow_nan=False)


def test_json_of_an_unread_passage_has_no_infinity() -> None:
    record = rank_spans([], []).best(0.0).as_json("Who?")
    assert record["score"] is None
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("value", [0, -1, 1.5, "30", None, True, 10**400])
def test_an_answer_length_that_is_no_count_is_refused(value: Any) -> None:
    with pytest.raises(
        InputError, match=rf"max_answer_tokens is '?{str(value)[:50]}.*; expected a whole number from 1 to"
    ):
        AnswerSettings(max_answer_tokens=value)


@pytest.mark.parametrize("value", [math.nan, "high", None, True, -(10**400)])
def test_a_threshold_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(
        InputError, match=rf"no_answer_threshold is '?{str(value)[:50]}.*; expected a number from -inf to"
    ):
        AnswerSettings(no_answer_threshold=value)


@pytest.mark.parametrize(
    "numbers",
    [
        {"a": math.nan}, {"a": math.inf}, {"a": 10**400}, {"b": 0.0}, {"b": -1.0}, {"b": True}, {"b": "1"},
        {"temperature": 0.0}, {"temperature": 1e-40}, {"temperature": math.inf},
    ],
)  # fmt: skip
def test_a_calibration_that_gives_no_probabilities_is_refused(numbers: dict[str, Any]) -> None:
    (name,) = numbers
    with pytest.raises(InputError, match=rf"{name} is .*; expected a number from "):
        Calibration(**numbers)


def test_a_hash_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"data_sha256 is \[\]; expected a text or null"):
        Calibration(data_sha256=[])  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-3, 0.05, 1.0, 1e3])
def test_probabilities_never_sum_to_more_than_one_at_any_temperature(temperature: float) -> None:
    """Over 250 texts of several passages, with logits from even to far apart."""
    generator = np.random.default_rng(0)
    for _ in range(250):
        logits = []
        passages, _ = peaked(["a"] * 20, {})
        passages *= int(generator.integers(1, 4))
        for passage in passages:
            scale = 10 ** generator.uniform(-3, 3)
            start, end = (scale * generator.standard_normal((2, len(passage.tokens)))).astype(np.float32)
            logits.append([WindowLogits(0, start, end, *map(float, scale * generator.standard_normal(2)))])
        ranking = rank_spans(passages, logits, top_k=50, calibration=Calibration(0.0, 1.0, temperature))
        found = [ranking.no_answer_probability, *(answer.probability for answer in ranking.answers)]
        assert all(0 <= value <= 1 for value in found)
        assert sum(found) <= 1 + 1e-6  # measured: 1 + 2e-7


SENTENCES = [
    ("Mr. J. Bell came in May. He built the pier. It stands.", "pier", "He built the pier."),
    ("It cost $1.5 m. in 1891. Then it fell.", "1891", "It cost $1.5 m. in 1891."),
    ("She asked: \"Who built it?\" Nobody knew.", "Nobody", "Nobody knew."),
    ("First paragraph without a stop\n\nSecond one, too", "Second", "Second one, too"),
    ("Buy:\n- bread\n- milk\n- salt", "milk", "- milk"),
    ("2024-01-02 start\n2024-01-03 disk full\n2024-01-04 stop", "disk", "2024-01-03 disk full"),
    ("灯台は古い。アンナが建てた。白い。", "アンナ", "アンナが建てた。"),
    ("  Anna  ", "Anna", "Anna"),
    ("One. Two", "One. Two", "One. Two"),
    ("He met Dr. Osei at no. 5. They spoke.", "Osei", "He met Dr. Osei at no. 5."),
    ("Дом стоит на ул. академика Королёва. Он старый.", "Королёва", "Дом стоит на ул. академика Королёва."),
    ("Il habite av. émile Zola. Élise aussi.", "Zola", "Il habite av. émile Zola."),
    ("Sie wohnt bzw. übernachtet dort. Über ihr wohnt er.", "dort", "Sie wohnt bzw. übernachtet dort."),
    ("Το σπίτι είναι στην οδ. ήλιου. Είναι παλιό.", "ήλιου", "Το σπίτι είναι στην οδ. ήλιου."),
    ("Llegó en 1891. ¿Quién lo hizo? Ana.", "Quién", "¿Quién lo hizo?"),
    ("بنته آنا. البرج طويل.", "البرج", "البرج طويل."),
    ("Name\tYear\nPier\t1891\nTower\t1905\n", "1891", "Pier\t1891"),
    ("| Name | Year |\n|---|---|\n| Pier | 1891 |\n| Tower | 1905 |", "1891", "| Pier | 1891 |"),
    ("Name     Year\r\nPier     1891\r\nTower    1905", "1891", "Pier     1891"),
    ("Pier 1891\nTower 1905\nLamp 1923\nCable 1924\nHarbour 1930", "1923", "Lamp 1923"),
    ("The pier was built\nby Anna Kestrel in\n1891, and it is old.", "Kestrel", "The pier was built\nby Anna Kestrel in\n1891, and it is old."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words", "sentence"), SENTENCES)
def test_the_sentence_around_an_answer(text: str, words: str, sentence: str) -> None:
    start = text.index(words)
    left, right = sentence_around(text, start, start + len(words))
    assert text[left:right] == sentence


@given(nasty_passages(), st.data())
def test_a_sentence_holds_its_answer_whatever_the_text(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    left, right = sentence_around(text, start, end)
    assert 0 <= left <= start < end <= right <= len(text)


@pytest.mark.parametrize("letters", ["абвгд", "àéüöñ", "αβγήό", "ąćęłń", "աբգդե"])
def test_a_full_stop_before_a_lower_case_letter_of_any_script_ends_no_sentence(letters: str) -> None:
    draw = random.Random(0)
    for _ in range(200):
        words = ["".join(draw.choices(letters, k=draw.randrange(2, 8))) for _ in range(6)]
        words[0] = words[0].capitalize()
        text = " ".join(words[:3]) + ". " + " ".join(words[3:]) + ". " + words[0] + "."
        start = text.index(words[2] + ".")
        left, right = sentence_around(text, start, start + 2)
        assert (left, right) == (0, len(text) - len(words[0]) - 2)


@pytest.mark.parametrize("gap", ["\t", " | ", "    "])
def test_a_row_is_the_sentence_of_a_table_of_any_size(gap: str) -> None:
    draw = random.Random(0)
    for _ in range(300):
        rows = [[str(draw.randrange(9999)) for _ in range(3)] for _ in range(draw.randrange(2, 40))]
        lines = [gap.join(row) for row in rows]
        text = "\n".join(lines)
        row = draw.randrange(len(rows))
        start = len("\n".join(lines[:row])) + (row > 0)
        left, right = sentence_around(text, start, start + len(rows[row][0]))
        assert text[left:right] == lines[row]


@given(nasty_passages(60), st.data())
def test_the_sentence_is_found_in_the_part_of_a_text_that_is_kept(text: str, data: st.DataObject) -> None:
    text = draw_table(data) + text
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, min(len(text), start + 30)))
    part, first = context_around(text, start, end)
    left, right = sentence_around(part, start - first, end - first)
    assert (left + first, right + first) == sentence_around(text, start, end)


def draw_table(data: st.DataObject) -> str:
    return "".join(
        data.draw(st.lists(st.sampled_from(["Pier\t1891\n", "Tower 1905\n", "word ", ". A", "\n"]), max_size=200))
    )


def test_a_sentence_reaches_at_most_500_characters_and_to_whole_words() -> None:
    text = "word " * 400
    left, right = sentence_around(text, 1000, 1004)
    assert text[left:right] == ("word " * ((right - left) // 5 + 1)).strip()
    assert 450 < 1000 - left <= 500
    assert 450 < right - 1004 <= 500


def test_a_sentence_in_a_text_without_spaces_is_cut_at_the_reach() -> None:
    assert sentence_around("x" * 2000, 1000, 1001) == (500, 1501)


def long_reading(draw: random.Random) -> tuple[Passage, list[WindowLogits]]:
    """A passage of some hundred tokens, some of them of one character or of none, and windows that cover it."""
    numbers = np.random.default_rng(draw.randrange(1 << 30))
    length = draw.randrange(1, 400)
    ends = np.cumsum(numbers.integers(0, 3, length))
    where = np.stack([np.maximum(0, ends - numbers.integers(1, 4, length)), ends], axis=1).astype(np.int32)
    where[:, 0] = np.maximum.accumulate(where[:, 0])
    room = draw.randrange(2, 60)
    step = draw.randrange(1, room + 1)
    windows = [
        WindowLogits(
            first, *numbers.normal(size=(2, min(room, length - first))).astype(np.float32), *numbers.normal(size=2)
        )
        for first in range(0, length, step)
        if first == 0 or first - step + room < length
    ]
    return Passage("x" * int(ends[-1] + 1), Tokens(np.zeros(length, np.int32), where)), windows


def test_a_long_passage_has_the_answers_and_probabilities_that_it_has_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(0)
    for _ in range(1000):
        readings = [long_reading(draw) for _ in range(draw.randrange(1, 4))]
        options: dict[str, Any] = {
            "top_k": draw.choice([1, 2, 5, 20]),
            "settings": AnswerSettings(draw.randrange(1, 9)),
            "calibration": draw.choice(CALIBRATIONS),
        }
        passages, windows = zip(*readings, strict=True)
        monkeypatch.setattr("spanqa.answers.LONGEST_WHOLE", 1 << 15)
        whole = rank_spans(passages, windows, **options)
        monkeypatch.setattr("spanqa.answers.LONGEST_WHOLE", 16)
        parts = rank_spans(passages, windows, **options)
        assert [(a.start, a.end, a.score, a.passage_index) for a in parts.answers] == [
            (a.start, a.end, a.score, a.passage_index) for a in whole.answers
        ]
        # measured: 6e-7, sums of float32 in another order
        np.testing.assert_allclose(
            [a.probability for a in parts.answers], [a.probability for a in whole.answers], rtol=5e-6
        )
        assert parts.no_answer_probability == whole.no_answer_probability


def test_the_scores_of_a_long_passage_are_never_held_at_once() -> None:
    length, room, step = 300_000, 300, 200
    where = np.stack([np.arange(length), np.arange(1, length + 1)], axis=1).astype(np.int32)
    numbers = np.random.default_rng(0).normal(size=(2, length)).astype(np.float32)
    windows = [
        WindowLogits(first, *numbers[:, first : first + room], 0.0, 0.0)
        for first in range(0, length - room + step, step)
    ]
    passage = Passage("x" * length, Tokens(np.zeros(length, np.int32), where, np.arange(length, dtype=np.int32)))
    tracemalloc.start()
    ranking = rank_spans([passage], [windows], top_k=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(ranking.answers) == 5
    assert peak < 20 << 20  # measured: 9 MB; all scores of 30 lengths take 36 MB, and their exponentials as much
