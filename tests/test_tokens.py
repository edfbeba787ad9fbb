import json
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import assume, given
from tokenizers import normalizers, pre_tokenizers

import tiny as tiny_checkpoints
from spanqa import tokens as tokens_module
from spanqa.batches import pad
from spanqa.checkpoint import open_checkpoint
from spanqa.errors import CheckpointError, InputError
from spanqa.reader import Reader
from spanqa.template import Template
from spanqa.tokenizer_files import read_tokenizer
from spanqa.tokenizer_setup import unwritable
from spanqa.tokens import Passage, Tokenizer
from spanqa.windows import WindowSettings, make_windows
from strategies import FRAGMENTS, nasty_passages, nasty_texts, questions

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
        made[name].encode_special_tokens = True
        return made[name]

    return tokenizer


def types_no_special_word(name: str, text: str) -> bool:
    """Whether the library alone reads a text as text: a Unigram model finds special tokens in its own vocabulary."""
    special = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
    return name != "xlm-roberta" or not any(token in unicodedata.normalize("NFKC", text) for token in special)


def whole_characters(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen a range to the grapheme clusters of the text, found from its beginning; CR LF counts as two."""
    bounds = [0, *(cluster.end() for cluster in regex.finditer(r"\X", text.replace("\r\n", "\n\n")))]
    return max(bound for bound in bounds if bound <= start), min(bound for bound in bounds if bound >= end)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=nasty_texts())
def test_offsets_are_those_of_the_tokenizer_without_white_space_around_and_with_whole_characters(
    ours: Callable[[str], Tokenizer], theirs: Callable[[str], tokenizers.Tokenizer], name: str, text: str
) -> None:
    assume(types_no_special_word(name, text))
    tokens = ours(name).encode(text)
    encoding = theirs(name).encode(text, add_special_tokens=False)
    assert tokens.ids.dtype == tokens.offsets.dtype == np.int32
    assert tokens.ids.tolist() == encoding.ids
    for found, (raw_start, raw_end) in zip(tokens.offsets.tolist(), encoding.offsets, strict=True):
        raw = text[raw_start:raw_end]
        start = raw_start + len(raw) - len(raw.lstrip())
        assert tuple(found) == whole_characters(text, start, start + len(raw.strip()))


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
    assume(types_no_special_word(name, question) and types_no_special_word(name, passage))
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
    assume(types_no_special_word(name, question) and types_no_special_word(name, passage))
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


# --- whole characters

CLUSTERS = [
    "e\u0301", "a\u0323\u0307", "q\u0301\u0301\u0301", "\u1100\u1161\u11a8", "각\u11a8", "❤\ufe0f", "1\ufe0f\u20e3", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈",
    "🇫🇷", "🇫🇷🇩🇪🇫", "กำ", "ที่", "ไทย", "क्ष", "हिन्दी", "مُحَمَّد", "שָׁלוֹם", "می\u200cخواهم", "\u0600١", " \u0301", "\u00a0\u0308", "\r\n", "\n\u0301",
    "\u200d", "\ufe0f", "中\u3099", "が", "Z͑ͫ̓ͪ̂ͫ̽", "\U0001f1e6", "\u0d4e\u0d15",
]  # fmt: skip
"""Pieces of text that are, have or join grapheme clusters of several code points."""


def texts_of_clusters(count: int) -> list[str]:
    draw = random.Random(0)
    pieces = [*CLUSTERS, *CLUSTERS, *FRAGMENTS, "José", "Penmar", " ", " ", ", ", "41"]
    return ["".join(draw.choices(pieces, k=draw.randrange(1, 9))) for _ in range(count)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_token_starts_or_ends_inside_a_character_in_1000_texts(ours: Callable[[str], Tokenizer], name: str) -> None:
    widened = 0
    for text in texts_of_clusters(1000):
        tokens = ours(name).encode(text)
        bounds = {0, *(cluster.end() for cluster in regex.finditer(r"\X", text))}
        assert (np.diff(tokens.offsets, axis=0) >= 0).all(), text
        for start, end in tokens.offsets[tokens.offsets[:, 0] < tokens.offsets[:, 1]].tolist():
            assert {start, end} <= bounds, (text, start, end)
            widened += len(regex.findall(r"\X", text[start:end])) < end - start
    assert widened > 1000


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("word", ["Jose\u0301", "Besanc\u0327on", "Kim \u1100\u1161\u11a8", "l❤\ufe0f", "ไทยที่", "مُحَمَّدُ"])
def test_the_last_token_of_a_word_has_all_of_its_last_letter(
    ours: Callable[[str], Tokenizer], name: str, word: str
) -> None:
    offsets = ours(name).encode(f"by {word}").offsets
    assert offsets[:, 1].max() == 3 + len(word)


def test_answers_hold_whole_characters_and_do_not_overlap(tiny: Callable[..., Path]) -> None:
    reader = Reader.load(tiny("bert"), backend="numpy")
    for text in texts_of_clusters(100):
        bounds = {0, *(cluster.end() for cluster in regex.finditer(r"\X", text))}
        answers = reader.rank("who built it?", text, top_k=5, threshold=-1e9)
        for answer in answers:
            assert text[answer.start : answer.end] == answer.text
            assert {answer.start, answer.end} <= bounds
        spans = sorted((answer.start, answer.end) for answer in answers)
        assert all(one[1] <= other[0] for one, other in pairwise(spans)), text


# --- offsets that lose letters


def robbert() -> tokenizers.Tokenizer:
    """As RobBERT's: the text is split before each word is given the space that belongs to it."""
    tokenizer = tiny_checkpoints.byte_level()
    steps = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = steps.Sequence(
        [steps.Whitespace(), steps.ByteLevel(add_prefix_space=True), steps.Punctuation()]
    )
    return tokenizer


def test_a_tokenizer_that_loses_first_letters_is_repaired() -> None:
    repaired = Tokenizer(robbert())
    for text in tiny_checkpoints.SENTENCES.strip().splitlines():
        tokens = repaired.encode(text)
        assert tokens.ids.tolist() == robbert().encode(text, add_special_tokens=False).ids
        covered = {place for start, end in tokens.offsets.tolist() for place in range(start, end)}
        assert "".join(letter for place, letter in enumerate(text) if place in covered) == "".join(text.split())


def test_the_offsets_of_a_sound_tokenizer_are_still_trimmed() -> None:
    tokenizer = tiny_checkpoints.byte_level()
    assert b'"trim_offsets":true' in Tokenizer(tokenizer)._tokenizer.post_processor.__getstate__()


def test_a_tokenizer_that_loses_letters_and_cannot_be_repaired_is_refused() -> None:
    tokenizer = tiny_checkpoints.byte_level()
    first_letter = tokenizers.Regex("(?<=[a-z] )[a-z]")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split(first_letter, "removed"), tokenizer.pre_tokenizer]
    )
    with pytest.raises(
        CheckpointError, match=r"gives no position for the characters 'fpi' of the text 'The first pier"
    ):
        Tokenizer(tokenizer)


