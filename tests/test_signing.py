"""Signed models: what is refused, and that what was verified is what is loaded."""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("model_signing")
pytest.importorskip("OpenSSL")

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from spanqa import signing
from spanqa.checkpoint import open_checkpoint, opened_checkpoint
from spanqa.errors import InputError, SignatureError
from spanqa.reader import Reader
from spanqa.signing import SIGNATURE, Signer, sign, verified_copy

Command = Callable[..., subprocess.CompletedProcess[str]]
PEM = serialization.Encoding.PEM
PASSWORD = b"open sesame"


def write_key(path: Path, private: Any, password: bytes | None = None) -> None:
    """Write a private key, and its public key as NAME.pub."""
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how))
    path.with_suffix(".pub").write_bytes(
        private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def certificate(private: Any, name: str, issuer: Any = None, by: Any = None) -> Any:
    """A certificate of a key; the root's own where there is no issuer."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject if issuer else subject)
    made = made.public_key(private.public_key()).serial_number(x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )  # fmt: skip
    signs = x509.KeyUsage(digital_signature=True, key_cert_sign=issuer is None, crl_sign=issuer is None, **usage)
    made = made.add_extension(signs, critical=True)
    key = private.public_key()
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    issuing = (by or private).public_key()
    made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing), critical=False)
    if issuer is not None:
        made = made.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return made.sign(by or private, hashes.SHA256())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write_key(folder / "own.pem", ec.generate_private_key(ec.SECP256R1()))
    write_key(folder / "other.pem", ec.generate_private_key(ec.SECP384R1()))
    write_key(folder / "locked.pem", ec.generate_private_key(ec.SECP256R1()), PASSWORD)
    write_key(folder / "edwards.pem", ed25519.Ed25519PrivateKey.generate())
    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    trusted = certificate(root, "root")
    write_key(folder / "leaf.pem", leaf)
    (folder / "leaf.crt").write_bytes(certificate(leaf, "leaf", trusted, root).public_bytes(PEM))
    (folder / "root.crt").write_bytes(trusted.public_bytes(PEM))
    stranger = ec.generate_private_key(ec.SECP256R1())
    (folder / "stranger.crt").write_bytes(certificate(stranger, "stranger").public_bytes(PEM))
    return folder


@pytest.fixture
def signed(tiny_copy: Callable[..., Path], keys: Path) -> Path:
    folder = tiny_copy("bert")
    sign(folder, Signer(keys / "own.pem"))
    return folder


def test_a_signed_model_loads_with_one_of_the_keys(signed: Path, keys: Path) -> None:
    with Reader.load(signed, verify_key=[keys / "other.pub", keys / "own.pub"], dtype="fp32") as reader:
        answer = reader.ask("who?", "anna built it", no_answer="off")
        assert reader.checkpoint.path == signed
        with pickle.loads(pickle.dumps(reader)) as again:
            assert again.ask("who?", "anna built it", no_answer="off") == answer
        (signed / "config.json").write_bytes((signed / "config.json").read_bytes() + b"\n")
        with pytest.raises(SignatureError, match=r"changed: config\.json"):
            pickle.loads(pickle.dumps(reader))


def swap(folder: Path) -> None:
    one, other = folder / "config.json", folder / "tokenizer.json"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def edit(folder: Path) -> None:
    """Give the signature the hashes of other files."""
    flip(folder)
    shutil.copytree(folder, folder.with_name("forged"))
    forged = folder.with_name("forged")
    key = folder.with_name("forger.pem")
    write_key(key, ec.generate_private_key(ec.SECP256R1()))
    sign(forged, Signer(key))
    bundle, other = (json.loads((each / SIGNATURE).read_text()) for each in (folder, forged))
    bundle["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]
    (folder / SIGNATURE).write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (flip, "changed: model.safetensors"),
        (swap, "changed: "),
        (lambda folder: (folder / "config.json").unlink(), "missing: config.json"),
        (lambda folder: (folder / "handler.py").write_text("x"), "added: handler.py"),
        (lambda folder: (folder / "vocab.txt").write_text("x"), "added: vocab.txt"),
        (lambda folder: (folder / SIGNATURE).unlink(), "is not signed"),
        (lambda folder: (folder / SIGNATURE).write_text("{}"), "it is damaged"),
        (lambda folder: (folder / SIGNATURE).write_bytes(b"\xff"), "it is damaged"),
        (edit, "does not hold"),
        (lambda folder: (folder / "more").symlink_to(folder.parent), "is a link to a folder"),
        (lambda folder: (folder / "more").symlink_to("nowhere"), "cannot be read, so it cannot be verified"),
    ],
)
def test_what_was_changed_is_refused_everywhere(
    attack: Callable[[Path], object], words: str, signed: Path, keys: Path, command: Command
) -> None:
    attack(signed)
    with pytest.raises(SignatureError, match=words):
        Reader.load(signed, verify_key=keys / "own.pub")
    key = ["--verify-key", str(keys / "own.pub")]
    rows = signed.parent / "in.jsonl"
    rows.write_text('{"question": "who?", "context": "anna"}\n')
    for verb in (
        ["verify", str(signed)],
        ["batch", str(rows), str(signed.parent / "out.jsonl"), "--model", str(signed)],
        ["ask", "who?", str(rows), "--model", str(signed)],
    ):
        done = command(*verb, *key)
        assert done.returncode == 1 and words in done.stderr, done.stderr
    assert not (signed.parent / "out.jsonl").exists()


def test_another_key_is_refused(signed: Path, keys: Path) -> None:
    with pytest.raises(SignatureError, match="it was made by another key"):
        Reader.load(signed, verify_key=keys / "other.pub")
    with pytest.raises(SignatureError, match="does not hold"):
        Reader.load(signed, verify_key=keys / "root.crt")
    for name in ("edwards.pub", "own.pem", "nothing.pub"):
        with pytest.raises(InputError, match=r"cannot be (used|read)"):
            Reader.load(signed, verify_key=keys / name)
    with pytest.raises(InputError, match="Expected sigstore:IDENTITY,ISSUER"):
        Reader.load(signed, verify_key="sigstore:me@example.org")


def test_a_file_that_is_swapped_after_it_was_verified_is_not_loaded(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in signed.iterdir()}
    verify = signing._verify

    def then_swapped(*arguments: Any) -> None:
        verify(*arguments)
        for path in signed.iterdir():
            path.write_bytes(b"swapped")

    monkeypatch.setattr(signing, "_verify", then_swapped)
    with opened_checkpoint(signed, verify_keys=[str(keys / "own.pub")]) as checkpoint:
        assert checkpoint.verified is not None
        assert {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()} == {
            name: content for name, content in before.items() if name != SIGNATURE
        }
        assert checkpoint.config == json.loads(before["config.json"])
        name = next(iter(checkpoint.weights.shapes))
        folder = checkpoint.folder
    assert not folder.exists()
    assert checkpoint.weights.read(name).size  # what was opened stays readable


def test_files_that_git_and_the_hub_leave_are_not_part_of_a_model(signed: Path, keys: Path) -> None:
    (signed / ".gitattributes").write_text("x")
    (signed / ".cache" / "huggingface").mkdir(parents=True)
    (signed / ".cache" / "huggingface" / "x.lock").write_text("")
    with verified_copy(signed, [str(keys / "own.pub")]) as copy:
        assert not list(copy.glob(".*"))
    (signed / "training").mkdir()
    (signed / "training" / "log.json").write_text("{}")
    assert "training/log.json" in sign(signed, Signer(keys / "own.pem"))
    with verified_copy(signed, [str(keys / "own.pub")]) as copy:
        assert (copy / "training" / "log.json").exists()


def test_a_snapshot_of_the_hub_may_lack_nothing_that_is_signed(signed: Path, keys: Path, tmp_path: Path) -> None:
    """The cache of the hub has links to files elsewhere, and only those that were fetched."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in signed.iterdir():
        shutil.copyfile(path, blobs / path.name)
        (snapshot / path.name).symlink_to(blobs / path.name)
    (snapshot / "pytorch_model.bin").write_text("of another program, which fetched it too")
    with Reader.load(snapshot, verify_key=keys / "own.pub", dtype="fp32") as reader:
        assert reader.checkpoint.path == snapshot
    (snapshot / "vocab.txt").write_text("x")
    with pytest.raises(SignatureError, match=r"added: vocab\.txt"):
        Reader.load(snapshot, verify_key=keys / "own.pub")


def test_keys_with_a_password_and_certificates(
    tiny_copy: Callable[..., Path], keys: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_copy("bert")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return command(*map(str, arguments))

    assert "needs its password" in run("sign", folder, "--key", keys / "locked.pem").stderr
    monkeypatch.setenv("SPANQA_KEY_PASSWORD", "wrong")
    assert "cannot be used" in run("sign", folder, "--key", keys / "locked.pem").stderr
    assert not (folder / SIGNATURE).exists()
    monkeypatch.setenv("SPANQA_KEY_PASSWORD", PASSWORD.decode())
    assert "files signed" in run("sign", folder, "--key", keys / "locked.pem").stdout
    done = run("verify", folder, "--verify-key", keys / "locked.pub", "--json")
    assert json.loads(done.stdout)["weights_sha256"] == open_checkpoint(folder).weights.sha256
    done = run("sign", folder, "--key", keys / "leaf.pem", "--certificate", keys / "leaf.crt")
    assert done.returncode == 0, done.stderr
    done = run("verify", folder, "--verify-key", keys / "root.crt")
    assert done.returncode == 0 and "the signature holds" in done.stdout, done.stderr
    assert run("verify", folder, "--verify-key", keys / "stranger.crt").returncode == 1
    for arguments in (("sign", folder), ("verify", folder), ("sign", folder, "--sigstore", "--certificate", "x")):
        assert run(*arguments).returncode == 2
    assert "is no folder" in run("sign", folder / "config.json", "--key", keys / "own.pem").stderr
    assert "holds no weights" in run("sign", keys, "--key", keys / "own.pem").stderr


def test_a_folder_that_cannot_be_written_is_named(signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(signing, "write_bytes", full)
    with pytest.raises(InputError, match=r"model\.sig' cannot be written: No space"):
        sign(signed, Signer(keys / "own.pem"))


def test_the_official_program_verifies_what_we_sign(signed: Path, keys: Path) -> None:
    from model_signing import hashing, verifying

    config = verifying.Config().use_elliptic_key_verifier(public_key=keys / "own.pub")
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[signed / SIGNATURE]))
    config.verify(signed, signed / SIGNATURE)
    flip(signed)
    with pytest.raises(ValueError, match="Hash mismatch"):
        config.verify(signed, signed / SIGNATURE)


def test_a_signature_that_leaves_out_files_is_refused(signed: Path, keys: Path) -> None:
    from model_signing import hashing, signing

    (signed / SIGNATURE).unlink()
    ignored = hashing.Config().set_ignored_paths(paths=[signed / "config.json"], ignore_git_paths=False)
    config = signing.Config().use_elliptic_key_signer(private_key=keys / "own.pem", password=None)
    config.set_hashing_config(ignored).sign(signed, signed / SIGNATURE)
    with (
        pytest.raises(SignatureError, match=r"leaves out config\.json, so anybody could have changed them"),
        verified_copy(signed, [str(keys / "own.pub")]),
    ):
        pass


def test_what_is_no_file_is_not_signed(signed: Path, keys: Path) -> None:
    (signed / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="cannot be signed: Cannot use"):
        sign(signed, Signer(keys / "own.pem"))


def test_a_signed_model_is_not_changed(signed: Path, command: Command) -> None:
    from spanqa.evaluate.stored import check_is_own

    with pytest.raises(InputError, match="is signed, and a change would break its signature"):
        check_is_own(open_checkpoint(signed))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_verifies_again(signed: Path, keys: Path) -> None:
    with Reader.load(signed, verify_key=keys / "own.pub", dtype="fp32") as reader:
        (signed / "handler.py").write_text("x")
        rebuild = reader.engine.rebuild
        if rebuild is not None:
            with pytest.raises(SignatureError, match="added: handler"):
                rebuild()


def test_all_that_is_signed_is_fetched_from_the_hub_at_one_commit(
    signed: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    (signed / "training").mkdir()
    (signed / "training" / "log.json").write_text("{}")
    names = sign(signed, Signer(keys / "own.pem"))
    snapshot = tmp_path / "snapshots" / "0123abc"
    asked: list[tuple[str | None, list[str]]] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((revision, allow_patterns))
        for path in signed.rglob("*"):
            relative = path.relative_to(signed)
            if path.is_file() and any(relative.as_posix() == each or relative.match(each) for each in allow_patterns):
                (snapshot / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, snapshot / relative)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with opened_checkpoint("a/model", "main", [str(keys / "own.pub")]) as checkpoint:
        assert (checkpoint.folder / "training" / "log.json").exists()
    assert asked[0][0] == "main" and SIGNATURE in asked[0][1]
    assert asked[1] == ("0123abc", names)


def test_what_cannot_be_signed_is_refused(signed: Path, keys: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json' is no folder"):
        sign(signed / "config.json", Signer(keys / "own.pem"))
    with pytest.raises(InputError, match=r"holds no weights \(\*\.safetensors\)"):
        sign(keys, Signer(keys / "own.pem"))
    with pytest.raises(InputError, match=r"locked\.pem' needs its password, or has none"):
        sign(signed, Signer(keys / "locked.pem"))
