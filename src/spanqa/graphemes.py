r"""Where the characters that a reader sees begin and end: extended grapheme clusters, as `regex` finds them with `\X`.

One such character can be several code points: a letter and its accents (decomposed text of macOS and of PDFs), the parts of a Korean
syllable, a consonant and its vowel mark, a flag, a family of emoji. Python and tokenizers count code points.

Source: Unicode Standard Annex 29.
"""

from functools import cache

import numpy as np
import regex
from numpy.typing import NDArray

_CLUSTER = regex.compile(r"\X")
_JOINING = regex.compile(r"[^\p{GCB=Other}\p{GCB=Control}\p{GCB=CR}\p{GCB=LF}\p{GCB=LV}\p{GCB=LVT}]+")
"""Every rule that joins two code points, but the one for CR LF, needs one of these on one side at least."""


@cache
def _joining() -> NDArray[np.bool_]:
    """Return for every code point whether it can be in one cluster with any neighbour."""
    joining = np.zeros(0x110000, np.bool_)
    for run in _JOINING.finditer("".join(map(chr, range(0x110000)))):
        joining[run.start() : run.end()] = True
    return joining


def widen(text: str, characters: NDArray[np.uint32], offsets: NDArray[np.int32]) -> None:
    """Extend, in place, ranges of a text that start or end inside a grapheme cluster, so that they hold all of it.

    `characters` are the code points of the text; `offsets` are `[range, 2]`, ends exclusive. An empty range inside a cluster becomes
    the cluster. Ranges that are in order stay in order. CR LF is left alone: no range starts or ends there.
    """
    if text.isascii():
        return
    joining = _joining()[characters]
    inside = np.flatnonzero(joining[1:] | joining[:-1]) + 1  # the only places that may lie inside a cluster
    is_edge = np.zeros(len(text) + 1, np.bool_)
    is_edge[offsets] = True
    if not is_edge[inside].any():
        return
    runs = np.flatnonzero(np.diff(inside, prepend=-1) != 1)  # of neighbouring places
    wanted = np.logical_or.reduceat(is_edge[inside], runs)
    firsts, lasts = inside[runs], inside[np.append(runs[1:], len(inside)) - 1]
    starts, ends = (np.arange(len(text) + 1, dtype=np.int32) for _ in range(2))
    for first, last in zip(firsts[wanted].tolist(), lasts[wanted].tolist(), strict=True):
        for cluster in _CLUSTER.finditer(text[first - 1 : last + 1]):
            start, end = cluster.start() + first - 1, cluster.end() + first - 1
            starts[start + 1 : end], ends[start + 1 : end] = start, end
    offsets[:, 0], offsets[:, 1] = starts[offsets[:, 0]], ends[offsets[:, 1]]
