"""Finds the sentence around an answer, for display. It is a heuristic, not a parser."""

import re
from itertools import groupby

import regex

_REACH = 500  # code points: the most that a sentence may extend to each side of the answer
_SHORT = 40  # code points: lines that are no longer, several in a row, are taken for a table or a list
_BREAK = regex.compile(
    r"""(?P<stop>[.!?…؟۔]+["'”’»)\]]*) (?=\s+ ["'“‘«„¿¡(\[]* [\p{Lu}\p{Lt}\p{Lo}\p{N}])   # then no lower-case letter
      | (?P<wide>[。！？]+[」』”]*)
      | (?P<blank>\n[^\S\n]*\n)
      | (?P<line>\n) (?=[^\S\n]*(?:[-*•–]\s|\d+[.)]\s|\[|\d{4}-))     # a list item, a log line
      | (?P<row>\n)                                                    # the end of a row of a table
    """,
    regex.VERBOSE,
)
_CELLS = re.compile(r"[\t|]|\S {3,}\S")  # what is between the cells of a row
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

    This is a heuristic for display. A sentence ends at a full stop before a letter that is not lower case, or a digit (not after
    initials and common abbreviations), at a blank line, and before a list item or a dated log line. A row of a table is a sentence.

        >>> text = "Mr. J. Bell came in May. He built the pier. It stands."
        >>> left, right = sentence_around(text, 28, 33)
        >>> text[left:right]
        'He built the pier.'
    """
    low, high = max(0, start - _REACH), min(len(text), end + _REACH)
    left, right = low, high
    rows = _row_ends(text, low, high)
    for found in _BREAK.finditer(text, low, high):
        if found.lastgroup == "row" and found.start() not in rows:
            continue
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


def _row_ends(text: str, low: int, high: int) -> set[int]:
    """Return the places of the line ends that are next to a row of a table.

    A row has cells (tabs, bars or wide gaps between them), or is one of at least four short lines, none of which goes on with a
    lower-case letter, as broken lines of prose do.
    """
    lines = [(found.start(), found.end(), found.group()) for found in re.finditer(r"[^\n]+", text[low:high])]
    ends: set[int] = set()

    def is_short(line: tuple[int, int, str]) -> bool:
        words = line[2].strip()
        return 0 < len(words) <= _SHORT and not words[0].islower()

    for short, run in groupby(lines, is_short):
        listed = list(run)
        for start, end, line in listed:
            if _CELLS.search(line.strip()) or (short and len(listed) >= 4):
                ends |= {low + start - 1, low + end}
    return ends
