import gzip
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanqa.errors import DatasetError
from spanqa.evaluate.metrics import averages, best_threshold, score_squad, summarize
from spanqa.evaluate.outcomes import Outcome, score_question
from spanqa.evaluate.scoring import normalize_answer, question_scores, word_f1
from spanqa.squad import Example, GoldAnswer, read_squad


def example(key, *answers):
    return Example(key, "Who?", "…", tuple(GoldAnswer(text, 0) for text in answers))


def made(exact, f1, answerable, answered, no_answer_score):
    """An outcome with these values, without a threshold."""
    text = "oak" if answered else ""
    return Outcome(
        id="1", question="Who?", answerable=answerable, text=text, exact=exact, f1=f1, best_text=text, best_exact=exact,
        best_f1=f1, score=-no_answer_score,
    )  # fmt: skip


def no_answer_score(outcome):
    return -outcome.score


# one question: by hand


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Pier", "pier"),
        ("an  oak\tand a\u00a0pine\n", "oak and pine"),
        ("U.S.A.", "usa"),
        ("Theatre", "theatre"),
        ("the-ater", "theater"),  # punctuation goes before articles: no word boundary is left
        ("A. B.", "b"),
        ("$5", "5"),
        ("50 €", "50 €"),  # only ASCII punctuation goes
        ("“x”", "“x”"),
        ("ÉTÉ", "été"),
        ("the a an", ""),
        ("", ""),
    ],
)
def test_answers_are_normalized_as_the_official_script_does(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("reference", "prediction", "f1"),
    [
        ("oak", "oak", 1.0),
        ("oak pier", "oak", 2 / 3),  # precision 1, recall 1/2
        ("oak oak pier", "oak oak oak", 2 / 3),  # two shared of three and three
        ("oak", "pine", 0.0),
        ("", "", 1.0),
        ("", "oak", 0.0),
        ("oak", "", 0.0),
    ],
)
def test_f1_counts_shared_words(reference, prediction, f1):
    assert word_f1(reference.split(), prediction.split()) == pytest.approx(f1, abs=1e-15)


@pytest.mark.parametrize(
    ("references", "prediction", "scores"),
    [
        (["Ada Lovelace", "Ada"], "the Ada!", (1.0, 1.0)),
        (["Ada Lovelace"], "Ada", (0.0, 2 / 3)),
        (["Ada Lovelace", "Countess Ada Lovelace"], "Ada Lovelace herself", (0.0, 0.8)),
        ([], "", (1.0, 1.0)),
        ([], "Ada", (0.0, 0.0)),
        ([], "the", (1.0, 1.0)),  # nothing is left of it
        (["the", "Ada"], "", (0.0, 0.0)),  # a reference of which nothing is left does not count
        (["the"], "", (1.0, 1.0)),  # unless there is no other
        (["Ada"], "the", (0.0, 0.0)),
    ],
)
def test_a_question_takes_its_best_reference(references, prediction, scores):
    assert question_scores(example("1", *references), prediction) == pytest.approx(scores, abs=1e-15)


# all questions

FOUR = [example("a", "oak"), example("b", "oak pier"), example("c"), example("d")]
PREDICTIONS = {"a": "oak", "b": "oak", "c": "", "d": "pine"}


def test_metrics_have_official_names_and_are_percent():
    assert score_squad(FOUR, PREDICTIONS) == pytest.approx(
        {
            "exact": 50.0, "f1": 100 * (1 + 2 / 3 + 1) / 4, "total": 4,
            "HasAns_exact": 50.0, "HasAns_f1": 100 * (1 + 2 / 3) / 2, "HasAns_total": 2,
            "NoAns_exact": 50.0, "NoAns_f1": 50.0, "NoAns_total": 2,
        }, abs=1e-12
    )  # fmt: skip


