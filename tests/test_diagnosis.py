"""The causes of wrong answers, what misled the reader, and the command that shows both."""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spanqa.answers import AnswerSettings
from spanqa.batches import Batch, Capture, SpanLogits
from spanqa.checkpoint import open_checkpoint
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate import GoldSpan, Outcome, collect, score_question
from spanqa.evaluate.diagnosis import CAUSES, Boundary, Mistake, by_cause, diagnose, right_but_for_null
from spanqa.evaluate.outcomes import read_outcomes, write_outcomes
from spanqa.explain.diagnosis import FLAGS, probe, repeated
from spanqa.explain.words import mask_of
from spanqa.reader import Reader
from spanqa.squad import Example, GoldAnswer
from spanqa.windows import WindowSettings

ROOT = Path(__file__).parents[1]
HARBOUR = ROOT / "examples" / "harbour.json"
PIER = "The pier was built by Anna Kestrel in 1887. It is 310 metres long and stands on 96 piles of oak. A storm came in 1953."
WHO = "Who built the pier?"
Command = Callable[..., subprocess.CompletedProcess[str]]


def example(question: str, passage: str, *answers: str) -> Example:
    return Example(question, question, passage, tuple(GoldAnswer(text, passage.find(text)) for text in answers))


class Peaks:
    """A backend whose start and end logits are half of the given height at the given words, 0 elsewhere, also at [CLS].

    With a question, there are no peaks unless that question is asked.
    """

    name, device, dtype, batches_at_once, batch_tokens, layouts = "peaks", "cpu", "fp32", 1, 4096, ("padded",)

    def __init__(self, tokenizer: Any, peaks: Mapping[str, float], question: str = "") -> None:
        self.peaks = [(tokenizer.encode(words).ids.tolist(), height) for words, height in peaks.items()]
        self.question = tokenizer.encode(question).ids.tolist()
        self.separator = tokenizer.id_of("[SEP]")

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        start, end = np.zeros((2, *batch.shape), np.float32)
        for row, ids in enumerate(batch.input_ids.tolist()):
            if ids[1 : 1 + len(self.question)] != self.question:
                continue
            for words, height in self.peaks:
                for at in range(ids.index(self.separator), len(ids)):
                    if ids[at : at + len(words)] == words:
                        start[row, at] += height / 2
                        end[row, at + len(words) - 1] += height / 2
        return SpanLogits(start, end)


@pytest.fixture(scope="module")
def reader() -> Callable[..., Reader]:
    """`reader({"Anna Kestrel": 8.0})` likes these words, and answers from a score of 5 on."""
    checkpoint = open_checkpoint("spanqa-mini")

    def made(peaks: Mapping[str, float], question: str = "", **windows: Any) -> Reader:
        found = Reader(checkpoint, Peaks(checkpoint.tokenizer, peaks, question), layout="padded")
        return found.with_settings(answers=AnswerSettings(10, 5.0), windows=WindowSettings(**windows))

    return made


def mistakes_of(reader: Reader, *examples: Example, **options: Any) -> list[Mistake]:
    return diagnose(examples, [outcome for _, _, outcome in collect(reader, examples, **options)])


# --- causes


