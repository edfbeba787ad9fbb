import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from tokenizers import normalizers, pre_tokenizers

import tiny as tiny_module
from spanqa import tokens as tokens_module
from spanqa.batches import pad
from spanqa.checkpoint import open_checkpoint
from spanqa.errors import CheckpointError, InputError
from spanqa.tokens import Passage, Template, Tokenizer
from spanqa.windows import WindowSettings, make_windows
from strategies import nasty_passages, nasty_texts, questions

TOKENIZERS = ["bert", "roberta", "xlm-roberta", "spanqa-mini"]


@pytest.fixture(scope="session")
def ours(tiny: Callable[..., Path]) -> Callable[[str], Tokenizer]:
    made = {name: open_checkpoint(tiny(name)).tokenizer for name in TOKENIZERS}
    return lambda name: made[name]


@pytest.fixture(scope="session")
def theirs(tiny: Callable[..., Path]) -> Callable[[str], tokenizers.Tokenizer]:
    """The same files, read by the tokenizers library alone."""
    made = {name: tokenizers.Tokenizer.from_file(str(tiny(name) / "tokenizer.json")) for name in TOKENIZERS}

    def tokenizer(name: str) -> tokenizers.Tokenizer:
        made[name].no_truncation()
        made[name].no_padding()
        return made[name]

    return tokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=nasty_texts())
def test_offsets_are_those_of_the_tokenizer_without_white_space_around(
    ours: Callable[[str], Tokenizer], theirs: Callable[[str], tokenizers.Tokenizer], name: str, text: str
) -> None:
    tokens = ours(name).encode(text)
    encoding = theirs(name).encode(text, add_special_tokens=False)
    assert tokens.ids.dtype == tokens.offsets.dtype == np.int32
    assert tokens.ids.tolist() == encoding.ids
    for (start, end), (raw_start, raw_end) in zip(tokens.offsets.tolist(), encoding.offsets, strict=True):
        assert text[start:end] == text[raw_start:raw_end].strip()
        assert raw_start <= start <= end <= raw_end <= len(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=nasty_texts())
def test_offsets_never_go_back(ours: Callable[[str], Tokenizer], name: str, text: str) -> None:
    offsets = ours(name).encode(text).offsets
    assert (np.diff(offsets, axis=0) >= 0).all(), text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(question=questions(), passage=nasty_passages(12))
def test_a_passage_encoded_once_gives_the_ids_of_pair_encoding(
    ours: Callable[[str], Tokenizer],
    theirs: Callable[[str], tokenizers.Tokenizer],
    name: str,
    question: str,
    passage: str,
) -> None:
    tokenizer = ours(name)
    asked, read = tokenizer.encode(question), tokenizer.prepare(passage).tokens
    pair = theirs(name).encode(question, passage)
    settings = WindowSettings(len(pair.ids) + 1, 0, len(asked) + 1)
    windows = make_windows(asked, read, tokenizer.template, settings)
    assert len(windows) == (1 if len(read) else 0)
    if windows:
        batch = pad(windows)
        assert batch.input_ids[0].tolist() == pair.ids
        assert batch.token_type_ids[0].tolist() == pair.type_ids


@pytest.mark.parametrize("name", TOKENIZERS)
@given(question=questions(), passage=nasty_passages(40))
def test_windows_of_a_long_passage_are_the_overflowing_ones_of_pair_encoding(
    ours: Callable[[str], Tokenizer],
    theirs: Callable[[str], tokenizers.Tokenizer],
    name: str,
    question: str,
    passage: str,
) -> None:
    tokenizer = ours(name)
    asked, read = tokenizer.encode(question), tokenizer.prepare(passage).tokens
    room, overlap = 11, 4
    longest = len(asked) + room + tokenizer.template.special_tokens
    windows = make_windows(asked, read, tokenizer.template, WindowSettings(longest, overlap, len(asked) + 1))
    library = theirs(name)
    library.enable_truncation(longest, stride=overlap, strategy="only_second")
    pair = library.encode(question, passage)
    expected = [pair, *pair.overflowing] if len(read) else []
    assert [pad([window]).input_ids[0].tolist() for window in windows] == [encoding.ids for encoding in expected]
    if tokenizer.template.passage_type == 1:  # where all types are 0, tokenizers writes 1 into windows after the first
        assert [pad([window]).token_type_ids[0].tolist() for window in windows] == [one.type_ids for one in expected]


def test_templates_are_read_off_the_tokenizers(ours: Callable[[str], Tokenizer]) -> None:
    assert ours("bert").template == Template(((2, 0),), ((3, 0),), ((3, 1),), 0, 1)
    assert ours("roberta").template == Template(((0, 0),), ((2, 0), (2, 0)), ((2, 0),), 0, 0)
    assert ours("spanqa-mini").template == Template(((101, 0),), ((102, 0),), ((102, 1),), 0, 1)
    assert ours("bert").template.special_tokens == 3
    assert ours("xlm-roberta").template.special_tokens == 4


