import gc
import gzip
import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from spanqa.batches import SpanLogits
from spanqa.checkpoint import open_checkpoint
from spanqa.errors import DatasetError, InputError, QuestionTooLongError
from spanqa.evaluate import OfficialSettings, evaluate, score_file, score_squad
from spanqa.evaluate.record import describe_reader
from spanqa.evaluate.run import write_record
from spanqa.files import describe, read_bytes
from spanqa.reader import Reader
from spanqa.squad import Example, GoldAnswer
from spanqa.stream import Reading
from spanqa.windows import WindowSettings

PIER = (
    "The pier at Port Merrow was built by Anna Kestrel in 1887. It is 310 metres long and stands on 96 piles of oak. "
    "A storm tore away its outer end in 1953, and the town closed it. Divers replaced the piles twelve years later, and "
    "since then a tram has carried visitors to the tea house at the far end."
)
GLASS = "Glass frogs sleep on the underside of leaves. Asleep, they hide most of their red blood cells in the liver."


def example(key, passage, question, answer=None):
    answers = () if answer is None else (GoldAnswer(answer, passage.index(answer)),)
    return Example(key, question, passage, answers)


BUILDER = example("builder", PIER, "Who built the pier?", "Anna Kestrel")
LENGTH = example("length", PIER, "How long is the pier?", "310 metres")
COST = example("cost", PIER, "How much did the pier cost?")
LIVER = example("liver", GLASS, "Where do sleeping glass frogs hide their red blood cells?", "in the liver")
COLOUR = example("colour", GLASS, "What colour are the leaves?")
EXAMPLES = [BUILDER, LENGTH, COST, LIVER, COLOUR]
ANSWERABLE = [BUILDER, LENGTH, LIVER]


class Peaks:
    """A backend whose logits peak at the given words of a question; at [CLS] in a window without them."""

    name, device, dtype, batches_at_once, batch_tokens, layouts = "peaks", "cpu", "fp32", 1, 4096, ("padded",)

    def __init__(self, tokenizer, peaks):
        def encode(text):
            return tokenizer.encode(text).ids.tolist()

        self.peaks = [(encode(question), encode(words), height) for question, (words, height) in peaks.items()]

    def forward(self, batch, *, capture=None):
        start, end = np.zeros((2, *batch.shape), np.float32)
        for row, ids in enumerate(batch.input_ids.tolist()):
            question, words, height = next(each for each in self.peaks if ids[1 : 1 + len(each[0])] == each[0])
            positions = (at for at in range(len(question) + 2, len(ids)) if ids[at : at + len(words)] == words)
            first = next(positions, 0) if words else 0
            start[row, first] = end[row, first + max(0, len(words) - 1) if first else 0] = height / 2
        return SpanLogits(start, end)


RIGHT = {each.question: (each.answers[0].text if each.answers else "", 12.0) for each in EXAMPLES}


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint("spanqa-mini")


@pytest.fixture
def reader(checkpoint):
    """`reader()` knows all answers; `reader(peaks)` replaces some of them."""
    return lambda peaks=(): Reader(checkpoint, Peaks(checkpoint.tokenizer, RIGHT | dict(peaks)))


def read(folder):
    return {path.name: json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).iterdir())}


# metrics


def test_a_reader_that_knows_all_answers_scores_100_by_both_rules(reader):
    record = evaluate(reader(), EXAMPLES)
    for block in (record["metrics"], record["reader"]):
        assert {name: block[name] for name in ("exact", "f1", "HasAns_exact", "NoAns_f1", "best_f1")} == dict.fromkeys(
            ("exact", "f1", "HasAns_exact", "NoAns_f1", "best_f1"), 100.0
        )
        assert (block["total"], block["HasAns_total"], block["NoAns_total"]) == (5, 3, 2)


def test_wrong_answers_count_in_both_blocks(reader):
    peaks = {LENGTH.question: ("310", 12.0), COST.question: ("1887", 12.0)}
    record = evaluate(reader(peaks), EXAMPLES)
    for block in (record["metrics"], record["reader"]):
        assert (block["exact"], block["NoAns_exact"]) == (60.0, 50.0)
        assert block["HasAns_f1"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 3)


def test_the_reader_block_scores_what_ask_returns(reader):
    asked = reader({LENGTH.question: ("oak", 3.0), COLOUR.question: ("red", 1.0), LIVER.question: ("", 2.0)})
    for threshold in (None, 2.0, 4.0, -math.inf, math.inf):
        answers = {e.id: asked.ask(e.question, e.passage, threshold=threshold).text for e in EXAMPLES}
        block = evaluate(asked, EXAMPLES, threshold=threshold)["reader"]
        assert {name: block[name] for name in block if "best" not in name} == score_squad(EXAMPLES, answers)


