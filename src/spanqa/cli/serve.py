"""`spanqa serve`: answers over HTTP, and a page to try it.

Most options are the fields of `ServeSettings` and `ServerOptions`; every option is also an environment variable, SPANQA_ and its
name.
"""

import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from typer.models import OptionInfo

from spanqa.cli import options
from spanqa.serve.keys import VARIABLE, read_keys
from spanqa.serve.listening import ServerOptions
from spanqa.serve.settings import ServeSettings

if TYPE_CHECKING:
    from spanqa.serve.service import Service

NOT_OPTIONS = ("keys", "hosts", "cors_origins", "open_metrics")
"""Settings that are not options of the same name. Keys are not on the command line, which every user of a machine can read."""


def _port(given: str | int) -> int:
    """Return the port; Kubernetes sets SPANQA_PORT to tcp://... where a service is called spanqa, which says nothing to us."""
    if str(given).startswith("tcp://"):
        given = os.environ.get("AIP_HTTP_PORT", "8000")
    try:
        return int(given)
    except ValueError:
        raise typer.BadParameter(f"{given!r} is not a number") from None


SPECIAL: dict[str, dict[str, Any]] = {
    "port": {"parser": _port, "metavar": "INTEGER", "envvar": ["SPANQA_PORT", "AIP_HTTP_PORT"]},
}
"""What options need beyond what their field says."""


def serve(
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    verify_key: options.VerifyKey = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of each worker. Default: all cores, shared by the workers.", show_default=False),
    ] = None,
    max_seq_length: options.MaxSeqLength = None,
    overlap: options.Overlap = None,
    max_answer_tokens: options.MaxAnswerTokens = None,
    name: Annotated[str, typer.Option(help="Name under which clients see the model. Default: its own.")] = "",
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel="Who may ask",
            help=f"File with API keys, one a line. The variable {VARIABLE} may hold them instead. Default: everyone may ask.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="", rich_help_panel="Who may ask")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="", rich_help_panel="Who may ask")
    ] = None,
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(help="How the log is written, on standard error.", rich_help_panel="Log"),
    ] = "text",
    open_page: Annotated[
        bool,
        typer.Option(
            "--open",
            envvar="SPANQA_OPEN",
            help="Open the page in the browser when ready.",
            rich_help_panel="Addresses and processes",
        ),
    ] = False,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Serve on Ray: replicas on all its machines, as many as are needed.", rich_help_panel="Ray"
        ),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="The Ray cluster to join, such as 10.0.0.1:6379 or auto. Default: what RAY_ADDRESS says, or a Ray of its own.",
            rich_help_panel="Ray",
        ),
    ] = None,
    ray_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML or JSON: models, replicas, settings. Default: what the options say.",
            rich_help_panel="Ray",
        ),
    ] = None,
    **values: Any,
) -> None:
    """Answer questions over HTTP, and show a page to try it.

    It listens on this machine only, unless --host says otherwise. TLS ends at a proxy.
    """
    given = locals() | values
    from spanqa.extras import require

    require("serve")
    if ray:
        from spanqa.cli.ray_serve import serve_on_ray

        serve_on_ray(given)
        return
    refuse(given, ("address", "ray_config"), "it is for --ray")
    from spanqa.serve.logs import configure
    from spanqa.serve.server import run

    configure(log_format, text=values["log_text"])
    listen = ServerOptions(**{each.name: values.pop(each.name) for each in fields(ServerOptions)})
    settings = ServeSettings(
        **values,
        keys=read_keys(key_file),
        hosts=tuple(allowed_host or ()),
        cors_origins=tuple(cors_origin or ()),
        open_metrics=listen.metrics_port is None,
    )
    if threads is None and listen.workers > 1:
        threads = _share_cores(backend, listen.workers)
    load = partial(
        options.load_reader,
        model=model,
        revision=revision,
        verify_key=verify_key,
        backend=backend,
        device=device,
        dtype=dtype,
        threads=threads,
        max_seq_length=max_seq_length,
        overlap=overlap,
        max_answer_tokens=max_answer_tokens,
    )
    say = speaker(log_format, listen, settings)
    make = partial(make_service, settings, name, log_format)
    code = run(make, load, listen, say=say, when_ready=open_browser if open_page else lambda url: None)
    if code:
        raise typer.Exit(code)


def refuse(given: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    """Refuse options that were given, and have no meaning now."""
    for name in names:
        if (given[name] or None) != (inspect.signature(serve).parameters[name].default or None):
            raise typer.BadParameter(why, param_hint=f"--{name.replace('_', '-')}")


def speaker(log_format: str, listen: ServerOptions, settings: ServeSettings) -> Callable[[str], None]:
    """Return what shows lines to people, after a warning where everyone may ask."""
    log = logging.getLogger("spanqa.serve")
    say, warn = (log.info, log.warning) if log_format == "json" else (_say, _say)
    if not listen.local and not settings.keys:
        warn(f"Warning: everyone who can reach {listen.host} may ask. Give --key-file, or listen on 127.0.0.1.")
    return say


def make_service(settings: ServeSettings, name: str, log_format: Literal["text", "json"]) -> "Service":
    """Return what a process serves; called once in each of them."""
    from spanqa.explain.attribute import attribute
    from spanqa.serve.logs import configure
    from spanqa.serve.service import Service

    configure(log_format, text=settings.log_text)
    return Service(settings, explain=attribute, name=name)


def _share_cores(backend: str, workers: int) -> int | None:
    """Return the threads of each worker; NumPy's BLAS reads a variable instead, and XLA takes what it wants."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    return None if backend in ("numpy", "jax") else share


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(f"spanqa: {line}", markup=False)


def open_browser(url: str) -> None:
    """Open the page."""
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _with_fields(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command an option for each setting, and each option its environment variable."""
    signature = inspect.signature(command)
    parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    settings = [each for each in fields(ServeSettings) if each.name not in NOT_OPTIONS]
    helps = {each.name: each.metadata["help"] for each in fields(ServeSettings)}
    of_lists = {"allowed_host": helps["hosts"], "cors_origin": helps["cors_origins"]}
    panels = [(each, "Addresses and processes") for each in fields(ServerOptions)]
    for each, panel in (*panels, *((each, "Limits") for each in settings)):
        option = typer.Option(
            help=each.metadata["help"],
            show_default=each.default not in (None, "", False),
            rich_help_panel=each.metadata["panel"] or panel,
        )
        parameters.append(
            inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=Annotated[each.type, option]
            )
        )
    done = []
    for parameter in parameters:
        kind, option = get_args(parameter.annotation)
        option = copy(option)
        assert isinstance(option, OptionInfo)
        option.envvar = option.envvar or f"SPANQA_{parameter.name.upper()}"
        option.help = option.help or of_lists[parameter.name]
        option.rich_help_panel = option.rich_help_panel or "Model"
        for attribute, value in SPECIAL.get(parameter.name, {}).items():
            setattr(option, attribute, value)
        done.append(parameter.replace(annotation=Annotated[kind, option], kind=parameter.KEYWORD_ONLY))
    command.__signature__ = signature.replace(parameters=done)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in done}
    return command


serve = _with_fields(serve)