def test_stored_truncation_and_padding_never_apply(ours: Callable[[str], Tokenizer], tiny: Callable[..., Path]) -> None:
    stored = tokenizers.Tokenizer.from_file(str(tiny("spanqa-mini") / "tokenizer.json"))
    assert stored.truncation["max_length"] == stored.padding["length"] == 128  # what the file asks for
    assert len(ours("spanqa-mini").encode("word " * 1000)) == 1000
    assert len(ours("spanqa-mini").encode("word")) == 1


def test_white_space_alone_has_no_visible_token(ours: Callable[[str], Tokenizer]) -> None:
    for name in TOKENIZERS:
        offsets = ours(name).encode(" \n\t\u00a0\u3000 ").offsets
        assert (offsets[:, 0] == offsets[:, 1]).all(), name


def test_an_empty_text_has_no_tokens(ours: Callable[[str], Tokenizer]) -> None:
    for name in TOKENIZERS:
        tokens = ours(name).encode("")
        assert len(tokens) == 0
        assert tokens.offsets.shape == (0, 2)


def test_a_text_that_is_no_string_is_refused(ours: Callable[[str], Tokenizer]) -> None:
    with pytest.raises(InputError, match="Expected a text, got bytes: b'Penmar'"):
        ours("bert").encode(b"Penmar")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_half_a_surrogate_pair_is_refused_with_its_place(ours: Callable[[str], Tokenizer], name: str) -> None:
    with pytest.raises(InputError, match=r"half a surrogate pair \('\\ud83d'\) at position 4; it is not valid Unicode"):
        ours(name).encode("tall\ud83dtower")


def test_a_passage_is_encoded_once(ours: Callable[[str], Tokenizer]) -> None:
    first = ours("bert").prepare("The tower is 41 metres tall.")
    assert ours("bert").prepare("The tower is 41 metres tall.") is first
    assert ours("bert").prepare("The tower is 42 metres tall.") is not first
    assert ours("bert").prepare("The tower is 41 metres tall.", "tower.txt").tokens is first.tokens


def bytes_of(tokenizer: Tokenizer, text: str) -> int:
    tokens = tokenizer.encode(text)
    return sys.getsizeof(text) + tokens.ids.nbytes + tokens.offsets.nbytes + tokens.words.nbytes


def test_the_memory_for_passages_is_bounded_and_the_least_used_goes_first(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = open_checkpoint(tiny("bert")).tokenizer
    texts = ["a b c d", "e f g h", "i j k l"]
    monkeypatch.setattr(tokens_module, "CACHED_BYTES", 2 * bytes_of(tokenizer, texts[0]))
    first, second = tokenizer.prepare(texts[0]), tokenizer.prepare(texts[1])
    assert tokenizer.prepare(texts[0]) is first
    tokenizer.prepare(texts[2])  # more than there is room for: the second text goes
    assert tokenizer.prepare(texts[0]) is first
    assert tokenizer.prepare(texts[1]) is not second


def test_several_threads_share_the_memory(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = open_checkpoint(tiny("bert")).tokenizer
    limit = 6 * bytes_of(tokenizer, "a b")
    monkeypatch.setattr(tokens_module, "CACHED_BYTES", limit)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads come between any two steps

    def read(seed: int) -> None:
        letters = random.Random(seed)
        for _ in range(1500):
            text = " ".join(letters.choices("abc", k=2))
            assert len(tokenizer.prepare(text).tokens) == 2

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))
    finally:
        sys.setswitchinterval(usual)
    cached = [bytes_of(tokenizer, passage.text) for passage in tokenizer._passages.values()]
    assert tokenizer._cached_bytes == sum(cached) <= limit


