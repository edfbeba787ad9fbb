"""Finds the sentence around an answer, for display. It is a heuristic, not a parser."""

import re

_REACH = 500  # code points: the most that a sentence may extend to each side of the answer
_BREAK = re.compile(
    r"""(?P<stop>[.!?…]+["'”’»)\]]*) (?=\s+ ["'“‘«(\[]* [^\W_a-z])   # a full stop, then a capital or a digit
      | (?P<wide>[。！？]+[」』”]*)
      | (?P<blank>\n[^\S\n]*\n)
      | (?P<line>\n) (?=[^\S\n]*(?:[-*•–]\s|\d+[.)]\s|\[|\d{4}-))     # a list item, a log line
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|sr|jr|no|nos|vs|etc|e\.g|i\.e|fig|figs|eq|sec|art|ch|vol|al|inc|ltd|co|corp|dept|est|approx"
    r"|cf|gen|col|capt|lt|sgt|rev|hon|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)|\b[^\W\d_])\.$",
    re.IGNORECASE,
)


def context_around(text: str, start: int, end: int) -> tuple[str, int]:
    """Return the part of a text that `sentence_around` reads, and its start: it finds the same sentence in this part."""
    first = max(0, start - _REACH - 1)
    return text[first : end + _REACH + 1], first


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the bounds of the sentence that contains `text[start:end]`, at most 500 code points to each side.

    This is a heuristic for display. A sentence ends at a full stop before a capital letter (not after initials and common
    abbreviations), at a blank line, and before a list item or a dated log line.

        >>> text = "Mr. J. Bell came in May. He built the pier. It stands."
        >>> left, right = sentence_around(text, 28, 33)
        >>> text[left:right]
        'He built the pier.'
    """
    low, high = max(0, start - _REACH), min(len(text), end + _REACH)
    left, right = low, high
    for found in _BREAK.finditer(text, low, high):
        if found.lastgroup == "stop" and _ABBREVIATION.search(text, max(low, found.start() - 8), found.end()):
            continue
        if found.end() <= start:
            left = found.end()
        elif found.start() >= end or found.end() >= end:
            right = found.end() if found.lastgroup in ("stop", "wide") else found.start()
            break
    if left == low > 0:  # no break found: begin at a whole word
        left = next((i for i in range(low, start) if text[i].isspace()), low)
    if right == high < len(text):
        right = next((i for i in range(high, end, -1) if text[i].isspace()), high)
    while left < start and text[left].isspace():
        left += 1
    while right > end and text[right - 1].isspace():
        right -= 1
    return left, right
