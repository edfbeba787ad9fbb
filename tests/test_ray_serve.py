"""`spanqa serve --ray` without Ray: its configuration, which model a request goes to, and what happens when a replica cannot answer.

The replicas are real applications in this process. scripts/platforms/serve-ray runs it on Ray.
"""

import asyncio
import json
import math
import re
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("yaml")
httpx = pytest.importorskip("httpx")

from spanqa.cli import ray_serve as cli
from spanqa.errors import InputError, QueueFullError
from spanqa.reader import Reader
from spanqa.scale.forward import Forward, ReplicaLostError, Reply, Sent, answer, collect, refusal, routed
from spanqa.scale.ray_config import RayModel, ray_config, read_ray_config
from spanqa.serve import ServeSettings, Service, make_app
from spanqa.serve.guard import PROBES, Guard
from spanqa.serve.keys import digest
from spanqa.serve.problems import STATUS

Ask = Callable[[Sent], Awaitable[Reply]]
Command = Callable[..., subprocess.CompletedProcess[str]]

KEY = "0123456789abcdef"
PASSAGE = "The pier was built in 1873 by Anna Kestrel. It is made of granite and 240 metres long."
PAIR = {"inputs": {"question": "Who built the pier?", "context": PASSAGE}}
TENSORS = {
    "inputs": [
        {"name": "question", "shape": [1], "datatype": "BYTES", "data": ["Who built the pier?"]},
        {"name": "context", "shape": [1], "datatype": "BYTES", "data": [PASSAGE]},
    ]
}


def replica(reader: Reader, name: str, settings: ServeSettings = ServeSettings()) -> Any:
    service = Service(settings, name=name)
    service.start(reader)
    return make_app(service)


def talk(app: Any, *calls: tuple[str, str, Any], headers: dict[str, str] | None = None) -> list[Any]:
    async def main() -> list[Any]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            return [
                await client.request(method, path, **({} if body is None else {"json": body}))
                for method, path, body in calls
            ]

    return asyncio.run(main())


def ingress(asks: dict[str, Ask], settings: ServeSettings = ServeSettings(), seconds: float = 30.0) -> Any:
    return routed(Guard(Forward(asks, seconds, PROBES), settings))


@pytest.fixture
def two(mini: Reader, tiny_reader: Callable[..., Reader]) -> Any:
    """An ingress over two models: `one`, the bundled one, and `two`, a tiny one."""
    apps = {"one": replica(mini, "one"), "two": replica(tiny_reader(), "two")}
    return ingress({name: partial(answer, app) for name, app in apps.items()})


# --- which model


def model_of(response: Any) -> str:
    found: str = response.json()["model"]
    return found


def test_a_path_names_the_model(two: Any) -> None:
    ask = {"question": "Who built the pier?", "passages": [PASSAGE]}
    paths = ("/v1/answers", "/models/one/v1/answers", "/models/two/v1/answers")
    assert [model_of(each) for each in talk(two, *(("POST", path, ask) for path in paths))] == ["one", "one", "two"]
    paths = ("/v2/models/one/infer", "/v2/models/two/infer", "/models/two/v2/models/two/versions/1/infer")
    found = talk(two, *(("POST", path, TENSORS) for path in paths))
    assert [each.json()["model_name"] for each in found] == ["one", "two", "two"]
    predict = {"instances": [{"question": "Who built the pier?", "context": PASSAGE}]}
    found = talk(two, *(("POST", f"/v1/models/{name}:predict", predict) for name in ("one", "two")))
    assert [each.status_code for each in found] == [200, 200]
    assert found[0].json() != found[1].json()


def test_every_model_is_listed(two: Any) -> None:
    names, kserve, index = talk(
        two, ("GET", "/models", None), ("GET", "/v1/models", None), ("POST", "/v2/repository/index", {})
    )
    assert names.json() == {"models": ["one", "two"]}
    assert kserve.json() == {"models": ["one", "two"]}
    assert [each["name"] for each in index.json()] == ["one", "two"]


@pytest.mark.parametrize("path", ["/models/three/v1/answers", "/v2/models/three/infer", "/v1/models/three:predict"])
def test_a_model_that_is_not_there_is_refused(two: Any, path: str) -> None:
    [response] = talk(two, ("POST", path, {}))
    assert (response.status_code, response.json()["error_type"]) == (404, "not_found")
    assert response.json()["error"] == "There is no such model here, only 'one', 'two'."
    assert response.headers["x-request-id"]