def test_the_best_no_answer_threshold_gives_the_best_f1_when_it_is_used(reader):
    asked = reader({COST.question: ("oak", 3.0), LENGTH.question: ("310 metres", 4.0), COLOUR.question: ("red", 3.5)})
    block = evaluate(asked, EXAMPLES)["reader"]
    assert (block["f1"], block["best_f1"], block["best_f1_no_answer_threshold"]) == (60.0, 100.0, 4.0)
    assert evaluate(asked, EXAMPLES, threshold=4.0)["reader"]["f1"] == 100.0
    unanswered = evaluate(asked, EXAMPLES, threshold=50.0)["reader"]
    assert (unanswered["HasAns_f1"], unanswered["best_f1"]) == (0.0, 100.0)  # whatever threshold is in use


def test_the_two_rules_differ_where_another_window_prefers_an_answer(checkpoint):
    """The span scores 8, "no answer" 10 in its window and -20 in the next one, which run_qa takes."""
    (oak,) = checkpoint.tokenizer.encode("oak").ids

    class Doubts(Peaks):
        def forward(self, batch, *, capture=None):
            start = super().forward(batch).start
            start[:, 0] = 10
            start[(batch.input_ids == oak).any(1)] = -40  # nor is there a span in the next window
            start[(batch.input_ids == oak).any(1), 0] = -20
            return SpanLogits(start, np.zeros_like(start))

    torn = Reader(checkpoint, Doubts(checkpoint.tokenizer, {BUILDER.question: ("Anna Kestrel", 8.0)}))
    torn = torn.with_settings(windows=WindowSettings(max_seq_length=24, overlap=0))
    record = evaluate(torn, [BUILDER], rule="squad_v2")
    assert record["metrics"]["HasAns_f1"] > 0
    assert record["reader"]["HasAns_f1"] == 0
    assert torn.ask(BUILDER.question, PIER).text == ""


def test_official_settings_are_the_readers_unless_given(reader):
    peaks = {LENGTH.question: ("310 metres long", 12.0)}
    three = reader(peaks)
    two = three.with_settings(answers=replace(three.answers, max_answer_tokens=2))
    assert evaluate(two, EXAMPLES)["settings"]["official"]["max_answer_tokens"] == 2
    strict = evaluate(three, EXAMPLES, official=OfficialSettings(null_score_diff_threshold=-50.0))
    assert (strict["metrics"]["HasAns_exact"], strict["reader"]["HasAns_exact"]) == (0.0, pytest.approx(200 / 3))
    assert strict["settings"]["official"] == {"n_best": 20, "max_answer_tokens": 30, "null_score_diff_threshold": -50.0}


# data without unanswerable questions


def test_answerable_data_is_scored_by_the_rule_of_squad_1(reader, tmp_path):
    doubts = reader({LENGTH.question: ("", 12.0)})  # "no answer" wins, but cannot be the answer
    record = evaluate(doubts, ANSWERABLE, out=tmp_path)
    assert record["settings"]["rule"] == "squad_v1"
    assert not [name for name in record["metrics"] if name.startswith(("NoAns", "best"))]
    assert record["metrics"]["exact_match"] == record["metrics"]["exact"]
    assert list(read(tmp_path)) == ["nbest_predictions.json", "predictions.json"]
    assert all(read(tmp_path)["predictions.json"].values())


def test_the_rule_can_be_named(reader):
    assert evaluate(reader(), EXAMPLES)["settings"]["rule"] == "squad_v2"
    record = evaluate(reader(), ANSWERABLE, rule="squad_v2")
    assert record["settings"]["rule"] == "squad_v2"
    assert "best_f1" in record["metrics"]


# files


def test_the_official_metrics_are_those_of_the_files_written(reader, tmp_path):
    peaks = {COST.question: ("oak", 3.0), LENGTH.question: ("310", 1.0), COLOUR.question: ("red", 5.0)}
    record = evaluate(reader(peaks), EXAMPLES, out=tmp_path / "new" / "folder")
    files = read(tmp_path / "new" / "folder")
    assert list(files) == ["nbest_predictions.json", "null_odds.json", "predictions.json"]
    assert all(list(content) == [each.id for each in EXAMPLES] for content in files.values())
    na_probs = {key: 1 / (1 + math.exp(-odds)) for key, odds in files["null_odds.json"].items()}
    assert score_squad(EXAMPLES, files["predictions.json"], na_probs) == pytest.approx(record["metrics"], abs=1e-9)
    assert files["null_odds.json"]["colour"] == -5.0
    assert files["predictions.json"]["colour"] == "red"


