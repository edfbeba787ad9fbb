"""The same answers under the names that platforms ask for: Amazon SageMaker, Google Vertex AI, and KServe's first protocol.

    SageMaker   GET /ping, POST /invocations with the body of POST / (`spanqa.serve.routes.huggingface`)
    Vertex AI   GET $AIP_HEALTH_ROUTE, POST $AIP_PREDICT_ROUTE with {"instances": [...], "parameters": {...}}
    KServe v1   GET /v1/models, GET /v1/models/M, POST /v1/models/M:predict with the body of Vertex AI

Sources: Amazon SageMaker AI, "Custom inference code with hosting services"; Vertex AI, "Custom container requirements for
prediction"; KServe, "V1 inference protocol".
"""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from spanqa.errors import InputError
from spanqa.serve.routes.bodies import Body, Some
from spanqa.serve.routes.huggingface import (
    Pair,
    Parameters,
    PipelineAnswer,
    PipelineAnswers,
    QuestionAnswering,
    answer_pairs,
)
from spanqa.serve.routes.operation import Health, check_model, check_ready, model_name
from spanqa.serve.service import Service


class Instances(Body):
    """Questions, each with its text."""

    instances: Some[Pair]
    parameters: Parameters | None = None


class Predictions(BaseModel):
    """An item for each question: its answer, or with `top_k` above 1 a list of them."""

    predictions: list[PipelineAnswer] | list[list[PipelineAnswer]]


class Models(BaseModel):
    """What is served here."""

    models: list[str]


class ModelReady(BaseModel):
    """Whether the model answers."""

    name: str
    ready: bool


def routes(service: Service, environ: Mapping[str, str]) -> APIRouter:
    """Return the routes; those of Vertex AI are named in the environment, if at all.

    Raises:
        InputError: AIP_HEALTH_ROUTE or AIP_PREDICT_ROUTE is no path.
    """
    router = APIRouter()

    async def ready() -> JSONResponse:
        check_ready(service)
        return JSONResponse({"status": "ready"})

    async def predict(request: Request, body: Instances) -> JSONResponse:
        found = await answer_pairs(service, request, body.instances, body.parameters, "instances")
        return JSONResponse({"predictions": found})

    health, answers = vertex_paths(environ)
    if health:
        router.get(health, response_model=Health, summary="Should requests be sent here?", tags=["Vertex AI"])(ready)
    if answers:
        router.post(answers, response_model=Predictions, summary="Answer questions", tags=["Vertex AI"])(predict)

    router.get("/ping", response_model=Health, summary="Should requests be sent here?", tags=["SageMaker"])(ready)
    router.head("/ping", include_in_schema=False)(ready)

    @router.post("/invocations", response_model=PipelineAnswers, summary="Answer questions", tags=["SageMaker"])
    async def invocations(request: Request, body: QuestionAnswering) -> JSONResponse:
        return JSONResponse(await answer_pairs(service, request, body.inputs, body.parameters))

    @router.get("/v1/models", response_model=Models, summary="What is served here", tags=["KServe v1"])
    async def models() -> Models:
        return Models(models=[model_name(service)])

    async def known_model(model: str) -> None:
        check_model(service, model)

    of_model: dict[str, Any] = {"tags": ["KServe v1"], "dependencies": [Depends(known_model)]}

    # Before the next one, whose {model} would take the colon in: a wrong method is then told which one is right.
    router.post("/v1/models/{model}:predict", response_model=Predictions, summary="Answer questions", **of_model)(
        predict
    )

    @router.get("/v1/models/{model}", response_model=ModelReady, summary="Does it answer?", **of_model)
    async def model_ready() -> JSONResponse:
        check_ready(service)
        return JSONResponse({"name": service.name, "ready": True})

    return router


def vertex_paths(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the paths that Vertex AI asks for health and for answers, None where it asks for none.

    Raises:
        InputError: AIP_HEALTH_ROUTE or AIP_PREDICT_ROUTE is no path.
    """
    return _path(environ, "AIP_HEALTH_ROUTE"), _path(environ, "AIP_PREDICT_ROUTE")


def _path(environ: Mapping[str, str], name: str) -> str | None:
    """Return the path that a variable holds; None where it is empty or not set."""
    path = environ.get(name) or None
    if path is not None and not re.fullmatch(r"/[\w.~:@%/-]*", path):
        raise InputError(f"{name} is {path!r}. Expected a path that begins with /, such as /predict.")
    return path
