"""Traces for OpenTelemetry: a span for each request, with one for each stage in it. It needs `pip install spanqa[tracing]`.

Spans are made when a request is over, from the times that were taken anyway. No attribute holds a user's text. What the standard
variables of OpenTelemetry say (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, ...) holds here too.
"""

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from spanqa import __version__
from spanqa.errors import InputError
from spanqa.extras import require
from spanqa.serve.observe import Exchange

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Tracing:
    """Sends spans with a span processor of OpenTelemetry."""

    def __init__(self, processor: Any) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME", "spanqa")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("spanqa", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def trace(self, exchange: Exchange) -> str | None:
        """Send the spans of a request that is over, as part of the trace that it came from, and return the id of its trace."""
        from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context

        problem, asked = exchange.problem, exchange.asked
        attributes: dict[str, Any] = {
            "http.request.method": exchange.method,
            "http.route": exchange.route,
            "http.response.status_code": exchange.status,
            "spanqa.request_id": exchange.scope.get("spanqa.request_id", ""),
        }
        if problem is not None:
            attributes["error.type"] = problem.error_type
        if asked is not None:
            attributes["spanqa.questions"] = asked.questions
            attributes["spanqa.characters"] = asked.characters
            attributes["spanqa.tokens"] = asked.times.tokens
        names = ("traceparent", "tracestate")
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in exchange.scope["headers"]
            if name.decode("latin-1") in names
        }
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.route}",
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            attributes,
            start_time=exchange.started,
        )
        if exchange.status >= 500:
            span.set_status(StatusCode.ERROR)
        if asked is not None:
            at = asked.started
            for stage in ("prepare", "read", "decode"):
                seconds = getattr(asked.times, stage)
                if seconds:
                    child = self._tracer.start_span(stage, set_span_in_context(span), start_time=at)
                    at += int(seconds * 1e9)
                    child.end(at)
        span.end(exchange.started + int(exchange.seconds * 1e9))
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send what is left, and end."""
        self._provider.shutdown()


def open_tracing(endpoint: str | None = None) -> Tracing | None:
    """Return what sends spans to an OTLP/HTTP collector, if there is one: `endpoint`, or what the standard variables name.

    `endpoint` is an address such as http://127.0.0.1:4318, to which /v1/traces is added.

    Raises:
        InputError: the endpoint is no address.
        NotInstalledError: OpenTelemetry is missing.
    """
    if endpoint is None and not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    require("tracing")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if endpoint is None:
        return Tracing(BatchSpanProcessor(OTLPSpanExporter()))
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"otlp_endpoint is {endpoint!r}; expected an address such as http://127.0.0.1:4318.")
    address = endpoint if parts.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=address)))


Trace = Callable[[Exchange], str | None]
"""Sends the spans of an exchange, and returns the id of its trace."""
