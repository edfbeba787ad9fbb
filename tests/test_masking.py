"""Whole-word masking: words of any tokenizer, how many are chosen, and what becomes of them."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import masks
import tiny as tiny_checkpoints
from masks import Encoded, Masked
from spanqa.checkpoint import open_checkpoint
from spanqa.errors import CheckpointError
from spanqa.tokens import Tokenizer
from spanqa.train.masking import NO_WORD, choose, cut_words, mask_tokens, replace, wanted, words_of
from strategies import FRAGMENTS, nasty_texts, seeded_texts

TOKENIZERS = {
    "WordPiece": Tokenizer(tiny_checkpoints.word_piece()),
    "byte-level BPE": Tokenizer(tiny_checkpoints.byte_level()),
    "Unigram": Tokenizer(tiny_checkpoints.unigram()),
    "spanqa-mini": open_checkpoint("spanqa-mini").tokenizer,
}
each_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


def encoded(text: str, tokenizer: Tokenizer) -> Encoded:
    """The text in one window, with its special tokens."""
    tokens, template = tokenizer.encode(text), tokenizer.text_template
    before, _, after = template.special_ids
    edge = np.zeros((1, 2), np.int32)
    return Encoded(
        text,
        np.concatenate([before, tokens.ids, after]),
        np.concatenate([edge.repeat(len(before), 0), tokens.offsets, edge.repeat(len(after), 0)]),
        np.array([True] * len(before) + [False] * len(tokens) + [True] * len(after)),
    )


def ours(tokenizer: Tokenizer, kind: str = "word") -> masks.Collate:
    """Our masking, as a collator of windows."""
    tokens = mask_tokens(tokenizer, "a model")

    @cache
    def words_in(text: str) -> Any:
        return words_of(text, tokenizer.encode(text), tokenizer.unknown_id)

    def collate(windows: Sequence[Encoded], seed: int) -> list[Masked]:
        made = []
        for number, window in enumerate(windows):
            draw = np.random.default_rng((seed, number))
            inside = np.flatnonzero(~window.special)
            read, chosen = window.ids.copy(), np.zeros(len(window.ids), np.bool_)
            places = choose(words_in(window.text), draw, kind)  # type: ignore[arg-type]
            chosen[inside[places]] = True
            read[inside] = replace(window.ids[inside], places, tokens, draw)
            made.append(Masked(read, chosen))
        return made

    return collate


def long_texts(tokenizer: Tokenizer, tokens: int, least: int = 128) -> list[str]:
    """Texts of the sentences of the tests, in many scripts, of at least 128 tokens each."""
    draw = random.Random(0)
    texts: list[str] = []
    count = 0
    while count < tokens:
        text = ""
        while (length := len(tokenizer.encode(text))) < least:
            text += " ".join(draw.choices(tiny_checkpoints._WORDS, k=4)) + draw.choice([" ", "\n\n"])
        texts.append(text)
        count += length
    return texts


# --- words


def grouped(numbers: Any) -> list[int]:
    """Word numbers as the place of each word's first token, so that two ways to count can be compared."""
    first: dict[int, int] = {}
    return [
        -1 if number < 0 else first.setdefault(number, place)
        for place, number in enumerate(np.asarray(numbers).tolist())
    ]