CASES: list[tuple[str, dict[str, float], Example, str, str]] = [
    ("right", {"Anna Kestrel": 8.0}, example(WHO, PIER, "Anna Kestrel"), "", ""),
    ("rightly unanswered", {"Anna Kestrel": 4.0}, example(WHO, PIER), "", ""),
    ("no answer, and one given", {"Anna Kestrel": 8.0}, example(WHO, PIER), "answered though there is none", "The score is 8.00."),
    ("the best span is right", {"Anna Kestrel": 4.0}, example(WHO, PIER, "Anna Kestrel"), "null beats span",
     "The best span, 'Anna Kestrel', is right; its score is 4.00."),
    ("the best span is wrong", {"1953": 4.0, "oak": 3.0}, example(WHO, PIER, "oak"), "null beats span",
     "The best span, '1953', is wrong, too. The gold span has rank 3."),  # "oak … 1953" is better, too
    ("another span", {"1953": 8.0, "Anna Kestrel": 6.0}, example(WHO, PIER, "Anna Kestrel"), "outranked", "2.00 below the best."),
    ("too few words", {"Anna": 8.0}, example(WHO, PIER, "built by Anna Kestrel in 1887"), "boundary",
     "The answer has 2 words too few at the start and 3 words too few at the end."),
    ("too many words", {"It is 310 metres": 8.0}, example(WHO, PIER, "310"), "boundary",
     "The answer has 2 words too many at the start and 1 word too many at the end."),
    ("the nearer reference", {"It is 310 metres": 8.0}, example(WHO, PIER, "It", "310 metres long and stands on 96 piles"), "boundary",
     "The answer has 2 words too many at the start and 6 words too few at the end."),
    ("of equal ones the shorter", {"metres": 8.0},
     example(WHO, PIER, "310 metres long and stands", "is 310 metres long and stands on"), "boundary",
     "The answer has 1 word too few at the start and 3 words too few at the end."),
    ("too long", {"1953": 8.0}, example(WHO, PIER, PIER[:-1]), "too long", "A higher max_answer_tokens would allow the reference."),
    ("too long, and unanswered", {"1953": 3.0}, example(WHO, PIER, PIER[:-1]), "too long", ""),
    ("not in the passage", {"1953": 8.0}, example(WHO, PIER, "Bertha"), "not where labelled", ""),
    ("elsewhere in the passage", {"1953": 8.0}, Example("1", WHO, PIER, (GoldAnswer("oak", 3),)), "not where labelled", ""),
    ("elsewhere, and the best span", {"oak": 4.0}, Example("1", WHO, PIER, (GoldAnswer("oak", 3),)), "null beats span", "is right"),
    ("the first that is in the passage", {"1953": 8.0}, example(WHO, PIER, "Bertha", PIER[:-1]), "too long", ""),
    ("without a token", {"1953": 8.0}, example(WHO, "In 1953\u200b.", "\u200b"), "no legal span", ""),
]  # fmt: skip