def test_the_page_of_a_model_is_found_with_and_without_a_slash(two: Any) -> None:
    page, named, bare = talk(two, ("GET", "/", None), ("GET", "/models/two/", None), ("GET", "/models/two", None))
    assert named.status_code == 200
    assert named.content == page.content
    assert (bare.status_code, bare.headers["location"]) == (307, "two/")


def test_every_route_says_what_the_app_says(mini: Reader) -> None:
    app = replica(mini, "one")
    calls = [
        ("POST", "/", PAIR), ("POST", "/predict", PAIR), ("POST", "/invocations", PAIR), ("POST", "/v2/models/one/infer", TENSORS),
        ("POST", "/v1/answers", {"question": "Who?"}), ("POST", "/nothing", {}), ("PUT", "/predict", {}), ("GET", "/v2", None),
        ("GET", "/", None), ("GET", "/docs", None), ("GET", "/openapi.json", None), ("GET", "/assets/app.js", None),
        ("GET", "/health", None), ("HEAD", "/health", None), ("GET", "/ready", None), ("GET", "/ping", None),
        ("GET", "/v2/models/one", None), ("GET", "/v1/models", None),
    ]  # fmt: skip
    forwarded = talk(ingress({"one": partial(answer, app)}), *calls)
    for call, mine, direct in zip(calls, forwarded, talk(app, *calls), strict=True):
        assert (mine.status_code, mine.content) == (direct.status_code, direct.content), call
        changing = {"x-request-id"}
        assert {*mine.headers.items()} - {*direct.headers.items()} <= {(n, mine.headers[n]) for n in changing}, call
        assert set(mine.headers) == set(direct.headers), call


# --- replicas that cannot answer


def test_a_request_whose_replica_dies_is_asked_once_more(mini: Reader) -> None:
    app, asked = replica(mini, "one"), list[Sent]()

    async def dies_once(sent: Sent) -> Reply:
        asked.append(sent)
        if len(asked) == 1:
            raise ReplicaLostError("gone")
        return await answer(app, sent)

    [response] = talk(ingress({"one": dies_once}), ("POST", "/predict", PAIR))
    assert response.json()["answer"] == "Anna Kestrel"
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_a_request_whose_replicas_die_twice_is_given_up() -> None:
    asked = 0

    async def dies(sent: Sent) -> Reply:
        nonlocal asked
        asked += 1
        raise ReplicaLostError("gone")

    [response] = talk(ingress({"one": dies}), ("POST", "/predict", PAIR))
    assert (asked, response.status_code, response.headers["retry-after"]) == (2, 503, "1")
    assert response.json() == {
        "error": "Two replicas died while they worked on this request. Try again later.", "error_type": "loading",
    }  # fmt: skip


async def full(sent: Sent) -> Reply:
    raise QueueFullError("full")


async def slow(sent: Sent) -> Reply:
    await asyncio.sleep(60)
    raise AssertionError


async def broken(sent: Sent) -> Reply:
    raise RuntimeError("a detail that is nobody's business")


@pytest.mark.parametrize(
    ("ask", "error_type"), [(full, "overloaded"), (slow, "deadline_exceeded"), (broken, "internal")]
)
def test_what_is_not_answered_has_the_form_of_every_error(ask: Ask, error_type: str) -> None:
    [response] = talk(ingress({"one": ask}, seconds=0.05), ("POST", "/predict", PAIR))
    assert set(response.json()) == {"error", "error_type"}
    assert response.json()["error_type"] == error_type
    assert response.status_code == STATUS[error_type]
    assert ("retry-after" in response.headers) == (error_type == "overloaded")
    assert response.headers["content-type"] == "application/json"
    assert "nobody" not in response.text


def test_probes_say_that_a_busy_server_lives() -> None:
    found = talk(
        ingress({"one": full}), *(("GET", path, None) for path in sorted(PROBES)), ("GET", "/models/one/ready", None)
    )
    assert {each.status_code for each in found} == {200}
    [info] = talk(ingress({"one": full}), ("GET", "/info", None))
    assert info.status_code == 429


