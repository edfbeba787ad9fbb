"""What the bodies of all protocols share: strict models, values of two kinds, and the limits of the server."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from spanqa.serve.problems import Problem
from spanqa.serve.settings import ServeSettings

T = TypeVar("T")

Items = Annotated[list[T], Field(fail_fast=True)]
"""A list that is read up to its first mistake: one body can hold a million of them."""

Some = Annotated[Items[T], Field(json_schema_extra={"minItems": 1})]
Words = Annotated[str, Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]
Count = Annotated[int, Field(json_schema_extra={"minimum": 1})]
Probability = Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": 1})]
"""Some items, a text that is not blank, a number from 1, and one from 0 to 1: the document says so, and the checks below, in words."""


class Body(BaseModel):
    """A JSON object with exactly these fields, of exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, given: Any) -> Any:
        """Leave one of the fields that there are not: it is refused, and a million others need no message each."""
        if not isinstance(given, dict) or len(given) <= len(cls.model_fields):
            return given
        unknown = next(name for name in given if name not in cls.model_fields)
        return {name: given[name] for name in (*cls.model_fields, unknown) if name in given}


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "one"


KIND = Discriminator(_kind)
"""Tells one value from a list of them, so that an error names what is wrong with the kind that was given."""

TextOrTexts = Annotated[Annotated[Words, Tag("one")] | Annotated[Some[Words], Tag("list")], KIND]


class ErrorBody(BaseModel):
    """Why a request was not answered."""

    error: str
    error_type: str


def invalid(errors: Sequence[Any]) -> Problem:
    """Return what is wrong with a body, field by field, from pydantic's errors; nothing that the user wrote is in it."""
    if any(error["type"] == "json_invalid" for error in errors):
        return Problem("invalid_json", "The body is not JSON.")
    return Problem("validation", "; ".join(map(_field, errors[:5])))


def _field(error: Any) -> str:
    place = ".".join(str(part)[:60] for part in error["loc"] if part not in ("body", "one", "list", "text", "object"))
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no such field."
    return f"{place or 'body'}: {error['msg'][:1].lower()}{error['msg'][1:]}"


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


def check_passages(
    settings: ServeSettings,
    passages: Sequence[str],
    where: str = "passages",
    sources: Sequence[str | None] = (),
) -> None:
    """Check the number and the lengths of passages, and that their sources are texts.

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
    for number, source in enumerate(sources):
        _check_text(source or "", f"{where}.source" if len(passages) == 1 else f"{where}.{number}.source")
    if not any(passage.strip() for passage in passages):
        raise Problem("validation", f"{where}: is empty; there is nothing to read.")


def check_top_k(settings: ServeSettings, top_k: int, where: str = "top_k") -> None:
    """Check the number of answers that are wanted.

    Raises:
        Problem: "validation".
    """
    if not 1 <= top_k <= settings.max_top_k:
        raise Problem("validation", f"{where}: is {bounded(top_k)}; expected 1 to {settings.max_top_k}.")


def check_probability(probability: float, where: str) -> None:
    """Check a probability.

    Raises:
        Problem: "validation".
    """
    if not 0 <= probability <= 1:
        raise Problem("validation", f"{where}: expected a number from 0 to 1.")


def bounded(number: int) -> str:
    """Return a number as text; one of very many digits is described."""
    return f"{number:,}" if abs(number) < 10**18 else "a number of more than 18 digits"


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Problem("validation", f"{where}: is not valid Unicode: it holds half of a surrogate pair.") from None
