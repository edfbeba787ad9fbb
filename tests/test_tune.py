"""The threshold and the calibration: fitted, stored, used."""

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spanqa.calibration import Calibration
from spanqa.checkpoint import find, open_checkpoint
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate import Outcome, question_scores
from spanqa.evaluate.curves import expected_calibration_error
from spanqa.evaluate.metrics import column
from spanqa.evaluate.stored import store
from spanqa.evaluate.tune import TEMPERATURES, fit, gather, probabilities_at
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
    tuned = fit(made(), 0.0, Calibration(), "sha")
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
    tuned = fit(outcomes, 0.0, Calibration(), "sha", criterion)  # type: ignore[arg-type]
    scores, answerable, f1 = (column(outcomes, name) for name in ("score", "answerable", "best_f1"))

    def value(threshold: float) -> float:
        return 100 * float(np.where(scores >= threshold, f1 * answerable, ~answerable).mean())

    assert tuned.no_answer_threshold is not None
    assert value(tuned.no_answer_threshold) == pytest.approx(tuned.value)
    assert tuned.value == pytest.approx(max(map(value, [*scores, np.inf])))


def test_a_wanted_precision_is_kept_and_the_threshold_is_the_lowest() -> None:
    outcomes = made(2000)
    tuned = fit(outcomes, 0.0, Calibration(), "sha", "precision", 0.7)
    assert tuned.no_answer_threshold is not None
    scores, right = column(outcomes, "score"), column(outcomes, "answerable") & (column(outcomes, "best_f1") >= 0.5)
    assert right[scores >= tuned.no_answer_threshold].mean() >= 0.7
    for lower in np.sort(scores[scores < tuned.no_answer_threshold])[::-1]:
        assert right[scores >= lower].mean() < 0.7
    with pytest.raises(InputError, match=r"No threshold makes 100% of the answers right on this data\. The most is \d"):
        fit(made(50, temperature=50.0), 0.0, Calibration(), "sha", "precision", 1.0)
    with pytest.raises(InputError, match=r"precision is None; expected a share above 0 and at most 1"):
        fit(outcomes, 0.0, Calibration(), "sha", "precision")


def test_where_every_question_has_an_answer_the_threshold_stays() -> None:
    tuned = fit([outcome for outcome in made(500) if outcome.answerable], 0.0, Calibration(), "sha")
    assert tuned.no_answer_threshold == 0.0
    assert (tuned.calibration.a, tuned.calibration.b) == (0.0, 1.0)
    assert list(tuned.fitted) == ["temperature"]


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


# --- what the data can decide


def test_few_questions_replace_a_good_threshold_seldom_and_many_replace_a_bad_one() -> None:
    large = made(20_000)
    scores, answerable, f1 = (column(large, name) for name in ("score", "answerable", "best_f1"))

    def value(threshold: float) -> float:
        return 100 * float(np.where(scores >= threshold, f1 * answerable, ~answerable).mean())

    good = max(np.linspace(-5, 15, 201), key=value)
    fits = [fit(made(60, seed=seed), good, Calibration(1.5, 0.7, 2.0, "old"), "sha") for seed in range(25)]
    wildest = max(abs(each.fitted["no_answer_threshold"].best - good) for each in fits)
    assert wildest > 4  # measured: 7.9; it was stored
    assert sum(each.fitted["no_answer_threshold"].stored for each in fits) <= 3  # measured: 0
    assert sum(each.fitted["a"].stored for each in fits) <= 3  # measured: 0
    assert sum(each.fitted["temperature"].stored for each in fits) <= 3  # measured: 0
    assert min(value(each.no_answer_threshold) for each in fits) > value(good) - 3  # measured: the same
    bad = fit(made(600), good - 6, Calibration(), "sha")
    assert all(each.stored for each in bad.fitted.values())
    assert value(bad.no_answer_threshold) > value(good) - 2


def test_the_interval_covers_what_the_data_were_drawn_from() -> None:
    """A 95 % interval of a and b, and of a temperature on a grid with steps of 7 %."""
    covered = {"a": 0, "b": 0, "temperature": 0}
    for seed in range(20):
        fitted = fit(made(200, seed=seed), 0.0, Calibration(), "sha").fitted
        for name, true in (("a", 1.5), ("b", 0.7), ("temperature", 2.0)):
            covered[name] += fitted[name].low - 1e-9 <= true <= fitted[name].high + 0.15
            assert fitted[name].low <= fitted[name].best <= fitted[name].high
    assert min(covered.values()) >= 15  # measured: 19 of 20 each