def test_letters_that_a_tokenizer_removes_wherever_they_are_are_not_called_lost() -> None:
    raw = tiny_checkpoints.byte_level()
    raw.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("[0-9]"), "")
    assert len(Tokenizer(raw).encode("1891")) == 0


def test_a_vocabulary_whose_offsets_do_not_count_unknown_letters_is_refused() -> None:
    raw = tokenizers.Tokenizer(tokenizers.models.BPE({"[CLS]": 0, "a": 1, "b": 2}, []))
    raw.post_processor = tokenizers.processors.BertProcessing(("[CLS]", 0), ("[CLS]", 0))
    assert raw.encode("cab", add_special_tokens=False).offsets == [(0, 1), (1, 2)]  # so it is with the library
    with pytest.raises(CheckpointError, match=r"The tokenizer gives no position for the characters 'bba'"):
        Tokenizer(raw)


# --- special tokens typed in a text

SPECIAL = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "<s>", "</s>", "<pad>", "<mask>", "<unk>", "[UNK]"]


def without_special_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same vocabulary, but no special token, neither beside it nor in it."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    state["post_processor"] = None
    if state["model"]["type"] == "Unigram":
        state["model"]["vocab"] = [entry for entry in state["model"]["vocab"] if entry[0] not in SPECIAL[4:8]]
        state["model"]["unk_id"] = [word for word, _ in state["model"]["vocab"]].index("<unk>")
    return tokenizers.Tokenizer.from_str(json.dumps(state))


@pytest.mark.every_version
@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_typed_in_a_text_are_what_the_vocabulary_has_for_their_characters(
    ours: Callable[[str], Tokenizer], tiny: Callable[..., Path], name: str
) -> None:
    bare = without_special_tokens(tokenizers.Tokenizer.from_file(str(tiny(name) / "tokenizer.json")))
    bare.no_truncation()
    bare.no_padding()
    draw = random.Random(0)
    checked = 0
    for _ in range(1000):
        text = "".join(draw.choice([*SPECIAL, *SPECIAL, "Anna", " ", "  ", "x", "41 metres"]) for _ in range(6))
        found = ours(name).encode(text)
        if name == "xlm-roberta" and "<unk>" in text:  # which the vocabulary cannot be without
            continue
        expected = bare.encode(text, add_special_tokens=False)
        tokens = [ours(name)._tokenizer.id_to_token(i).removeprefix(unwritable("")) for i in found.ids]
        assert tokens == [bare.id_to_token(i) for i in expected.ids]
        assert found.words.tolist() == expected.word_ids
        checked += 1
    assert checked > 300


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_window_has_only_the_special_tokens_of_its_template(ours: Callable[[str], Tokenizer], name: str) -> None:
    tokenizer = ours(name)
    text = " ".join(SPECIAL) + "".join(SPECIAL)
    window = make_windows(
        tokenizer.encode(f"who? {text}"), tokenizer.encode(text), tokenizer.template, WindowSettings(384)
    )
    ids = pad(window).input_ids[0].tolist()
    for special in {int(i) for part in tokenizer.template.special_ids for i in part}:
        assert ids.count(special) == sum(part.tolist().count(special) for part in tokenizer.template.special_ids)


