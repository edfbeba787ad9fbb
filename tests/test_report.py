"""Outcomes, the curves, groups and comparisons made of them, and the page that shows them."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import byhand
from spanqa.backends.base import Backend
from spanqa.batches import Batch, Capture, SpanLogits, WindowLogits
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate import GoldSpan, Outcome, collect, evaluate
from spanqa.evaluate.compare import compare_runs
from spanqa.evaluate.curves import risk_coverage, risk_coverage_of, threshold_curve
from spanqa.evaluate.diagnosis import CAUSES
from spanqa.evaluate.groups import bucket, groups, question_type
from spanqa.evaluate.outcomes import read_outcomes, write_outcomes
from spanqa.evaluate.report import write_report
from spanqa.evaluate.tune import gather
from spanqa.reader import Reader
from spanqa.squad import Example, GoldAnswer, read_squad
from spanqa.windows import WindowSettings

HARBOUR = Path(__file__).parents[1] / "examples" / "harbour.json"
EXAMPLES = read_squad(HARBOUR)
PASSAGE = "Anna Kestrel built the pier at Port Merrow. " * 3


def made(id: str, f1: float, probability: float = 0.5, score: float = 0.0, answerable: bool = True) -> Outcome:
    return Outcome(
        id=id,
        question="Who?",
        answerable=answerable,
        text="x",
        exact=float(f1 == 1),
        f1=f1,
        best_text="x",
        best_exact=float(f1 == 1),
        best_f1=f1 if answerable else 0.0,
        score=score,
        answer_position=0.1,
        answer_words=1,
        start=0,
        probability=probability,
        passage_tokens=100,
    )


@pytest.fixture(scope="module")
def outcomes(mini: Reader) -> list[Outcome]:
    found: list[Outcome] = []
    evaluate(mini, EXAMPLES, on_outcome=found.append)
    return found


# --- outcomes


def test_outcomes_are_what_ask_returns_and_average_to_the_metrics(mini: Reader, outcomes: list[Outcome]) -> None:
    for example, outcome in zip(EXAMPLES, outcomes, strict=True):
        answer = mini.ask(example.question, example.passage)
        assert (outcome.text, outcome.start) == (answer.text, answer.start)
        assert outcome.score == pytest.approx(answer.score, abs=0.1)
        assert outcome.probability == pytest.approx(answer.probability, abs=0.02)
    record = evaluate(mini, EXAMPLES)
    assert 100 * np.mean([outcome.f1 for outcome in outcomes]) == pytest.approx(record["reader"]["f1"])
    best = max(threshold_curve(outcomes)["f1"])
    assert 100 * best == pytest.approx(record["reader"]["best_f1"])


def test_the_threshold_changes_what_is_returned_and_nothing_else(mini: Reader, outcomes: list[Outcome]) -> None:
    for (_, _, rejected), outcome in zip(collect(mini, EXAMPLES, threshold=math.inf), outcomes, strict=True):
        assert (rejected.text, rejected.start, rejected.f1) == ("", None, float(not outcome.answerable))
        assert (rejected.best_text, rejected.best_f1) == (outcome.best_text, outcome.best_f1)
        assert rejected.score == pytest.approx(outcome.score, abs=0.1)


class Counting:
    """A backend that counts the windows it reads."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.windows: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        self.windows += [
            ids[index >= 0].tobytes() for ids, index in zip(batch.input_ids, batch.window_index, strict=True)
        ]
        return self.backend.forward(batch, capture=capture)


