"""Open Inference Protocol v2, as KServe and Triton speak it: questions and contexts as tensors of texts, answers as tensors.

    POST /v2/models/M/infer
    question  BYTES [n]          answer       BYTES   [n], or [n, k] if parameters.top_k is k > 1, best first
    context   BYTES [n] or [1]   score        FP32    margin over "no answer", in logits
                                 probability  FP32    calibrated: that this is right, from 0 to 1
                                 start, end   INT64   code points of the context, end exclusive

One context serves all questions. No answer is "" with start and end -1: its score is that of the best span (the lowest FP32 if there was
nothing to read), its probability that the context has no answer. Where there are fewer than k answers, the rest is "" with start and end
-1, the lowest FP32 as score and probability 0. Shapes of [n, 1] are read as [n].

Answers and parameters are those of /v1/answers. The header Content-Type is ignored, since clients send none.
Source: open-inference-protocol, specification/protocol/inference_rest.md. `spanqa.serve.tensors` has the form of tensors.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError

from spanqa import __version__
from spanqa.answers import Answer, Ranking, least_score
from spanqa.errors import InputError
from spanqa.serve.observe import note_outcomes
from spanqa.serve.problems import Problem
from spanqa.serve.queue import AskedOfPassages
from spanqa.serve.routes.bodies import (
    Body,
    Count,
    Items,
    Probability,
    check_passages,
    check_probability,
    check_question,
    check_top_k,
    invalid,
)
from spanqa.serve.routes.operation import check_model, check_ready, model_name
from spanqa.serve.service import Service
from spanqa.serve.settings import ServeSettings
from spanqa.serve.tensors import LENGTH_HEADER, Output, OutputTensor, TextTensor, read_texts, split, write

VERSION = "1"
"""The one version of every model."""

OutputName = Literal["answer", "score", "probability", "start", "end"]
OUTPUTS: dict[OutputName, str] = {
    "answer": "BYTES", "score": "FP32", "probability": "FP32", "start": "INT64", "end": "INT64",
}  # fmt: skip


class OutputParameters(Body):
    """How an output is sent."""

    binary_data: bool | None = None
    """Whether as bytes behind the JSON. Default: what binary_data_output says."""


class RequestedOutput(Body):
    """An output that is wanted."""

    name: OutputName
    parameters: OutputParameters | None = None


class InferParameters(Body):
    """How to answer, and how to send the answers."""

    top_k: Count | None = None
    """Most answers to each question, best first. Default: 1."""
    no_answer: Literal["auto", "on", "off"] | None = None
    """auto: use the model's threshold; on: the same, or 0 if it has none; off: always answer. Default: auto."""
    threshold: float | None = None
    """Answer only if the score is at least this. Default: what `no_answer` says."""
    min_probability: Probability | None = None
    """Give no answers that are less probable than this. Default: 0."""
    binary_data_output: bool | None = None
    """Whether outputs are sent as bytes behind the JSON. Default: false."""


class InputTensor(TextTensor):
    """The questions, or the texts that may hold their answers."""

    name: Literal["question", "context"]


class InferRequest(Body):
    """Questions, and a text for each or one for all."""

    id: str | None = None
    """Comes back in the response."""
    model_name: str | None = None
    """The model of the path, which KServe's client repeats here."""
    parameters: InferParameters | None = None
    inputs: Annotated[Items[InputTensor], Field(json_schema_extra={"minItems": 2, "maxItems": 2})]
    outputs: Items[RequestedOutput] | None = None
    """The outputs that are wanted. Default: all."""


