"""`POST /` and `/predict`: the question-answering form of Hugging Face's endpoints and clients, and the lists of Azure ML's samples.

    {"inputs": {"question": "...", "context": "..."}, "parameters": {...}}      one question
    {"inputs": [{"question": "...", "context": "..."}, ...]}                    several
    {"inputs": {"question": ["...", ...], "context": ["...", ...]}}             several, Azure's form; one context may serve all

One question with `top_k` 1 gives an object, with more a list of objects; several questions give a list with one such item each. The
parameters have the names and defaults of transformers 4.57 (`spanqa.pipelines.calls`).
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, Tag

from spanqa.errors import InputError
from spanqa.pipelines.calls import CallSettings
from spanqa.serve.observe import note_outcomes
from spanqa.serve.problems import Problem
from spanqa.serve.queue import AskedOfPipeline
from spanqa.serve.routes.bodies import (
    KIND,
    Body,
    Count,
    Some,
    TextOrTexts,
    Words,
    check_passages,
    check_question,
    check_top_k,
)
from spanqa.serve.service import Service


class QuestionContext(Body):
    """A question and the text that may hold the answer; or lists of as many of both, or of questions on one text."""

    question: TextOrTexts
    context: TextOrTexts


class Pair(Body):
    """A question and the text that may hold the answer."""

    question: Words
    context: Words


class Parameters(Body):
    """How to answer. Lengths are in tokens."""

    top_k: Count | None = None
    """Number of answers. Default: 1."""
    doc_stride: Annotated[int, Field(json_schema_extra={"minimum": 0})] | None = None
    """Tokens that consecutive windows share. Default: the smaller of 128 and half a window."""
    max_answer_len: Count | None = None
    """Longest answer. Default: 15."""
    max_seq_len: Count | None = None
    """Length of a window. Default: 384, or the model's maximum."""
    max_question_len: Count | None = None
    """The question is cut here. Default: 64."""
    handle_impossible_answer: bool | None = None
    """Whether "no answer" is one of the answers. Default: false, so that there is always an answer."""
    align_to_words: bool | None = None
    """Whether answers are whole words. Default: true."""


class Options(Body):
    """What clients of the Inference API send. None of it changes the answer: nothing is kept, and the model is there."""

    use_cache: bool | None = None
    use_gpu: bool | None = None
    wait_for_model: bool | None = None


class QuestionAnswering(Body):
    """One or more questions, each with its text."""

    inputs: Annotated[Annotated[QuestionContext, Tag("one")] | Annotated[Some[Pair], Tag("list")], KIND]
    parameters: Parameters | None = None
    options: Options | None = None


class PipelineAnswer(BaseModel):
    """The words that answer a question. No answer, where it is allowed: `answer` "", `start` 0 and `end` 0."""

    score: float = Field(description="Probability of the span in its window, from 0 to 1, as transformers computes it.")
    start: int = Field(description="First character in the context, in code points.")
    end: int = Field(description="The character behind the last one.")
    answer: str
    probability: float = Field(description="Calibrated probability that the answer lies here, from 0 to 1.")


PipelineAnswers = PipelineAnswer | list[PipelineAnswer] | list[list[PipelineAnswer]]


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["Hugging Face"])

    async def predict(request: Request, body: QuestionAnswering) -> JSONResponse:
        return JSONResponse(await answer_pairs(service, request, body.inputs, body.parameters))

    for path in ("/", "/predict"):
        router.post(path, response_model=PipelineAnswers, name="predict", summary="Answer questions")(predict)
    return router


async def answer_pairs(
    service: Service,
    request: Request,
    inputs: QuestionContext | list[Pair],
    parameters: Parameters | None,
    where: str = "inputs",
) -> Any:
    """Return what transformers' pipeline would, for one question or several; `where` is their field of the body.

    Raises:
        Problem: a text or a parameter cannot be used.
    """
    pairs, several = _pairs(inputs, where)
    given = {} if parameters is None else parameters.model_dump(exclude_none=True)
    check_top_k(service.settings, given.get("top_k", 1), "parameters.top_k")
    try:
        settings = CallSettings(**given)
    except InputError as error:
        raise Problem("validation", f"parameters: {error}") from None
    longest = service.reader.checkpoint.max_seq_length
    if settings.max_seq_len is not None and settings.max_seq_len > longest:
        raise Problem("validation", f"parameters.max_seq_len: the model reads at most {longest} tokens.")
    for number, (question, context) in enumerate(pairs):
        place = f"{where}.{number}" if several else where
        check_question(service.settings, question, f"{place}.question")
        check_passages(service.settings, [context], f"{place}.context")
    asked = [AskedOfPipeline(service.reader, question, context, settings) for question, context in pairs]
    found = await service.answer(request, asked)
    note_outcomes(request.scope, [bool(each[0]["answer"]) for each in found])
    answers = [each if settings.top_k > 1 else each[0] for each in found]
    return answers if several else answers[0]


def _pairs(inputs: QuestionContext | list[Pair], where: str) -> tuple[list[tuple[str, str]], bool]:
    """Return the pairs of question and context, and whether they were given as lists."""
    if isinstance(inputs, list):
        if not inputs:
            raise Problem("validation", f"{where}: is an empty list; give at least one question.")
        return [(each.question, each.context) for each in inputs], True
    question, context = inputs.question, inputs.context
    if isinstance(question, str):
        if isinstance(context, list):
            raise Problem(
                "validation", "inputs.context: is a list, but inputs.question is not; give one of each, or two lists."
            )
        return [(question, context)], False
    contexts = [context] * len(question) if isinstance(context, str) else context
    if len(question) != len(contexts) or not question:
        raise Problem(
            "validation",
            f"inputs: has {len(question)} questions and {len(contexts)} contexts; expected as many of both, at least one.",
        )
    return list(zip(question, contexts, strict=True)), True