def test_metrics_report_and_tuning_read_every_window_once(mini: Reader, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    backend = Counting(mini.backend)
    reader = Reader(mini.checkpoint, backend, layout="padded").with_settings(
        windows=WindowSettings(max_seq_length=48, overlap=8)
    )
    every = [window for example in EXAMPLES for window in windows_of(reader, example)]
    backend.windows.clear()
    found: list[Outcome] = []
    record = evaluate(reader, EXAMPLES, on_outcome=found.append, out=tmp_path / "out")
    write_report(tmp_path / "report", EXAMPLES, found, record, calibrated=False)
    assert len(backend.windows) == len(set(backend.windows)) == len(every) > len(EXAMPLES)
    backend.windows.clear()
    gather(reader, EXAMPLES)
    assert len(backend.windows) == len(set(backend.windows)) == len(every)


def windows_of(reader: Reader, example: Example) -> Sequence[WindowLogits]:
    (reading,) = reader.forward([(example.question, [example.passage])])
    return reading.logits[0]


@pytest.mark.parametrize("overlap", [0, 8])
def test_the_gold_span_by_hand(mini: Reader, overlap: int) -> None:
    """Score, rank and window of the gold span against all spans of all windows, one by one."""
    reader = mini.with_settings(windows=WindowSettings(max_seq_length=40, overlap=overlap))
    passage = EXAMPLES[0].passage
    words = [match.span() for match in re.finditer(r"\S+", passage)]
    golds = [passage[a:b] for (a, _), (_, b) in zip(words[::3], words[2::3], strict=False)]
    examples = [Example(text, "Who built it?", passage, (GoldAnswer(text, passage.index(text)),)) for text in golds]
    windows_used, none = set(), 0
    for example, reading, outcome in collect(reader, examples):
        by_hand = gold_by_hand(reader, example, reading)
        if by_hand is None:
            none += 1
            assert outcome.gold is None
            continue
        assert outcome.gold is not None
        assert outcome.gold.score == pytest.approx(by_hand.score, abs=1e-4)
        assert outcome.gold.window_margin == pytest.approx(by_hand.window_margin, abs=1e-4)
        assert outcome.gold.rank == by_hand.rank
        assert outcome.gold.window == by_hand.window
        assert passage[outcome.gold.start : outcome.gold.end].startswith(example.answers[0].text.rstrip(".,;"))
        windows_used.add(outcome.gold.window)
    assert len(windows_used) > 1
    assert (none > 0) == (overlap == 0)  # without overlap, some answers lie across the edge of two windows


def gold_by_hand(reader: Reader, example: Example, reading: Any) -> GoldSpan | None:
    (passage,), (windows,) = reading.passages, reading.logits
    answer = example.answers[0]
    inside = range(answer.start, answer.start + len(answer.text))
    touching = [i for i, (a, b) in enumerate(passage.tokens.offsets.tolist()) if a in inside or b - 1 in inside]
    place = (0, touching[0], touching[-1])
    every = byhand.margins([passage], [windows], reader.answers.max_answer_tokens)
    if place not in every:
        return None
    alone = [byhand.margins([passage], [[window]], reader.answers.max_answer_tokens) for window in windows]
    best = max(range(len(windows)), key=lambda index: alone[index].get(place, -math.inf))
    rank = sorted(every, key=lambda each: -every[each]).index(place) + 1
    offsets = passage.tokens.offsets
    return GoldSpan(
        int(offsets[touching[0], 0]), int(offsets[touching[-1], 1]), every[place], rank, best, max(alone[best].values())
    )


@pytest.mark.parametrize(
    ("answers", "covered"),
    [
        ((), None),
        ((GoldAnswer("nowhere", 3),), None),  # the words are not there
        ((GoldAnswer(PASSAGE, 0),), None),  # longer than any answer
        ((GoldAnswer("nowhere", 3), GoldAnswer(" Kestrel", 4)), "Kestrel"),
        ((GoldAnswer("est", 6),), "Kestrel"),  # a token counts whole
    ],
)
def test_the_first_reference_that_a_span_covers_is_the_gold_span(
    mini: Reader, answers: tuple[GoldAnswer, ...], covered: str | None
) -> None:
    ((_, _, outcome),) = collect(mini, [Example("1", "Who built it?", PASSAGE, answers)])
    gold = outcome.gold
    assert (PASSAGE[gold.start : gold.end] if gold else None) == covered


def test_outcomes_are_written_and_read(tmp_path: Path, mini: Reader, outcomes: list[Outcome]) -> None:
    assert any(outcome.gold for outcome in outcomes)
    odd = Example(
        "odd", "Who\u2028built\x85it?", "  ", ()
    )  # with line ends that JSON does not escape, and nothing to read
    found = [*outcomes, *(outcome for _, _, outcome in collect(mini, [odd]))]
    path = tmp_path / "o.jsonl"
    write_outcomes(path, found)
    assert read_outcomes(path) == found
    assert found[-1].score == -math.inf
    lines = path.read_text("utf-8").rstrip("\n").split("\n")
    assert json.loads(lines[-1])["score"] is None
    path.write_text('{"id": 3}\n')
    with pytest.raises(
        DatasetError, match=r"o\.jsonl' is not a file of outcomes .*Expected outcomes\.jsonl from a folder"
    ):
        read_outcomes(path)
    row = json.loads(lines[0])
    for wrong in (
        {"id": [1]},
        {"text": None},
        {"f1": "1"},
        {"score": "2"},
        {"start": 1.5},
        {"probability": []},
        {"gold": 3},
    ):
        path.write_text(json.dumps(row | wrong))
        with pytest.raises(DatasetError, match=r"is not a file of outcomes"):
            read_outcomes(path)
            pytest.fail(str(wrong))
    with pytest.raises(DatasetError, match=r"File '.*none\.jsonl' does not exist"):
        read_outcomes(tmp_path / "none.jsonl")


# --- groups, curves, comparisons


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who built it?", "who"),
        ("By whom was it built?", "who"),
        ("How many piers?", "how many"),
        ("How does it work?", "how"),
        ("In which year?", "when"),
        ("In what country is Normandy located?", "where"),
        ("What did he say when he left?", "what"),
        ("The pier is made of which stone?", "which"),
        ("Name the pier.", "other"),
        ("Whole numbers are what?", "what"),
    ],
)
def test_the_type_of_a_question(question: str, kind: str) -> None:
    assert question_type(question) == kind


