import json
import logging
import math
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import byhand
from spanqa.answers import Answer, AnswerSettings
from spanqa.backends.base import BATCH_TOKENS
from spanqa.backends.registry import BACKENDS
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits
from spanqa.calibration import Calibration
from spanqa.checkpoint import find, open_checkpoint
from spanqa.encoder import weight_shapes
from spanqa.errors import BackendError, CheckpointError, ClosedError, InputError, QuestionTooLongError
from spanqa.families import FAMILIES as RECORDS
from spanqa.families import encoder_config
from spanqa.reader import Reader
from spanqa.squad import read_squad
from spanqa.windows import WindowSettings
from strategies import nasty_passages, nasty_texts, questions
from tiny import SENTENCES

PIER = "The old pier at Penmar was built by Anna Kestrel in 1891. It is 210 metres long and stands on iron legs."
MODELS = ["spanqa-mini", "bert", "roberta", "xlm-roberta", "electra", "distilbert"]
NEVER_EMPTY = -math.inf

every_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="session")
def reader_of(tiny_reader: Callable[..., Reader], mini: Reader) -> Callable[[str], Reader]:
    return lambda model: mini if model == "spanqa-mini" else tiny_reader(model)


class PeakedBackend:
    """Logits that peak at given tokens, wherever they stand: a model without a model."""

    name, device, dtype, batches_at_once, batch_tokens = "peaked", "cpu", "fp32", 1, BATCH_TOKENS
    layouts: tuple[BatchLayout, ...] = ("padded",)

    def __init__(self, start: int, end: int, height: float = 5.0) -> None:
        self.start, self.end, self.height = start, end, height
        self.batches: list[Batch] = []

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        self.batches.append(batch)
        return SpanLogits(*(np.where(batch.input_ids == token, self.height, 0).astype(np.float32)
                            for token in (self.start, self.end)))  # fmt: skip


def peaked(folder: Path, start: str, end: str, height: float = 5.0) -> tuple[Reader, PeakedBackend]:
    checkpoint = open_checkpoint(folder)
    first, last = (int(checkpoint.tokenizer.encode(word).ids[0]) for word in (start, end))
    backend = PeakedBackend(first, last, height)
    return Reader(checkpoint, backend), backend


# --- asking


def test_the_bundled_model_answers(mini: Reader) -> None:
    answer = mini.ask("Who built the pier?", PIER)
    assert answer
    assert (answer.text, answer.start, answer.end) == ("Anna Kestrel", 36, 48)
    assert answer.sentence == "The old pier at Penmar was built by Anna Kestrel in 1891."
    assert answer.probability > 0.5
    assert answer.score > 0


def test_the_bundled_model_says_when_the_text_does_not_hold_the_answer(mini: Reader) -> None:
    answer = mini.ask("How many people died in the flood of 1953?", PIER)
    assert not answer
    assert (answer.text, answer.start, answer.end, answer.passage_index) == ("", None, None, None)
    assert answer.probability == answer.no_answer_probability > 0.5


def test_the_threshold_decides_between_answer_and_none(mini: Reader) -> None:
    score = mini.ask("Who built the pier?", PIER).score
    assert mini.ask("Who built the pier?", PIER, threshold=score).text == "Anna Kestrel"
    nothing = mini.ask("Who built the pier?", PIER, threshold=score + 0.01)
    assert nothing.text == ""
    assert nothing.score == score
    assert mini.rank("Who built the pier?", PIER, threshold=score + 0.01) == []


def test_a_passage_is_prepared_once_and_asked_often(mini: Reader) -> None:
    prepared = mini.prepare(PIER, source="pier.txt")
    assert mini.prepare(prepared) is prepared
    assert mini.ask("Who built the pier?", prepared) == replace(
        mini.ask("Who built the pier?", PIER), source="pier.txt"
    )
    assert mini.ask("How long is the pier?", prepared).text.startswith("210 metres")


