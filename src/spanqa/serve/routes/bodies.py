"""What the bodies of all protocols share: strict models, values of two kinds, and the limits of the server."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Tag

from spanqa.serve.problems import Problem
from spanqa.serve.settings import ServeSettings


class Body(BaseModel):
    """A JSON object with exactly these fields, of exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "one"


KIND = Discriminator(_kind)
"""Tells one value from a list of them, so that an error names what is wrong with the kind that was given."""

TextOrTexts = Annotated[Annotated[str, Tag("one")] | Annotated[list[str], Tag("list")], KIND]


class ErrorBody(BaseModel):
    """Why a request was not answered."""

    error: str
    error_type: str


def check_question(settings: ServeSettings, question: str, where: str = "question") -> None:
    """Check the length of a question.

    Raises:
        Problem: "validation".
    """
    if not question.strip():
        raise Problem("validation", f"{where}: is empty; ask something.")
    _check_text(question, where)
    if len(question) > settings.max_question:
        raise Problem(
            "validation", f"{where}: has {len(question):,} characters; at most {settings.max_question:,} are allowed."
        )


def check_passages(settings: ServeSettings, passages: Sequence[str], where: str = "passages") -> None:
    """Check the number and the lengths of passages.

    Raises:
        Problem: "validation".
    """
    if not 1 <= len(passages) <= settings.max_passages:
        raise Problem("validation", f"{where}: has {len(passages)} items; expected 1 to {settings.max_passages}.")
    for number, passage in enumerate(passages):
        name = where if len(passages) == 1 else f"{where}.{number}"
        _check_text(passage, name)
        if len(passage) > settings.max_passage:
            raise Problem(
                "validation", f"{name}: has {len(passage):,} characters; at most {settings.max_passage:,} are allowed."
            )
    if not any(passage.strip() for passage in passages):
        raise Problem("validation", f"{where}: is empty; there is nothing to read.")


def check_top_k(settings: ServeSettings, top_k: int, where: str = "top_k") -> None:
    """Check the number of answers that are wanted.

    Raises:
        Problem: "validation".
    """
    if not 1 <= top_k <= settings.max_top_k:
        raise Problem("validation", f"{where}: is {bounded(top_k)}; expected 1 to {settings.max_top_k}.")


def bounded(number: int) -> str:
    """Return a number as text; one of very many digits is described."""
    return f"{number:,}" if abs(number) < 10**18 else "a number of more than 18 digits"


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Problem("validation", f"{where}: is not valid Unicode: it holds half of a surrogate pair.") from None