def test_data_without_unanswerable_questions_has_only_has_ans_and_the_name_of_squad_1():
    metrics = score_squad(FOUR[:2], PREDICTIONS)
    assert list(metrics) == ["exact_match", "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total"]
    assert metrics["exact_match"] == metrics["exact"] == 50.0


def test_data_without_answerable_questions_has_only_no_ans():
    assert list(score_squad(FOUR[2:], PREDICTIONS)) == [
        "exact",
        "f1",
        "total",
        "NoAns_exact",
        "NoAns_f1",
        "NoAns_total",
    ]


def test_a_no_answer_score_above_the_threshold_counts_as_no_answer():
    certain = {"a": 0.9, "b": 0.5, "c": 0.5, "d": 0.51}
    metrics = score_squad(FOUR, PREDICTIONS, certain, na_prob_thresh=0.5)
    assert (metrics["HasAns_exact"], metrics["NoAns_exact"]) == (0.0, 100.0)
    assert metrics["HasAns_f1"] == pytest.approx(100 * (2 / 3) / 2)
    assert score_squad(FOUR, PREDICTIONS, certain)["exact"] == 50.0  # 1.0 is above no probability


def test_best_thresholds_by_hand():
    metrics = score_squad(FOUR, PREDICTIONS, {"a": 0.1, "b": 0.2, "c": 0.9, "d": 0.3})
    assert metrics["best_exact"] == 75.0  # a answered, c and d not; b makes no difference
    assert metrics["best_exact_thresh"] == 0.1
    assert metrics["best_f1"] == pytest.approx(100 * (1 + 2 / 3 + 2) / 4)
    assert metrics["best_f1_thresh"] == 0.2


def test_answering_nothing_has_the_threshold_0_for_probabilities_and_one_below_all_for_log_odds():
    wrong = PREDICTIONS | {"a": "pine", "b": "pine"}
    probabilities = score_squad(FOUR, wrong, {"a": 0.1, "b": 0.2, "c": 0.9, "d": 0.3})
    assert (probabilities["best_f1"], probabilities["best_f1_thresh"]) == (50.0, 0.0)
    odds = score_squad(FOUR, wrong, {"a": -3.0, "b": -2.0, "c": 4.0, "d": -1.0})
    assert (odds["best_f1"], odds["best_f1_thresh"]) == (50.0, math.nextafter(-3.0, -math.inf))


def test_official_best_cuts_between_equal_scores_in_the_order_of_their_file_and_ours_does_not():
    examples = [example("a", "oak"), example("b")]
    predictions = {"a": "oak", "b": "oak"}
    assert score_squad(examples, predictions, {"a": 0.5, "b": 0.5})["best_exact"] == 100.0
    assert score_squad(examples, predictions, {"b": 0.5, "a": 0.5})["best_exact"] == 50.0
    for order in (examples, examples[::-1]):
        scores = [score_question(each, "oak", 0.5) for each in order]
        assert best_threshold(scores, "exact") == (50.0, 0.0)


def test_equal_scores_keep_their_order_among_many():
    scores = [made(1.0, 1.0, i < 150, True, (i % 3) / 8) for i in range(300)]  # right ones first, by thirds
    best, threshold = best_threshold(scores, "exact", official=True)
    assert (best, threshold) == (100 * 200 / 300, 0.0)  # 50 right, then 50 wrong, of each score


def test_an_unanswerable_question_with_a_prediction_of_articles_is_right_but_not_for_the_best_threshold():
    examples = [example("a", "oak"), example("b")]
    metrics = score_squad(examples, {"a": "oak", "b": "the"}, {"a": 0.5, "b": 0.1})
    assert metrics["exact"] == 100.0
    assert metrics["best_exact"] == 50.0  # as in the official script


# second formulas

WORDS = st.sampled_from(["oak", "pier", "the", "Ada", "a", "1887", "", "!"])
TEXTS = st.lists(WORDS, max_size=4).map(" ".join)
QUESTIONS = st.lists(st.tuples(st.lists(TEXTS, max_size=3), TEXTS), min_size=1, max_size=12)