def test_the_three_steps_compose_to_an_answer(mini: Reader) -> None:
    (reading,) = mini.forward([("Who built the pier?", [mini.prepare(PIER)])])
    assert (reading.question, reading.passages[0].text) == ("Who built the pier?", PIER)
    assert len(reading.logits) == len(reading.logits[0]) == 1
    assert mini.decode(reading).best(0.0) == mini.ask("Who built the pier?", PIER)
    assert mini.decode(reading, top_k=3).above(NEVER_EMPTY) == mini.rank(
        "Who built the pier?", PIER, 3, threshold=NEVER_EMPTY
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_gives_the_same_answer(name: str, mini: Reader, need: Callable[[str], None]) -> None:
    need(name)
    found, expected = (
        reader.ask("Who built the pier?", PIER) for reader in (Reader.load(backend=name, dtype="fp32"), mini)
    )
    assert (found.text, found.start) == (expected.text, expected.start)
    # measured: 1e-5 in score, 2e-6 in probability, over 100 questions
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert found.probability == pytest.approx(expected.probability, abs=1e-5)


def test_a_reader_says_what_it_runs_on_and_why(tiny: Callable[..., Path]) -> None:
    reader = Reader.load(tiny("bert"), backend="numpy")
    assert (reader.backend.name, reader.reason) == ("numpy", "it was asked for")
    assert reader.checkpoint.path == tiny("bert")
    assert not reader.calibrated


def test_an_answer_at_the_end_of_a_long_passage_is_found_in_its_last_window(tiny: Callable[..., Path]) -> None:
    reader, backend = peaked(tiny("bert"), "a", "b")
    passage = "x " * 500 + "a b"
    answer = reader.ask("who?", passage)
    assert (answer.text, answer.start) == ("a b", 1000)
    assert sum(batch.shape[0] for batch in backend.batches) > 15


def test_a_place_that_two_windows_see_is_one_answer(tiny: Callable[..., Path]) -> None:
    reader, _ = peaked(tiny("bert"), "a", "b")
    passage = "x " * 40 + "a b " + "x " * 40
    windows = next(reader.forward([("who?", [passage])])).logits[0]
    assert sum(window.start.max() == 5 for window in windows) == 2
    answers = reader.rank("who?", passage, 9, threshold=1.0)
    assert [(answer.text, answer.score) for answer in answers] == [("a b", 10.0)]


# --- properties


@every_model
@settings(max_examples=25)
@given(question=questions(), passages=st.lists(nasty_passages(15), min_size=1, max_size=3))
def test_answers_to_nasty_texts_are_words_of_the_passage_with_sound_probabilities(
    model: str, reader_of: Callable[[str], Reader], question: str, passages: list[str]
) -> None:
    reader = reader_of(model)
    answers = reader.rank(question, passages, top_k=8, threshold=NEVER_EMPTY)
    for answer in answers:
        assert answer.start is not None
        assert answer.passage_index == passages.index(passages[answer.passage_index])
        text = passages[answer.passage_index]
        assert text[answer.start : answer.end] == answer.text
        assert answer.text.strip() == answer.text != ""
        assert text[answer.sentence_start :].startswith(answer.sentence)
        assert answer.text in answer.sentence
        assert 0 <= answer.probability <= 1
        assert 0 <= answer.no_answer_probability <= 1
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)
    assert sum(answer.probability for answer in answers) <= 1 + 1e-6
    places = [(answer.passage_index, answer.start, answer.end) for answer in answers]
    for n, (index, start, end) in enumerate(places):
        assert all(index != other[0] or end <= other[1] or other[2] <= start for other in places[n + 1 :])


@every_model
@settings(max_examples=15)
@given(question=questions(), passages=st.lists(nasty_passages(10), min_size=1, max_size=2, unique=True))
def test_scores_and_probabilities_are_those_of_the_formula_over_every_place(
    model: str, reader_of: Callable[[str], Reader], question: str, passages: list[str]
) -> None:
    reader = reader_of(model)
    (reading,) = reader.forward([(question, passages)])
    margins = byhand.margins(reading.passages, reading.logits, 30)
    expected, no_answer = byhand.probabilities(margins, reader.calibration)
    assert no_answer + sum(expected.values()) == pytest.approx(1, abs=1e-9)
    ranking = reader.decode(reading, top_k=5)
    assert bool(ranking.answers) == bool(margins)
    assert ranking.no_answer_probability == pytest.approx(no_answer, abs=1e-6)  # measured: 1.2e-7
    taken = byhand.places_taken(ranking.answers, reading.passages, margins)
    for answer, here in zip(ranking.answers, taken, strict=True):
        assert answer.score == pytest.approx(max(margins[place] for place in here), abs=1e-5)  # measured: 7e-7
        assert answer.probability == pytest.approx(sum(expected[place] for place in here), abs=1e-6)


@every_model
@settings(max_examples=15)
@given(question=questions(), passage=nasty_passages(15))
def test_top_k_changes_nothing_but_how_many(
    model: str, reader_of: Callable[[str], Reader], question: str, passage: str
) -> None:
    reader = reader_of(model)
    many = reader.rank(question, passage, top_k=7, threshold=NEVER_EMPTY)
    for top_k in (1, 3):
        assert reader.rank(question, passage, top_k=top_k, threshold=NEVER_EMPTY) == many[:top_k]
    best = reader.ask(question, passage, threshold=NEVER_EMPTY)
    assert best == many[0] if many else not best


