"""The second form of a job: questions asked of many texts, each ranked over all of them. A question is a row."""

from collections.abc import Iterator, Sequence

from spanqa.errors import InputError
from spanqa.retrieval import TextIndex
from spanqa.scale.questions import Asked
from spanqa.scale.rows import BadRow, Row


def asked_of_texts(
    questions: Sequence[tuple[int, str]], index: TextIndex, max_windows: int | None = None, *, read_all: bool = False
) -> Iterator[Asked | BadRow]:
    """Yield each question, given with its line, with what is worth reading for it: see `TextIndex.choose`.

    The columns of a row are question, windows_read and windows_total.
    """
    for number, (line, question) in enumerate(questions, 1):
        try:
            choice = index.choose(question, max_windows, read_all=read_all)
        except InputError as error:
            yield BadRow(number, line, str(error), question, len(question))
            continue
        values = {"question": question, "windows_read": choice.windows_read, "windows_total": choice.windows_total}
        yield Asked(Row(number, line, values, len(question)), (question,), choice.passages)