@each_tokenizer
@given(text=nasty_texts())
def test_words_are_those_of_googles_rules(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(text)
    visible = tokens.offsets[:, 0] < tokens.offsets[:, 1]
    found = words_of(text, tokens)
    expected = np.array(masks.word_of_tokens(text, tokens.offsets), np.int32)
    assert grouped(found[visible]) == grouped(expected[visible])
    assert (found[visible] != NO_WORD).all()


@pytest.mark.parametrize("kind", ["WordPiece", "spanqa-mini"])
@given(pieces=st.lists(st.sampled_from(FRAGMENTS), max_size=25))
def test_the_words_of_wordpiece_are_its_own(kind: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    tokens = TOKENIZERS[kind].encode(text)
    assert grouped(words_of(text, tokens)) == grouped(tokens.words)


SAID = "The keeper's lamp, 41m (tall)... isn't\n\nlit."
WORDS = ["The", "keeper", "'", "s", "lamp", ",", "41m", "(", "tall", ")", ".", ".", ".", "isn", "'", "t", "lit", "."]
THEIRS = {
    "WordPiece": WORDS,
    "byte-level BPE": ["The", "keeper", "'s", "lamp", ",", "41", "m", "(", "tall", ")...", "isn", "'t", "lit", "."],
    "Unigram": ["The", "keeper's", "lamp,", "41m", "(tall)...", "isn't", "lit."],
}


@pytest.mark.parametrize("kind", THEIRS)
def test_the_same_words_are_found_where_tokenizers_split_and_glue_others(kind: str) -> None:
    tokens = TOKENIZERS[kind].encode(SAID)

    def texts(numbers: Any) -> list[str]:
        places = [
            tokens.offsets[(numbers == each) & (tokens.offsets[:, 0] < tokens.offsets[:, 1])]
            for each in np.unique(numbers)
        ]
        return [SAID[place[:, 0].min() : place[:, 1].max()] for place in places if len(place)]

    assert texts(words_of(SAID, tokens)) == WORDS
    assert texts(tokens.words) == THEIRS[kind]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("石头墙 かたい", ["石", "头", "墙", "かたい"]),  # each ideograph is a word, and so is a run of kana
        ("41,5 $9", ["41", ",", "5", "$", "9"]),
        ("cafe\u0301s a\u0323\u0307b", ["cafe\u0301s", "a\u0323\u0307b"]),
        ("👩‍👩‍👧‍👦! 😀😀", ["👩‍👩‍👧‍👦", "!", "😀😀"]),
        ("من بنى؟", ["من", "بنى", "؟"]),
        ("ภาษาไทยไม่มีช่องว่าง", ["ภาษาไทยไม่มีช่องว่าง"]),  # a run without spaces is one word
        ("a\u3000b\u2003c\u00a0d", ["a", "b", "c", "d"]),
        ("[MASK]", ["[", "MASK", "]"]),  # typed in a text, it is text
    ],
)
def test_words_in_many_scripts(text: str, words: list[str]) -> None:
    tokenizer = TOKENIZERS["byte-level BPE"]
    tokens = tokenizer.encode(text)
    numbers = words_of(text, tokens)
    seen = [tokens.offsets[numbers == number] for number in range(int(numbers.max()) + 1)]
    assert [text[each[each[:, 0] < each[:, 1], 0].min() : each[:, 1].max()] for each in seen] == words


