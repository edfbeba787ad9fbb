"""Metrics for Prometheus. No label holds what a client wrote.

Several workers that share a port count together if PROMETHEUS_MULTIPROC_DIR names an empty folder when they make their `Metrics`: each
writes files there, and whoever is asked adds them up. Whoever starts workers calls `prometheus_client.multiprocess.mark_process_dead`
when one has ended.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from spanqa import __version__
from spanqa.engine import BatchRecord
from spanqa.serve.observe import Exchange
from spanqa.serve.service import Service

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKENS = tuple(float(2**power) for power in range(5, 17))
ROWS = tuple(float(2**power) for power in range(10))

FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The metrics of a server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        if not os.environ.get(FOLDER):
            ProcessCollector(registry=registry)
        elif values.ValueClass is values.MutexValue:  # the package was imported before the folder was named
            values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]

        def seconds(name: str, says: str, *labels: str) -> Histogram:
            return Histogram(f"spanqa_{name}_duration_seconds", says, labels, buckets=SECONDS, registry=registry)

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"spanqa_{name}", says, labels, registry=registry)

        def gauge(name: str, says: str) -> Gauge:
            return Gauge(f"spanqa_{name}", says, registry=registry, multiprocess_mode="livesum")

        self._requests = counter("requests_total", "Requests, by route and status.", "route", "code")
        self._rejected = counter("rejected_total", "Requests that were not answered, by error_type.", "reason")
        self._seconds = seconds("request", "Seconds until the end of the response.", "route")
        self._prepare = seconds("prepare", "Seconds to encode and cut the texts of a request.")
        self._read = seconds("read", "Seconds until the model has read a request, with the wait for its turn.")
        self._decode = seconds("decode", "Seconds to find the answers of a request.")
        self._in_flight = gauge("requests_in_flight", "Requests that have come and are not over.")
        self._queue_requests = gauge("queue_requests", "Requests whose questions are worked on or wait.")
        self._queue_tokens = gauge("queue_tokens", "Tokens that wait to be read, padding included.")
        self._batch_tokens = Histogram(
            "spanqa_batch_tokens", "Tokens of a batch, without padding.", buckets=TOKENS, registry=registry
        )
        self._batch_rows = Histogram("spanqa_batch_rows", "Rows of a batch.", buckets=ROWS, registry=registry)
        self._padding = counter("padding_tokens_total", "Places in batches that held no token.")
        self._answers = counter("answers_total", "Questions that got an answer, by route.", "route")
        self._no_answer = counter("no_answer_total", "Questions whose text has no answer, by route.", "route")
        self._model = Gauge(
            "spanqa_model_info",
            "The model that is served; always 1.",
            ["model", "backend", "dtype", "version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._service: Service | None = None

    def watch(self, service: Service) -> None:
        """Follow a service's queue and batches, from when it is loaded; it may be called before, and again."""
        if self._service is None and service.loaded:
            self._service = service
            backend = service.reader.backend
            self._model.labels(service.name, backend.name, backend.dtype, __version__).set(1)
            service.queue.engine.observers.append(self._batch)

    def _batch(self, record: BatchRecord) -> None:
        self._batch_tokens.observe(record.tokens)
        self._batch_rows.observe(record.rows)
        self._padding.inc(record.rows * record.cols - record.tokens)
        self._sample()

    def _sample(self) -> None:
        if self._service is not None:
            self._queue_tokens.set(self._service.queue.engine.waiting_tokens)
            self._queue_requests.set(self._service.queue.requests)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as long as it lasts."""
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()

    def count(self, exchange: Exchange) -> None:
        """Count a request that is over."""
        route = exchange.route
        self._requests.labels(route, str(exchange.status)).inc()
        self._seconds.labels(route).observe(exchange.seconds)
        if exchange.problem is not None:
            self._rejected.labels(exchange.problem.error_type).inc()
        asked = exchange.asked
        if asked is not None and exchange.status < 400:
            self._prepare.observe(asked.times.prepare)
            self._read.observe(asked.times.read)
            self._decode.observe(asked.times.decode)
            self._answers.labels(route).inc(exchange.answered)
            self._no_answer.labels(route).inc(exchange.unanswered)
        self._sample()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in the form that an Accept header asks for, and its media type."""
        self._sample()
        encode, media_type = choose_encoder(accept)
        registry, folder = self._registry, os.environ.get(FOLDER)
        if folder:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        return encode(registry), media_type


def routes(metrics: Metrics) -> APIRouter:
    """Return the route of the metrics."""
    router = APIRouter(tags=["operation"])

    @router.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=PlainTextResponse,
    )
    def show(request: Request) -> Response:
        content, media_type = metrics.render(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": media_type})

    return router