@pytest.mark.parametrize(("peaks", "asked", "cause", "note"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_the_cause_of_a_wrong_answer(
    reader: Callable[..., Reader], peaks: dict[str, float], asked: Example, cause: str, note: str
) -> None:
    found = mistakes_of(reader(peaks), asked)
    assert [each.cause for each in found] == ([cause] if cause else [])
    assert all(note in each.note for each in found)


@pytest.mark.parametrize(("overlap", "cause"), [(0, "outside every window"), (4, None)])
def test_a_reference_that_the_windows_cut_is_outside_every_window(
    reader: Callable[..., Reader], overlap: int, cause: str | None
) -> None:
    encode = reader({}).checkpoint.tokenizer.encode
    length = (
        len(encode(WHO)) + 3 + len(encode(PIER[: PIER.index(" metres")]))
    )  # the first window ends between the two words
    asked = example(WHO, PIER, "310 metres")
    found = mistakes_of(reader({"310 metres": 8.0}, max_seq_length=length, overlap=overlap), asked)
    assert [each.cause for each in found] == ([cause] if cause else [])


REAL = [
    example("How old was Anna Kestrel when she moved to Orne with her family?",
            "Anna Kestrel was born in the village of Little Orne, near Vellin. She moved to Vellin with her family when she was seven "
            "months old."),
    example("Where can crabs be found in large amounts?",
            "Crabs are abundant in some coastal locations. In bays where they occur in high numbers, they are hunted.", "bays"),
    example("In what year did the crew begin to map the coast?",
            "In 1809 the crew published the first map of the coast. The work began in 1807 with a walk along the river.", "1807"),
    example("What party is favored in Orne?",
            "The Labour Party won the seats of Vellin and Orne. The Liberals are favored in the rest of the island and in the towns "
            "near Orne.", "Labour Party"),
    example("What was lost in the storm?", f"{PIER} {PIER}", f"{PIER} {PIER}"),
    example("Who sold the pier?", PIER, "Bertha"),
    example("Who bought the pier?", "In 1953\u200b.", "\u200b"),
    example("How long is the pier?", PIER, "310 metres long and stands on 96 piles"),
]  # fmt: skip


def test_the_real_model_makes_mistakes_of_every_cause(mini: Reader) -> None:
    short = mini.with_settings(
        windows=WindowSettings(max_seq_length=25, overlap=0)
    )  # the first ends behind "310 metres long"
    found = mistakes_of(mini, *REAL[:-1]) + mistakes_of(short, REAL[-1])
    assert {each.cause: each.example for each in found} == dict(
        zip(
            (
                "answered though there is none", "outranked", "boundary", "null beats span", "too long", "not where labelled",
                "no legal span", "outside every window",
            ),
            REAL, strict=True,
        )
    )  # fmt: skip
    assert len(found) == len(REAL)


WORDS = [f"w{number}" for number in range(12)]
TEXT = " ".join(WORDS)


def place(first: int, stop: int) -> tuple[str, int]:
    """The words `first` to `stop` (exclusive) of the text, and where they start."""
    return " ".join(WORDS[first:stop]), len(" ".join([*WORDS[:first], ""]))


def ranges() -> st.SearchStrategy[tuple[int, int]]:
    return st.integers(0, 11).flatmap(lambda first: st.tuples(st.just(first), st.integers(first + 1, 12)))


@st.composite
def wrong_outcomes(draw: st.DrawFn) -> tuple[Example, Outcome, list[tuple[int, int]]]:
    """An example, a wrong outcome of it as a reader can have it, and the words of the references that are where they should be."""
    spans = draw(st.lists(st.tuples(ranges(), st.booleans()), max_size=3))
    answers = tuple(
        GoldAnswer(text, start if kept else start + 1) for (text, start), kept in [(place(*s), k) for s, k in spans]
    )
    kept = [span for span, there in spans if there]
    asked = Example("1", WHO, TEXT, answers)
    best = draw(ranges())
    text, start = place(*best)
    score = draw(st.sampled_from([-2.0, 0.0, 3.0]))
    outcome = score_question(asked, text, -score, no_answer_above=0.0)
    assume(not outcome.right)
    reason: Any = None
    gold = None
    if kept and draw(st.booleans()):
        gold_text, gold_start = place(*kept[0])
        gold = GoldSpan(gold_start, gold_start + len(gold_text), score - 1, 2, 0, score)
    elif answers:
        reason = draw(st.sampled_from(["too long", "outside every window", None])) if kept else "not where labelled"
    outcome = replace(outcome, start=start if outcome.text else None, probability=0.5, gold=gold, out_of_reach=reason)
    return asked, outcome, kept


@given(wrong_outcomes())
def test_a_wrong_outcome_has_exactly_one_cause_and_it_is_the_one_that_holds(
    made: tuple[Example, Outcome, list[tuple[int, int]]],
) -> None:
    asked, outcome, kept = made
    [mistake] = diagnose([asked], [outcome])
    unanswered = outcome.answerable and outcome.text == "" and (outcome.best_f1 >= 0.5 or outcome.gold is not None)
    first = TEXT.split().index(outcome.text.split()[0]) if outcome.text else 0
    stop = first + len(outcome.text.split())
    overlapping = [(a, b) for a, b in kept if min(b, stop) > max(a, first)]
    reached = outcome.answerable and outcome.text != "" and outcome.gold is not None
    unreached = outcome.answerable and outcome.gold is None and not unanswered
    holds = {
        "answered though there is none": not outcome.answerable,
        "null beats span": unanswered,
        "boundary": reached and overlapping != [],
        "outranked": reached and not overlapping,
        "outside every window": unreached and outcome.out_of_reach == "outside every window",
        "too long": unreached and outcome.out_of_reach == "too long",
        "not where labelled": unreached and outcome.out_of_reach == "not where labelled",
        "no legal span": unreached and outcome.out_of_reach is None,
    }
    assert [cause for cause, held in holds.items() if held] == [mistake.cause]
    assert holds.keys() == CAUSES.keys()
    assert mistake.note or mistake.cause == "answered though there is none"
    json.dumps(mistake.as_json(), allow_nan=False)
    if mistake.cause == "boundary":
        a, b = max(overlapping, key=lambda each: (min(each[1], stop) - max(each[0], first), each[0] - each[1], each[0]))
        assert mistake.boundary == Boundary(a - first, stop - b)


def test_words_of_a_boundary_are_counted_without_punctuation_and_parts_count_as_words() -> None:
    asked = Example("1", WHO, "Built – in 1887 – by Kestrels.", (GoldAnswer("Kestrel", 21),))
    outcome = replace(score_question(asked, "1887 – by Kestrels"), start=11, gold=GoldSpan(21, 28, 0.0, 2, 0, 1.0))
    [mistake] = diagnose([asked], [outcome])
    assert mistake.boundary == Boundary(2, 1)
    assert str(Boundary(0, 0)) == "no word too many or too few"


@pytest.mark.parametrize(("text", "start", "cause"), [("310", 0, "outranked"), ("310m and more of it", 0, "boundary")])
def test_one_character_in_common_is_an_overlap_and_none_is_not(text: str, start: int, cause: str) -> None:
    asked = Example("1", WHO, "310m and more of it", (GoldAnswer("m", 3),))
    outcome = replace(score_question(asked, text), start=start, gold=GoldSpan(3, 4, 0.0, 2, 0, 1.0))
    assert [each.cause for each in diagnose([asked], [outcome])] == [cause]


def test_causes_are_counted_most_frequent_first_and_mistakes_are_most_confident_first(
    reader: Callable[..., Reader],
) -> None:
    none, none_too = example("Who?", PIER), Example("2", "Who sold it?", PIER)
    unsure = example("How long?", "It is 310 metres long. A storm came in 1953.", "310 metres")
    found = mistakes_of(reader({"Anna Kestrel": 8.0, "310 metres": 4.0}), none, none_too, unsure)
    assert [(cause, [each.outcome.id for each in of_cause]) for cause, of_cause in by_cause(found).items()] == [
        ("answered though there is none", ["Who?", "2"]),
        ("null beats span", ["How long?"]),
    ]
    assert right_but_for_null(found) == 1
    probabilities = [each.outcome.probability or 0.0 for each in found]
    assert probabilities == sorted(probabilities, reverse=True)


def test_files_of_outcomes_from_before_the_reasons_are_read(reader: Callable[..., Reader], tmp_path: Path) -> None:
    asked = [example(WHO, PIER, PIER[:-1]), Example("2", WHO, PIER, (GoldAnswer("Anna Kestrel", 22),))]
    found = [outcome for _, _, outcome in collect(reader({"1953": 8.0}), asked)]
    assert [outcome.out_of_reach for outcome in found] == ["too long", None]
    write_outcomes(tmp_path / "new.jsonl", found)
    assert read_outcomes(tmp_path / "new.jsonl") == found
    rows = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text("utf-8").splitlines()]
    old = [{name: value for name, value in row.items() if name != "out_of_reach"} for row in rows]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old), "utf-8")
    known, unknown = (diagnose(asked, read_outcomes(tmp_path / name)) for name in ("new.jsonl", "old.jsonl"))
    assert {each.outcome.id: each.cause for each in known} == {WHO: "too long", "2": "outranked"}
    assert {each.outcome.id: each.cause for each in unknown} == {WHO: "no legal span", "2": "outranked"}