def test_n_best_lists_have_the_layout_of_run_qa_and_hold_slices_of_the_passage(reader, tmp_path):
    evaluate(reader(), EXAMPLES, out=tmp_path)
    files = read(tmp_path)
    for each in EXAMPLES:
        n_best = files["nbest_predictions.json"][each.id]
        assert all(list(line) == ["start_logit", "end_logit", "text", "probability"] for line in n_best)
        assert all(line["text"] in each.passage for line in n_best)
        assert sum(line["probability"] for line in n_best) == pytest.approx(1)
        assert len(n_best) in (20, 21)
        assert n_best[0]["text"] == files["predictions.json"][each.id]


class Interrupted(BaseException):
    pass


def test_an_interrupted_run_leaves_no_half_file_and_older_ones_as_they_were(reader, tmp_path):
    (tmp_path / "predictions.json").write_text("{}")

    def stop(done, total, note=""):
        if done == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluate(reader(), EXAMPLES, out=tmp_path, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    assert (tmp_path / "predictions.json").read_text() == "{}"


@pytest.mark.parametrize(("kind", "reason"), [("file", "File exists"), ("folder", "Is a directory")])
def test_results_that_cannot_be_written_are_an_error(reader, tmp_path, kind, reason):
    if kind == "file":
        (tmp_path / "out").write_text("")
    else:
        (tmp_path / "out" / "null_odds.json").mkdir(parents=True)
    unread = reader()
    unread.backend.forward = None  # the error comes before any question is read
    with pytest.raises(InputError, match=rf"The results cannot be written to '.*out': {reason}\. Name a folder"):
        evaluate(unread, EXAMPLES, out=tmp_path / "out")
    assert [path.name for path in tmp_path.glob("out/*")] == (["null_odds.json"] if kind == "folder" else [])


def test_a_record_that_cannot_be_written_is_an_error(tmp_path):
    write_record(tmp_path / "new", {"metrics": {}})
    assert json.loads((tmp_path / "new" / "record.json").read_text()) == {"metrics": {}}
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"The results cannot be written to '.*out': File exists\. Name a folder"):
        write_record(tmp_path / "out", {})


# streams and errors


def test_progress_counts_questions_and_nothing_is_printed(reader, capfd):
    counts = []
    evaluate(reader(), EXAMPLES, progress=lambda *counted: counts.append(counted))
    assert counts == [(done, 5) for done in (1, 2, 3, 4, 5)]
    assert capfd.readouterr() == ("", "")


def test_readings_do_not_pile_up(reader, monkeypatch):
    monkeypatch.setattr("spanqa.stream.FIRST_CHUNK", 100 / Peaks.batch_tokens)  # a question or two at a time
    monkeypatch.setattr("spanqa.stream.LARGEST_CHUNK", 100 / Peaks.batch_tokens)
    alive = []
    evaluate(
        reader(),
        EXAMPLES * 4,
        progress=lambda *_: alive.append(sum(type(o) is Reading for o in gc.get_objects())),
    )
    assert max(alive) <= 2


def test_several_windows_and_any_order_give_the_same(reader):
    whole = evaluate(reader(), EXAMPLES)
    cut = reader().with_settings(windows=WindowSettings(max_seq_length=28, overlap=4))
    for examples in (EXAMPLES, EXAMPLES[::-1]):
        pieces = evaluate(cut, examples)
        assert pieces["metrics"] == whole["metrics"]
        assert pieces["reader"] == whole["reader"]


@pytest.mark.parametrize("passage", ["", " \n"])
def test_an_empty_passage_is_answered_no_answer(reader, tmp_path, passage):
    empty = Example("empty", BUILDER.question, passage)
    record = evaluate(reader(), [LENGTH, empty, BUILDER], out=tmp_path)
    assert (record["metrics"]["exact"], record["reader"]["exact"]) == (100.0, 100.0)
    assert read(tmp_path)["null_odds.json"]["empty"] == 1e9
    assert read(tmp_path)["nbest_predictions.json"]["empty"] == [
        {"start_logit": 0.0, "end_logit": 0.0, "text": "", "probability": 1.0}
    ]
    json.dumps(evaluate(reader(), [empty]), allow_nan=False)