class InferResponse(BaseModel):
    """The answers."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class Live(BaseModel):
    """Whether the process is alive."""

    live: bool


class Ready(BaseModel):
    """Whether questions should be sent here."""

    ready: bool
    name: str | None = Field(None, description="The model, where it was asked for.")


class ServerMetadata(BaseModel):
    """What serves."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 is a length that the request decides."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Indexed(BaseModel):
    """A model that is served here, as Triton lists it."""

    name: str
    version: str
    state: str


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    async def known_model(model: str) -> None:
        check_model(service, model)

    async def known_version(version: str) -> None:
        if version != VERSION:
            raise Problem("not_found", f"There is no such version of the model, only {VERSION!r}.")

    @router.get("", response_model=ServerMetadata, summary="What serves")
    async def server() -> ServerMetadata:
        return ServerMetadata(name="spanqa", version=__version__, extensions=["binary_tensor_data"])

    @router.get("/health/live", response_model=Live, summary="Is the process alive?")
    async def live() -> Live:
        return Live(live=True)

    @router.get("/health/ready", response_model=Ready, summary="Should questions be sent here?")
    async def ready() -> JSONResponse:
        check_ready(service)
        return JSONResponse({"ready": True})

    @router.post("/repository/index", response_model=list[Indexed], summary="The models, as Triton lists them")
    async def index() -> list[Indexed]:
        return [Indexed(name=model_name(service), version=VERSION, state="READY")]

    async def metadata() -> ModelMetadata:
        return _metadata(model_name(service))

    async def model_ready() -> JSONResponse:
        check_ready(service)
        return JSONResponse({"name": model_name(service), "ready": True})

    async def infer(request: Request) -> Response:
        return await _infer(service, request)

    model, version = "/models/{model}", "/models/{model}/versions/{version}"
    for path, known in ((model, [Depends(known_model)]), (version, [Depends(known_model), Depends(known_version)])):
        router.get(path, response_model=ModelMetadata, dependencies=known, summary="Inputs and outputs")(metadata)
        router.get(f"{path}/ready", response_model=Ready, dependencies=known, summary="Is it ready?")(model_ready)
        router.post(
            f"{path}/infer", response_model=InferResponse, dependencies=known, summary="Answer questions",
            responses=_RESPONSE, openapi_extra=_REQUEST,
        )(infer)  # fmt: skip
    return router


async def _infer(service: Service, request: Request) -> Response:
    settings, reader = service.settings, service.reader
    head, blob = split(await request.body(), request.headers.get(LENGTH_HEADER))
    try:
        body = InferRequest.model_validate_json(head)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False, include_input=False)) from None
    if body.model_name is not None:
        check_model(service, body.model_name)
    questions, contexts = _texts(body.inputs, blob, settings)
    wanted = _wanted(body)
    given = body.parameters or InferParameters()
    top_k = 1 if given.top_k is None else given.top_k
    min_probability = 0.0 if given.min_probability is None else given.min_probability
    check_top_k(settings, top_k, "parameters.top_k")
    check_probability(min_probability, "parameters.min_probability")
    try:
        least = least_score(reader.answers, given.no_answer or "auto", given.threshold)
    except InputError as error:
        raise Problem("validation", f"parameters: {error}") from None
    asked = [
        AskedOfPassages(reader, question, [context], [None], top_k)
        for question, context in zip(questions, contexts, strict=True)
    ]
    rankings = await service.answer(request, asked)
    rows = [_row(ranking, least, min_probability, top_k) for ranking in rankings]
    note_outcomes(request.scope, [bool(row[0]) for row in rows])
    outputs = _outputs(rows, wanted)
    response = {"model_name": service.name, "model_version": VERSION}
    content, length = write(response if body.id is None else {**response, "id": body.id}, outputs)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={LENGTH_HEADER: str(length)}, media_type="application/octet-stream")


def _texts(inputs: Sequence[InputTensor], blob: memoryview, settings: ServeSettings) -> tuple[list[str], list[str]]:
    """Return the questions, and a context for each."""
    texts = read_texts(inputs, blob, settings.max_questions)
    for name in ("question", "context"):
        if name not in texts:
            raise Problem("validation", f"inputs: {name} is missing; expected question and context.")
    questions, contexts = texts["question"], texts["context"]
    for number, question in enumerate(questions):
        check_question(settings, question, f"question.{number}")
    for number, context in enumerate(contexts):
        check_passages(settings, [context], f"context.{number}")
    if len(contexts) not in (1, len(questions)):
        raise Problem(
            "validation",
            f"inputs: there are {len(questions)} questions and {len(contexts)} contexts; expected as many of both, or one context.",
        )
    return questions, contexts if len(contexts) == len(questions) else contexts * len(questions)