@pytest.mark.parametrize(
    "other",
    [
        Example("2", WHO, PIER, (GoldAnswer("oak", 93),)),
        Example(WHO, "Who sold it?", PIER, (GoldAnswer("oak", 93),)),
        Example(WHO, WHO, PIER),
        Example(WHO, WHO, PIER[1:], (GoldAnswer("oak", 92),)),
    ],
    ids=["id", "question", "answers", "passage"],
)
def test_outcomes_of_other_questions_are_refused(reader: Callable[..., Reader], other: Example) -> None:
    outcomes = [outcome for _, _, outcome in collect(reader({"1953": 8.0}), [example(WHO, PIER, "oak")])]
    message = (
        r"not of these questions: 1 of 1 differ or are not there, for example id 'Who built the pier\?'. Give the file"
    )
    with pytest.raises(DatasetError, match=message):
        diagnose([other], outcomes)


# --- what misled the reader


def test_a_question_is_ignored_where_the_best_span_stays_without_it(reader: Callable[..., Reader]) -> None:
    deaf, listening = reader({"Anna Kestrel": 8.0}), reader({"Anna Kestrel": 8.0}, WHO)
    found = mistakes_of(deaf, example(WHO, PIER))
    assert probe(deaf, found)[WHO] == ("question ignored", "distractor sentence")
    assert probe(listening, found)[WHO] == ("distractor sentence",)


