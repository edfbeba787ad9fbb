"""The ASGI application: all routes over one `Service`, and one form of error for everything that goes wrong."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from spanqa import __version__
from spanqa.errors import SpanQAError
from spanqa.serve.metrics import Metrics
from spanqa.serve.metrics import routes as metrics_routes
from spanqa.serve.middleware import wrap
from spanqa.serve.problems import STATUS, Problem, problem_of, response_of
from spanqa.serve.routes import aliases, answers, huggingface, inference, operation, pages
from spanqa.serve.routes.bodies import ErrorBody, invalid
from spanqa.serve.service import Service
from spanqa.serve.tracing import open_tracing

_LOG = logging.getLogger(__name__)

_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": ", ".join(each for each in STATUS if STATUS[each] == status)}
    for status in sorted(set(STATUS.values()))
    if status != 499
}


def make_app(service: Service, environ: Mapping[str, str] = os.environ) -> ASGIApp:
    """Return the application that serves this service, with guard, metrics, log and traces; it can be mounted in another one.

    `environ` may name the routes of Vertex AI (`spanqa.serve.routes.aliases`).

    Raises:
        InputError: it names what is no path, or a setting of the service cannot be used.
        NotInstalledError: traces are wanted, and OpenTelemetry is missing.
    """
    metrics = Metrics()
    tracing = open_tracing(service.settings.otlp_endpoint)
    if tracing is not None:
        service.when_closed.append(tracing.close)
    routes = all_routes(service, environ)
    routes.include_router(metrics_routes(metrics))
    service.when_loading.append(routes.openapi)  # takes 0.2 s, in which no request would be answered
    health, predict = aliases.vertex_paths(environ)
    return wrap(
        routes,
        service,
        metrics,
        trace=None if tracing is None else tracing.trace,
        probes=[health] if health else [],
        untyped=[predict] if predict else [],
    )


def all_routes(service: Service, environ: Mapping[str, str] = os.environ) -> FastAPI:
    """Return the routes of all protocols, without anything around them.

    Raises:
        InputError: `environ` names what is no path.
    """
    app = FastAPI(
        title="spanqa", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False, responses=_RESPONSES
    )
    routers = [answers.routes(service), aliases.routes(service, environ)]
    routers += [module.routes(service) for module in (huggingface, inference, operation, pages)]
    taken: set[tuple[str, str]] = set()
    for router in routers:  # an operator may give Vertex AI a path of ours, such as /predict
        router.routes = [route for route in router.routes if not taken & _names(route)]
        taken.update(*map(_names, router.routes))
        app.include_router(router)
    # Starlette raises again, into the server's log, what is registered as Exception alone.
    for foreseen in (Problem, SpanQAError, TimeoutError):
        app.add_exception_handler(foreseen, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_problem)
    return app


def _names(route: Any) -> set[tuple[str, str]]:
    return {(method, route.path) for method in route.methods}


async def _answer_problem(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.error_type == "internal":
        _LOG.error("a request failed: %s", type(error).__name__, exc_info=error)
    request.scope["spanqa.problem"] = problem
    return response_of(problem)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _answer_problem(request, invalid(error.errors()))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}
    error_type = known.get(error.status_code, "bad_request" if error.status_code < 500 else "internal")
    says = {
        "not_found": "There is nothing at this address. GET /openapi.json lists what there is.",
        "method_not_allowed": f"{request.method} is not allowed here.",
        "bad_request": "The body could not be read as JSON.",
    }
    problem = Problem(error_type, says.get(error_type, str(error.detail)), headers=error.headers or {})
    return await _answer_problem(request, problem)