@every_model
@settings(max_examples=12)
@given(
    pairs=st.lists(st.tuples(questions(), nasty_passages(10)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_nothing_depends_on_what_else_is_in_the_batch_or_on_the_order(
    model: str, reader_of: Callable[[str], Reader], pairs: list[tuple[str, str]], seed: int
) -> None:
    """To the last bit: OpenVINO's padded batches are those of single windows."""
    reader = reader_of(model)
    alone = [reader.ask(question, passage) for question, passage in pairs]
    assert list(reader.ask_many(pairs)) == alone
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    assert list(reader.ask_many([pairs[i] for i in order])) == [alone[i] for i in order]


@every_model
@settings(max_examples=10)
@given(question=questions(), passages=st.lists(nasty_passages(10), min_size=1, max_size=3), copies=st.data())
def test_a_passage_given_twice_changes_nothing(
    model: str, reader_of: Callable[[str], Reader], question: str, passages: list[str], copies: st.DataObject
) -> None:
    reader = reader_of(model)
    again = passages + copies.draw(st.lists(st.sampled_from(passages), max_size=3))
    once = reader.rank(question, passages, top_k=6, threshold=NEVER_EMPTY)
    assert reader.rank(question, again, top_k=6, threshold=NEVER_EMPTY) == once
    assert all(answer.passage_index == passages.index(passages[answer.passage_index]) for answer in once)


@every_model
@settings(max_examples=12)
@given(question=questions(), passages=st.lists(nasty_passages(10), min_size=2, max_size=4, unique=True))
def test_a_further_passage_scales_all_other_probabilities_by_one_factor(
    model: str, reader_of: Callable[[str], Reader], question: str, passages: list[str]
) -> None:
    reader = reader_of(model)
    before = reader.rank(question, passages[:-1], top_k=5, threshold=NEVER_EMPTY)
    after = [
        answer
        for answer in reader.rank(question, passages, top_k=60, threshold=NEVER_EMPTY)
        if answer.passage_index < len(passages) - 1
    ][: len(before)]
    assert [(a.passage_index, a.start, a.end, a.score) for a in after] == [
        (a.passage_index, a.start, a.end, a.score) for a in before
    ]
    for old, new in zip(before, after, strict=True):
        factor = after[0].probability / before[0].probability
        assert new.probability == pytest.approx(old.probability * factor, rel=1e-9)  # measured: 2e-15


# --- streams


def test_a_stream_is_answered_in_order_and_read_only_as_far_as_needed(
    tiny_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanqa.stream.LARGEST_CHUNK", 1 / 16)
    reader = tiny_reader("bert")
    taken = 0

    def pairs() -> Iterator[tuple[str, str]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield "How tall is the tower?", f"The tower is {number} metres tall."

    stream = reader.ask_many(pairs(), threshold=NEVER_EMPTY)
    assert taken == 0
    first = list(islice(stream, 12))
    assert taken < 150  # a passage has some 6 tokens, a chunk 256
    assert first == [
        reader.ask("How tall is the tower?", f"The tower is {number} metres tall.", threshold=NEVER_EMPTY)
        for number in range(12)
    ]


@pytest.mark.parametrize("empty", ["", "   ", "\n\t\u3000", "\u200b", "\x00\x01"])
def test_an_empty_passage_in_a_stream_has_no_answer_and_does_not_stop_it(mini: Reader, empty: str) -> None:
    question = "Who built the pier?"
    answers = list(mini.ask_many([(question, PIER), (question, empty), (question, PIER)]))
    assert answers[0] == answers[2]
    assert answers[0].text == "Anna Kestrel"
    assert answers[1] == Answer("", None, None, -math.inf, 1.0, 1.0)
    json.dumps(answers[1].as_json(question), allow_nan=False)


def test_a_stream_of_nothing_ends_at_once(mini: Reader) -> None:
    assert list(mini.ask_many([])) == []


def test_passages_without_text_among_others_are_passed_over(mini: Reader) -> None:
    answers = mini.rank("Who built the pier?", ["", PIER, "  "])
    assert [(answer.text, answer.passage_index) for answer in answers[:1]] == [("Anna Kestrel", 1)]
    assert mini.rank("Who built the pier?", []) == []
    assert mini.rank("Who built the pier?", ["", "  "], threshold=NEVER_EMPTY) == []


def test_equal_passages_are_read_once_under_the_first_of_their_names(mini: Reader) -> None:
    passages = [mini.prepare(PIER, "one.txt"), "Nothing here.", mini.prepare(PIER, "two.txt")]
    answers = mini.rank("Who built the pier?", passages)
    assert [(answer.text, answer.passage_index, answer.source) for answer in answers[:1]] == [
        ("Anna Kestrel", 0, "one.txt")
    ]
    assert len({(answer.passage_index, answer.start) for answer in answers}) == len(answers)
    assert all(answer.passage_index != 2 for answer in answers)


def test_the_first_answer_of_a_stream_needs_at_most_one_batch_of_work(tiny: Callable[..., Path]) -> None:
    """However long the stream: every batch but the first waits until the first answer is here."""
    reader, backend = peaked(tiny("bert"), "a", "b")
    backend.batch_tokens = 256
    answered = Event()
    begun: list[int] = []
    forward = backend.forward

    def waits(batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        begun.append(batch.tokens)
        if len(begun) > 1:
            assert answered.wait(30)
        return forward(batch)

    backend.forward = waits  # type: ignore[method-assign]
    stream = reader.ask_many(("who?", f"x {number} a b") for number in range(2000))
    assert next(stream).text == "a b"
    assert begun[0] <= 256
    answered.set()
    assert sum(1 for _ in stream) == 1999
    assert max(begun) > 200, "later chunks fill their batches"


def test_a_slow_stream_is_answered_as_it_comes(mini: Reader) -> None:
    given = 0

    def slow() -> Iterator[tuple[str, str]]:
        nonlocal given
        for _ in range(8):
            given += 1
            yield "Who built the pier?", PIER

    assert next(mini.ask_many(slow())).text == "Anna Kestrel"
    assert given == 1


def test_sound_pairs_before_a_bad_one_are_answered_first(mini: Reader) -> None:
    pairs = [("Who built the pier?", PIER)] * 30 + [("", PIER)] + [("Who built the pier?", PIER)] * 5
    answers = mini.ask_many(pairs)
    for _ in range(30):
        assert next(answers).text == "Anna Kestrel"
    with pytest.raises(InputError, match=r"Pair 31 \(''\): The question is empty"):
        next(answers)


BAD = [("", PIER), ("why " * 400, PIER), (7, PIER), ("Who?", None), ("Who \ud83d?", PIER), ("\u200b", PIER)]


def test_a_bad_pair_costs_that_pair_alone(mini: Reader) -> None:
    """On request the error takes the place of the answer; all others are those of a stream without it."""
    good = [("Who built the pier?", PIER), ("How long is it?", PIER), ("When?", f"{PIER} It rained.")] * 40
    pairs: list[Any] = []
    for number, pair in enumerate(good):
        pairs += [BAD[number // 7 % len(BAD)]] if number % 7 == 3 else []
        pairs.append(pair)
    answers = list(mini.ask_many(pairs, errors="return"))
    assert len(answers) == len(pairs)
    for pair, answer in zip(pairs, answers, strict=True):
        assert isinstance(answer, InputError if pair in BAD else Answer)
    assert [answer for answer in answers if isinstance(answer, Answer)] == list(mini.ask_many(good))
    assert isinstance(answers[4 + 7], QuestionTooLongError)
    assert str(answers[3]).startswith("Pair 4 (''): The question is empty")
    with pytest.raises(InputError, match="errors is 'ignore'; expected one of raise, return"):
        next(mini.ask_many(good, errors="ignore"))  # type: ignore[call-overload]


def test_logits_that_are_no_numbers_cost_their_own_question_alone(tiny: Callable[..., Path]) -> None:
    reader, backend = peaked(tiny("bert"), "a", "b")
    (devil,) = reader.checkpoint.tokenizer.encode("z").ids
    forward = backend.forward

    def overflows(batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        logits = forward(batch)
        logits.start[batch.input_ids == devil] = np.inf
        return logits

    backend.forward = overflows  # type: ignore[method-assign]
    pairs = [("who?", "x a b"), ("who?", "x z a b"), ("who?", "a b x")]
    first, second, third = reader.ask_many(pairs, errors="return")
    assert (first.text, third.text) == ("a b", "a b")
    assert isinstance(second, BackendError)
    assert str(second).startswith("Pair 2 ('who?'): Backend 'peaked' gave NaN or infinity")
    answers = reader.ask_many(pairs)
    assert next(answers).text == "a b"
    with pytest.raises(BackendError, match="Pair 2"):
        next(answers)


def test_pairs_before_the_streams_own_error_are_answered_first(mini: Reader) -> None:
    def breaks() -> Iterator[tuple[str, str]]:
        yield from [("Who built the pier?", PIER)] * 40
        raise KeyError("the database has gone")

    for errors in ("raise", "return"):
        answers = mini.ask_many(breaks(), errors=errors)  # type: ignore[call-overload]
        assert [next(answers).text for _ in range(40)] == ["Anna Kestrel"] * 40
        with pytest.raises(KeyError, match="the database has gone"):
            next(answers)


@pytest.mark.parametrize("passage", ["", "the " * 3000])
def test_a_stream_of_passages_without_tokens_or_with_very_many_yields_as_it_goes(
    tiny: Callable[..., Path], passage: str
) -> None:
    reader, _ = peaked(tiny("bert"), "a", "b")
    taken = 0

    def pairs() -> Iterator[tuple[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield "who?", passage

    answers = reader.ask_many(pairs())
    for _ in range(10):
        next(answers)
    assert taken < 5000  # 16 batches of 256 items at most, and the chunks before


def test_a_stream_left_early_leaves_nothing_queued_or_running(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, backend = peaked(tiny("bert"), "a", "b")
    backend.batch_tokens = 128
    forward, submit, futures = backend.forward, reader.engine.submit, []

    def slow(batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        time.sleep(0.01)
        return forward(batch)

    backend.forward = slow  # type: ignore[method-assign]
    monkeypatch.setattr(
        reader.engine, "submit", lambda *given, **options: futures.append(submit(*given, **options)) or futures[-1]
    )
    stream = reader.ask_many(("who?", f"x {number} a b " * 20) for number in range(500))
    for _ in stream:
        if len(futures) > 6 and not futures[-1].done():
            break
    stream.close()
    assert all(future.done() for future in futures)
    while reader.engine._work._running:  # the batch that was running ends
        time.sleep(0.001)
    done = len(backend.batches)
    time.sleep(0.1)
    assert len(backend.batches) == done


def test_questions_that_were_encoded_before_are_taken_as_they_are(mini: Reader) -> None:
    tokens = mini.checkpoint.tokenizer.encode("Who built the pier?")
    (reading,) = mini.forward([(tokens, [PIER])])
    assert mini.decode(reading).best(0.0) == mini.ask("Who built the pier?", PIER)


# --- life of a reader


def test_a_ranking_is_all_that_is_known_of_a_question(mini: Reader) -> None:
    ranking = mini.ranking("Who built the pier?", [PIER, "It rained."], top_k=3)
    assert len(ranking.answers) == 3
    assert ranking.answers[0] == mini.ask("Who built the pier?", PIER, no_answer="off") or ranking.best_score > 0
    assert ranking.best_score == ranking.answers[0].score
    assert list(ranking.answers) == mini.rank("Who built the pier?", [PIER, "It rained."], 3, no_answer="off")
    nothing = mini.ranking("Who was the king of Spain?", PIER)
    assert nothing.answers and nothing.best(mini.answers.no_answer_threshold).text == ""


def test_ranking_many_passages_gives_what_ranking_them_one_by_one_gives(mini: Reader) -> None:
    passages = [f"{PIER} It was mended {number} times by Oswin Tregarth." for number in range(25)]
    many = mini.ranking("Who mended it?", passages, top_k=6)
    alone = [
        (answer.score, index, answer.start, answer.end)
        for index, passage in enumerate(passages)
        for answer in mini.ranking("Who mended it?", passage, top_k=6).answers
    ]
    best = sorted(alone, key=lambda each: (-each[0], each[1], each[2]))[:6]
    assert [(each.score, each.passage_index, each.start, each.end) for each in many.answers] == best


def test_a_reader_that_was_pickled_loads_again_with_its_settings(tiny: Callable[..., Path]) -> None:
    reader = Reader.load(tiny("bert"), backend="numpy").with_settings(
        windows=WindowSettings(40, 5), answers=AnswerSettings(7, -3.0), calibration=Calibration(0.5, 2.0, 3.0)
    )
    other = pickle.loads(pickle.dumps(reader))
    assert (other.windows, other.answers, other.calibration) == (reader.windows, reader.answers, reader.calibration)
    assert other.backend.name == "numpy"
    assert other.ask("Who?", PIER) == reader.ask("Who?", PIER)
    assert len(pickle.dumps(reader)) < 2000
    around, _ = peaked(tiny("bert"), "a", "b")
    with pytest.raises(
        TypeError, match=r"made around a model in memory, which cannot be pickled. Load it from a folder"
    ):
        pickle.dumps(around)


def test_answers_and_passages_pickle_small_and_whole(mini: Reader) -> None:
    text = "It rained. " * 5000 + PIER
    passage = mini.prepare(text)
    answer = mini.ask("Who built the pier?", passage)
    assert pickle.loads(pickle.dumps(answer)) == answer
    assert pickle.loads(pickle.dumps(answer)).sentence == answer.sentence != ""
    assert len(pickle.dumps(answer)) < 3000
    again = pickle.loads(pickle.dumps(passage))
    assert mini.ask("Who built the pier?", again) == answer
    assert len(pickle.dumps(passage)) < 1_000_000


def test_a_closed_reader_says_so(tiny: Callable[..., Path]) -> None:
    with Reader.load(tiny("bert"), backend="numpy") as reader:
        other = reader.with_settings(answers=AnswerSettings(3))
        assert reader.ask("Who?", PIER).probability >= 0
    for closed in (reader, other):
        with pytest.raises(ClosedError, match=r"The reader was closed. Load it again"):
            closed.ask("Who?", PIER)
    reader.close()


def test_a_passage_prepared_by_another_tokenizer_is_refused(tiny_reader: Callable[..., Reader], mini: Reader) -> None:
    passage = mini.prepare(PIER)
    for call in (
        lambda reader: reader.ask("Who?", passage),
        lambda reader: reader.rank("Who?", [PIER, passage]),
        lambda reader: list(reader.ask_many([("Who?", passage)])),
        lambda reader: reader.ask("Who?", pickle.loads(pickle.dumps(passage))),
    ):
        with pytest.raises(
            InputError, match=r"prepared by a reader with another tokenizer. Prepare it with this reader"
        ):
            call(tiny_reader("roberta"))
    same = Reader.load(backend="numpy", dtype="fp32")  # the same tokenizer, read again
    assert same.ask("Who built the pier?", passage).text == "Anna Kestrel"


def test_other_settings_keep_what_they_are_not_asked_to_change(mini: Reader) -> None:
    calibrated = mini.with_settings(calibration=Calibration(1.0, 2.0, 3.0, "ab"))
    short = calibrated.with_settings(answers=AnswerSettings(3)).with_settings(windows=WindowSettings(100))
    assert (short.calibration, short.answers, short.windows) == (
        Calibration(1.0, 2.0, 3.0, "ab"),
        AnswerSettings(3),
        WindowSettings(100),
    )
    assert short.engine is mini.engine
    assert mini.calibration.a != 1.0


def test_the_log_says_what_is_loaded_and_never_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "spanqa"):
        Reader.load(backend="numpy").ask("Who built the pier?", PIER)
        list(Reader.load(backend="numpy").ask_many([("", PIER), ("Who?", PIER)], errors="return"))
    told = caplog.text
    assert "backend numpy, device auto, dtype auto" in told
    assert "of weights" in told and "a batch for 1 requests" in told
    assert "pier" not in told.lower() and "Anna" not in told
    assert all(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("spanqa").handlers)


# --- what cannot be asked


@pytest.mark.parametrize("question", ["", "  ", "\n\u3000"])
def test_an_empty_question_is_refused(mini: Reader, question: str) -> None:
    with pytest.raises(InputError, match=r"^The question is empty. Ask something, such as: Who signed the treaty"):
        mini.ask(question, PIER)
    with pytest.raises(InputError, match=r"^The question is empty"):
        mini.rank(question, [PIER])


@pytest.mark.parametrize("question", ["\u200b", "\x00", "\ufeff\u2060"])
def test_a_question_that_nobody_can_read_is_refused(mini: Reader, question: str) -> None:
    with pytest.raises(InputError, match=r"holds nothing that the model can read. Ask in words"):
        mini.ask(question, PIER)


@pytest.mark.parametrize("passage", ["", "  ", "\r\n\t"])
def test_an_empty_passage_is_refused(mini: Reader, passage: str) -> None:
    with pytest.raises(InputError, match=r"The passage is empty: there is nothing to read. Give a text that may hold"):
        mini.ask("Who built the pier?", passage)


@pytest.mark.parametrize("value", [None, 7, b"bytes", ["a"], Path("file.txt"), float("nan")])
def test_what_is_no_text_is_refused(mini: Reader, value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(InputError, match=rf"The question should be a text \(str\), got {kind}: "):
        mini.ask(value, PIER)
    with pytest.raises(InputError, match=rf"The passage should be a text \(str\), got {kind}: "):
        mini.ask("Who?", value)


@pytest.mark.parametrize(
    "pair", [None, 42, {}, {"question": "Who?", "context": PIER}, ("a", "b", "c"), "ab", ("Who?",)]
)
def test_what_is_no_pair_costs_that_pair_alone(mini: Reader, pair: Any) -> None:
    good = ("Who built the pier?", PIER)
    first, bad, last = mini.ask_many([good, pair, good], errors="return")
    assert first.text == last.text == "Anna Kestrel"
    assert isinstance(bad, InputError) and "Expected a pair of a question and" in str(bad)
    with pytest.raises(InputError, match=r"Pair 1 .*Expected a pair of a question and a list of passages, got"):
        next(mini.ask_many([pair]))
    with pytest.raises(InputError, match="Expected a pair of a question and a list of passages, got"):
        next(mini.forward([pair]))


def test_passages_that_break_as_they_are_read_break_the_stream_after_the_items_before(mini: Reader) -> None:
    def breaks() -> Iterator[str]:
        yield PIER
        raise KeyError("gone")

    stream = mini.forward([("Who?", [PIER]), ("Who?", breaks()), ("Who?", [PIER])], errors="return")  # type: ignore[list-item]
    assert next(stream).passages[0].text == PIER  # type: ignore[union-attr]
    with pytest.raises(KeyError, match="gone"):
        next(stream)


@pytest.mark.parametrize("passages", [PIER, b"bytes", None, 7, {"p1": PIER}])
def test_passages_that_are_no_list_are_refused(mini: Reader, passages: Any) -> None:
    with pytest.raises(InputError, match=r"The passages should be a list of texts, got (str|bytes|NoneType|int|dict)"):
        next(mini.forward([("Who?", passages)]))
    good, bad, again = mini.forward([("Who?", [PIER]), ("Who?", passages), ("Who?", [PIER])], errors="return")
    assert isinstance(bad, InputError) and not isinstance(good, InputError) and not isinstance(again, InputError)


def test_a_ranking_needs_a_list_of_passages(mini: Reader) -> None:
    for passages in (None, 3, {"p1": PIER}):
        with pytest.raises(InputError, match="The passages should be a list of texts"):
            mini.rank("Who?", passages)  # type: ignore[arg-type]
    assert mini.rank("Who built the pier?", (text for text in (PIER, "x")))[0].text == "Anna Kestrel"  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [0, -1, 1.5, None, True])
def test_a_reading_is_decoded_for_at_least_one_answer(mini: Reader, top_k: Any) -> None:
    (reading,) = mini.forward([("Who?", [PIER])])
    with pytest.raises(InputError, match=r"top_k is .*; expected a whole number, at least 1"):
        mini.decode(reading, top_k=top_k)


def test_half_a_surrogate_pair_is_refused(mini: Reader) -> None:
    with pytest.raises(InputError, match=r"half a surrogate pair .* at position 4"):
        mini.ask("Who \ud83d?", PIER)
    with pytest.raises(InputError, match=r"half a surrogate pair .* at position 0"):
        mini.ask("Who?", "\udc00 built it")


def test_a_question_too_long_for_the_model_is_refused_and_never_cut(mini: Reader) -> None:
    with pytest.raises(
        QuestionTooLongError,
        match=r"^The question has 301 tokens; at most 190 fit beside the passage in windows of 384",
    ):
        mini.ask("why " * 300 + "?", PIER)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("", PIER), r"Pair 3 \(''\): The question is empty"),
        (("why " * 400, PIER), r"Pair 3 \('why why .{50,60}\): The question has 400 tokens"),
        ((7, PIER), r"Pair 3 \(7\): The question should be a text \(str\), got int"),
        (("Who?", None), r"Pair 3 \('Who\?'\): The passage should be a text \(str\), got NoneType"),
    ],
)
def test_an_error_in_a_stream_says_which_pair_it_was(mini: Reader, pair: Any, message: str) -> None:
    pairs = [("Who?", PIER), ("When?", PIER), pair, ("Where?", PIER)]
    with pytest.raises(InputError, match=message):
        list(mini.ask_many(pairs))


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "5", None])
def test_a_top_k_that_is_no_count_is_refused(mini: Reader, top_k: Any) -> None:
    with pytest.raises(InputError, match=rf"top_k is {top_k!r}; expected a whole number, at least 1"):
        mini.rank("Who?", PIER, top_k)


@pytest.mark.parametrize("threshold", [math.nan, "high", True])
def test_a_threshold_that_is_no_number_is_refused(mini: Reader, threshold: Any) -> None:
    with pytest.raises(InputError, match=rf"threshold is {threshold!r}; expected a number from -inf to"):
        mini.ask("Who?", PIER, threshold=threshold)
    with pytest.raises(InputError, match=r"threshold is"):
        list(mini.ask_many([("Who?", PIER)], threshold=threshold))


def test_an_overlap_that_leaves_no_room_is_refused(mini: Reader) -> None:
    reader = mini.with_settings(windows=WindowSettings(64, overlap=60))
    with pytest.raises(
        InputError, match=r"overlap is 60 tokens, but the question leaves room for only 59 passage tokens"
    ):
        reader.ask("Who?", PIER)


@pytest.mark.parametrize("name", BACKENDS)
def test_logits_that_are_no_numbers_are_an_error(
    name: str, need: Callable[[str], None], tiny_copy: Callable[..., Path]
) -> None:
    need(name)
    folder = tiny_copy("bert")
    weights = load_file(folder / "model.safetensors")
    weights["qa_outputs.weight"] = np.full((2, 32), 3e38, np.float32)
    weights["bert.encoder.layer.1.output.LayerNorm.weight"] = np.full(32, 1e30, np.float32)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        BackendError, match=rf"'{name}' gave NaN or infinity for logits, computing in fp32: .* dtype='fp32'"
    ):
        Reader.load(folder, backend=name, dtype="fp32").ask("Who?", PIER)


# --- settings


def with_spanqa_json(folder: Path, **sections: Any) -> Path:
    (folder / "spanqa.json").write_text(json.dumps({"format": "spanqa/1", **sections}))
    return folder


def test_settings_stored_with_the_model_are_used(tiny_copy: Callable[..., Path]) -> None:
    calibration = {"a": 0.5, "b": 2.0, "temperature": 3.0, "data_sha256": "ab" * 32}
    folder = with_spanqa_json(
        tiny_copy("bert"),
        windows={"max_seq_length": 32, "overlap": 4, "max_question_tokens": 9},
        answers={"max_answer_tokens": 3, "no_answer_threshold": -1e9},
        calibration=calibration,
        training={"epochs": 2},
        quantization={},
    )
    reader = Reader.load(folder, backend="numpy")
    assert reader.windows == WindowSettings(32, 4, 9)
    assert reader.answers == AnswerSettings(3, -1e9)
    assert reader.calibrated
    (reading,) = reader.forward([("who?", [SENTENCES])])
    best = reader.decode(reading).answers[0]
    margins = byhand.margins(reading.passages, reading.logits, 3)
    expected, no_answer = byhand.probabilities(margins, reader.calibration)
    assert best.no_answer_probability == pytest.approx(no_answer, abs=1e-6)
    (here,) = byhand.places_taken([best], reading.passages, margins)
    assert best.probability == pytest.approx(sum(expected[place] for place in here), abs=1e-6)
    assert reader.ask("who?", SENTENCES) == best  # the stored threshold lets it pass


def test_a_model_without_settings_has_the_defaults(tiny: Callable[..., Path]) -> None:
    reader = Reader.load(tiny("bert"), backend="numpy")
    assert reader.windows == WindowSettings(max_seq_length=64)  # the model's own length, below the default of 384
    assert reader.answers == AnswerSettings(30, 0.0)
    assert Reader.load(tiny("roberta"), backend="numpy").windows.max_seq_length == 64


def test_null_sections_are_defaults(tiny_copy: Callable[..., Path]) -> None:
    folder = with_spanqa_json(tiny_copy("bert"), calibration=None, windows=None)
    assert not Reader.load(folder, backend="numpy").calibrated


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"windows": {"stride": 128}},
            r"'windows': expected an object with the fields max_question_tokens, .*'stride'",
        ),
        ({"windows": []}, r"'windows': expected an object or null, found \[\]"),
        ({"quantization": [1]}, r"'quantization': expected an object or null, found \[1\]"),
        (
            {"windows": {"max_seq_length": "long"}},
            "'windows': max_seq_length is 'long'; expected a whole number from 1 to",
        ),
        (
            {"answers": {"max_answer_tokens": 0}},
            "'answers': max_answer_tokens is 0; expected a whole number from 1 to",
        ),
        ({"answers": {"no_answer_threshold": None}}, "'answers': no_answer_threshold is None; expected a number"),
        ({"calibration": {"b": -1}}, "'calibration': b is -1; expected a number from "),
        ({"calibration": {"a": "x"}}, "'calibration': a is 'x'; expected a number from "),
        ({"window": {}}, "has the unknown section 'window'; expected format, windows, answers, calibration"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    sections: dict[str, Any], message: str, tiny_copy: Callable[..., Path]
) -> None:
    folder = with_spanqa_json(tiny_copy("bert"), **sections)
    with pytest.raises(CheckpointError, match=f"spanqa.json'.*{message}"):
        Reader.load(folder, backend="numpy")


def test_a_reader_with_other_settings_leaves_the_first_as_it_was(mini: Reader) -> None:
    short = mini.with_settings(answers=AnswerSettings(max_answer_tokens=1))
    assert short.ask("Who built the pier?", PIER, threshold=NEVER_EMPTY).text in ("Anna", "Ke", "strel")  # a token
    assert mini.ask("Who built the pier?", PIER).text == "Anna Kestrel"
    narrow = mini.with_settings(windows=WindowSettings(20))
    assert narrow.ask("Who built the pier?", PIER).text == "Anna Kestrel"
    assert narrow.answers == mini.answers
    assert len(next(narrow.forward([("Who built the pier?", [PIER])])).logits[0]) > 2


def test_windows_longer_than_the_model_are_refused(mini: Reader) -> None:
    with pytest.raises(InputError, match=r"max_seq_length is 513; this model reads at most 512 tokens"):
        mini.with_settings(windows=WindowSettings(513))


# --- the flagship's shape


ASK_OFFLINE = """
from spanqa.reader import Reader

reader = Reader.load("org/flagship", backend="openvino")
answer = reader.ask("Who built the pier?", "The old pier at Penmar was built by Anna Kestrel in 1891.", threshold=float("-inf"))
config = reader.checkpoint.encoder
print(config.layers, config.hidden_size, config.heads, reader.windows.max_seq_length, answer.text)
"""


def test_the_flagships_shape_is_loaded_by_its_hub_id_from_an_offline_cache(tmp_path: Path) -> None:
    """24 layers of 1024 in float16, as large as BERT-large: random numbers, so that only the path is tested."""
    config = {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 1024, "num_hidden_layers": 24,
        "num_attention_heads": 16, "intermediate_size": 4096, "max_position_embeddings": 512, "type_vocab_size": 2,
        "hidden_act": "gelu",
    }  # fmt: skip
    home = tmp_path / "models--org--flagship"
    snapshot = home / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text(json.dumps(config))
    shutil.copy(find("spanqa-mini") / "tokenizer.json", snapshot)
    numbers = (0.02 * np.random.default_rng(0).standard_normal(1_000_003, np.float32)).astype(np.float16)
    weights = {
        RECORDS["bert"].stored_name(name): np.ones(shape, np.float16)
        if name.endswith("norm.weight")
        else np.resize(numbers, shape)
        for name, shape in weight_shapes(encoder_config(config)).items()
    }
    save_file(weights, snapshot / "model.safetensors")
    assert (snapshot / "model.safetensors").stat().st_size > 660e6
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ASK_OFFLINE], env=environment, capture_output=True, text=True)
    (snapshot / "model.safetensors").unlink()
    assert done.returncode == 0, done.stderr
    *numbers_told, text = done.stdout.strip().split(" ", 4)
    assert numbers_told == ["24", "1024", "16", "384"]
    assert text in PIER


# --- real questions


def resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_the_longest_page_is_answered_with_bounded_memory(data: Path, mini: Reader) -> None:
    """Every sentence of it is read: a question about a sentence at its end is answered from there."""
    examples = read_squad(data / "timeqa-human.json.gz")
    page = max((example.passage for example in examples), key=len)
    assert len(page.split()) > 15_000
    mini.ask("Who was it?", page[:20_000])  # the largest batches there will be
    before = resident_mb()
    extended = f"{page} The little harbour of Penmar was drained by Oswin Tregarth in 1962."
    answer = mini.ask("Who drained the little harbour of Penmar?", extended)
    assert (answer.text, answer.start) == ("Oswin Tregarth", extended.index("Oswin Tregarth"))
    assert resident_mb() - before < 60  # measured: 10


def test_every_passage_of_the_long_pages_can_be_read(data: Path, mini: Reader) -> None:
    """All pages are cut and encoded; a fake model answers, so that it takes seconds."""
    pages = sorted({example.passage for example in read_squad(data / "timeqa-human.json.gz")})
    reader, backend = peaked(mini.checkpoint.path, "the", "the")
    for page, answer in zip(pages, reader.ask_many(("who?", page) for page in pages), strict=True):
        assert page[answer.start : answer.end] == answer.text != ""
    assert max(batch.input_ids.size for batch in backend.batches) <= BATCH_TOKENS


@pytest.fixture(scope="session")
def real_pairs(data: Path) -> list[tuple[str, str]]:
    return [(example.question, example.passage) for example in read_squad(data / "squad-v2.0-dev.json.gz")[:100]]


@pytest.fixture(scope="session")
def real_answers(real_pairs: list[tuple[str, str]], mini: Reader) -> list[Answer]:
    return list(mini.ask_many(real_pairs))


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "openvino"])
def test_every_backend_gives_the_answers_of_openvino_to_real_questions(
    name: str, real_pairs: list[tuple[str, str]], real_answers: list[Answer], need: Callable[[str], None]
) -> None:
    need(name)
    assert 20 < sum(map(bool, real_answers)) < 80
    found = list(Reader.load(backend=name, dtype="fp32", device="cpu").ask_many(real_pairs))
    assert [(answer.text, answer.start) for answer in found] == [(answer.text, answer.start) for answer in real_answers]
    scores, expected = ([answer.score for answer in answers] for answers in (found, real_answers))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-3)  # measured: 1e-5