def scored(no_answer_scores):
    row = st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans(), st.booleans(), no_answer_scores)
    return st.lists(row.map(lambda r: made(float(r[0] == 1), *r)), min_size=1, max_size=9)


PROBABILITIES = st.sampled_from([0.0, 0.125, 0.5, 1.0]) | st.floats(0, 1)
LOG_ODDS = st.sampled_from([-8.0, -0.5, 0.0, 3.0]) | st.floats(-30, 30)


def worth(outcome, answered):
    """What a question is worth when it is answered, or not, as the official sweep counts."""
    if not answered:
        return float(not outcome.answerable)
    return outcome.best_f1 if outcome.answerable else float(not outcome.best_text)


@given(scored(PROBABILITIES | LOG_ODDS))
def test_best_threshold_is_the_best_of_all_and_gives_what_it_says(outcomes):
    def average(threshold):
        return 100 * sum(worth(each, no_answer_score(each) <= threshold) for each in outcomes) / len(outcomes)

    least = min(map(no_answer_score, outcomes))
    tried = [math.nextafter(least, -math.inf), *map(no_answer_score, outcomes)]
    best, threshold = best_threshold(outcomes, "f1")
    assert best == pytest.approx(max(map(average, tried)), abs=1e-9)
    assert average(threshold) == pytest.approx(best, abs=1e-9)


@given(scored(PROBABILITIES | LOG_ODDS))
def test_official_best_is_the_best_cut_in_sorted_order(outcomes):
    order = sorted(outcomes, key=no_answer_score)
    cuts = [
        sum(worth(outcome, position < cut) for position, outcome in enumerate(order)) * 100 / len(order)
        for cut in range(len(order) + 1)
    ]
    best, threshold = best_threshold(outcomes, "f1", official=True)
    assert best == pytest.approx(max(cuts), abs=1e-9)
    cut = cuts.index(max(cuts))
    if cut:
        assert threshold == no_answer_score(order[cut - 1])
    else:
        assert threshold == 0.0 <= no_answer_score(order[0]) or threshold < no_answer_score(order[0])


@given(QUESTIONS, st.randoms(use_true_random=False))
def test_the_order_of_questions_does_not_matter(questions, random):
    examples = [example(str(i), *references) for i, (references, _) in enumerate(questions)]
    predictions = {str(i): text for i, (_, text) in enumerate(questions)}
    scores = {str(i): random.random() for i in range(len(questions))}
    shuffled = random.sample(examples, len(examples))
    assert score_squad(shuffled, dict(reversed(predictions.items())), scores) == pytest.approx(
        score_squad(examples, predictions, scores), abs=1e-9
    )


@given(QUESTIONS)
def test_a_reference_as_prediction_is_worth_100(questions):
    examples = [example(str(i), *references) for i, (references, _) in enumerate(questions)]
    predictions = {e.id: max((a.text for a in e.answers), key=normalize_answer, default="") for e in examples}
    metrics = score_squad(examples, predictions)
    assert {name: value for name, value in metrics.items() if "total" not in name and value != 100.0} == {}


def test_averages_are_of_what_was_returned_and_leave_out_groups_without_questions():
    predictions = [(example("1", "oak"), "oak", -2.0), (example("2", "oak", "oak pier oak"), "oak pier", 1.0)]
    outcomes = [score_question(*each) for each in predictions]
    assert averages(outcomes)["f1"] == pytest.approx(90.0)
    outcomes = [score_question(*each, no_answer_above=0.0) for each in predictions]
    assert averages(outcomes)["f1"] == 50.0
    assert "NoAns_f1" not in averages(outcomes)


