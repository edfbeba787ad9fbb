"""Labels checked against their passages: exact, repaired, placed, ambiguous or dropped."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanqa.checkpoint import open_checkpoint
from spanqa.errors import DatasetError, InputError
from spanqa.squad import Example, GoldAnswer, Label, Labelled
from spanqa.train.labels import align, align_all, answer_length_tokens, hold_out, shared_passages

PASSAGE = "The pier  was built by Anna Kestrel in 1911. Anna Kestrel died in 1954; the pier's end was lit."


def labelled(*labels: Label, id: str = "1", passage: str = PASSAGE) -> Labelled:
    return Labelled(id, "Who?", passage, labels)


@pytest.mark.parametrize(
    ("label", "text", "start", "status"),
    [
        (Label("1911", 39), "1911", 39, "exact"),
        (Label(" 1911", 38), "1911", 39, "repaired"),  # white space in the label
        (Label("1911", 41), "1911", 39, "repaired"),  # a few characters off
        (Label("Anna Kestrel", 47), "Anna Kestrel", 45, "repaired"),  # the nearer of two
        (Label("Anna Kestrel", 20), "Anna Kestrel", 23, "repaired"),
        (Label("The pier was", 0), "The pier  was", 0, "repaired"),  # other white space inside
        (Label("the PIER's end"), "the pier's end", 72, "repaired"),  # case
        (Label("1954"), "1954", 66, "placed"),
        (Label("1954", 0), "1954", 66, "repaired"),  # far off, but there is only one
    ],
)
def test_a_label_is_found(label: Label, text: str, start: int, status: str) -> None:
    example, found = align(labelled(label))
    assert example is not None
    assert (example.answers, found) == ((GoldAnswer(text, start),), status)
    assert PASSAGE[start : start + len(text)] == text


def test_words_that_occur_several_times_all_count_and_are_reported() -> None:
    example, status = align(labelled(Label("Anna Kestrel")))
    assert example is not None
    assert [answer.start for answer in example.answers] == [23, 45]
    assert status == "ambiguous"


def test_whole_words_come_before_parts_of_words() -> None:
    example, status = align(labelled(Label("he"), passage="The end. So he left."))
    assert example is not None
    assert (example.answers, status) == ((GoldAnswer("he", 12),), "placed")


def test_a_question_without_labels_or_with_blank_ones_is_unanswerable() -> None:
    for labels in ((), (Label(""),), (Label("  ", 3),)):
        example, status = align(labelled(*labels))
        assert example is not None
        assert (example.answers, status) == ((), "unanswerable")


def test_a_missing_label_is_dropped_unless_another_label_is_found() -> None:
    assert align(labelled(Label("Bertha"))) == (None, "dropped")
    example, status = align(labelled(Label("Bertha"), Label("1911", 39)))
    assert example is not None
    assert (example.answers, status) == ((GoldAnswer("1911", 39),), "exact")


def test_the_report_counts_every_question_once() -> None:
    examples, report = align_all(
        [labelled(id="a"), labelled(Label("1911", 39), id="b"), labelled(Label("Bertha"), id="c")]
    )
    assert [example.id for example in examples] == ["a", "b"]
    assert report.ids["dropped"] == ["c"]
    assert sum(report.counts.values()) == 3
    assert str(report) == "labels: 1 unanswerable, 1 exact, 1 dropped; dropped: c"


def test_strict_stops_at_the_first_bad_label() -> None:
    with pytest.raises(DatasetError, match=r"'c': the answer 'Bertha' is not in the passage"):
        align_all([labelled(Label("Bertha"), id="c")], strict=True)
    with pytest.raises(DatasetError, match=r"'d': the answer 'Anna Kestrel' occurs several times in the passage"):
        align_all([labelled(Label("Anna Kestrel"), id="d")], strict=True)


def test_two_questions_cannot_share_an_id() -> None:
    with pytest.raises(DatasetError, match=r"Two questions have the id 'a'"):
        align_all([labelled(id="a"), labelled(id="a")])


@given(passage=st.text(min_size=1, max_size=60), data=st.data())
def test_a_label_cut_from_its_passage_is_found_there(passage: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(passage) - 1))
    text = passage[start : data.draw(st.integers(start + 1, len(passage)))]
    given_start = data.draw(st.one_of(st.none(), st.just(start), st.integers(0, 80)))
    example, status = align(Labelled("1", "Who?", passage, (Label(text, given_start),)))
    assert example is not None
    assert (status == "unanswerable") == (not text.strip()) == (example.answers == ())
    for answer in example.answers:
        assert answer.text == passage[answer.start : answer.start + len(answer.text)]
        assert answer.text.split() == text.split() or status == "repaired"


def test_the_questions_on_an_article_stay_on_one_side() -> None:
    examples = [Example(str(i), "Who?", f"passage {i % 20}", (), f"title {i % 10}") for i in range(200)]
    kept, held = hold_out(examples, share=0.2)
    assert len(kept) + len(held) == 200
    assert len({example.title for example in held}) == 2
    assert not {example.title for example in kept} & {example.title for example in held}
    assert hold_out(examples, share=0.2) == (kept, held)
    assert hold_out(examples, share=0.2, seed=1) != (kept, held)
    with pytest.raises(InputError, match=r"All 3 questions are on one passage"):
        hold_out([Example(str(i), "Who?", "one", ()) for i in range(3)])


def test_no_passage_is_on_both_sides_whatever_the_titles_are() -> None:
    """Titles can be missing, one for everything, one for each row (as row numbers are), or right."""
    titles = {
        "none": lambda row, passage: "",
        "one": lambda row, passage: "All",
        "rows": lambda row, passage: str(row),
        "right": lambda row, passage: f"title {passage % 5}",
        "some": lambda row, passage: f"title {passage}" if row % 2 else "",
    }
    for seed in range(1000):
        draw = random.Random(seed)
        kind = draw.choice(list(titles))
        passages = draw.randint(2, 12)
        rows = [draw.randrange(passages) for _ in range(draw.randint(10, 60))]
        if len({p % 5 if kind == "right" else p for p in rows}) < 2:
            continue
        examples = [
            Example(str(row), "Who?", draw.choice((f"The text {p}.", f"the\n text  {p}. ")), (), titles[kind](row, p))
            for row, p in enumerate(rows)
        ]
        kept, held = hold_out(examples, share=draw.choice((0.05, 0.5)), seed=seed)
        assert kept and held and len(kept) + len(held) == len(examples)
        assert shared_passages(kept, held) == 0
        if kind == "right":
            assert not {example.title for example in kept} & {example.title for example in held}


def test_passages_that_are_on_both_sides_are_counted() -> None:
    one, other = Example("1", "Who?", "The pier.", ()), Example("2", "Who?", "the  pier. ", ())
    assert shared_passages([one], [other, other, Example("3", "Who?", "Another.", ())]) == 2


def test_the_answer_length_covers_nearly_all_answers() -> None:
    tokenizer = open_checkpoint("spanqa-mini").tokenizer
    texts = ["one two three"] * 98 + ["one two three four", "a very long answer of nine words, and marks."]
    examples = [Example(str(i), "Who?", text, (GoldAnswer(text, 0),)) for i, text in enumerate(texts)]
    assert answer_length_tokens(examples, tokenizer) == 4
    assert answer_length_tokens(examples, tokenizer, share=1) == 11
    assert answer_length_tokens([Example("1", "Who?", "No one.")], tokenizer) == 0