def test_what_stands_before_a_word_is_masked_with_it_and_white_space_alone_is_not() -> None:
    tokenizer = TOKENIZERS["byte-level BPE"]
    tokens = tokenizer.encode("a  Kestrel\n\n")
    shown = [tokenizer.token_of(number) for number in tokens.ids]
    words = words_of("a  Kestrel\n\n", tokens).tolist()
    assert shown[:3] == ["a", "Ġ", "ĠK"] or shown[:3] == ["a", "Ġ", "Ġ"]
    assert words[1] == NO_WORD and words[0] == 0
    assert words[-2:] == [NO_WORD, NO_WORD]
    assert set(words[2:-2]) == {1}


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_a_word_with_an_unknown_token_is_never_chosen(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    text = "Anna ꙮꙮ built it"
    tokens = tokenizer.encode(text)
    assert tokenizer.unknown_id in tokens.ids
    words = words_of(text, tokens, tokenizer.unknown_id)
    starts = tokens.offsets[words == NO_WORD]
    assert {text[start:end] for start, end in starts.tolist()} <= {"ꙮꙮ", "ꙮ", ""}
    assert len(set(words.tolist())) == 4


# --- masks


@each_tokenizer
@given(text=nasty_texts(60), seed=st.integers(0, 2**32))
def test_a_word_is_masked_whole_or_not_at_all(kind: str, text: str, seed: int) -> None:
    tokenizer = TOKENIZERS[kind]
    windows = [encoded(text, tokenizer)]
    masked = ours(tokenizer)(windows, seed)
    assert masks.torn_words(windows, masked) == []
    assert masks.touched_tokens(windows, masked) == 0
    assert masked[0].chosen.sum() <= wanted(int((~windows[0].special).sum()))
    special = {tokenizer.unknown_id} | set(windows[0].ids[windows[0].special].tolist())
    assert not special & set(masked[0].read[masked[0].chosen].tolist())


@each_tokenizer
def test_over_many_tokens_our_masking_has_every_property(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    windows = [encoded(text, tokenizer) for text in long_texts(tokenizer, 100_000)]
    tokens = mask_tokens(tokenizer, "a model")
    found = masks.broken(ours(tokenizer), windows, mask_id=tokens.mask, vocabulary=len(tokens.ordinary))
    assert found == {}


def test_tokens_are_masked_without_their_words_where_that_is_asked_for() -> None:
    tokenizer = TOKENIZERS["WordPiece"]
    windows = [encoded(text, tokenizer) for text in long_texts(tokenizer, 20_000)]
    masked = ours(tokenizer, "token")(windows, 0)
    assert masks.torn_words(windows, masked)
    assert abs(masks.share(windows, masked) - 15) < 0.5
    assert masks.touched_tokens(windows, masked) == 0


WORDS_OF_SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=60)


@given(sizes=WORDS_OF_SIZES, limit=st.none() | st.integers(1, 20), seed=st.integers(0, 999))
def test_words_that_exceed_what_is_wanted_are_skipped(sizes: list[int], limit: int | None, seed: int) -> None:
    words = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    chosen = choose(words, np.random.default_rng(seed), "word", limit)
    most = wanted(len(words), limit)
    assert len(chosen) <= most
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    left = [size for word, size in enumerate(sizes) if word not in words[chosen]]
    assert not left or len(chosen) + min(left) > most  # nothing else would have fitted
    if limit is not None:
        assert most <= limit


def test_a_limit_is_kept_and_nothing_is_chosen_where_nothing_can_be() -> None:
    draw = np.random.default_rng(0)
    assert len(choose(np.arange(200, dtype=np.int32), draw, "word", 20)) == 20
    assert len(choose(np.zeros(200, np.int32), draw)) == 0  # one word of 200 tokens
    assert len(choose(np.full(200, NO_WORD, np.int32), draw)) == 0
    assert len(choose(np.empty(0, np.int32), draw)) == 0


def test_the_words_of_a_window_are_equally_likely() -> None:
    words = np.arange(40, dtype=np.int32)
    counts = np.zeros(40)
    for seed in range(4000):
        counts[choose(words, np.random.default_rng(seed))] += 1
    assert (np.abs(counts / 4000 - 6 / 40) < 0.025).all()


@each_tokenizer
def test_random_tokens_are_those_of_texts(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = mask_tokens(tokenizer, "a model")
    names = {tokenizer.token_of(number) for number in tokens.ordinary.tolist()}
    specials = {*tiny_checkpoints._BERT_SPECIALS, *tiny_checkpoints._ROBERTA_SPECIALS}
    assert not names & specials
    assert tokenizer.token_of(tokens.mask) in ("[MASK]", "<mask>")
    assert len(names) == len(tokens.ordinary) == tokenizer.highest_id + 1 - 5


def test_a_model_without_a_mask_token_is_refused() -> None:
    tokenizer = tiny_checkpoints.word_piece()
    text = tokenizer.to_str().replace("[MASK]", "[HIDE]")
    with pytest.raises(
        CheckpointError, match=r"'folder' has no mask token: its tokenizer has none of \[MASK\], <mask>"
    ):
        mask_tokens(Tokenizer(tokenizer.from_str(text)), "'folder'")


# --- cuts


@given(sizes=WORDS_OF_SIZES, room=st.integers(1, 20), nothing=st.sets(st.integers(0, 59)))
def test_texts_are_cut_between_words(sizes: list[int], room: int, nothing: set[int]) -> None:
    numbers = [NO_WORD if word in nothing else word for word in range(len(sizes))]
    words = np.repeat(np.array(numbers, np.int32), sizes)
    cuts = cut_words(words, room)
    assert all(0 < stop - first <= room for first, stop in cuts)
    places = [place for first, stop in cuts for place in range(first, stop)]
    assert places == sorted(set(places))
    assert {place for place in range(len(words)) if words[place] != NO_WORD} <= set(places)
    for _, stop in cuts:
        if stop < len(words) and words[stop] != NO_WORD and words[stop - 1] == words[stop]:
            assert sizes[words[stop]] > room


@each_tokenizer
def test_texts_of_all_scripts_are_cut_and_masked(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    for text in seeded_texts(150):
        tokens = tokenizer.encode(text)
        words = words_of(text, tokens, tokenizer.unknown_id)
        kept = sum(stop - first for first, stop in cut_words(words, 16))
        assert (words != NO_WORD).sum() <= kept <= len(tokens)