def test_groups_are_counted_and_the_largest_comes_first() -> None:
    found = groups([made("a", 1.0), made("b", 0.5), made("c", 0.0)], lambda o: None if o.id == "c" else "few")
    assert [(group.name, group.questions, group.exact, group.f1) for group in found] == [("few", 2, 50.0, 75.0)]
    assert [bucket(value, (1, 4), "words") for value in (1, 2, 4, 5, None)] == [
        "1 word", "2 to 4 words", "2 to 4 words", "over 4 words", None,
    ]  # fmt: skip
    assert [bucket(value, (2, 3), "words") for value in (1, 3)] == ["up to 2 words", "3 words"]


def test_groups_of_numbers_come_in_the_order_of_the_numbers() -> None:
    lengths = {"a": 7, "b": 1, "c": 7, "d": 3}
    found = groups([made(id, 1.0) for id in lengths], lambda o: str(lengths[o.id]), lambda o: lengths[o.id])
    assert [group.name for group in found] == ["1", "3", "7"]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_risk_at_full_coverage_is_the_error_and_the_best_order_has_the_least_area(rows: list[tuple[int, bool]]) -> None:
    confidence = np.array([each for each, _ in rows], float)
    right = np.array([each for _, each in rows])
    coverage, risk, area = risk_coverage_of(confidence, right)
    assert coverage[-1] == 1.0
    assert risk[-1] == pytest.approx((~right).mean())
    _, _, least = risk_coverage_of(np.where(right, 1.0, 0.0) + np.arange(len(right)) * 1e-9, right)
    assert least <= area + 1e-9


def test_equal_probabilities_are_taken_together() -> None:
    coverage, risk, area = risk_coverage([made("a", 1.0), made("b", 0.0)])
    assert (coverage.tolist(), risk.tolist(), area) == ([1.0], [0.5], 0.5)


def test_the_threshold_curve_by_hand() -> None:
    curve = threshold_curve(
        [made("a", 1.0, score=3), made("b", 0.0, score=1, answerable=False), made("c", 1.0, score=2)]
    )
    assert curve["threshold"].tolist() == [3, 2, 1]
    assert curve["precision"].tolist() == pytest.approx([1, 1, 2 / 3])
    assert curve["recall"].tolist() == pytest.approx([0.5, 1, 1])
    assert curve["f1"].tolist() == pytest.approx([2 / 3, 1, 2 / 3])


def test_two_runs_are_compared_on_the_same_questions() -> None:
    mine = [made(str(i), 1.0 if i % 3 else 0.0) for i in range(300)]
    same = compare_runs(mine, mine)
    assert (same.difference, same.low, same.high, same.better, same.worse) == (0, 0, 0, 0, 0)
    others = [replace(outcome, f1=0.0) if int(outcome.id) % 5 == 0 else outcome for outcome in reversed(mine)]
    found = compare_runs(mine, others)
    assert found.low < found.difference < found.high
    assert found.difference == pytest.approx(100 * found.better / 300)
    assert found.low > 0  # measured: 13.3, from 9.7 to 17.3
    with pytest.raises(DatasetError, match="not on the same questions: 1 are in only one of them, for example '0'"):
        compare_runs(mine[1:], mine)


# --- the page


def test_the_page_needs_nothing_else_and_shows_what_is_wrong(tmp_path: Path, mini: Reader) -> None:
    pytest.importorskip("matplotlib")
    nasty = Example("n", "Who <b>?", "It was <script>alert(1)</script> Anna & Co.", ())
    examples = [*EXAMPLES, nasty]
    found: list[Outcome] = []
    record = evaluate(mini, examples, on_outcome=found.append)
    found = [replace(outcome, f1=0.0) for outcome in found]
    other = compare_runs(found, found)
    counts: list[tuple[int, int]] = []
    page = write_report(
        tmp_path / "report",
        examples,
        found,
        record,
        calibrated=False,
        difference=other,
        progress=lambda done, total, note="": counts.append((done, total)),
    ).read_text("utf-8")
    assert counts == [(done, 4) for done in range(5)]
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 3
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("class=mistake") == len(examples)
    for words in (
        "Most confident mistakes",
        "Expected calibration error",
        "no more than chance explains",
        "best_f1",
        "who",
    ):
        assert words in page
    for name in ("reliability.png", "risk_coverage.png", "threshold.png"):
        assert (tmp_path / "report" / name).read_bytes()[:4] == b"\x89PNG"
    assert read_outcomes(tmp_path / "report" / "outcomes.jsonl") == found
    with pytest.raises(InputError, match="no question to report on"):
        write_report(tmp_path, [], [], {}, calibrated=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"The report cannot be written to '.*': Not a directory\. Name a folder"):
        write_report(tmp_path / "file" / "x", examples, found, record, calibrated=False)