@pytest.mark.every_version
@pytest.mark.parametrize("make", [tiny_checkpoints.word_piece, tiny_checkpoints.byte_level, tiny_checkpoints.unigram])
def test_added_words_that_are_not_special_stay_words(make: Callable[[], tokenizers.Tokenizer]) -> None:
    raw = make()
    raw.add_tokens(["[Table]", tokenizers.AddedToken("x9 y9", normalized=False)])
    raw.add_special_tokens(["<doc>"])
    expected = [raw.token_to_id("[Table]"), raw.token_to_id("x9 y9")]
    tokenizer = pickle.loads(pickle.dumps(Tokenizer(raw)))
    tokens = tokenizer.encode("[Table]x9 y9")
    assert [i for i in tokens.ids.tolist() if i in expected] == expected
    assert raw.token_to_id("<doc>") not in tokenizer.encode("<doc> Anna </doc>").ids
    assert tokens.offsets[-1].tolist() == [7, 12]


# --- damage


def test_a_tokenizer_without_its_token_for_unknown_words_is_an_error() -> None:
    raw = tiny_checkpoints.word_piece()
    raw.model = tokenizers.models.WordPiece({"[CLS]": 2, "[SEP]": 3, "a": 1, "b": 0}, unk_token="[UNK]")
    with pytest.raises(
        CheckpointError, match=r"The tokenizer loads but cannot encode: .* Is the tokenizer's file damaged"
    ):
        Tokenizer(raw)


def test_an_error_of_the_library_at_some_text_is_an_error_of_the_checkpoint() -> None:
    letters = {letter: i for i, letter in enumerate(map(chr, range(0x500))) if letter != "Ω"}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({**letters, "[CLS]": 3000}, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    raw.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("[^\u0000-\u04ff]"), "")
    raw.post_processor = tokenizers.processors.BertProcessing(("[CLS]", 3000), ("[CLS]", 3000))
    tokenizer = Tokenizer(raw)
    assert len(tokenizer.encode("Anna")) == 4
    for encode in (lambda: tokenizer.encode("Ω"), lambda: tokenizer.encode_many(["Anna", "Ω"])):
        with pytest.raises(
            CheckpointError, match=r"The tokenizer cannot encode a text: .* Is the tokenizer's file damaged\?"
        ):
            encode()


def values_of(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a tokenizer's file, but of only a few words and merges."""
    for key, value in state.items() if isinstance(state, dict) else enumerate(state[:9]):
        yield (*path, key)
        if isinstance(value, (dict, list)) and key not in ("vocab", "merges"):
            yield from values_of(value, (*path, key))


@pytest.mark.parametrize("make", [tiny_checkpoints.word_piece, tiny_checkpoints.byte_level, tiny_checkpoints.unigram])
def test_a_tokenizer_with_any_value_lost_or_changed_is_refused_or_read(
    make: Callable[[], tokenizers.Tokenizer], tmp_path: Path
) -> None:
    draw = random.Random(0)
    original = make().to_str()
    odd = [None, -1, 0, 2**32, 1e308, "", True, [], {}, "\0", "[UNK]", [["a", 1.0]], {"a": 0}, "BPE"]
    refused = 0
    for _ in range(400):
        state = json.loads(original)
        *path, key = draw.choice(list(values_of(state)))
        parent = state
        for step in path:
            parent = parent[step]
        if draw.random() < 0.3:
            del parent[key]
        else:
            parent[key] = draw.choice(odd)
        (tmp_path / "tokenizer.json").write_text(json.dumps(state))
        try:
            tokenizer = read_tokenizer(tmp_path, {"model_type": "bert", "vocab_size": 1000})
            for text in texts_of_clusters(3):
                assert tokenizer.encode(text).offsets.max(initial=0) <= len(text)
        except CheckpointError:
            refused += 1
    assert refused > 100


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
    "WordPiece": (tiny_checkpoints.word_piece, 250),
    "byte-level BPE": (tiny_checkpoints.byte_level, 250),
    "byte-level BPE with a space before": (
        lambda: with_parts(
            tiny_checkpoints.byte_level(), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)
        ),
        100,
    ),
    "byte-level BPE that strips": (
        lambda: with_parts(tiny_checkpoints.byte_level(), normalizer=normalizers.Strip()),
        30,
    ),
    "SentencePiece as XLM-R's": (tiny_checkpoints.unigram, 250),
    "SentencePiece": (lambda: with_parts(tiny_checkpoints.unigram(), pre_tokenizer=pre_tokenizers.Metaspace()), 100),
    "SentencePiece, mark at the start only": (
        lambda: with_parts(tiny_checkpoints.unigram(), pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")),
        100,
    ),
    "SentencePiece without words": (
        lambda: with_parts(tiny_checkpoints.unigram(), pre_tokenizer=pre_tokenizers.Metaspace(split=False)),
        30,
    ),
}
"""Name -> a tokenizer, and on how many texts it is tried: more than 1,000 in all."""

WORDS = [word for sentence in tiny_checkpoints.SENTENCES.splitlines() for word in sentence.split()]
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
        assert cuts > rounds / 2


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
