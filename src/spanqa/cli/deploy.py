"""`spanqa deploy`: a folder that a platform takes as it is."""

import json
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from spanqa.cli import options
from spanqa.deploy.target import NAMES, DeploySettings
from spanqa.errors import InputError


def deploy(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=f"{', '.join(NAMES)}.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to create; with --verify, it may exist.")],
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    verify_key: options.VerifyKey = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the folder as far as that is possible without the platform.")
    ] = False,
    as_json: options.Json = False,
    **values: Any,
) -> None:
    """Write a folder that a platform takes as it is: model, spanqa, settings, and a README with the commands.

    Nothing is sent anywhere. With --verify, a folder that exists is checked, and a new one appears only if it passes.
    """
    from spanqa.deploy.folder import verify_folder, write_folder
    from spanqa.extras import require
    from spanqa.signing import as_keys

    if target not in NAMES:
        raise typer.BadParameter(f"{target!r} is not one of {', '.join(NAMES)}", param_hint="TARGET")
    require("deploy")
    from spanqa.deploy.targets import TARGETS

    chosen = TARGETS[target]
    existed = verify and out.is_dir()
    settings = DeploySettings(**values)
    if existed:
        if (model, revision, verify_key or [], settings) != ("spanqa-mini", None, [], DeploySettings()):
            raise InputError(
                f"{str(out)!r} exists, so it is only checked; a model and settings are for a new folder. Leave them out, or choose a new path."
            )
        lines = verify_folder(out, chosen)
    else:
        lines = write_folder(
            chosen, model, out, settings, revision=revision, verify_keys=as_keys(verify_key), verify=verify
        )
    if as_json:
        typer.echo(json.dumps({"target": target, "out": str(out), "made": not existed, "checked": lines}))
        return
    for line in lines:
        typer.echo(f"  {line}")
    typer.echo(f"{out}: passes" if existed else f"{out}: made. Go on with {out / 'README.md'}.")


def _with_settings(verb: Callable[..., None]) -> Callable[..., None]:
    """Make the fields of `DeploySettings` options of the command."""
    hints = get_type_hints(DeploySettings)
    given = [each for each in signature(verb).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    made = [
        Parameter(
            each.name,
            Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=Annotated[
                hints[each.name], typer.Option(help=each.metadata["help"], show_default=bool(each.default))
            ],
        )
        for each in fields(DeploySettings)
    ]
    verb.__signature__ = signature(verb).replace(parameters=[*given, *made])  # type: ignore[attr-defined]
    return verb


deploy = _with_settings(deploy)
