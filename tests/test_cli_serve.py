"""`spanqa serve`: its options are the fields of its settings, each also an environment variable, and it hands them on."""

import importlib
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import typer

from spanqa.cli import app
from spanqa.serve import logs, server
from spanqa.serve.listening import ServerOptions
from spanqa.serve.settings import ServeSettings

cli: Any = importlib.import_module("spanqa.cli.serve")  # `spanqa.cli.serve` is the function
Command = Callable[..., subprocess.CompletedProcess[str]]
OPTIONS = {each.name: each for each in typer.main.get_command(app).commands["serve"].params if each.name != "help"}  # type: ignore[attr-defined]


class Run:
    """What `spanqa serve` hands to `spanqa.serve.server.run`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.make: Any = None
        self.load: Any = None
        self.options: Any = None
        patch.setattr(server, "run", self)

    def __call__(self, make: Any, load: Any, options: ServerOptions, *, say: Any, when_ready: Any) -> int:
        self.make, self.load, self.options, self.when_ready = make, load, options, when_ready
        return 0

    @property
    def settings(self) -> ServeSettings:
        settings: ServeSettings = self.make().settings
        return settings


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    for option in OPTIONS.values():
        for name in [option.envvar] if isinstance(option.envvar, str) else option.envvar:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(cli.VARIABLE, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(logs, "configure", lambda form, *, text: None)
    return Run(monkeypatch)


def test_every_setting_has_an_option_with_its_help_and_default(run: Run, command: Command) -> None:
    for each in (*fields(ServerOptions), *fields(ServeSettings)):
        if each.name not in cli.NOT_OPTIONS:
            assert OPTIONS[each.name].help.startswith(each.metadata["help"][:40]), each.name
    assert command("serve").returncode == 0
    assert (run.options, run.settings) == (ServerOptions(), ServeSettings())


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_is_an_environment_variable(name: str) -> None:
    option = OPTIONS[name]
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar
    assert variables[0] == f"SPANQA_{max(option.opts, key=len).removeprefix('--').replace('-', '_').upper()}"


def test_the_environment_sets_options_and_the_command_line_wins(
    run: Run, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "PORT": "9001", "WORKERS": "2", "MAX_WAIT": "1.5", "ALLOWED_HOST": "qa.example qa.lan", "LOG_TEXT": "1",
        "CORS_ORIGIN": "https://example.org", "METRICS_PORT": "9090", "MODEL": "elsewhere", "UDS": "/run/qa.sock",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"SPANQA_{name}", value)
    assert command("serve", "--port", "9002").returncode == 0
    assert run.options == ServerOptions(port=9002, workers=2, metrics_port=9090, uds=Path("/run/qa.sock"))
    settings = run.settings
    assert (settings.max_wait, settings.log_text, settings.open_metrics) == (1.5, True, False)
    assert (settings.hosts, settings.cors_origins) == (("qa.example", "qa.lan"), ("https://example.org",))
    assert run.load.keywords["model"] == "elsewhere"
    assert run.load.keywords["threads"] >= 1


@pytest.mark.parametrize(
    ("variables", "port"),
    [
        ({"AIP_HTTP_PORT": "8080"}, 8080),
        ({"SPANQA_PORT": "tcp://10.0.0.1:8000"}, 8000),  # Kubernetes, where a service is called spanqa
        ({"SPANQA_PORT": "tcp://10.0.0.1:8000", "AIP_HTTP_PORT": "8080"}, 8080),
    ],
)
def test_platforms_set_the_port(
    variables: dict[str, str], port: int, run: Run, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert command("serve").returncode == 0
    assert run.options.port == port


def test_a_port_that_is_no_number_is_named(run: Run, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANQA_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("AIP_HTTP_PORT", "http")
    done = command("serve")
    assert done.returncode == 2
    assert "'http' is not a number" in done.stderr


def test_packages_that_are_missing_are_listed(run: Run, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    says = (
        "Serving needs fastapi, uvicorn, httptools, prometheus_client and swagger_ui_bundle, which are not installed."
    )
    assert command("serve").stderr == f"spanqa: {says} Install with: pip install 'spanqa[serve]'\n"


def test_a_port_that_is_no_number_is_wrong_usage(run: Run, command: Command) -> None:
    assert command("serve", "--port", "http").returncode == 2


def test_a_server_that_others_reach_without_a_key_warns(run: Run, command: Command, tmp_path: Path) -> None:
    warned = command("serve", "--host", "0.0.0.0").stderr
    assert (
        warned == "spanqa: Warning: everyone who can reach 0.0.0.0 may ask. Give --key-file, or listen on 127.0.0.1.\n"
    )
    keys = tmp_path / "keys"
    keys.write_text("# of the team\n0123456789abcdef0123\n")
    keys.chmod(0o600)
    assert command("serve", "--host", "0.0.0.0", "--key-file", keys).stderr == ""
    assert len(run.settings.keys) == 1
    assert command("serve").stderr == ""


def test_keys_come_from_the_environment_too(run: Run, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.VARIABLE, "0123456789abcdef0123,0123456789abcdef4567")
    assert command("serve").returncode == 0
    assert len(run.settings.keys) == 2


def test_a_file_without_a_key_is_refused(run: Run, command: Command, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    (tmp_path / "keys").chmod(0o600)
    done = command("serve", "--key-file", tmp_path / "keys")
    assert done.returncode == 1 and "holds no key" in done.stderr
    assert command("serve", "--key-file", tmp_path / "nowhere").returncode == 1


def test_the_server_explains_and_has_a_name(run: Run, command: Command) -> None:
    from spanqa.explain.attribute import attribute

    assert command("serve", "--name", "harbour").returncode == 0
    service = run.make()
    assert (service.explain, service.name) == (attribute, "harbour")


def test_open_opens_the_page_when_it_is_ready(run: Run, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    import webbrowser

    opened, done = [], threading.Event()
    monkeypatch.setattr(webbrowser, "open", lambda url: (opened.append(url), done.set()))
    assert command("serve", "--open").returncode == 0
    run.when_ready("http://127.0.0.1:8000")
    assert done.wait(30) and opened == ["http://127.0.0.1:8000"]


def test_each_worker_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert cli._share_cores("openvino", 4) == 1
    assert cli._share_cores("auto", 2) == 3
    assert cli._share_cores("numpy", 2) is None


def test_what_cannot_be_served_is_said_in_one_line(run: Run, command: Command) -> None:
    done = command("serve", "--max-body", "0")
    assert (done.returncode, done.stderr) == (1, "spanqa: max_body is 0; expected at least 1.\n")


def test_json_has_what_is_said_in_the_log(run: Run, command: Command, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "spanqa.serve"):
        assert command("serve", "--host", "0.0.0.0", "--log-format", "json").stderr == ""
    assert caplog.messages == [
        "Warning: everyone who can reach 0.0.0.0 may ask. Give --key-file, or listen on 127.0.0.1."
    ]
    assert caplog.records[0].levelname == "WARNING"
