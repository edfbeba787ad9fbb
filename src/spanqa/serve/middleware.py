"""What stands around the application: observation outermost, since it sees refusals too, and the guard inside.

client ──► Observation ──► Guard ──► FastAPI
           metrics, traces,           routes
           the log
"""

import re
import time
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spanqa.serve.guard import PROBES, Guard, route_path
from spanqa.serve.logs import log
from spanqa.serve.metrics import Metrics
from spanqa.serve.observe import Exchange
from spanqa.serve.service import Service
from spanqa.serve.tracing import Trace


def wrap(
    app: FastAPI,
    service: Service,
    metrics: Metrics,
    *,
    trace: Trace | None = None,
    probes: Collection[str] = (),
    untyped: Collection[str] = (),
) -> ASGIApp:
    """Return the application with everything around it. `probes` and `untyped` are those of `Guard`.

    Raises:
        InputError: a setting cannot be used.
    """
    guard = Guard(app, service.settings, probes=probes, untyped=untyped)
    return Observation(guard, _Templates(app), service, metrics, trace, PROBES | {*probes, "/metrics"})


class Observation:
    """ASGI middleware that hands each request, once it is over, to traces, metrics and the log."""

    def __init__(
        self,
        app: ASGIApp,
        templates: "_Templates",
        service: Service,
        metrics: Metrics,
        trace: Trace | None,
        quiet: frozenset[str],
    ) -> None:
        self.app = app
        self._templates, self._service, self._metrics, self._trace = templates, service, metrics, trace
        self._quiet = quiet  # routes that are logged for debugging only, and not traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, began, ended, status = time.time_ns(), time.perf_counter(), 0.0, 0

        async def sending(message: Message) -> None:
            nonlocal ended, status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if not message.get("more_body", False):
                ended = time.perf_counter()

        self._metrics.watch(self._service)
        with self._metrics.in_flight():
            try:
                await self.app(scope, receive, sending)
            finally:
                problem = scope.get("spanqa.problem")
                if problem is not None and problem.error_type == "client_gone":
                    status = problem.status
                seconds = (ended or time.perf_counter()) - began
                self._note(
                    Exchange(scope, self._templates.of(scope), status or 500, started, seconds, _trace_id(scope))
                )

    def _note(self, exchange: Exchange) -> None:
        if self._trace is not None and exchange.route not in self._quiet:
            exchange = replace(exchange, trace_id=self._trace(exchange))
        self._metrics.count(exchange)
        log(exchange, self._quiet)


class _Templates:
    """Finds the template of the route that a request went to, or would have gone to if it had not been refused."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        templates = [*self._app.openapi()["paths"], "/", "/openapi.json", "/docs", "/assets/{name}", "/metrics"]
        return [(re.compile(re.sub(r"\\{.*?\\}", "[^/]+", re.escape(each))), each) for each in templates]

    def of(self, scope: Scope) -> str:
        path = getattr(scope.get("route"), "path", None)
        if path is not None:
            return str(path)
        wanted = route_path(scope)
        return next((template for pattern, template in self._patterns if pattern.fullmatch(wanted)), "other")


def _trace_id(scope: Scope) -> str | None:
    """Return the id of the trace that a request is part of, from a W3C traceparent header."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            match = re.fullmatch(
                rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}.*", value
            )
            return None if match is None else match[1].decode()
    return None