def test_a_passage_longer_than_the_memory_is_kept_alone(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = open_checkpoint(tiny("bert")).tokenizer
    monkeypatch.setattr(tokens_module, "CACHED_BYTES", 2)
    long = tokenizer.prepare("a b c d e")
    assert tokenizer.prepare("a b c d e") is long


def test_a_passage_says_where_it_comes_from(ours: Callable[[str], Tokenizer]) -> None:
    assert Passage("a", ours("bert").encode("a"), "letters.txt").source == "letters.txt"


def test_a_tokenizer_without_a_place_for_no_answer_is_refused() -> None:
    bare = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    with pytest.raises(CheckpointError, match=r"puts no special token \(\[CLS\] or <s>\) before the question"):
        Tokenizer(bare)


def test_a_tokenizer_that_knows_no_letters_is_refused() -> None:
    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    with pytest.raises(CheckpointError, match="gives no token for the letters 'a' and 'b'"):
        Tokenizer(empty)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_wait_for_a_lock_of_its_parent(tiny: Callable[..., Path]) -> None:
    program = """
import os, signal, sys
from spanqa.checkpoint import open_checkpoint
tokenizer = open_checkpoint(sys.argv[1]).tokenizer
tokenizer.prepare("a b")
tokenizer._lock.acquire()  # as another thread might hold it
child = os.fork()
if child == 0:
    signal.alarm(20)
    print(len(tokenizer.prepare("a b").tokens), flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", program, str(tiny("bert"))]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "2\n0\n"


def with_parts(tokenizer: tokenizers.Tokenizer, **parts: Any) -> tokenizers.Tokenizer:
    """A tokenizer with other parts."""
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


PIECEWISE: dict[str, tuple[Callable[[], tokenizers.Tokenizer], int]] = {
    "WordPiece": (tiny_module.word_piece, 250),
    "byte-level BPE": (tiny_module.byte_level, 250),
    "byte-level BPE with a space before": (
        lambda: with_parts(tiny_module.byte_level(), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        100,
    ),
    "byte-level BPE that strips": (lambda: with_parts(tiny_module.byte_level(), normalizer=normalizers.Strip()), 30),
    "SentencePiece as XLM-R's": (tiny_module.unigram, 250),
    "SentencePiece": (lambda: with_parts(tiny_module.unigram(), pre_tokenizer=pre_tokenizers.Metaspace()), 100),
    "SentencePiece, mark at the start only": (
        lambda: with_parts(tiny_module.unigram(), pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")),
        100,
    ),
    "SentencePiece without words": (
        lambda: with_parts(tiny_module.unigram(), pre_tokenizer=pre_tokenizers.Metaspace(split=False)),
        30,
    ),
}
"""Name -> a tokenizer, and on how many texts it is tried: more than 1,000 in all."""

WORDS = [word for sentence in tiny_module.SENTENCES.splitlines() for word in sentence.split()]
ODD = ["<mask>", "e\u0301", "\u0301", "ﬁ", "¨", "\u3000", "한국어", "ก็", "🙂", "👨‍👩‍👧", "\u200d", "x" * 130, "ΑΣ", "½"]
SEPARATORS = [" "] * 8 + ["  ", "\n", "\n\n", "\t", " \n", "\u00a0", "\u2028", "", ""]


@pytest.mark.parametrize("name", PIECEWISE)
def test_a_long_text_is_encoded_in_pieces_that_give_the_tokens_of_the_whole(
    ours: Callable[[str], Tokenizer], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, rounds = PIECEWISE[name]
    tokenizer = Tokenizer(make(), ours("bert").template)
    draw, cuts = random.Random(0), 0
    for _ in range(rounds):
        text = "".join(draw.choice(WORDS + ODD) + draw.choice(SEPARATORS) for _ in range(draw.randrange(5, 100)))
        whole = tokenizer.encode(text)
        monkeypatch.setattr(tokens_module, "PIECE", 64)
        monkeypatch.setattr(tokens_module, "_CONTEXT", 48)
        pieces = tokenizer.prepare(text).tokens
        cuts += len(tokenizer._cuts(text)) - 2
        monkeypatch.undo()
        for array in ("ids", "offsets", "words"):
            np.testing.assert_array_equal(getattr(pieces, array), getattr(whole, array), err_msg=f"{array} of {text!r}")
    if name != "SentencePiece without words":
        assert cuts > rounds


def test_parts_of_a_text_have_their_places_in_the_whole(ours: Callable[[str], Tokenizer]) -> None:
    text = "Anna built it. Tomas laid a cable. Anna left."
    passage = ours("bert").prepare_parts(text, [(0, 14), (35, 45)], "harbour.txt")
    assert passage.parts is not None
    (first, middle), (_, last) = passage.parts
    assert "".join(text[start:end] for start, end in passage.tokens.offsets[first:middle].tolist()) == "Annabuiltit."
    assert "".join(text[start:end] for start, end in passage.tokens.offsets[middle:last].tolist()) == "Annaleft."
    assert (passage.text, passage.source, passage.tokenizer) == (text, "harbour.txt", ours("bert"))
    assert np.all(np.diff(passage.tokens.words) >= 0)
    copy = pickle.loads(pickle.dumps(passage))
    assert copy.parts == passage.parts
    assert ours("bert").prepare_parts(text, []).parts == ()


def test_half_a_surrogate_pair_in_a_long_text_is_refused_at_its_place(
    ours: Callable[[str], Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "PIECE", 64)
    with pytest.raises(InputError, match="at position 500"):
        ours("bert").prepare("word " * 100 + "\ud800" + " word" * 100)