def test_of_too_few_questions_nothing_is_stored() -> None:
    outcomes = [each for each in made(4000, temperature=16.0) if each.answerable]
    without = [each for each in made(4000) if not each.answerable]
    few = fit([*outcomes, *without[:9]], 99.0, Calibration(), "sha").fitted
    assert [name for name, each in few.items() if each.stored] == ["temperature"]
    assert fit([*outcomes, *without[:10]], 99.0, Calibration(), "sha").fitted["no_answer_threshold"].stored
    few = fit([*outcomes[:9], *without], 99.0, Calibration(), "sha").fitted
    assert not any(each.stored for each in few.values())


def test_data_of_one_kind_and_single_questions_can_be_fitted() -> None:
    for outcomes in (made(1), made(2), made(3), [made(1)[0]] * 5):
        tuned = fit(outcomes, 1.0, Calibration(), "sha")
        assert (tuned.no_answer_threshold, tuned.calibration) == (1.0, Calibration())


# --- several domains


def test_domains_have_equal_weight_however_many_questions_they_have() -> None:
    large, small = made(400, a=2.5), made(100, a=-1.5, seed=1)
    both = fit([*large, *small], 0.0, Calibration(), "sha", sizes=[len(large), len(small)])
    even = fit([*large, *[each for each in small for _ in range(4)]], 0.0, Calibration(), "sha")
    assert both.calibration.a == pytest.approx(even.calibration.a, abs=1e-6)
    assert both.no_answer_threshold == even.no_answer_threshold
    alone = fit([*large, *small], 0.0, Calibration(), "sha")
    assert abs(alone.calibration.a - both.calibration.a) > 0.5
    assert alone.domains == ()


def test_a_file_whose_answerable_questions_come_first_weighs_as_if_it_were_shuffled() -> None:
    large, small = made(300, a=2.5), sorted(made(200, a=-1.5, seed=1), key=lambda each: not each.answerable)
    sorted_, shuffled = (
        fit([*large, *each], 0.0, Calibration(), "sha", sizes=[300, 200]).calibration.a
        for each in (small, random.Random(0).sample(small, 200))
    )
    assert sorted_ == pytest.approx(shuffled, abs=0.08)  # 0.12 apart if the first rows count once more


def test_each_domain_is_shown_as_it_would_be_had_it_been_left_out() -> None:
    alike, unlike = [made(300, seed=seed) for seed in range(2)], made(200, a=-3.0, seed=2)
    tuned = fit([*alike[0], *alike[1], *unlike], 0.0, Calibration(), "sha", sizes=[300, 300, 200])
    assert [domain.questions for domain in tuned.domains] == [300, 300, 200]
    known = fit([*alike[0], *alike[1]], 0.0, Calibration(), "sha")
    error = expected_calibration_error(*probabilities_at(unlike, known.calibration, known.no_answer_threshold))
    assert tuned.domains[2].ece_left_out == pytest.approx(error)
    assert tuned.domains[2].ece_left_out > tuned.domains[2].ece_after + 0.1
    assert tuned.ece_after == pytest.approx(np.mean([domain.ece_after for domain in tuned.domains]))
    assert tuned.value == pytest.approx(np.mean([domain.value for domain in tuned.domains]))