def test_the_same_words_elsewhere_are_another_answer(reader: Callable[..., Reader]) -> None:
    found = mistakes_of(reader({"Anna": 8.0}), example(WHO, "Anna built it. Anna sold it."))
    assert [each.outcome.start for each in found] == [0]
    assert "question ignored" in probe(reader({"Anna built": 8.0}), found)[WHO]
    assert "question ignored" not in probe(reader({"Anna sold": 8.0}), found).get(WHO, ())


def test_the_threshold_plays_no_part_in_whether_a_question_is_ignored(reader: Callable[..., Reader]) -> None:
    """Without the question the span scores 4, which is not given."""
    found = mistakes_of(reader({"Anna Kestrel": 8.0}), example(WHO, PIER))
    assert "question ignored" in probe(reader({"Anna Kestrel": 4.0}), found)[WHO]
    assert "question ignored" not in probe(reader({"Kestrel in 1887": 4.0}), found)[WHO]  # F1 is 0.4


@pytest.mark.parametrize(
    ("references", "flagged"),
    [
        (["oak"], True),
        (["metres"], False),
        (["oak", "1887"], False),
        (["oak", "1887. It is"], False),
        (["oak", "It is"], True),
    ],
    ids=str,
)
def test_a_sentence_distracts_where_the_answer_is_right_without_it_and_it_holds_no_reference(
    reader: Callable[..., Reader], references: list[str], flagged: bool
) -> None:
    """Without the first sentence oak is answered; 1887 is in that sentence."""
    torn = reader({"Anna Kestrel": 9.0, "oak": 6.0})
    found = mistakes_of(torn, example(WHO, PIER, *references))
    assert [each.outcome.text for each in found] == ["Anna Kestrel"]
    assert ("distractor sentence" in probe(torn, found).get(WHO, ())) == flagged


def test_windows_are_read_at_their_places_and_only_answers_are_probed(reader: Callable[..., Reader]) -> None:
    """The answer and the reference lie in the last of several windows, far from the first."""
    passage = "It rained all day long. " * 30 + "The pier is of granite\n\nThe piles are of oak."
    torn = reader({"granite": 9.0, "oak": 6.0}, max_seq_length=32, overlap=8)
    asked = [example(WHO, passage, "oak"), Example("2", "Who sold it?", "It rained.", (GoldAnswer("rained", 3),))]
    found = mistakes_of(torn, *asked)
    assert [each.cause for each in found] == ["null beats span", "outranked"]
    counts: list[tuple[int, int]] = []
    assert probe(torn, found, progress=lambda done, total, note="": counts.append((done, total))) == {
        WHO: ("question ignored", "distractor sentence")
    }
    assert counts == [(1, 1)]


def test_the_given_threshold_decides_whether_an_answer_is_right_without_the_sentence(
    reader: Callable[..., Reader],
) -> None:
    torn = reader({"Anna Kestrel": 9.0, "oak": 6.0})
    found = mistakes_of(torn, example(WHO, PIER))
    assert "distractor sentence" not in probe(torn, found)[WHO]  # oak is answered instead
    assert "distractor sentence" in probe(torn, found, threshold=7.0)[WHO]


def test_the_real_model_ignores_a_question_and_is_misled_by_a_sentence(mini: Reader) -> None:
    by_question = {each.question: each for each in REAL}
    flags = probe(mini, mistakes_of(mini, *REAL[:4], threshold=0.7))
    crabs, crew = "Where can crabs be found in large amounts?", "In what year did the crew begin to map the coast?"
    assert flags[crabs] == ("distractor sentence",)
    assert "question ignored" in flags[crew] and "distractor sentence" not in flags[crew]
    assert mini.ask(crabs, by_question[crabs].passage).text == "coastal locations"
    assert mask_of(mini.checkpoint.tokenizer).token == "[MASK]"


