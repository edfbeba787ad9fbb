"""The threshold and the calibration: fitted, stored, used."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spanqa.checkpoint import find, open_checkpoint
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate import Outcome, question_scores
from spanqa.evaluate.curves import expected_calibration_error
from spanqa.evaluate.metrics import column
from spanqa.evaluate.tune import TEMPERATURES, fit, gather, probabilities_at, store
from spanqa.reader import Reader
from spanqa.squad import Example, read_squad

HARBOUR = Path(__file__).parents[1] / "examples" / "harbour.json"


def made(count: int = 20_000, a: float = 1.5, b: float = 0.7, temperature: float = 2.0, seed: int = 0) -> list[Outcome]:
    """Questions drawn from the very model that is fitted: M* first, then whether there is an answer, then the spans."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(2, 4, count)
    answerable = draw.random(count) > 1 / (1 + np.exp(b * scores - a))
    behind = draw.exponential(3.0, (count, 6))  # six other spans, so many logits behind the best
    shares = np.stack([-np.log1p(np.exp(-behind / t).sum(axis=1)) for t in TEMPERATURES], axis=1)
    share = 1 / (1 + np.exp(-behind / temperature).sum(axis=1))
    right = (draw.random(count) < share) & answerable
    return [
        Outcome(
            id="q", question="Who?", answerable=bool(answer), text="x", exact=float(hit), f1=float(hit), best_text="x",
            best_exact=float(hit), best_f1=float(hit), score=float(score), log_share=logs,
        )
        for answer, hit, score, logs in zip(answerable, right, scores, shares, strict=True)
    ]  # fmt: skip


def test_the_fit_finds_what_the_data_were_drawn_from() -> None:
    tuned = fit(made(), 0.0, "sha")
    assert tuned.calibration.a == pytest.approx(1.5, abs=0.1)
    assert tuned.calibration.b == pytest.approx(0.7, abs=0.05)
    assert tuned.calibration.temperature == pytest.approx(2.0, rel=0.12)
    assert tuned.calibration.data_sha256 == "sha"
    assert tuned.ece_after < 0.02 < tuned.ece_before
    fresh = made(seed=1)
    assert (
        expected_calibration_error(*probabilities_at(fresh, tuned.calibration, tuned.no_answer_threshold or 0.0)) < 0.02
    )


@pytest.mark.parametrize("criterion", ["f1", "exact"])
def test_no_threshold_does_better_than_the_fitted_one(criterion: str) -> None:
    outcomes = made(500)
    tuned = fit(outcomes, 0.0, "sha", criterion)  # type: ignore[arg-type]
    scores, answerable, f1 = (column(outcomes, name) for name in ("score", "answerable", "best_f1"))

    def value(threshold: float) -> float:
        return 100 * float(np.where(scores >= threshold, f1 * answerable, ~answerable).mean())

    assert tuned.no_answer_threshold is not None
    assert value(tuned.no_answer_threshold) == pytest.approx(tuned.value)
    assert tuned.value == pytest.approx(max(map(value, [*scores, np.inf])))


def test_a_wanted_precision_is_kept_and_the_threshold_is_the_lowest() -> None:
    outcomes = made(2000)
    tuned = fit(outcomes, 0.0, "sha", "precision", 0.7)
    assert tuned.no_answer_threshold is not None
    scores, right = column(outcomes, "score"), column(outcomes, "answerable") & (column(outcomes, "best_f1") >= 0.5)
    assert right[scores >= tuned.no_answer_threshold].mean() >= 0.7
    for lower in np.sort(scores[scores < tuned.no_answer_threshold])[::-1]:
        assert right[scores >= lower].mean() < 0.7
    with pytest.raises(InputError, match=r"No threshold makes 100% of the answers right on this data\. The most is \d"):
        fit(made(50, temperature=50.0), 0.0, "sha", "precision", 1.0)
    with pytest.raises(InputError, match=r"precision is None; expected a share above 0 and at most 1"):
        fit(outcomes, 0.0, "sha", "precision")


def test_where_every_question_has_an_answer_the_threshold_stays() -> None:
    tuned = fit([outcome for outcome in made(500) if outcome.answerable], 0.0, "sha")
    assert tuned.no_answer_threshold is None
    assert (tuned.calibration.a, tuned.calibration.b) == (0.0, 1.0)


def test_the_calibration_error_by_hand() -> None:
    right = np.array([True, False, True, True])
    assert expected_calibration_error(np.array([0.61, 0.63, 0.95, 1.0]), right) == pytest.approx((0.24 + 0.05) / 4)
    assert expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_what_is_fitted_agrees_with_what_the_reader_answers(mini: Reader) -> None:
    examples = read_squad(HARBOUR)
    counts: list[tuple[int, int]] = []
    blank = Example("blank", "Who?", " \n")
    outcomes = gather(mini, [*examples, blank], lambda done, total, note="": counts.append((done, total)))
    assert counts[-1] == (len(examples) + 1, len(examples) + 1)
    assert [outcome.id for outcome in outcomes] == [example.id for example in examples]  # nothing to read in the last
    probabilities, right = probabilities_at(outcomes, mini.calibration, 0.0)
    for example, probability, correct in zip(examples, probabilities, right, strict=True):
        answer = mini.ask(example.question, example.passage, threshold=0.0)
        assert answer.probability == pytest.approx(probability, abs=0.02)
        assert correct == (question_scores(example, answer.text)[1] >= 0.5)
    for nothing in ([], [blank]):
        with pytest.raises(DatasetError, match=r"no question to tune on\. Give at least one whose passage holds text"):
            gather(mini, nothing)


def test_what_is_stored_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find("spanqa-mini"), folder)
    command = [sys.executable, "-m", "spanqa", "tune", str(HARBOUR), "--model", str(folder)]
    shown = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True).stdout
    assert "nothing was written" in shown
    before = json.loads((folder / "spanqa.json").read_text()) if (folder / "spanqa.json").exists() else None
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    tuned = json.loads(done.stdout)
    reader = Reader.load(folder)
    assert reader.calibrated
    assert reader.calibration.b == tuned["calibration"]["b"]
    assert reader.answers.no_answer_threshold == tuned["no_answer_threshold"]
    assert before != json.loads((folder / "spanqa.json").read_text())
    assert [path.name for path in folder.iterdir() if path.name.startswith("tmp")] == []


def test_a_model_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find("spanqa-mini"), folder)
    checkpoint = open_checkpoint(folder)
    tuned = fit(made(100), 0.0, "sha")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=r"cannot be written: Permission denied. Copy the model"):
        store(checkpoint, tuned)


@pytest.mark.parametrize("arguments", [["--criterion", "recall"], ["--precision", "0.9"], ["--criterion", "precision"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "spanqa", "tune", str(HARBOUR), "--model", "spanqa-mini", *arguments]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 2
