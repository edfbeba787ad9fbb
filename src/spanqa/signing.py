"""Signed model folders: who made them, and that no file was changed, added or left out since.

    sign             writes model.sig, the hashes of all files, signed
    verified_copy    the files of a signed folder as they were when they were verified: what is loaded is what was verified

A signature is one of OpenSSF Model Signing (a Sigstore bundle with an in-toto statement): made by an elliptic-curve key, by a
certificate, or through Sigstore by an identity. Hidden files and folders at the top, which git and the hub leave there, are not signed.
Source: https://github.com/ossf/model-signing-spec; the package model-signing reads and writes it.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanqa.errors import InputError, SignatureError
from spanqa.extras import require
from spanqa.files import write_bytes

SIGNATURE = "model.sig"

VerifyKey = str | os.PathLike[str]
"""What a signature is verified with: a file with a public key, or with the certificates that are trusted, in PEM; or
"sigstore:IDENTITY,ISSUER", for example "sigstore:me@example.org,https://accounts.google.com"."""

SIGSTORE = "sigstore:"


@dataclass(frozen=True, slots=True)
class Signer:
    """What signs: a private key, in PEM, with its password if it has one; and its certificate, with those between it and the root.

    Without a key, Sigstore signs for the identity of the environment, or of the person at the browser: that needs a network.
    """

    private_key: Path | None = None
    password: bytes | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()


def as_keys(keys: VerifyKey | Sequence[VerifyKey] | None) -> tuple[str, ...]:
    """Return the keys that were given; files are named in full, so that they are found from another folder."""
    given = [] if keys is None else [keys] if isinstance(keys, (str, os.PathLike)) else list(keys)
    names = [os.fspath(each) for each in given]
    return tuple(name if name.startswith(SIGSTORE) else str(Path(name).expanduser().absolute()) for name in names)


def sign(folder: Path, signer: Signer) -> list[str]:
    """Sign all files of a model folder, and return their names. The signature is replaced as a whole.

    Raises:
        InputError: the folder, the key or the certificate cannot be used.
        NotInstalledError: the packages are missing.
    """
    require("sign")
    from model_signing import hashing, signing

    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is no folder. Give the folder of a model.")
    names = _files(folder)
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(f"{str(folder)!r} holds no weights (*.safetensors). Give the folder of a model.")
    config = signing.Config()
    with _key_errors(signer.private_key):
        if signer.private_key is None:
            config.use_sigstore_signer()
        elif signer.certificate is None:
            config.use_elliptic_key_signer(private_key=signer.private_key, password=signer.password)
        else:
            config.use_certificate_signer(
                private_key=signer.private_key,
                signing_certificate=signer.certificate,
                certificate_chain=signer.chain or (signer.certificate,),  # it cannot be empty
            )
    with tempfile.TemporaryDirectory(prefix="spanqa-sign-") as made:
        hidden = [path for path in folder.iterdir() if path.name.startswith(".")]
        hashes = hashing.Config().use_file_serialization(allow_symlinks=True)
        hashes.set_ignored_paths(paths=[*hidden, folder / SIGNATURE], ignore_git_paths=False)
        try:
            config.set_hashing_config(hashes).sign(folder, Path(made, SIGNATURE))
        except (ValueError, OSError) as error:  # a FIFO, a link to nothing, a file that cannot be read
            raise InputError(f"{str(folder)!r} cannot be signed: {error}") from None
        data = Path(made, SIGNATURE).read_bytes()
    try:
        write_bytes(folder / SIGNATURE, data)
    except OSError as error:
        raise InputError(f"{str(folder / SIGNATURE)!r} cannot be written: {error.strerror}.") from None
    return names


@contextmanager
def verified_copy(folder: Path, keys: Sequence[str], *, only: Sequence[str] | None = None) -> Iterator[Path]:
    """Give a copy of a signed folder that nobody else can change, verified with one of the keys; it is gone after the `with` block.

    `only`: patterns of the files at the top that are looked at beside the signed ones, where the folder is a cache of parts of the
    model; all if None. The copy has no signature.

    Raises:
        SignatureError: there is no signature, none of the keys made it, or files were changed, added or left out.
        InputError: a key cannot be read.
        NotInstalledError: the packages are missing.
    """
    require("sign")
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise SignatureError(
            f"{str(folder)!r} is not signed: it has no {SIGNATURE}. Sign it with `spanqa sign`, or load it without a key."
        )
    with tempfile.TemporaryDirectory(prefix="spanqa-verified-", ignore_cleanup_errors=True) as private:
        copy = Path(private, "model")
        copy.mkdir()
        sealed = Path(private, SIGNATURE)
        shutil.copyfile(signature, sealed)
        names = _files(folder)
        if only is not None:
            signed = signed_files(sealed.read_bytes())
            names = [name for name in names if name in signed or any(Path(name).match(each) for each in only)]
        for name in names:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(folder / name, copy / name)
            except OSError as error:  # also a FIFO, which would be read for ever
                raise SignatureError(
                    f"{str(folder / name)!r} cannot be read, so it cannot be verified: {error.strerror or error}."
                ) from None
        _verify(copy, sealed, keys, folder)
        covered = {
            re.sub(r":\d+:\d+$", "", name) for name in signed_files(sealed.read_bytes())
        }  # of a shard: FILE:FROM:TO
        if left_out := sorted(set(_files(copy)) - covered):  # other programs can be told so
            raise SignatureError(
                f"The signature of {str(folder)!r} leaves out {', '.join(left_out)}, so anybody could have changed them. Remove them, or sign "
                "all files with `spanqa sign`."
            )
        yield copy


def signed_files(signature: bytes) -> dict[str, str]:
    """Return the files that a signature speaks of, with their hashes, before it was verified; {} if it cannot be read."""
    try:
        payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
        return {str(each["name"]): str(each["digest"]) for each in payload["predicate"]["resources"]}
    except (ValueError, KeyError, TypeError):
        return {}


def _files(folder: Path) -> list[str]:
    """Return the names of all files of a folder but the signature and what is hidden at the top.

    Raises:
        SignatureError: there is a link to a folder.
    """
    names = []
    for root, folders, files in os.walk(folder):
        here = Path(root)
        if here == folder:
            folders[:] = [name for name in folders if not name.startswith(".")]
            files = [name for name in files if not name.startswith(".") and name != SIGNATURE]
        for name in folders:
            if (here / name).is_symlink():
                raise SignatureError(
                    f"{str(here / name)!r} is a link to a folder, which no signature covers. Remove it."
                )
        names += [(here / name).relative_to(folder).as_posix() for name in files]
    return sorted(names)


def _verify(copy: Path, signature: Path, keys: Sequence[str], folder: Path) -> None:
    reasons = []
    for key in keys:
        verifier = _verifier(key)
        try:
            verifier.verify(copy, signature)
            return
        except Exception as error:
            reasons.append((key, _reason(error, copy, signature)))
    changed = [reason for _, reason in reasons if reason.startswith("its files")]
    tried = changed[0] if changed else "; ".join(f"{key}: {reason}" for key, reason in reasons)
    raise SignatureError(
        f"The signature of {str(folder)!r} does not hold: {tried}. Do not use this model; get it again from where you trust it."
    )


def _verifier(key: str) -> Any:
    from model_signing import verifying

    config = verifying.Config()
    if key.startswith(SIGSTORE):
        identity, _, issuer = key.removeprefix(SIGSTORE).partition(",")
        if not identity or not issuer:
            raise InputError(f"{key!r} is no identity. Expected sigstore:IDENTITY,ISSUER.")
        return config.use_sigstore_verifier(identity=identity, oidc_issuer=issuer)
    path = Path(key)
    with _key_errors(path):
        if b"BEGIN CERTIFICATE" in path.read_bytes():
            return config.use_certificate_verifier(certificate_chain=[path])
        return config.use_elliptic_key_verifier(public_key=path)


@contextmanager
def _key_errors(path: Path | None) -> Iterator[None]:
    """Say what is wrong with a key.

    Raises:
        InputError: it cannot be read, or is of a kind that is not supported.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"The key {str(path)!r} cannot be read: {error.strerror}.") from None
    except TypeError:
        raise InputError(f"The key {str(path)!r} needs its password, or has none.") from None
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"The key {str(path)!r} cannot be used ({str(error).partition('. ')[0]:.100}). Expected PEM, on the curve P-256, P-384 or P-521. "
            "Make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        ) from None


def _reason(error: Exception, copy: Path, signature: Path) -> str:
    text = str(error)
    if text.startswith("Signature mismatch"):
        return f"its files are not those that were signed ({_differences(copy, signature.read_bytes())})"
    if text.startswith("Key mismatch"):
        return "it was made by another key"
    if isinstance(error, (KeyError, json.JSONDecodeError, UnicodeDecodeError)):
        return "it is damaged"
    return text.partition("\n")[0][:200] or type(error).__name__


def _differences(copy: Path, signature: bytes) -> str:
    """Name the files that differ from a signature that was made by the right key."""
    signed, there = signed_files(signature), set(_files(copy))
    groups = {
        "added": there - set(signed),
        "missing": set(signed) - there,
        "changed": {
            name
            for name in there & set(signed)
            if hashlib.sha256((copy / name).read_bytes()).hexdigest() != signed[name]
        },
    }
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in groups.items() if names)