@given(text=nasty_texts())
def test_a_passage_of_any_text_can_be_prepared(tiny_reader: Callable[..., Reader], text: str) -> None:
    assert tiny_reader("roberta").prepare(text).text == text


# --- abstaining


def test_no_answer_off_always_answers_and_on_takes_zero_where_nothing_is_stored(mini: Reader) -> None:
    question = "Who was the king of Spain?"
    assert not mini.ask(question, PIER)
    forced = mini.ask(question, PIER, no_answer="off")
    assert forced.text and forced.score < 0
    assert [answer.text for answer in mini.ask_many([(question, PIER)], no_answer="off")] == [forced.text]
    assert mini.rank(question, [PIER], no_answer="off")[0] == forced
    stored = mini.with_settings(answers=AnswerSettings(no_answer_threshold=-math.inf))
    assert stored.ask(question, PIER).text == forced.text
    assert not stored.ask(question, PIER, no_answer="on")
    strict = mini.with_settings(answers=AnswerSettings(no_answer_threshold=99.0))
    assert not strict.ask("Who built the pier?", PIER, no_answer="on")


def test_answers_below_the_least_probability_are_not_given(mini: Reader) -> None:
    question = "Who built the pier?"
    answer = mini.ask(question, PIER)
    assert mini.ask(question, PIER, min_probability=answer.probability) == answer
    nothing = mini.ask(question, PIER, min_probability=min(1.0, answer.probability + 1e-6))
    assert (nothing.text, nothing.score) == ("", answer.score)
    places = mini.rank(question, [PIER], no_answer="off", top_k=9)
    least = places[1].probability
    likely = [place for place in places if place.probability >= least]
    assert 1 < len(likely) < len(places)
    assert mini.rank(question, [PIER], no_answer="off", top_k=9, min_probability=least) == likely


def test_impossible_wishes_are_refused(mini: Reader) -> None:
    with pytest.raises(InputError, match=r"no_answer is 'never'; expected one of auto, on, off"):
        mini.ask("Who?", PIER, no_answer="never")  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"no_answer is 'off', so that nothing is below a threshold, but threshold is 2"
    ):
        mini.ask("Who?", PIER, no_answer="off", threshold=2)
    for value in (-0.1, 1.1, "half", math.nan, True):
        with pytest.raises(InputError, match=r"min_probability is .*; expected a number from 0 to 1"):
            mini.ask("Who?", PIER, min_probability=value)  # type: ignore[arg-type]


def test_progress_of_a_ranking_counts_windows(tiny_reader: Callable[[str], Reader]) -> None:
    told: list[tuple[int, int]] = []
    reader = tiny_reader("bert")
    text = "The lighthouse was built by Anna Kestrel. " * 1000
    reader.ranking("Who built it?", text, progress=lambda done, total, note="": told.append((done, total)))
    assert len(told) > 1 and told == sorted(told)
    assert told[-1][0] == told[-1][1] > 100