async def cancelled_when(work: Awaitable[Any], begun: Callable[[], object]) -> None:
    task = asyncio.ensure_future(work)
    while not begun():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_client_that_goes_ends_the_wait_for_a_replica() -> None:
    seen = []

    async def waits(sent: Sent) -> Reply:
        seen.append("begun")
        try:
            return await slow(sent)
        finally:
            seen.append("ended")

    sent = Sent("POST", "/predict", body=b"{}", headers=JSON)
    app = ingress({"one": waits})
    asyncio.run(cancelled_when(collect(app, *asgi(sent)), lambda: seen))
    assert seen == ["begun", "ended"]


def test_a_replica_whose_client_has_gone_says_so_and_stops(mini: Reader) -> None:
    service = Service(name="one")
    service.start(mini)
    app = make_app(service)
    body = json.dumps({"question": "Who built the pier?", "passages": [PASSAGE * 5000]}).encode()
    sent = Sent("POST", "/v1/answers", body=body, headers=JSON)
    asyncio.run(cancelled_when(answer(app, sent), lambda: service.queue.requests))
    assert service.queue.requests == 0
    [metrics] = talk(app, ("GET", "/metrics", None))
    assert 'spanqa_requests_total{code="499",route="/v1/answers"} 1.0' in metrics.text


JSON = ((b"content-type", b"application/json"), (b"content-length", b"2"))


def asgi(sent: Sent) -> tuple[dict[str, Any], Callable[[], Awaitable[Any]]]:
    async def receive() -> Any:
        return {"type": "http.request", "body": sent.body, "more_body": False}

    scope = {
        "type": "http",
        "method": sent.method,
        "path": sent.path,
        "headers": list(sent.headers),
        "query_string": b"",
    }
    return scope, receive


# --- the guard before the replicas


def test_only_who_has_a_key_reaches_a_replica() -> None:
    reached = []

    async def ask(sent: Sent) -> Reply:
        reached.append(sent.path)
        return refusal(200, "", "")

    app = ingress({"one": ask}, ServeSettings(keys=(digest(KEY),)))
    calls = [
        ("POST", path, PAIR)
        for path in ("/predict", "/models/one/predict", "/models/two/predict", "/v2/models/one/infer")
    ]
    assert {each.status_code for each in talk(app, *calls)} == {401}
    assert reached == []
    assert [each.status_code for each in talk(app, *calls, headers={"X-API-Key": KEY})] == [200, 200, 404, 200]
    open_to_all = [("GET", path, None) for path in ("/models/one/", "/models/one/ready", "/health")]
    assert {each.status_code for each in talk(app, *open_to_all)} == {200}


def test_a_body_that_is_too_large_or_a_client_that_asks_too_often_reaches_no_replica() -> None:
    async def ask(sent: Sent) -> Reply:
        assert len(sent.body) <= 200
        return refusal(200, "", "")

    app = ingress({"one": ask}, ServeSettings(max_body=200, rate_limit=2))
    found = talk(app, ("POST", "/predict", {"a": "b" * 300}), ("POST", "/predict", {}), ("POST", "/predict", {}))
    assert [each.status_code for each in found] == [413, 200, 429]
    assert found[2].json()["error_type"] == "rate_limited"


# --- configuration

CIRCLE: dict[str, Any] = {}
CIRCLE["models"] = [CIRCLE]


