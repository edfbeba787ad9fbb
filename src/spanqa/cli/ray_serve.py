"""`spanqa serve --ray`: the same server as an application of Ray Serve, and that application for Ray's own config files.

applications:
  - name: spanqa
    import_path: spanqa.cli.ray_serve:application
    args:                                           # the fields of spanqa.scale.ray_config
      models: [{name: mini, max_replicas: 4}]
"""

import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from pydantic import ConfigDict, ValidationError, create_model
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from spanqa.checkpoint import find
from spanqa.cli import options
from spanqa.cli.serve import NOT_OPTIONS, make_service, open_browser, refuse, speaker
from spanqa.errors import BackendError, InputError, ServerError
from spanqa.extras import require
from spanqa.scale.ray_config import RayConfig, RayModel, explained, ray_config, read_ray_config
from spanqa.scale.ray_fleet import address_of, device_of, joined, last_line, on_every_machine, threads_of
from spanqa.scale.ray_serve import Served, ray_application
from spanqa.serve.guard import PROBES, Guard
from spanqa.serve.keys import read_keys
from spanqa.serve.listening import ServerOptions, listening, urls
from spanqa.serve.logs import LogFormat, configure
from spanqa.serve.server import signals, warm_up
from spanqa.serve.settings import ServeSettings
from spanqa.signing import as_keys

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "spanqa"
"""The application's name in Ray Serve."""

OF_MODEL = (
    "model", "revision", "verify_key", "backend", "device", "dtype", "threads", "max_seq_length", "overlap", "max_answer_tokens",
)  # fmt: skip
"""Options that are fields of `RayModel` and arguments of `load_reader`."""

OF_RAY = "the proxies of Ray Serve listen"
NOT_WITH_RAY = {
    "uds": f"{OF_RAY}, on a port",
    "workers": "with --ray, replicas are set in --ray-config",
    "metrics_host": f"{OF_RAY}, on one address",
    "metrics_port": f"{OF_RAY}, on one address",
    "root_path": f"{OF_RAY}, and show the server at /",
    "forwarded_allow_ips": f"{OF_RAY}, and trust nobody",
    "drain_delay": "with --ray, the application is taken down at once; requests in work are finished",
    "max_connections": f"{OF_RAY}, and set no limit",
}
"""Options of a server that listens itself, and why they have no meaning."""

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_TO_END = 30.0
"""So long may Ray take to end, besides what requests in work take."""


def application(args: dict[str, Any]) -> "Application":
    """Return the application that a config file of Ray asks for, with the fields of `RayConfig` as `args`.

    Raises:
        InputError: a field is not known, missing, or has a value that cannot be used.
    """
    config = _on_every_machine(ray_config(args, "args of spanqa.cli.ray_serve:application"))
    return _application(config, settings_of(config))


def _application(config: RayConfig, settings: ServeSettings) -> "Application":
    of_replica = replace(settings, rate_limit=None)  # the ingress counts
    makes = {each.name: partial(_make, each, of_replica, config.log_format) for each in config.models}
    front = partial(_front, settings, config.log_format)
    # The replica says first that the time is over: its message is the better one, and it is counted.
    return ray_application(config, makes, front, seconds=settings.deadline + 1, probes=PROBES)


def _on_every_machine(config: RayConfig) -> RayConfig:
    """Return a configuration whose models are loaded from any folder, and on a GPU where one is set aside.

    Raises:
        InputError: a GPU is wanted, and none set aside.
    """
    models = [
        each.model_copy(
            update={
                "model": on_every_machine(each.model),
                "verify_key": as_keys(each.verify_key),
                "device": device_of(each.device, each.num_gpus, f"num_gpus: 1 for the model {each.name!r}"),
            }
        )
        for each in config.models
    ]
    return config.model_copy(update={"models": tuple(models)})


