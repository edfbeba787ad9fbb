"""What operators see in numbers: metrics, read by prometheus_client's own parser, also of several workers; and traces."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from spanqa import __version__
from spanqa.engine import BatchRecord
from spanqa.errors import InputError
from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service
from spanqa.serve.app import all_routes
from spanqa.serve.metrics import Metrics
from spanqa.serve.metrics import routes as metrics_routes
from spanqa.serve.middleware import wrap
from spanqa.serve.tracing import Tracing, open_tracing

PASSAGE = "The pier was built in 1873 by Anna Kestrel. It is made of granite."
ASKED = {"question": "Who built the pier?", "passages": [PASSAGE]}
NO_ANSWER = {"question": "What is the capital of France?", "passages": [PASSAGE]}

Call = tuple[str, str, Any]


def talk(service: Service, metrics: Metrics, *calls: Call, trace: Any = None, headers: Any = None) -> list[Any]:
    """Send requests one after the other to the application with everything around it."""
    app = all_routes(service)
    if not any(getattr(route, "path", "") == "/metrics" for route in app.routes):
        app.include_router(metrics_routes(metrics))
    wrapped = wrap(app, service, metrics, trace=trace)

    async def main() -> list[Any]:
        transport = httpx.ASGITransport(wrapped, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.request(method, path, json=body, headers=headers) for method, path, body in calls]

    return asyncio.run(main())


def ready(reader: Reader, settings: ServeSettings = ServeSettings()) -> Service:
    service = Service(settings, name="a-model")
    service.start(reader)
    return service


def values(metrics: Metrics, accept: str = "") -> dict[str, float]:
    """Return all samples, as name{label="value",...}, labels sorted."""
    text = metrics.render(accept)[0].decode()
    families = parse_openmetrics(text) if "openmetrics" in accept else parse(text)
    return {
        sample.name
        + ("{" + ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items())) + "}" if sample.labels else ""): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(mini: Reader) -> None:
    metrics = Metrics()
    calls: list[Call] = [
        ("POST", "/v1/answers", ASKED),
        ("POST", "/v1/answers", ASKED),
        ("POST", "/v1/answers", {"question": 1}),
        ("GET", "/v1/answers", None),
        ("GET", "/health", None),
        ("GET", "/who-built-the-pier", None),
        ("GET", "/openapi.json", None),
        ("GET", "/v2/models/a-model", None),
        ("BREW", "/health", None),
    ]
    assert [each.status_code for each in talk(ready(mini), metrics, *calls)] == [
        200,
        200,
        422,
        405,
        200,
        404,
        200,
        200,
        405,
    ]
    found = values(metrics)
    assert found['spanqa_requests_total{code="200",route="/v1/answers"}'] == 2
    assert found['spanqa_requests_total{code="422",route="/v1/answers"}'] == 1
    assert found['spanqa_requests_total{code="405",route="/v1/answers"}'] == 1
    assert found['spanqa_requests_total{code="200",route="/health"}'] == 1
    assert found['spanqa_requests_total{code="404",route="other"}'] == 1
    assert found['spanqa_requests_total{code="200",route="/openapi.json"}'] == 1
    assert found['spanqa_requests_total{code="200",route="/v2/models/{model}"}'] == 1
    assert found['spanqa_request_duration_seconds_count{route="/v1/answers"}'] == 4
    assert 0 < found['spanqa_request_duration_seconds_sum{route="/v1/answers"}'] < 60
    assert found["spanqa_requests_in_flight"] == 0
    assert found['spanqa_rejected_total{reason="validation"}'] == 1
    assert found['spanqa_rejected_total{reason="not_found"}'] == 1
    assert "pier" not in metrics.render()[0].decode()


def test_stages_batches_and_answers_are_counted(mini: Reader) -> None:
    metrics = Metrics()
    pair = {"question": ASKED["question"], "context": PASSAGE}
    several = {
        "inputs": [pair, {"question": NO_ANSWER["question"], "context": PASSAGE}],
        "parameters": {"handle_impossible_answer": True},
    }
    talk(
        ready(mini),
        metrics,
        ("POST", "/v1/answers", ASKED),
        ("POST", "/v1/answers", ASKED),
        ("POST", "/v1/answers", NO_ANSWER),
        ("POST", "/predict", several),
    )
    found = values(metrics)
    assert found['spanqa_answers_total{route="/v1/answers"}'] == 2
    assert found['spanqa_no_answer_total{route="/v1/answers"}'] == 1
    assert found['spanqa_answers_total{route="/predict"}'] == 1
    assert found['spanqa_no_answer_total{route="/predict"}'] == 1
    for stage in ("prepare", "read", "decode"):
        assert found[f"spanqa_{stage}_duration_seconds_count"] == 4
        assert found[f"spanqa_{stage}_duration_seconds_sum"] > 0
    assert found["spanqa_batch_tokens_count"] == found["spanqa_batch_rows_count"] >= 4
    assert found["spanqa_batch_tokens_sum"] > 60
    assert found["spanqa_queue_tokens"] == found["spanqa_queue_requests"] == 0
    info = f'spanqa_model_info{{backend="{mini.backend.name}",dtype="{mini.backend.dtype}",model="a-model",version="{__version__}"}}'
    assert found[info] == 1


def test_padding_is_counted(mini: Reader) -> None:
    metrics, service = Metrics(), ready(mini)
    batches: list[BatchRecord] = []
    service.queue.engine.observers.append(batches.append)
    passages = ["It is made of granite.", PASSAGE]  # of different lengths, in one batch
    talk(service, metrics, ("POST", "/v1/answers", ASKED), ("POST", "/v1/answers", {**ASKED, "passages": passages}))
    padding = sum(each.rows * each.cols - each.tokens for each in batches)
    assert values(metrics)["spanqa_padding_tokens_total"] == padding > 0


def test_the_queue_is_looked_at_when_somebody_asks(mini: Reader) -> None:
    metrics, service = Metrics(), ready(mini)
    metrics.watch(service)
    with service.queue.admitted(1):
        assert values(metrics)["spanqa_queue_requests"] == 1
    assert values(metrics)["spanqa_queue_requests"] == 0


def test_what_a_guard_refuses_is_counted_under_its_route(mini: Reader) -> None:
    metrics = Metrics()
    refused = talk(
        ready(mini), metrics, ("POST", "/v1/answers", ASKED), ("GET", "/v2/models/x/versions/y", None), ("GET", "/x", None),
        headers={"origin": "https://evil.example"},
    )  # fmt: skip
    assert [each.status_code for each in refused] == [403] * 3
    found = values(metrics)
    assert found['spanqa_rejected_total{reason="forbidden_origin"}'] == 3
    assert found['spanqa_requests_total{code="403",route="/v1/answers"}'] == 1
    assert found['spanqa_requests_total{code="403",route="/v2/models/{model}/versions/{version}"}'] == 1
    assert found['spanqa_requests_total{code="403",route="other"}'] == 1


def test_a_server_that_loads_counts_too(mini: Reader) -> None:
    metrics, service = Metrics(), Service(name="a-model")
    assert talk(service, metrics, ("POST", "/v1/answers", ASKED))[0].status_code == 503
    assert values(metrics)['spanqa_rejected_total{reason="loading"}'] == 1
    service.start(mini)
    talk(service, metrics, ("POST", "/v1/answers", ASKED), ("POST", "/v1/answers", ASKED))
    assert values(metrics)["spanqa_batch_rows_count"] >= 2


def test_requests_in_work_are_gauged_and_clients_that_go_are_counted(mini: Reader) -> None:
    metrics, service = Metrics(), ready(mini)
    wrapped = wrap(all_routes(service), service, metrics)
    seen: dict[str, float] = {}
    body = b'{"question": "Who?", "passages": ["' + b"word " * 100_000 + b'"]}'
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/answers", "query_string": b"", "headers": headers, "server": ("127.0.0.1", 80)}  # fmt: skip
    came = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        message = next(came, None)
        if message is None:
            while not seen.get("spanqa_queue_requests"):
                await asyncio.sleep(0)
                seen.update(values(metrics))
        return message or {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    asyncio.run(wrapped(scope, receive, send))
    assert (seen["spanqa_requests_in_flight"], seen["spanqa_queue_requests"]) == (1, 1)
    found = values(metrics)
    assert (found["spanqa_requests_in_flight"], found["spanqa_queue_requests"]) == (0, 0)
    assert found['spanqa_requests_total{code="499",route="/v1/answers"}'] == 1
    assert found['spanqa_rejected_total{reason="client_gone"}'] == 1


def test_a_client_that_goes_while_it_sends_is_counted_too(mini: Reader) -> None:
    metrics, service = Metrics(), ready(mini)
    wrapped = wrap(all_routes(service), service, metrics)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"1000")]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/answers", "query_string": b"", "headers": headers, "server": ("127.0.0.1", 80)}  # fmt: skip
    came = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(came)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    asyncio.run(wrapped(scope, receive, send))
    found = values(metrics)
    assert found['spanqa_requests_total{code="499",route="/v1/answers"}'] == 1
    assert found['spanqa_rejected_total{reason="client_gone"}'] == 1


def test_the_route_speaks_both_forms_of_prometheus(mini: Reader) -> None:
    metrics, service = Metrics(), ready(mini)
    [plain] = talk(service, metrics, ("GET", "/metrics", None))
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {family.name for family in parse(plain.text)} >= {
        "spanqa_requests",
        "spanqa_model_info",
        "process_resident_memory_bytes",
    }
    accept = "application/openmetrics-text; version=1.0.0"
    [open_form] = talk(service, metrics, ("GET", "/metrics", None), headers={"accept": accept})
    assert open_form.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(open_form.text)} >= {"spanqa_requests", "spanqa_model_info"}


WORKER = """
import sys
import prometheus_client
import os
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]      # after the package was imported
from spanqa.serve.metrics import Metrics
from spanqa.serve.observe import Exchange
metrics = Metrics()
with metrics.in_flight():
    metrics.count(Exchange({"method": "GET"}, "/health", 200, 0, 0.25, None))
    print(os.getpid(), flush=True)
    if sys.stdin.readline() == "show\\n":
        print(metrics.render()[0].decode(), flush=True)
    sys.stdin.readline()