def test_a_config_file_is_yaml_or_json(tmp_path: Path) -> None:
    text = "models:\n  - name: mini\n    num_gpus: 0.25\n    max_replicas: 8\nsettings: {max_wait: 2, hosts: [qa.example]}\n"
    (tmp_path / "a.yaml").write_text(text)
    found = read_ray_config(tmp_path / "a.yaml")
    assert found.models == (RayModel(name="mini", num_gpus=0.25, max_replicas=8),)
    assert cli.settings_of(found) == ServeSettings(max_wait=2, hosts=("qa.example",))
    (tmp_path / "a.json").write_text(found.model_dump_json())
    assert read_ray_config(tmp_path / "a.json") == found


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"models": [{"name": "a", "max_replica": 2}]}, "models.0.max_replica: there is no such field; did you mean max_replicas?"),
        ({"models": [{"name": "a"}], "replicas": 2}, "replicas: there is no such field; did you mean ingress_replicas?"),
        ({"models": [{"name": "a"}], "zzz": 2}, "zzz: there is no such field."),
        ({}, "models is missing."),
        ({"models": []}, "models: there is none; expected at least one."),
        ({"models": [{}]}, "models.0.name is missing."),
        ({"models": [{"name": "a/b"}]}, "models.0.name is 'a/b': string should match"),
        ({"models": [{"name": "a", "max_replicas": "4"}]}, "models.0.max_replicas is '4': input should be a valid integer"),
        ({"models": [{"name": "a", "max_replicas": True}]}, "models.0.max_replicas is True"),
        ({"models": [{"name": "a", "min_replicas": 0}]}, "models.0.min_replicas is 0: input should be greater"),
        ({"models": [{"name": "a", "min_replicas": 5}]}, "models.0: max_replicas is 4, less than min_replicas, 5"),
        ({"models": [{"name": "a", "target_ongoing_requests": 20}]}, "max_ongoing_requests is 16, less than target_ongoing"),
        ({"models": [{"name": "a", "num_gpus": 1.5}]}, "num_gpus is 1.5; expected a part of one, or a whole number"),
        ({"models": [{"name": "a"}, {"name": "a"}]}, "there are two of the name 'a'"),
        ({"models": [{"name": "a", "num_gpus": math.inf}]}, "models.0.num_gpus is inf: input should be a finite number"),
        ([], "What I said is list; expected fields, such as models"),
        (None, "What I said is empty; expected fields, such as models"),
        (CIRCLE, "What I said holds itself, or is nested too deeply"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(value: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ray_config(value, "What I said")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_wiat": 2}, "settings.max_wiat: there is no such field; did you mean max_wait?"),
        ({"max_wait": "2"}, "settings.max_wait is '2': input should be a valid number"),
        ({"max_wait": -1}, "max_wait is -1.0; expected at least 0"),
        (
            {"cors_origins": ["qa.example"]},
            "cors_origins has 'qa.example'; expected an origin such as https://example.org",
        ),
        ({"hosts": "qa.example"}, "settings.hosts is 'qa.example': input should be a valid array"),
    ],
)
def test_settings_are_refused_by_name_too(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        cli.settings_of(ray_config({"models": [{"name": "a"}], "settings": settings}))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file or directory"):
        read_ray_config(tmp_path / "none.yaml")
    for name, text in (
        ("a.yaml", "models: [}"),
        ("a.json", "{'models'}"),
        ("b.yaml", "\ud800".encode("utf-8", "surrogatepass")),
    ):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=f"{name}' is neither YAML nor JSON"):
            read_ray_config(tmp_path / name)


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "keys").chmod(0o600)
    monkeypatch.setenv("SPANQA_API_KEYS", KEY[::-1])
    config = ray_config({"models": [{"name": "a"}], "key_file": str(tmp_path / "keys")})
    assert cli.settings_of(config).keys == (digest(KEY), digest(KEY[::-1]))