def _make(model: RayModel, settings: ServeSettings, log_format: LogFormat) -> Served:
    """Return serve's app with its model loaded; called in each replica."""
    from spanqa.serve.app import make_app

    service = make_service(settings, model.name, log_format)
    app = make_app(service)
    for prepare in service.when_loading:
        prepare()
    of_model = {name: getattr(model, name) for name in OF_MODEL} | {"verify_key": list(model.verify_key) or None}
    if model.threads is None and not model.num_gpus:
        of_model["threads"] = threads_of(model.backend, model.num_cpus)
    reader = options.load_reader(**of_model)
    service.start(reader, warm_up(reader))
    return Served(app, service.close)


def _front(settings: ServeSettings, log_format: LogFormat, app: ASGIApp) -> ASGIApp:
    """Return an application with the guard before it; called in each ingress."""
    configure(log_format, text=settings.log_text)
    return Guard(app, settings)


def settings_of(config: RayConfig) -> ServeSettings:
    """Return the settings that a configuration gives, with the keys of its file and of the environment.

    Raises:
        InputError: a setting is not known, or has a value that cannot be used.
    """
    known: dict[str, Any] = {each.name: (each.type, each.default) for each in fields(ServeSettings)}
    model = create_model("Settings", __config__=ConfigDict(extra="forbid", strict=True), **known)
    try:
        given = model.model_validate_json(json.dumps(config.settings)).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise InputError(f"The settings cannot be used. {explained(error, {1: list(known)}, 'settings')}") from None
    keys = (*given.pop("keys", ()), *read_keys(config.key_file))
    settings = ServeSettings(**given, keys=tuple(dict.fromkeys(keys)))
    Guard(PlainTextResponse(), settings)  # it says now what cannot be used, and not in every ingress
    return settings


def config_of(given: Mapping[str, Any]) -> RayConfig:
    """Return the configuration that the options of the command line are: one model.

    Raises:
        InputError: the name of the model cannot be one on Ray.
    """
    name = given["name"] or re.split(r"[/\\]", given["model"].rstrip("/\\"))[-1]
    settings = ServeSettings(
        **{each.name: given[each.name] for each in fields(ServeSettings) if each.name not in NOT_OPTIONS},
        keys=read_keys(given["key_file"]),
        hosts=tuple(given["allowed_host"] or ()),
        cors_origins=tuple(given["cors_origin"] or ()),
    )
    model = {"name": name, **{each: given[each] for each in OF_MODEL}, "verify_key": given["verify_key"] or []}
    values = {"settings": asdict(settings), "log_format": given["log_format"], "drain_timeout": given["drain_timeout"]}
    return ray_config({"models": [model], **values}, "What the options say")


def serve_on_ray(given: Mapping[str, Any]) -> None:
    """Serve until a signal says to end; `given` are the options of `spanqa serve`, by name.

    Raises:
        InputError: an option or a field of the config file cannot be used, or the address cannot be had.
        CheckpointError: there is no such model.
        BackendError: Ray cannot be reached or started.
        ServerError: Ray cannot run the application.
        NotInstalledError: Ray is not installed.
    """
    for name, why in NOT_WITH_RAY.items():
        refuse(given, [name], why)
    if given["ray_config"] is None:
        config = config_of(given)
    else:
        others = ("name", "key_file", "allowed_host", "cors_origin", "log_format", "drain_timeout")
        limits = sorted({each.name for each in fields(ServeSettings)} - set(NOT_OPTIONS))
        refuse(given, (*OF_MODEL, *others, *limits), "give it in the file of --ray-config")
        config = read_ray_config(given["ray_config"])
    config = _on_every_machine(config)
    listen = ServerOptions(**{each.name: given[each.name] for each in fields(ServerOptions)})
    if listen.port == 0:
        raise typer.BadParameter("Ray Serve needs a port of its own; give one", param_hint="--port")
    settings = settings_of(config)
    require("ray")
    configure(config.log_format, text=settings.log_text)
    say = speaker(config.log_format, listen, settings)
    when_ready = open_browser if given["open_page"] else lambda url: None
    address = address_of(given["address"])
    url = f"http://{f'[{listen.host}]' if ':' in listen.host else listen.host}:{listen.port}"
    if not address:
        with listening(listen) as sockets:  # only to see that it can be had: Ray would try for long
            url = urls(sockets)[0]
        for model in config.models:
            find(model.model, model.revision)  # of a cluster, another node may have it
    _run(config, settings, listen, address, url, say, when_ready)