def test_mistakes_of_a_file_are_probed_only_where_the_reader_makes_them(reader: Callable[..., Reader]) -> None:
    asked = [example(WHO, PIER), Example("2", "Who sold it?", "A storm came in 1953.")]
    found = mistakes_of(reader({"Anna Kestrel": 8.0, "1953": 9.0}), *asked)
    assert [each.outcome.text for each in found] == ["1953", "1953"]
    assert repeated(reader({"1953": 8.0}), found) == found
    assert [each.outcome.id for each in repeated(reader({"Anna Kestrel": 8.0, "1953": 6.0}), found)] == ["2"]
    assert repeated(reader({}), []) == []
    with pytest.raises(InputError, match=r"gives none of the 2 wrong answers that the outcomes hold\. Name the model"):
        repeated(reader({"oak": 8.0}), found)


# --- the command


def write_squad(path: Path, examples: list[Example]) -> Path:
    rows = [
        {"id": each.id, "question": each.question, "context": each.passage,
         "answers": {"text": [a.text for a in each.answers], "answer_start": [a.start for a in each.answers]}}
        for each in examples
    ]  # fmt: skip
    path.write_text(json.dumps(rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, mini: Reader) -> tuple[Path, Path]:
    """Data, and the outcomes of the bundled model on them."""
    folder = tmp_path_factory.mktemp("real")
    data = write_squad(folder / "data.json", REAL[:4])
    write_outcomes(folder / "outcomes.jsonl", [outcome for _, _, outcome in collect(mini, REAL[:4])])
    return data, folder / "outcomes.jsonl"


def test_the_command_counts_causes_and_shows_mistakes(command: Command, real: tuple[Path, Path]) -> None:
    data, _ = real
    done = command("diagnose", data, "--dtype", "fp32", "--top", "1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "4 of 4 questions answered wrongly (100.0%), threshold 0.70"
    assert "cause number share for example" in lines
    for each, cause in zip(
        REAL, ("answered though there is none", "outranked", "boundary", "null beats span"), strict=False
    ):
        assert f"{cause} 1 25.0% {each.question}" in lines
        assert f"{cause} {CAUSES[cause]}" in lines
    assert any(line.startswith("given coastal locations (") for line in lines)
    assert "Crabs are abundant in some [coastal locations]." in lines
    assert "In [bays] where they occur in high numbers, they are hunted." in lines
    assert "The answer has 14 words too many at the start." in lines
    assert "reference not in this text" in lines
    assert not any("ignored" in line or "distractor" in line for line in lines)


def test_outcomes_from_a_report_give_the_same_as_the_model(command: Command, real: tuple[Path, Path]) -> None:
    data, outcomes = real
    ran = json.loads(command("diagnose", data, "--dtype", "fp32", "--json").stdout)
    read = json.loads(command("diagnose", data, "--outcomes", outcomes, "--json").stdout)
    assert (ran.pop("no_answer_threshold"), read.pop("no_answer_threshold")) == (0.703125, None)
    for found in (ran, read):
        for mistake in found["mistakes"]:
            for name in ("probability", "score", "gold", "note"):
                mistake.pop(name)
    assert ran == read
    assert read["wrong"] == read["data"]["questions"] == 4
    assert read["causes"][0]["number"] == 1 and read["causes"][0]["share"] == 0.25
    boundary = next(each for each in read["mistakes"] if each["cause"] == "boundary")
    assert boundary["boundary"] == {"start": 14, "end": 0}
    assert boundary["references"] == ["1807"] and "flags" not in boundary


def test_deep_adds_flags_to_table_mistakes_and_json(command: Command, real: tuple[Path, Path]) -> None:
    data, outcomes = real
    done = command("diagnose", data, "--outcomes", outcomes, "--deep", "--dtype", "fp32")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "cause number share question ignored distractor sentence for example" in lines
    assert f"outranked 1 25.0% 0 1 {REAL[1].question}" in lines
    assert f"null beats span 1 25.0% {REAL[3].question}" in lines  # not looked at
    assert f"distractor sentence {FLAGS['distractor sentence']}" in lines
    found = json.loads(command("diagnose", data, "--outcomes", outcomes, "--deep", "--dtype", "fp32", "--json").stdout)
    flags = {each["question"]: each["flags"] for each in found["mistakes"]}
    assert flags[REAL[1].question] == ["distractor sentence"] and flags[REAL[3].question] == []


def test_deep_says_how_many_answers_of_a_file_the_model_does_not_give(
    command: Command, real: tuple[Path, Path], tmp_path: Path
) -> None:
    data, outcomes = real
    rows = [json.loads(line) for line in outcomes.read_text("utf-8").splitlines()]
    assert rows[1]["text"] == "coastal locations"
    rows[1] |= {"text": "coastal", "best_text": "coastal"}
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = command("diagnose", data, "--outcomes", tmp_path / "other.jsonl", "--deep", "--dtype", "fp32")
    assert (
        "1 of 3 wrong answers are not looked at again: this model, with these settings, gives other ones" in done.stderr
    )
    assert f"outranked 1 25.0% 0 0 {REAL[1].question}" in " ".join(done.stdout.split())


def test_without_mistakes_the_command_says_so_and_succeeds(command: Command, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "d.json", [example(WHO, PIER, "Anna Kestrel")])
    done = command("diagnose", data, "--deep")
    assert (done.returncode, done.stdout) == (0, "0 of 1 questions answered wrongly (0.0%), threshold 0.70\n")
    found = json.loads(command("diagnose", data, "--json").stdout)
    assert (found["wrong"], found["causes"], found["mistakes"]) == (0, [], [])


def test_what_the_command_cannot_do_is_one_error(command: Command, real: tuple[Path, Path], tmp_path: Path) -> None:
    data, outcomes = real
    twice = tmp_path / "twice.jsonl"
    twice.write_bytes(2 * outcomes.read_bytes())
    for arguments, code, message in (
        ((data, "--outcomes", twice), 1, "There are 8 outcomes of 4 questions"),
        ((HARBOUR, "--outcomes", outcomes), 1, "The outcomes are not of these questions: 4 of 4 differ"),
        ((data, "--outcomes", tmp_path / "none.jsonl"), 1, "none.jsonl' does not exist"),
        ((tmp_path / "none.json",), 1, "none.json' does not exist"),
        ((data, "--outcomes", HARBOUR), 1, "is not a file of outcomes"),
        ((data, "--outcomes", outcomes, "--max-questions", "2"), 2, "the outcomes say which questions are read"),
        ((data, "--outcomes", outcomes, "--threshold", "2"), 2, "the outcomes were made with one already"),
        ((data, "--threshold", "nan"), 1, "threshold is nan"),
    ):
        done = command("diagnose", *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert message in done.stderr and "Traceback" not in done.stderr


def test_hostile_text_is_shown_as_text(command: Command, tmp_path: Path) -> None:
    passage = "It was built by [bold]Anna[/bold] \x1b[31mKestrel in 1887."
    asked = [Example("[red]1", "Who [link=x]built[/link] it?", passage, (GoldAnswer("1887", passage.index("1887")),))]
    done = command("diagnose", write_squad(tmp_path / "d.json", asked), "--dtype", "fp32", "--threshold", "-99")
    assert done.returncode == 0
    assert "Who [link=x]built[/link] it?  [red]1" in done.stdout and "\x1b" not in done.stdout
    assert "[bold]Anna[/bold]" in done.stdout


def test_the_guide_names_every_cause_and_flag() -> None:
    guide = ROOT / "docs" / "guide" / "evaluate.md"
    if not guide.exists():
        pytest.skip("the documentation is not here (an installed wheel is tested)")
    text = guide.read_text("utf-8")
    assert [name for name in (*CAUSES, *FLAGS) if f"| {name} |" not in text] == []