# --- the command line


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `spanqa serve --ray` hands to what needs Ray."""
    found: list[Any] = []
    monkeypatch.setattr(cli, "require", lambda name: None)
    monkeypatch.setattr(cli, "configure", lambda form, *, text: None)
    monkeypatch.setattr(cli, "_run", lambda *arguments: found.append(arguments))
    monkeypatch.setattr(cli, "listening", lambda options: _nothing())
    for name in ("RAY_ADDRESS", "SPANQA_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    return found


class _nothing:
    def __enter__(self) -> list[Any]:
        return [_socket()]

    def __exit__(self, *_: object) -> None:
        pass


class _socket:
    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 8000)


def test_a_model_that_is_not_there_is_missed_before_ray_is_started(
    ran: list[Any], command: Command, tmp_path: Path
) -> None:
    refused = command("serve", "--ray", "--model", tmp_path / "nowhere")
    assert (refused.returncode, "nowhere" in refused.stderr, ran) == (1, True, [])


def test_options_are_one_model_and_its_settings(ran: list[Any], command: Command) -> None:
    options = (
        "--model",
        "hub/some-model",
        "--dtype",
        "int8",
        "--threads",
        "2",
        "--max-wait",
        "1.5",
        "--allowed-host",
        "qa.example",
        "--verify-key",
        "a.pem",
    )
    assert command("serve", "--ray", *options, "--port", "9000", "--address", "10.0.0.1:6379").returncode == 0
    [(config, settings, listen, address, *_)] = ran
    assert config.models == (
        RayModel(
            name="some-model",
            model="hub/some-model",
            device="cpu",
            dtype="int8",
            threads=2,
            verify_key=(str(Path("a.pem").absolute()),),
        ),
    )
    assert settings == ServeSettings(max_wait=1.5, hosts=("qa.example",))
    assert (listen.port, address) == (9000, "10.0.0.1:6379")


def test_replicas_find_the_model_and_its_keys_from_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    of_file = {"name": "a", "model": "mine", "verify_key": ["a.pem", "sigstore:me,issuer"], "num_gpus": 0.5}
    [model] = cli._on_every_machine(ray_config({"models": [of_file]})).models
    assert (model.model, model.device) == (str(tmp_path / "mine"), "cuda")
    assert model.verify_key == (str(tmp_path / "a.pem"), "sigstore:me,issuer")
    with pytest.raises(InputError, match=r"device is 'cuda', but no GPU is set aside .* num_gpus: 1 for the model 'a'"):
        cli._on_every_machine(ray_config({"models": [{"name": "a", "device": "cuda"}]}))


def test_a_config_file_is_used_alone(ran: list[Any], command: Command, tmp_path: Path) -> None:
    (tmp_path / "ray.yaml").write_text(
        json.dumps({"models": [{"name": "a"}, {"name": "b"}], "settings": {"max_body": 99}})
    )
    assert command("serve", "--ray", "--ray-config", tmp_path / "ray.yaml").returncode == 0
    assert ([each.name for each in ran[0][0].models], ran[0][1].max_body) == (["a", "b"], 99)
    for option in (
        ("--model", "x"),
        ("--max-wait", "1"),
        ("--key-file", "x"),
        ("--name", "x"),
        ("--allowed-host", "x"),
    ):
        refused = command("serve", "--ray", "--ray-config", tmp_path / "ray.yaml", *option)
        assert refused.returncode == 2
        assert option[0] in refused.stderr
        assert "give it in the file" in refused.stderr
    assert len(ran) == 1


@pytest.mark.parametrize(
    "option",
    [
        ("--uds", "x"), ("--workers", "2"), ("--metrics-port", "9"), ("--metrics-host", "x"), ("--root-path", "/x"),
        ("--forwarded-allow-ips", "*"), ("--drain-delay", "1"), ("--max-connections", "9"), ("--port", "0"),
    ],
)  # fmt: skip
def test_an_option_without_a_meaning_is_refused_by_name(
    ran: list[Any], command: Command, option: tuple[str, str]
) -> None:
    refused = command("serve", "--ray", *option)
    assert refused.returncode == 2
    assert option[0] in refused.stderr
    assert ran == []


@pytest.mark.parametrize("option", [("--address", "auto"), ("--ray-config", "x.yaml")])
def test_options_of_ray_alone_are_refused(command: Command, option: tuple[str, str]) -> None:
    refused = command("serve", *option)
    assert (refused.returncode, "it is for --ray" in refused.stderr, option[0] in refused.stderr) == (2, True, True)


def test_a_model_whose_folder_is_no_name_needs_one(ran: list[Any], command: Command) -> None:
    refused = command("serve", "--ray", "--model", "models/my model")
    assert "models.0.name is 'my model'" in refused.stderr
    named = command("serve", "--ray", "--model", "models/my model", "--name", "mine", "--address", "auto")
    assert (named.returncode, ran[0][0].models[0].name) == (0, "mine")


# --- the guide


def test_the_config_files_of_the_guide_can_be_used() -> None:
    import yaml

    text = (Path(__file__).parents[1] / "docs" / "guide" / "ray.md").read_text("utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    mine = [block for block in blocks if "models" in block or "applications" in block]
    assert len(mine) == 2
    for block in mine:
        config = ray_config(block["applications"][0]["args"] if "applications" in block else block)
        assert cli.settings_of(config.model_copy(update={"key_file": None})).max_wait == 2