def test_a_question_too_long_for_the_model_stops_with_its_id(reader, tmp_path):
    long = Example("endless", "why " * 400, PIER)
    with pytest.raises(QuestionTooLongError, match=r"Question id 'endless': .*has 400 tokens"):
        evaluate(reader(), [BUILDER, long, LENGTH], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_question_stops_with_its_id(reader):
    with pytest.raises(InputError, match="Question id 'hush': The question is empty"):
        evaluate(reader(), [BUILDER, Example("hush", " ", PIER)])


def test_no_question_is_an_error(reader):
    with pytest.raises(DatasetError, match="no question to evaluate"):
        evaluate(reader(), [])


# the record


def test_settings_say_what_was_run(reader, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/spanqa", "evaluate", "my dev.json"])
    data = tmp_path / "dev.json"
    data.write_text("{}")
    settings = evaluate(reader(), EXAMPLES, data=describe(data, data.read_bytes()), threshold=-math.inf)["settings"]
    assert settings["command"] == "spanqa evaluate 'my dev.json'"
    assert settings["data"] == {"file": "dev.json", "sha256": hashlib.sha256(b"{}").hexdigest(), "questions": 5}
    assert settings["model"] == {"name": "spanqa-mini", "sha256": checkpoint.weights.sha256}
    assert (settings["backend"], settings["device"], settings["dtype"]) == ("peaks", "cpu", "fp32")
    assert settings["answers"] == {"max_answer_tokens": 30, "no_answer_threshold": "-inf"}
    assert settings["windows"]["max_seq_length"] == 384
    assert list(settings["versions"]) == ["python", "spanqa", "numpy", "tokenizers"]
    assert settings["versions"]["numpy"] == np.__version__
    assert abs(datetime.fromisoformat(settings["date"]) - datetime.now(UTC)).total_seconds() < 60
    json.dumps(settings, allow_nan=False)


def test_a_model_of_the_hub_is_named_with_its_revision(reader, checkpoint, tmp_path):
    folder = tmp_path / "models--ORG--big-model" / "snapshots" / "0123abcd"
    other = reader()
    other.checkpoint = replace(checkpoint, path=folder)
    other.checkpoint.weights.__dict__["sha256"] = "…"
    assert describe_reader(other)["model"]["name"] == "ORG/big-model@0123abcd"


def test_a_data_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.json' does not exist. Check the name"):
        read_bytes(tmp_path / "none.json")


# the bundled model


def test_the_bundled_model_finds_answers_and_says_when_there_is_none(mini, tmp_path):
    record = evaluate(mini, EXAMPLES, out=tmp_path)
    predictions = read(tmp_path)["predictions.json"]
    assert predictions["builder"] == "Anna Kestrel"
    assert predictions["cost"] == ""
    assert record["metrics"]["exact"] >= 80.0
    assert record["settings"]["versions"]["openvino"]
    asked = {e.id: mini.ask(e.question, e.passage).text for e in EXAMPLES}
    assert record["reader"]["f1"] == pytest.approx(score_squad(EXAMPLES, asked)["f1"])


# files of predictions


PREDICTIONS = {"builder": "Kestrel", "length": "310 metres", "cost": "", "liver": "liver", "colour": "red"}
NA_PROBS = {"builder": 0.2, "length": 0.1, "cost": 0.9, "liver": 0.3, "colour": 0.4}


def write(path, content):
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_files_of_predictions_are_scored_without_a_model(tmp_path, ending):
    predictions = write(tmp_path / f"predictions.{ending}", PREDICTIONS)
    na_probs = write(tmp_path / f"na.{ending}", NA_PROBS)
    record = score_file(EXAMPLES, predictions, na_probs, data=describe(na_probs, na_probs.read_bytes()))
    assert record["metrics"] == score_squad(EXAMPLES, PREDICTIONS, NA_PROBS)
    assert record["metrics"]["best_exact"] == 60.0  # "length" answered, no other
    settings = record["settings"]
    assert settings["predictions"] == describe(predictions, predictions.read_bytes())
    assert settings["na_probs"]["file"] == f"na.{ending}"
    assert settings["data"] == describe(na_probs, na_probs.read_bytes()) | {"questions": 5}
    json.dumps(record, allow_nan=False)


def test_a_file_of_predictions_alone_has_no_best_threshold(tmp_path):
    record = score_file(EXAMPLES, write(tmp_path / "p.json", PREDICTIONS))
    assert "best_f1" not in record["metrics"]
    assert record["settings"]["na_probs"] is None


def test_options_of_scoring_reach_the_metrics(tmp_path):
    predictions = write(tmp_path / "p.json", {"builder": "Anna Kestrel"})
    record = score_file(EXAMPLES, predictions, missing="no_answer")
    assert record["metrics"]["exact"] == 60.0
    all_empty = score_file(
        EXAMPLES, write(tmp_path / "p.json", PREDICTIONS), write(tmp_path / "n.json", NA_PROBS), na_prob_thresh=0.0
    )
    assert (all_empty["metrics"]["HasAns_exact"], all_empty["metrics"]["NoAns_exact"]) == (0.0, 100.0)
    assert all_empty["settings"]["na_prob_thresh"] == 0.0


def test_a_file_that_holds_no_object_is_an_error(tmp_path):
    listed = write(tmp_path / "list.json", ["Kestrel"])
    with pytest.raises(
        DatasetError, match=r"list\.json' should hold an object {question id: …} of texts, or a list .* found \['Kest"
    ):
        score_file(EXAMPLES, listed)
    with pytest.raises(DatasetError, match=r"of numbers; found"):
        score_file(EXAMPLES, write(tmp_path / "p.json", PREDICTIONS), listed)