def test_a_no_answer_score_above_the_threshold_keeps_the_prediction_beside_what_was_returned():
    outcome = score_question(example("1", "oak pier"), "oak", 0.75, no_answer_above=0.5)
    assert (outcome.text, outcome.exact, outcome.f1, outcome.right) == ("", 0.0, 0.0, False)
    assert (outcome.best_text, outcome.best_f1, outcome.score) == ("oak", pytest.approx(2 / 3), -0.75)
    outcome = score_question(example("2"), "oak", 0.75, no_answer_above=0.5)
    assert (outcome.text, outcome.exact, outcome.f1, outcome.best_f1) == ("", 1.0, 1.0, 0.0)
    assert score_question(example("2"), "oak", 0.5, no_answer_above=0.5).text == "oak"


# published systems

OFFICIAL = {  # what the official script says of them
    "bert": (78.74168280973637, 81.77528052374727, 74.10593792172739, 80.18183293833516, 83.36417157275021),
    "nlnet": (75.82750779078582, 78.77776770381455, 69.61875843454791, 75.52773885752195, 82.01850294365012),
    "bidaf": (65.70369746483618, 67.8764892145134, 61.42037786774629, 65.77219238257676, 69.97476871320437),
}


@pytest.mark.parametrize("system", OFFICIAL)
def test_published_predictions_score_as_the_official_script_says(data, system):
    predictions = json.loads(gzip.decompress((data / "predictions" / f"{system}.json.gz").read_bytes()))
    metrics = score_squad(read_squad(data / "squad-v2.0-dev.json.gz"), predictions)
    names = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_f1")
    assert [metrics[name] for name in names] == pytest.approx(OFFICIAL[system], abs=1e-9)
    assert (metrics["total"], metrics["HasAns_total"], metrics["NoAns_total"]) == (11873, 5928, 5945)


def test_the_references_of_squad_score_100(data):
    examples = read_squad(data / "squad-v2.0-dev.json.gz")
    best = {e.id: max((a.text for a in e.answers), key=normalize_answer, default="") for e in examples}
    metrics = score_squad(examples, best)
    assert (metrics["exact"], metrics["f1"]) == (100.0, 100.0)


# errors


def test_missing_predictions_are_an_error_that_counts_and_names_them():
    with pytest.raises(
        DatasetError, match=r"3 of 4 questions have no prediction: 'b', 'c', 'd'\. .*missing=\"no_answer\""
    ):
        score_squad(FOUR, {"a": "oak", "other": "pine"})
    many = [example(str(i)) for i in range(9)]
    with pytest.raises(DatasetError, match=r"9 of 9 .*: '0', '1', '2', …\."):
        score_squad(many, {})


def test_missing_predictions_can_count_as_no_answer():
    metrics = score_squad(FOUR, {"a": "oak"}, missing="no_answer")
    assert (metrics["HasAns_exact"], metrics["NoAns_exact"], metrics["total"]) == (50.0, 100.0, 4)


def test_missing_no_answer_scores_are_an_error_whatever_the_predictions():
    with pytest.raises(DatasetError, match=r"1 of 4 questions have no no-answer score: 'd'\."):
        score_squad(FOUR, PREDICTIONS, {"a": 0.1, "b": 0.1, "c": 0.1}, missing="no_answer")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"text": "oak"}], r"prediction of question 'a' is \[.*expected a text.*n-best file\? Give predictions.json"),
        (None, r"prediction of question 'a' is None; expected a text, \"\" for no answer\.$"),
    ],
)
def test_a_prediction_that_is_no_text_is_an_error(value, message):
    with pytest.raises(DatasetError, match=message):
        score_squad(FOUR, PREDICTIONS | {"a": value})


@pytest.mark.parametrize("value", ["0.1", None, True, math.nan, math.inf])
def test_a_no_answer_score_that_is_no_finite_number_is_an_error(value):
    with pytest.raises(DatasetError, match=r"no-answer score of question 'c' is .*; expected a finite number"):
        score_squad(FOUR, PREDICTIONS, {"a": 0, "b": 1, "c": value, "d": 0.5})


def test_no_question_is_an_error():
    with pytest.raises(DatasetError, match="no question to score"):
        summarize([])