def test_the_page_counts_causes_links_each_to_a_mistake_and_names_the_cause_of_every_mistake(
    tmp_path: Path, mini: Reader
) -> None:
    pytest.importorskip("matplotlib")
    nothing = [Example(f"n{number}", "Who <b>built</b> it?", PASSAGE) for number in range(3)]
    found: list[Outcome] = []
    record = evaluate(mini, [*nothing, *EXAMPLES], threshold=-99.0, on_outcome=found.append)
    found = [
        replace(outcome, start=None, text="", f1=0.0, probability=0.01) if outcome.id == "harbour-1" else outcome
        for outcome in found
    ]
    write: dict[str, Any] = {"calibrated": True, "mistakes": 1}
    page = write_report(tmp_path / "a", [*nothing, *EXAMPLES], found, record, **write).read_text("utf-8")
    unanswerable = 3 + sum(not example.answers for example in EXAMPLES)
    counts = {"answered though there is none": unanswerable, "boundary": 1, "null beats span": 1}
    for cause, number in counts.items():
        share = number / sum(counts.values())
        row = f"{cause}</a> <span class=small>{escape(CAUSES[cause])}</span></td><td>{number}</td><td>{share:.1%}</td>"
        anchor = cause.replace(" ", "-")
        assert f'<a href="#{anchor}">{row}' in page
        mistake = page.split(f'<div class=mistake id="{anchor}">')
        assert len(mistake) == 2
        assert f"<span class=cause>{cause}</span>" in mistake[1].partition("<div class=mistake")[0]
    assert page.index("answered though there is none</a>") < page.index("boundary</a>")
    assert page.count("class=mistake") == page.count("<span class=cause>") == 3  # one, and one of each other cause
    assert "1 would be right with a lower threshold" in page
    assert "The answer has 6 words too many at the end." in page
    every = write_report(tmp_path / "c", [*nothing, *EXAMPLES], found, record, calibrated=True).read_text("utf-8")
    assert (every.count("class=mistake"), every.count("class=mistake id=")) == (sum(counts.values()), len(counts))
    right = [replace(outcome, f1=1.0) for outcome in found]
    page = write_report(tmp_path / "b", [*nothing, *EXAMPLES], right, record, **write).read_text("utf-8")
    assert "There are no mistakes." in page and "class=mistake" not in page


def test_numbers_on_the_page_are_rounded_and_pictures_are_large(tmp_path: Path, mini: Reader) -> None:
    pytest.importorskip("matplotlib")
    found: list[Outcome] = []
    record = evaluate(mini, EXAMPLES, threshold=1.2345678901, on_outcome=found.append)
    page = write_report(tmp_path, EXAMPLES, found, record, calibrated=True).read_text("utf-8")
    words = re.sub(r'src="[^"]*"', "", page)
    assert "threshold 1.23. " in words and "best_f1_no_answer_threshold" in words
    assert not re.search(r"\d\.\d{5}", words)
    assert "minmax(min(100%, 28rem), 1fr)" in page  # two pictures beside each other, one on a telephone
    assert not list(tmp_path.glob(".*"))


def test_a_reference_that_is_not_in_its_passage_is_not_marked(tmp_path: Path, mini: Reader) -> None:
    pytest.importorskip("matplotlib")
    examples = [Example("1", "Who?", "Anna Kestrel built it.", (GoldAnswer("Bertha", -1),))]
    found: list[Outcome] = []
    record = evaluate(mini, examples, on_outcome=found.append)
    assert (found[0].gold, found[0].answer_position) == (None, None)
    page = write_report(tmp_path, examples, found, record, calibrated=True).read_text("utf-8")
    assert "mark class=gold" not in page and "Bertha" in page


def test_the_command_writes_a_report_and_compares(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "spanqa", "evaluate", str(HARBOUR), "--json"]
    done = subprocess.run([*command, "--report", str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert "metrics" in json.loads(done.stdout)
    assert str(tmp_path / "a" / "report.html") in done.stderr
    outcomes = tmp_path / "a" / "outcomes.jsonl"
    again = [*command, "--report", str(tmp_path / "b"), "--against", str(outcomes), "--threshold", "99"]
    subprocess.run(again, capture_output=True, text=True, check=True)
    assert "paired bootstrap" in (tmp_path / "b" / "report.html").read_text("utf-8")
    wrong = subprocess.run([*command, "--against", str(outcomes)], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
