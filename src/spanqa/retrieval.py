"""Chooses which of many passages to read: those that share most words with the question, by BM25.

A reader takes milliseconds per passage; counting words takes microseconds. So only the best matches of a large collection are
read. An answer in a passage that has none of the question's words is lost. This module runs no model.

Needs: pip install 'spanqa[search]' (bm25s). Source: Robertson & Zaragoza 2009.
"""

from collections.abc import Sequence

from spanqa.errors import InputError
from spanqa.extras import import_without, require

MANY = 500
"""With more passages than this, the command line reads only the best matches by default."""

CANDIDATES = 100
"""The number of passages that it then reads."""


def best_passages(question: str, passages: Sequence[str], most: int = CANDIDATES) -> list[int]:
    """Return the positions of the `most` passages that match the question best, in the order given.

    Raises:
        InputError: `most` is below 1.
        NotInstalledError: bm25s is not installed.
    """
    if not isinstance(most, int) or most < 1:
        raise InputError(f"most is {most!r}. Expected a whole number of passages, at least 1.")
    if len(passages) <= most:
        return list(range(len(passages)))
    require("search")
    bm25s = import_without("bm25s", "jax")  # it would load JAX to sort a few numbers
    quiet = {"show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(passages), stopwords="en", **quiet), **quiet)
    found, _ = index.retrieve(bm25s.tokenize([question], stopwords="en", **quiet), k=most, **quiet)
    return sorted(int(position) for position in found[0])
