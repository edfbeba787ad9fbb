"""`POST /v1/answers` and `/v1/explain`: what `Reader` and `spanqa.explain` can do, under their own names."""

import asyncio
import math
import threading
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from spanqa.answers import Answer, Ranking, least_score
from spanqa.errors import BackendError, InputError, NotInstalledError
from spanqa.serve.observe import note_outcomes
from spanqa.serve.problems import Problem
from spanqa.serve.queue import AskedOfPassages
from spanqa.serve.routes.bodies import (
    Body,
    Count,
    Probability,
    Some,
    Words,
    check_passages,
    check_probability,
    check_question,
    check_top_k,
)
from spanqa.serve.service import Service, unless_gone


class PassageText(Body):
    """A text to read, and where it comes from."""

    text: str
    source: str | None = None
    """Is handed on to the answers."""


Passages = Annotated[
    Annotated[str, Tag("text")] | Annotated[PassageText, Tag("object")],
    Discriminator(lambda value: "object" if isinstance(value, (dict, PassageText)) else "text"),
]


class AnswersRequest(Body):
    """A question, and the texts to read."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"question": "Who built the pier?", "passages": ["Anna Kestrel built it."]}]}
    )

    question: Words
    passages: Some[Passages]
    top_k: Count = 1
    """Most answers to return, best first."""
    no_answer: Literal["auto", "on", "off"] = "auto"
    """auto: use the model's threshold; on: the same, or 0 if it has none; off: always answer."""
    threshold: float | None = None
    """Answer only if the score is at least this. Default: what `no_answer` says."""
    min_probability: Probability = 0.0
    """Give no answers that are less probable than this."""


class AnswerBody(BaseModel):
    """The words that answer a question, and where they are."""

    text: str
    start: int | None = Field(description="First character in the passage, in code points.")
    end: int | None = Field(description="The character behind the last one.")
    score: float | None = Field(description="Margin over 'no answer', in logits; null: there was nothing to read.")
    probability: float = Field(description="Calibrated probability that the answer lies here, from 0 to 1.")
    no_answer_probability: float
    sentence: str
    sentence_start: int | None
    passage_index: int | None = Field(description="The number of the passage, from 0.")
    source: str | None


class AnswersResponse(BaseModel):
    """The answers, best first; none where the texts do not hold one."""

    question: str
    answers: list[AnswerBody]
    no_answer: bool
    no_answer_probability: float
    score: float | None = Field(description="The best score of all, given as an answer or not; null: nothing to read.")
    closest: AnswerBody | None = Field(
        description="Where there is no answer: the best words that were not given as one."
    )
    calibrated: bool = Field(description="Whether probabilities were fitted on data.")
    model: str


class ExplainRequest(Body):
    """A question and a text; what the model decides is explained word by word."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"question": "Who built the pier?", "passage": "Anna Kestrel built it."}]}
    )

    question: Words
    passage: Passages
    method: str | None = None
    """occlusion, hierarchical_occlusion, integrated_gradients, ...; the server's choice by default."""
    against: Literal["no answer", "runner-up"] | Annotated[list[int], Field(min_length=2, max_length=2)] = "no answer"
    """What the answer is set against: no answer, the next best span, or [start, end] in characters."""
    threshold: float | None = None
    trust: bool = True
    """Whether to measure how far the explanation can be trusted, which takes most of the time."""


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1", tags=["spanqa"])

    @router.post("/answers", response_model=AnswersResponse, summary="Answer a question from one or more texts")
    async def answers(request: Request, body: AnswersRequest) -> JSONResponse:
        settings, reader = service.settings, service.reader
        check_question(settings, body.question)
        check_top_k(settings, body.top_k)
        texts, sources = zip(*map(_text, body.passages), strict=True) if body.passages else ((), ())
        check_passages(settings, texts, sources=sources)
        check_probability(body.min_probability, "min_probability")
        try:
            least = least_score(reader.answers, body.no_answer, body.threshold)
        except InputError as error:
            raise Problem("validation", f"threshold: {error}") from None
        asked = AskedOfPassages(reader, body.question, texts, sources, body.top_k)
        [ranking] = await service.answer(request, [asked])
        response = _response(service, body, ranking, least)
        note_outcomes(request.scope, [not response["no_answer"]])
        return JSONResponse(response)

    @router.post("/explain", summary="Explain an answer word by word", response_model=dict[str, Any])
    async def explain(request: Request, body: ExplainRequest) -> JSONResponse:
        return JSONResponse(await _explain(service, request, body))

    return router


def _text(passage: str | PassageText) -> tuple[str, str | None]:
    return (passage, None) if isinstance(passage, str) else (passage.text, passage.source)


def _response(service: Service, body: AnswersRequest, ranking: Ranking, least: float) -> dict[str, Any]:
    found = ranking.above(least, body.min_probability)
    closest = None if found or not ranking.answers else ranking.answers[0]
    return {
        "question": body.question,
        "answers": [_fields(answer, body.question) for answer in found],
        "no_answer": not found,
        "no_answer_probability": ranking.no_answer_probability,
        "score": ranking.best_score if math.isfinite(ranking.best_score) else None,
        "closest": None if closest is None else _fields(closest, body.question),
        "calibrated": service.reader.calibrated,
        "model": service.name,
    }


def _fields(answer: Answer, question: str) -> dict[str, Any]:
    return {name: value for name, value in answer.as_json(question).items() if name not in ("question", "closest")}


async def _explain(service: Service, request: Request, body: ExplainRequest) -> dict[str, Any]:
    settings, reader, make = service.settings, service.reader, service.explain
    if make is None:
        raise Problem("not_found", "This server explains no answers.")
    check_question(settings, body.question)
    text, source = _text(body.passage)
    check_passages(settings, [text], "passage", [source])
    against: Any = tuple(body.against) if isinstance(body.against, list) else body.against
    stopped = threading.Event()
    deadline = time.monotonic() + settings.deadline

    def go_on(*_: object) -> None:
        if stopped.is_set() or time.monotonic() > deadline:
            raise TimeoutError

    def work() -> dict[str, Any]:
        found = make(
            reader,
            body.question,
            reader.prepare(text, source),
            method=body.method,
            against=against,
            threshold=body.threshold,
            budget_s=min(settings.explain_seconds, settings.deadline),
            trust=body.trust,
            progress=go_on,
        )
        return found.as_json()

    if service.explaining.locked():
        raise Problem("overloaded", "Another answer is being explained. Try again later.", retry_after=5)
    try:
        with service.queue.admitted(len(await request.body())):
            async with service.explaining:
                return await unless_gone(request, asyncio.to_thread(work))
    except (BackendError, NotInstalledError) as error:
        if body.method is None or body.method.endswith("occlusion"):  # these need only what every backend can do
            raise
        raise Problem("validation", f"method: {error}") from None
    finally:
        stopped.set()
