"""`spanqa sign` and `spanqa verify`: signatures of model folders."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from spanqa.cli import options

PASSWORD = "SPANQA_KEY_PASSWORD"


def sign(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a model.")],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"Private key in PEM. Its password, if it has one, is in {PASSWORD} or asked for."
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate of the key, in PEM.", show_default=False)
    ] = None,
    chain: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A certificate between it and the root; can be given several times."),
    ] = None,
    sigstore: Annotated[
        bool, typer.Option("--sigstore", help="Sign through Sigstore, without a key; needs a network.")
    ] = False,
) -> None:
    """Sign all files of a model folder: writes model.sig there.

    Make a key with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub
    """
    from spanqa.signing import SIGNATURE, Signer
    from spanqa.signing import sign as sign_folder

    if (key is None) is not sigstore:
        raise typer.BadParameter("give this or --sigstore", param_hint="--key")
    if key is None and (certificate or chain):
        raise typer.BadParameter("is the certificate of a key: give --key, too", param_hint="--certificate")
    names = sign_folder(folder, Signer(key, _password(key), certificate, tuple(chain or ())))
    typer.echo(f"{folder / SIGNATURE}: {len(names)} files signed")


def _password(key: Path | None) -> bytes | None:
    """Return the password of a key; None where it has none."""
    try:
        encrypted = key is not None and b"ENCRYPTED" in key.read_bytes()
    except OSError:  # told where the key is used
        return None
    if not encrypted:
        return None
    given = os.environ.get(PASSWORD)
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        given = typer.prompt("Password of the key", hide_input=True, err=True)
    return None if given is None else given.encode()


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or a Hugging Face hub id.")],
    verify_key: options.VerifyKey = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """Verify that a model is signed with one of these keys, and that no file of it was changed, added or left out."""
    from spanqa.checkpoint import opened_checkpoint
    from spanqa.signing import as_keys

    keys = as_keys(verify_key)
    if not keys:
        raise typer.BadParameter("say whose signature it should be", param_hint="--verify-key")
    with opened_checkpoint(model, revision, keys) as checkpoint:
        sha256 = checkpoint.weights.sha256
    if as_json:
        typer.echo(json.dumps({"model": model, "verified": True, "weights_sha256": sha256}))
        return
    typer.echo(f"{model}: the signature holds (weights {sha256[:12]})")
