"""The second form of a job: questions asked of many texts, each ranked over all of them. A question is a row."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from spanqa.errors import InputError
from spanqa.scale.questions import Asked
from spanqa.scale.rows import BadRow, Row
from spanqa.tokens import Passage


class Chosen(Protocol):
    """What is read of some texts for a question, and how much of them that is, as `spanqa.retrieval` chooses it."""

    @property
    def passages(self) -> tuple[Passage, ...]: ...
    @property
    def windows_read(self) -> int: ...
    @property
    def windows_total(self) -> int: ...


def asked_of_texts(questions: Sequence[tuple[int, str]], choose: Callable[[str], Chosen]) -> Iterator[Asked | BadRow]:
    """Yield each question, given with its line, with what is to be read for it.

    The columns of a row are question, windows_read and windows_total.
    """
    for number, (line, question) in enumerate(questions, 1):
        try:
            chosen = choose(question)
        except InputError as error:
            yield BadRow(number, line, str(error), question, len(question))
            continue
        values = {"question": question, "windows_read": chosen.windows_read, "windows_total": chosen.windows_total}
        yield Asked(Row(number, line, values, len(question)), (question,), chosen.passages)
