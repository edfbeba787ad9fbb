"""Outcomes, what they say when counted, and the page that shows them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanqa.errors import DatasetError, InputError
from spanqa.evaluate import evaluate
from spanqa.evaluate.outcomes import (
    Outcome,
    bucket,
    collect,
    compare_runs,
    groups,
    question_type,
    read_outcomes,
    risk_coverage,
    risk_coverage_of,
    threshold_curve,
    write_outcomes,
)
from spanqa.evaluate.report import write_report
from spanqa.reader import Reader
from spanqa.squad import Example, read_squad

HARBOUR = Path(__file__).parents[1] / "examples" / "harbour.json"
EXAMPLES = read_squad(HARBOUR)


def made(id: str, f1: float, probability: float = 0.5, score: float = 0.0, answerable: bool = True) -> Outcome:
    return Outcome(
        id,
        "Who?",
        "x",
        0,
        score,
        probability,
        float(f1 == 1),
        f1,
        f1 if answerable else 0.0,
        answerable,
        None,
        100,
        0.1,
        1,
    )


@pytest.fixture(scope="module")
def outcomes(mini: Reader) -> list[Outcome]:
    return collect(mini, EXAMPLES)


def test_outcomes_are_what_ask_returns_and_average_to_the_metrics(mini: Reader, outcomes: list[Outcome]) -> None:
    for example, outcome in zip(EXAMPLES, outcomes, strict=True):
        answer = mini.ask(example.question, example.passage)
        assert (outcome.text, outcome.start) == (answer.text, answer.start)
        assert outcome.score == pytest.approx(answer.score, abs=0.1)
    record = evaluate(mini, EXAMPLES)
    assert 100 * np.mean([outcome.f1 for outcome in outcomes]) == pytest.approx(record["reader"]["f1"])
    best = max(threshold_curve(outcomes)["f1"])
    assert 100 * best == pytest.approx(record["reader"]["best_f1"])


def test_outcomes_are_written_and_read(tmp_path: Path, outcomes: list[Outcome]) -> None:
    write_outcomes(tmp_path / "o.jsonl", outcomes)
    assert read_outcomes(tmp_path / "o.jsonl") == outcomes
    (tmp_path / "o.jsonl").write_text('{"id": 3}\n')
    for name in ("o.jsonl", "none.jsonl"):
        with pytest.raises(DatasetError, match="is no file of outcomes"):
            read_outcomes(tmp_path / name)


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
        "up to 1 words", "2 to 4 words", "2 to 4 words", "over 4 words", None,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_risk_at_full_coverage_is_the_error_and_the_best_order_has_the_least_area(rows: list[tuple[int, bool]]) -> None:
    sureness = np.array([each for each, _ in rows], float)
    right = np.array([each for _, each in rows])
    coverage, risk, area = risk_coverage_of(sureness, right)
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
    with pytest.raises(DatasetError, match="not on the same questions: 1 are in one only, such as '0'"):
        compare_runs(mine[1:], mine)


def test_the_page_needs_nothing_else_and_shows_what_is_wrong(tmp_path: Path, mini: Reader) -> None:
    pytest.importorskip("matplotlib")
    nasty = Example("n", "Who <b>?", "It was <script>alert(1)</script> Anna & Co.", ())
    examples = [*EXAMPLES, nasty]
    found = [replace(outcome, f1=0.0) for outcome in collect(mini, examples)]
    other = compare_runs(found, found)
    page = write_report(
        tmp_path / "report", examples, found, evaluate(mini, examples), calibrated=False, difference=other
    ).read_text("utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 3
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("class=mistake") == len(examples)
    for words in ("Surest mistakes", "Expected calibration error", "no more than chance explains", "best_f1", "who"):
        assert words in page
    for name in ("reliability.png", "risk_coverage.png", "threshold.png"):
        assert (tmp_path / "report" / name).read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="no question to report on"):
        write_report(tmp_path, [], [], {}, calibrated=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="The report cannot be written"):
        write_report(tmp_path / "file" / "x", examples, found, evaluate(mini, examples), calibrated=False)


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