def _wanted(body: InferRequest) -> dict[OutputName, bool]:
    """Return the outputs that are wanted, and whether each is sent as bytes."""
    binary = bool(body.parameters and body.parameters.binary_data_output)
    if not body.outputs:
        return dict.fromkeys(OUTPUTS, binary)
    wanted: dict[OutputName, bool] = {}
    for output in body.outputs:
        if output.name in wanted:
            raise Problem("validation", f"outputs: there are two of the name {output.name!r}.")
        own = output.parameters.binary_data if output.parameters else None
        wanted[output.name] = binary if own is None else own
    return wanted


def _row(ranking: Ranking, least: float, min_probability: float, top_k: int) -> list[Answer]:
    """Return as many answers to one question as are wanted; the last ones may be empty."""
    found = ranking.above(least, min_probability) or [ranking.best(least, min_probability)]
    return found + [_NOTHING] * (top_k - len(found))


_LOWEST = float(np.finfo(np.float32).min)
_NOTHING = Answer("", None, None, _LOWEST, 0.0, 0.0)
"""What fills a row of fewer answers than were wanted."""


def _outputs(rows: Sequence[Sequence[Answer]], wanted: Mapping[OutputName, bool]) -> list[Output]:
    """Return the tensors of [question, answer], or of [question] where there is one answer to each."""
    answers = [answer for row in rows for answer in row]
    shape = (len(rows),) if len(rows[0]) == 1 else (len(rows), len(rows[0]))
    values: dict[OutputName, Any] = {
        "answer": [answer.text for answer in answers],
        "score": np.array([max(answer.score, _LOWEST) for answer in answers], np.float32),
        "probability": np.array([answer.probability for answer in answers], np.float32),
        "start": np.array([-1 if answer.start is None else answer.start for answer in answers], np.int64),
        "end": np.array([-1 if answer.end is None else answer.end for answer in answers], np.int64),
    }
    return [Output(name, shape, values[name], binary) for name, binary in wanted.items()]


def _metadata(name: str) -> ModelMetadata:
    return ModelMetadata(
        name=name,
        versions=[VERSION],
        platform="spanqa",
        inputs=[TensorMetadata(name=each, datatype="BYTES", shape=[-1]) for each in ("question", "context")],
        outputs=[TensorMetadata(name=each, datatype=datatype, shape=[-1]) for each, datatype in OUTPUTS.items()],
    )


def _inlined(schema: Any, named: Mapping[str, Any]) -> Any:
    """Return a JSON schema with its references replaced: OpenAPI looks for them elsewhere."""
    if isinstance(schema, list):
        return [_inlined(each, named) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(named[schema["$ref"].rpartition("/")[2]], named)
    return {name: _inlined(each, named) for name, each in schema.items() if name != "$defs"}


_EXAMPLE = {
    "inputs": [
        {"name": "question", "shape": [1], "datatype": "BYTES", "data": ["Who built the pier?"]},
        {"name": "context", "shape": [1], "datatype": "BYTES", "data": ["Anna Kestrel built it."]},
    ]
}
_SCHEMA = InferRequest.model_json_schema()
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_LENGTH = {"description": "Length of the JSON in front of the bytes.", "schema": {"type": "integer", "minimum": 1}}
_REQUEST = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _inlined(_SCHEMA, _SCHEMA["$defs"]), "example": _EXAMPLE},
            "application/octet-stream": _BYTES,
        },
    },
    "parameters": [{"name": LENGTH_HEADER, "in": "header", "required": False, **_LENGTH}],
}
_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answers, as JSON or, where bytes were asked for, with bytes behind the JSON.",
        "headers": {LENGTH_HEADER: _LENGTH},
        "content": {"application/octet-stream": _BYTES},
    }
}
