"""How long work reports its progress: one protocol for all of it, shown by the caller that passed it."""

from collections.abc import Callable
from typing import Protocol

Notify = Callable[[str], object]
"""Called with each line that the user should see before long work begins."""


class Progress(Protocol):
    """Called after each piece of work."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` pieces are done; `note` says what is going on, or what was just measured."""


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def ignore(line: str) -> None:
    """Show nothing."""