def _run(
    config: RayConfig,
    settings: ServeSettings,
    listen: ServerOptions,
    address: str | None,
    url: str,
    say: Callable[[str], None],
    when_ready: Callable[[str], None],
) -> None:
    began = time.monotonic()
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
    with joined(address, "serve") as ours:
        from ray import serve

        say(f"Ray is {'started' if ours else 'joined'}; the application is being started.")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        _check_room(config, say, alone=ours)
        listens = f"Listening on {url}{'' if ours else ' of every node that has replicas'}."
        there = serve.status()
        if there.proxies:
            listens = "Listening where Ray Serve listens on this cluster: it ran already, and --host, --port and --keep-alive change nothing."
        if NAME in there.applications:
            say(f"Warning: the application {NAME!r} runs there already, and is replaced.")
        application = _application(config, settings)
        http = {"host": listen.host, "port": listen.port, "keep_alive_timeout_s": int(listen.keep_alive)}
        try:
            try:
                serve.start(proxy_location="EveryNode", http_options=http, logging_config={"enable_access_log": False})
                serve.run(application, name=NAME, route_prefix="/")
            except Exception as error:  # of many types
                raise ServerError(f"Ray could not start the application: {last_line(_failure() or error)}.") from error
            ended = threading.Event()
            with signals(lambda delay: ended.set(), 0.0, lambda number: os._exit(128 + number)):
                names = ", ".join(each.name for each in config.models)
                say(listens)
                say(f"Ready in {time.monotonic() - began:.1f} s: {names} on Ray.")
                when_ready(url)
                while not ended.wait(SECONDS_BETWEEN_LOOKS):
                    _check_it_runs()
            say("Ending: requests in work are finished.")
        finally:
            # A Ray whose processes got the signal too never says that it is done.
            watch = threading.Timer(config.drain_timeout + SECONDS_TO_END, os._exit, [1])
            watch.daemon = True
            watch.start()
            _take_down(config.drain_timeout + SECONDS_TO_END / 2)


def _take_down(seconds: float) -> None:
    """Delete the application, and wait at most so long for the requests in work; serve.delete itself waits 60 seconds, and fails then."""
    from ray import serve

    with suppress(Exception):  # Ray or the application is gone already
        serve.delete(NAME, _blocking=False)
        until = time.monotonic() + seconds
        while NAME in serve.status().applications and time.monotonic() < until:
            time.sleep(0.2)


def _check_room(config: RayConfig, say: Callable[[str], None], *, alone: bool) -> None:
    """Check that Ray has enough for the first replicas: it would wait without a word, until somebody adds a machine.

    Raises:
        BackendError: it has not, and nobody will, since it is `alone`.
    """
    import ray

    there = ray.cluster_resources()
    for what, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needed = sum(each.min_replicas * getattr(each, field) for each in config.models)
        if needed <= there.get(what, 0):
            continue
        says = f"The first replicas of all models need {needed:g} {what}, and Ray has {there.get(what, 0):g}."
        if alone:
            raise BackendError(f"{says} Lower min_replicas or {field}, or join a Ray of more machines: --address.")
        say(f"Warning: {says} It waits for more.")


def _check_it_runs() -> None:
    """Check that the application is still there.

    Raises:
        ServerError: it was taken down, or failed.
    """
    from ray import serve

    try:
        found = serve.status().applications.get(NAME)
    except Exception as error:  # of many types
        raise ServerError(f"Ray Serve does not answer any more: {last_line(error)}.") from error
    if found is None:
        raise ServerError(f"The application {NAME!r} was taken down by somebody else.")
    if found.status == "DEPLOY_FAILED":
        raise ServerError(f"The application {NAME!r} failed: {found.message}")


def _failure() -> str:
    """Return what Ray says of replicas that could not be made, or "" where it says nothing."""
    from ray import serve

    found = None
    with suppress(Exception):  # Ray is gone
        found = serve.status().applications.get(NAME)
    says = [] if found is None else [each.message for each in found.deployments.values() if "rror" in each.message]
    return says[0] if says else ""