# --- stored


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions of the harbour, several times: enough to decide."""
    rows = [
        {"question": each.question, "context": each.passage, "answers": [answer.text for answer in each.answers]}
        for each in read_squad(HARBOUR)
        for _ in range(2 if each.answers else 5)
    ]
    path = tmp_path_factory.mktemp("questions") / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def a_bad_model(folder: Path) -> Path:
    """A copy of the bundled model that leaves everything unanswered."""
    shutil.copytree(find("spanqa-mini"), folder)
    settings = json.loads((folder / "spanqa.json").read_text())
    settings["answers"]["no_answer_threshold"] = 50.0
    (folder / "spanqa.json").write_text(json.dumps(settings))
    return folder


Command = Callable[..., subprocess.CompletedProcess[str]]


def test_what_is_stored_is_used(tmp_path: Path, questions: Path, command: Command) -> None:
    folder = a_bad_model(tmp_path / "model")
    before = (folder / "spanqa.json").read_bytes()
    shown = command("tune", questions, "--model", folder, "--dry-run").stdout
    assert "nothing was written" in shown and re.search(r"no answer threshold +50.000 +.* to .*", shown)
    assert (folder / "spanqa.json").read_bytes() == before
    tuned = json.loads(command("tune", questions, "--model", folder, "--json").stdout)
    assert tuned["fitted"]["no_answer_threshold"]["stored"] and tuned["no_answer_threshold"] < 10
    reader = Reader.load(folder)
    assert reader.calibrated
    assert reader.calibration.b == tuned["calibration"]["b"]
    assert reader.answers.no_answer_threshold == tuned["no_answer_threshold"]
    assert [path.name for path in folder.iterdir() if path.name.startswith((".", "tmp"))] == []


def test_the_command_takes_several_files(tmp_path: Path, questions: Path, command: Command) -> None:
    folder = a_bad_model(tmp_path / "model")
    shown = command("tune", questions, HARBOUR, "--model", folder).stdout
    assert re.search(r"rows\.json +\d+ +\d+\.\d\d +0\.\d{4} +0\.\d{4} +0\.\d{4}", shown)
    assert re.search(r"harbour\.json +8 +\d+\.\d\d +0\.\d{4} +0\.\d{4} +0\.\d{4}", shown)
    reader = Reader.load(folder)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (questions, HARBOUR)]
    assert reader.calibration.data_sha256 == hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def test_what_eight_questions_cannot_decide_is_kept(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find("spanqa-mini"), folder)
    before = json.loads((folder / "spanqa.json").read_text())
    done = command("tune", HARBOUR, "--model", folder)
    assert "0.703, kept" in done.stdout and "kept: the data do not show that another value is better" in done.stdout
    assert json.loads((folder / "spanqa.json").read_text()) == before


def test_a_model_that_is_not_the_users_is_tuned_in_a_copy(
    tmp_path: Path, questions: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = find("spanqa-mini")
    before = (bundled / "spanqa.json").read_bytes()
    cached = a_bad_model(tmp_path / "hub" / "models--anna--kestrel" / "snapshots" / "0123abc")
    (tmp_path / "link").symlink_to(bundled)
    monkeypatch.setattr("spanqa.checkpoint._fetch", lambda name, revision, signed: cached)
    for model, owner in (
        ("spanqa-mini", "comes with spanqa"), (bundled, "comes with spanqa"), (tmp_path / "link", "comes with spanqa"),
        ("anna/kestrel", "is in the cache of the hub"), (cached, "is in the cache of the hub"),
    ):  # fmt: skip
        done = command("tune", questions, "--model", model)
        assert done.returncode == 1
        assert f"{owner} and must stay as it is. Write a copy with the new settings: --out DIR." in done.stderr
    (cached / "model.sig").write_text("signed")
    out = tmp_path / "copy"
    done = command("tune", questions, "--model", "anna/kestrel", "--out", out)
    assert done.stdout.splitlines()[-1] == f"stored in a copy: {out}"
    assert Reader.load(out).answers.no_answer_threshold < 10
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in cached.iterdir() if path.name not in ("model.sig", "training")
    )
    again = command("tune", questions, "--model", "anna/kestrel", "--out", out)
    assert (again.returncode, "already exists. Choose a new path" in again.stderr) == (1, True)
    assert (bundled / "spanqa.json").read_bytes() == before


def test_a_model_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find("spanqa-mini"), folder)
    checkpoint = open_checkpoint(folder)
    tuned = fit(made(100), 0.0, Calibration(), "sha")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=r"cannot be written: Permission denied. Copy the model"):
        store(checkpoint, tuned)


@pytest.mark.parametrize("arguments", [["--criterion", "recall"], ["--precision", "0.9"], ["--criterion", "precision"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "spanqa", "tune", str(HARBOUR), "--model", "spanqa-mini", *arguments]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 2