"""


def test_workers_count_together_and_a_dead_ones_gauges_go(tmp_path: Path) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        first, second = workers
        assert first.stdin and first.stdout and second.stdin and second.stdout
        pids = [int(each.stdout.readline()) for each in (first, second)]
        second.kill()
        second.wait()
        mark_process_dead(pids[1], path=str(tmp_path))
        first.stdin.write("show\n")
        first.stdin.flush()
        lines = []
        while not (lines and lines[-1] == "\n"):
            lines.append(first.stdout.readline())
    finally:
        for each in workers:
            each.kill()
            each.wait()
            for pipe in (each.stdin, each.stdout):
                assert pipe is not None
                pipe.close()
    found = {sample.name: sample.value for family in parse("".join(lines)) for sample in family.samples}
    assert found["spanqa_requests_total"] == 2  # what the dead one counted stays
    assert found["spanqa_request_duration_seconds_sum"] == 0.5
    assert found["spanqa_requests_in_flight"] == 1


# --- traces


@pytest.fixture
def spans() -> Iterator[tuple[Tracing, Any]]:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    yield tracing, exporter
    tracing.close()


def test_a_request_is_a_span_of_its_callers_trace_with_its_stages(mini: Reader, spans: tuple[Tracing, Any]) -> None:
    tracing, exporter = spans
    caller = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "x-request-id": "an-id"}
    began = time.time_ns()
    talk(
        ready(mini),
        Metrics(),
        ("POST", "/v1/answers", ASKED),
        ("GET", "/health", None),
        trace=tracing.trace,
        headers=caller,
    )
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {"POST /v1/answers", "prepare", "read", "decode"}
    request = found["POST /v1/answers"]
    assert request.kind.name == "SERVER"
    assert (request.context.trace_id, request.parent.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert request.attributes["http.route"] == "/v1/answers"
    assert (request.attributes["http.response.status_code"], request.attributes["spanqa.request_id"]) == (200, "an-id")
    assert request.attributes["spanqa.tokens"] > 20
    ends = [began]
    for stage in ("prepare", "read", "decode"):
        assert found[stage].parent.span_id == request.context.span_id
        assert ends[-1] <= found[stage].start_time < found[stage].end_time
        ends.append(found[stage].end_time)
    assert request.start_time <= found["prepare"].start_time
    shown = "".join(span.to_json() for span in found.values())
    assert "pier" not in shown
    assert "Kestrel" not in shown


def test_a_request_that_fails_is_an_error_in_its_trace(spans: tuple[Tracing, Any]) -> None:
    tracing, exporter = spans
    talk(Service(), Metrics(), ("POST", "/v1/answers", ASKED), ("GET", "/nope", None), trace=tracing.trace)
    loading, unknown = exporter.get_finished_spans()
    assert (loading.attributes["error.type"], loading.status.status_code.name) == ("loading", "ERROR")
    assert (unknown.name, unknown.status.status_code.name) == ("GET other", "UNSET")
    assert loading.parent is None


def test_tracing_is_off_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert open_tracing() is None
    pytest.importorskip("opentelemetry.sdk")
    with pytest.raises(InputError, match=r"expected an address such as http://127\.0\.0\.1:4318"):
        open_tracing("localhost:4318")


def test_a_part_of_opentelemetry_is_not_enough_for_traces(tmp_path: Path) -> None:
    for folders, lacks in (("opentelemetry", "opentelemetry.sdk and "), ("opentelemetry/sdk", "needs ")):
        (tmp_path / folders).mkdir(parents=True)
        (tmp_path / folders / "__init__.py").touch()
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from spanqa.extras import require; require('tracing')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        says = f"{lacks}opentelemetry.exporter.otlp.proto.http, which "
        assert says in done.stderr
        assert "pip install 'spanqa[tracing]'" in done.stderr


@pytest.mark.enable_socket
@pytest.mark.parametrize("by", ["option", "variable"])
def test_spans_reach_a_collector(by: str, mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, ExportTraceServiceRequest.FromString(content)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        if by == "variable":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        tracing = open_tracing(address if by == "option" else None)
        assert tracing is not None
        talk(ready(mini), Metrics(), ("POST", "/v1/answers", ASKED), trace=tracing.trace)
        tracing.close()
        server.shutdown()
        thread.join()
    [(path, request)] = got
    assert path == "/v1/traces"
    [resource] = request.resource_spans
    assert {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"] == "spanqa"
    [scope] = resource.scope_spans
    assert {span.name for span in scope.spans} == {"POST /v1/answers", "prepare", "read", "decode"}
