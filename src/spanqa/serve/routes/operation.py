"""What operators and machines ask: /health, /ready and /info."""

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from spanqa import __version__
from spanqa.serve.problems import Problem, draining, loading
from spanqa.serve.service import Service


class Health(BaseModel):
    """The state of the server."""

    status: str


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["operation"])

    @router.head("/health", include_in_schema=False)
    @router.get("/health", response_model=Health, summary="Is the process alive?")
    async def health() -> Health:
        return Health(status="ok")

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", response_model=Health, summary="Should requests be sent here?")
    async def ready() -> JSONResponse:
        check_ready(service)
        return JSONResponse({"status": "ready"})

    @router.get(
        "/info", summary="The model, its settings, and the limits of this server", response_model=dict[str, Any]
    )
    async def info() -> JSONResponse:
        return JSONResponse(describe(service))

    return router


def check_ready(service: Service) -> None:
    """Check that requests should be sent here.

    Raises:
        Problem: "loading" or "draining".
    """
    if service.state == "loading":
        raise loading()
    if service.state == "draining":
        raise draining()


def model_name(service: Service) -> str:
    """Return the name of the model.

    Raises:
        Problem: "loading".
    """
    _ = service.reader  # raises while there is none
    return service.name


def check_model(service: Service, model: str) -> None:
    """Check that a request names the model that is served here.

    Raises:
        Problem: "loading" or "not_found".
    """
    if model != model_name(service):
        raise Problem("not_found", f"There is no such model here, only {service.name!r}.")


def describe(service: Service) -> dict[str, Any]:
    """Return what /info shows: no paths, no keys.

    Raises:
        Problem: "loading".
    """
    reader, settings = service.reader, service.settings
    threshold = reader.answers.no_answer_threshold
    return {
        "model": service.name,
        "model_type": reader.checkpoint.model_type,
        "version": __version__,
        "backend": reader.backend.name,
        "device": reader.backend.device,
        "dtype": reader.backend.dtype,
        "layout": reader.layout,
        "batch_tokens": reader.engine.batch_tokens,
        "max_seq_length": reader.windows.max_seq_length,
        "max_answer_tokens": reader.answers.max_answer_tokens,
        "no_answer_threshold": threshold if abs(threshold) < float("inf") else None,
        "calibrated": reader.calibrated,
        "explains": service.explain is not None,
        "keys": bool(settings.keys),
        "limits": {
            name: getattr(settings, name)
            for name in (
                "max_body", "max_question", "max_passage", "max_passages", "max_questions", "max_top_k", "max_requests",
                "max_wait", "deadline", "explain_seconds", "rate_limit",
            )
        },
        "state": service.state,
        "uptime": round(time.monotonic() - service.started, 1),
    }  # fmt: skip
