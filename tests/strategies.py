"""Hypothesis strategies, named by what they make."""

import random
import sys
import unicodedata
from collections import defaultdict
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from spanqa.tokens import Template, Tokens

FRAGMENTS = [
    "The tower", "Anna Kestrel", "1891", "41 metres", "who", "built", "it", "don't", "e.g.", "$1,250.00", "3.5 %", "ice-cold",
    " ", "  ", "\n", "\r\n", "\r", "\t", "\n\n", "\x0b", "\x0c", "\x1c", "\x85", "\u00a0", "\u2009", "\u2028", "\u2029", "\u3000",
    ".", ",", "?", "!", "…", "“", "”", "(", ")", "—", "'", '"', "#", "##ing", "_", "▁", "Ġ",
    "café", "cafe\u0301", "Besanc\u0327on", "Zürich", "Å", "A\u030a", "ẞ", "İstanbul", "ﬁne", "ǆ", "Ⅷ", "½", "①", "ｆｕｌｌ",
    "\u0301", "a\u0323\u0307", "a\u0307\u0323", "q\u0301\u0301\u0301", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
    "灯台", "灯台は海の近くに", "誰が。", "한국어", "각", "각", "Маяк", "ελληνικά", "हिन्दी", "ไทย", "ภาษาไทยไม่มีช่องว่าง",
    "المنارة", "עִבְרִית", "\u200fשלום\u200e", "\u202eabc\u202c", "\u2067x\u2069",
    "😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇩🇪", "❤️", "1️⃣", "😀😀😀",
    "\x00", "\x01", "\x07", "\x1b[0m", "\x7f", "\x9f", "\ufeff", "\u200b", "\u200c", "\u200d", "\u2060", "\u00ad", "\ufffd", "\uffff",
    "\ue000", "\U000e0041", "\U0010ffff", "𝕳𝖊𝖑𝖑𝖔", "𠜎", "\u034f", "\u180e", "\ufe0f",
    "[SEP]", "[CLS]", "[MASK]", "[UNK]", "</s>", "<s>", "<unk>", "<mask>",
    "x" * 130, "unbelievably" * 12, "ab" * 60 + " ", "0" * 40, "=" * 30,
]  # fmt: skip
"""Pieces of text that tokenizers are known to stumble over: accents, combining marks, CJK, emoji, controls, white space
of every kind, right-to-left, zero width, special tokens spelled out, and very long words."""


_BLOCKS = [
    (0x20, 0x7F), (0xA0, 0x250), (0x2B0, 0x370), (0x370, 0x530), (0x530, 0x780), (0x900, 0xE00), (0xE00, 0x1000),
    (0x1000, 0x1200), (0x1200, 0x1800), (0x1E00, 0x2000), (0x2000, 0x2400), (0x2460, 0x2C00), (0x3000, 0x3100),
    (0x3100, 0x3400), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFFFE), (0x10000, 0x13000), (0x1D400, 0x1D800),
    (0x1F000, 0x1FB00), (0x20000, 0x2A6E0),
]  # fmt: skip


@cache
def _scripts() -> list[list[str]]:
    """The letters and marks of each script, which is the first word of their names."""
    scripts = defaultdict(list)
    for letter in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(letter)[0] in "LM":
            scripts[unicodedata.name(letter, "NAMELESS").split()[0].partition("-")[0]].append(letter)
    return [letters for _, letters in sorted(scripts.items())]


def seeded_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of nasty fragments and of the characters of all scripts, the same for a seed (and a version of Unicode)."""
    draw = random.Random(seed)
    scripts = _scripts()

    def piece() -> str:
        if draw.random() < 0.5:
            return draw.choice(FRAGMENTS)
        letters = draw.choice(scripts) if draw.random() < 0.5 else range(*draw.choice(_BLOCKS))
        drawn = draw.choices(letters, k=draw.randrange(1, 6))
        return "".join(chr(x) if isinstance(x, int) else x for x in drawn) + draw.choice(["", " "])

    return ["".join(piece() for _ in range(draw.randrange(1, 9))) for _ in range(count)]


def nasty_texts(most: int = 25) -> st.SearchStrategy[str]:
    """Texts made of nasty fragments and of any characters but surrogates."""
    return st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=most).map("".join)


def nasty_passages(most: int = 25) -> st.SearchStrategy[str]:
    """Nasty texts that are not blank."""
    return nasty_texts(most).filter(str.strip)


def questions() -> st.SearchStrategy[str]:
    """Short questions, nasty too, that every tokenizer has a token for."""
    return nasty_texts(4).map(lambda text: f"who {text[:6]}?")


def tokens(least: int = 0, most: int = 80) -> st.SearchStrategy[Tokens]:
    """Tokens of an imaginary text, one code point each."""

    def make(ids: list[int]) -> Tokens:
        places = np.arange(len(ids), dtype=np.int32)
        return Tokens(np.array(ids, np.int32), np.stack([places, places + 1], axis=1))

    return st.lists(st.integers(5, 99), min_size=least, max_size=most).map(make)


def templates() -> st.SearchStrategy[Template]:
    """BERT's template, RoBERTa's, and one that has two tokens before the question and none behind the passage."""
    return st.sampled_from(
        [
            Template(((2, 0),), ((3, 0),), ((3, 1),), question_type=0, passage_type=1),
            Template(((0, 0),), ((2, 0), (2, 0)), ((2, 0),), question_type=0, passage_type=0),
            Template(((2, 0), (4, 0)), ((3, 1),), (), question_type=0, passage_type=1),
        ]
    )


def logits(length: int) -> st.SearchStrategy[Any]:
    """float32 `[length]` of halves, so that sums are exact and equal scores are common."""
    return arrays_of.arrays(np.float32, length, elements=st.integers(-12, 12).map(lambda value: value / 2))


@st.composite
def offsets(draw: st.DrawFn, length: int) -> Any:
    """Character offsets as tokenizers give them: in order, some blank, some sharing a character with their neighbour."""
    places = np.zeros((length, 2), np.int32)
    at = 0
    for token in range(length):
        kind = draw(st.sampled_from(["word", "word", "word", "gap", "blank", "same"]))
        if kind == "same" and token and places[token - 1, 0] < places[token - 1, 1]:
            places[token] = places[token - 1]
            continue
        start = at + (kind == "gap")
        at = start + (0 if kind == "blank" else draw(st.integers(1, 3)))
        places[token] = start, at
    return places
