"""Deployment folders: what they hold, what is refused, and what verification finds. Targets have tests of their own."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("jinja2")
pytest.importorskip("packaging")
pytest.importorskip("yaml")

from spanqa.deploy.checks import check_program
from spanqa.deploy.folder import RECORD, verify_folder, write_folder
from spanqa.deploy.target import Deployment, DeploySettings, Target, label
from spanqa.deploy.targets import TARGETS
from spanqa.deploy.wheel import pinned, write_wheel
from spanqa.errors import CheckpointError, DeploymentError, InputError, SignatureError
from spanqa.extras import installed
from spanqa.reader import Reader

Command = Callable[..., subprocess.CompletedProcess[str]]


def emit(folder: Path, deployment: Deployment) -> None:
    write_wheel(folder)
    (folder / "service.txt").write_text(f"name: {deployment.name}\nkeys: {', '.join(deployment.keys)}\n")


def verify(folder: Path) -> list[str]:
    text = (folder / "service.txt").read_text()
    if "name: " not in text:
        raise DeploymentError(f"service.txt is {text!r}; expected a name.")
    return ["service.txt has a name"]


PLAIN = Target("plain", emit, verify)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setitem(TARGETS, "plain", PLAIN)
    return PLAIN


def test_a_folder_holds_the_model_the_wheel_and_a_record(tmp_path: Path, plain: Target, mini: Reader) -> None:
    out = tmp_path / "out"
    assert write_folder(plain, "spanqa-mini", out, DeploySettings()) == []
    record = json.loads((out / RECORD).read_text())
    assert record["name"] == "spanqa-mini" and record["target"] == "plain"
    assert record["model"] == {"name": "spanqa-mini", "weights_sha256": mini.checkpoint.weights.sha256}
    assert (out / "model" / "model.safetensors").read_bytes() == (
        mini.checkpoint.path / "model.safetensors"
    ).read_bytes()
    for name, digest in record["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert set(record["files"]) == {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.name != RECORD
    }
    assert verify_folder(out)[1:] == ["service.txt has a name"]
    with pytest.raises(InputError, match=r"out' already exists\. Choose a new path\."):
        write_folder(plain, "spanqa-mini", out, DeploySettings())


def test_what_a_person_edits_is_named_and_what_is_fixed_must_not_change(tmp_path: Path, plain: Target) -> None:
    out = tmp_path / "out"
    write_folder(plain, "spanqa-mini", out, DeploySettings())
    (out / "service.txt").write_text("name: mine\n")
    (out / "notes.txt").write_text("of a person\n")
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("of git\n")
    assert verify_folder(out)[1:3] == ["edited since it was made: service.txt", "added since it was made: notes.txt"]
    (out / "service.txt").write_text("nothing\n")
    with pytest.raises(DeploymentError, match="expected a name"):
        verify_folder(out)
    (out / "service.txt").unlink()
    with pytest.raises(DeploymentError, match=r"lacks service\.txt\. Make the folder again\."):
        verify_folder(out)
    (out / "service.txt").write_text("name: mine\n")
    with (out / "model" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(DeploymentError, match=r"model/config\.json changed since it was made"):
        verify_folder(out)


def test_folders_that_are_none_of_ours(tmp_path: Path, plain: Target) -> None:
    with pytest.raises(
        DeploymentError, match=r"has no deployment\.json\. Is this a folder that `spanqa deploy` made\?"
    ):
        verify_folder(tmp_path)
    (tmp_path / RECORD).write_text('{"format": "spanqa-deployment/9", "target": "plain"}')
    with pytest.raises(DeploymentError, match="of another version: format 'spanqa-deployment/9', target 'plain'"):
        verify_folder(tmp_path)
    (tmp_path / RECORD).write_text('{"format": "spanqa-deployment/1", "target": ["plain"], "files": 1}')
    with pytest.raises(DeploymentError, match="of another version"):
        verify_folder(tmp_path)
    (tmp_path / RECORD).write_text('{"format": "spanqa-deployment/1", "target": "plain", "files": 1}')
    with pytest.raises(DeploymentError, match="is not as it was written"):
        verify_folder(tmp_path)
    out = tmp_path / "out"
    write_folder(plain, "spanqa-mini", out, DeploySettings())
    other = next(each for each in TARGETS.values() if each is not plain)
    with pytest.raises(DeploymentError, match=f"is a folder for plain, not for {other.name}"):
        verify_folder(out, other)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(folder: Path) -> list[str]:
        return [(folder / "model").read_text()]

    monkeypatch.setitem(TARGETS, "plain", Target("plain", emit, unreadable))
    write_folder(TARGETS["plain"], "spanqa-mini", tmp_path / "out", DeploySettings())
    with pytest.raises(DeploymentError, match=r"out/model' cannot be read: Is a directory\."):
        verify_folder(tmp_path / "out")


def test_a_model_without_a_head_is_not_deployed(tmp_path: Path, plain: Target, mini: Reader) -> None:

    model = Path(shutil.copytree(mini.checkpoint.path, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    save_file({name: each for name, each in weights.items() if "qa_outputs" not in name}, model / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no question-answering head"):
        write_folder(plain, str(model), tmp_path / "out", DeploySettings())
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_a_folder_that_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> list[str]:
        raise DeploymentError("no")

    monkeypatch.setitem(TARGETS, "plain", Target("plain", emit, fail))
    with pytest.raises(DeploymentError, match=r"^no$"):
        write_folder(TARGETS["plain"], "spanqa-mini", tmp_path / "out", DeploySettings(), verify=True)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be(tmp_path: Path, plain: Target) -> None:
    for name in ("a", "A-b", "a--b", "1ab", "ab-", "a" * 33, "a_b"):
        with pytest.raises(
            InputError, match="expected 3 to 32 lower-case letters, digits and single dashes, a letter first"
        ):
            DeploySettings(name=name)
    with pytest.raises(InputError, match="min_replicas is 4 and max_replicas is 3; expected 0 <= min <= max"):
        DeploySettings(min_replicas=4)
    with pytest.raises(InputError, match="max_replicas is 0"):
        DeploySettings(min_replicas=0, max_replicas=0)
    for image in ("qa 1", "Registry/QA:1", "qa:1\n", "a/b:", '"'):
        with pytest.raises(InputError, match="expected the name of an image"):
            DeploySettings(image=image)
    for image in ("qa", "Registry.example.org:5000/a/b_c:V1.0", f"qa@sha256:{'0' * 64}"):
        DeploySettings(image=image)
    with pytest.raises(InputError, match="region is 'west\"'; expected letters, digits and dashes"):
        DeploySettings(region='west"')
    with pytest.raises(InputError, match=r"max_replicas is 1001; expected .* 1 to 1000 for max"):
        DeploySettings(max_replicas=1001)
    with pytest.raises(InputError, match="from_pypi is 'newest'; expected a version"):
        DeploySettings(from_pypi="newest")
    with pytest.raises(InputError, match="plain does not scale to zero here; min_replicas is 0"):
        write_folder(plain, "spanqa-mini", tmp_path / "out", DeploySettings(min_replicas=0))


@pytest.mark.parametrize(
    "name", ["Deepset/BERT_large 2", "x", "9", "----", "a" * 50, "été", "a" * 31 + "-b", "model--v1.2"]
)
def test_every_name_becomes_a_label(name: str) -> None:
    assert DeploySettings(name=label(name)).name == label(name)  # another one would be refused


def test_the_wheel_is_one_that_can_be_installed_and_used(tmp_path: Path, mini: Reader) -> None:
    name, sha256 = write_wheel(tmp_path)
    first = (tmp_path / name).read_bytes()
    assert sha256 == hashlib.sha256(first).hexdigest()
    write_wheel(tmp_path)
    assert (tmp_path / name).read_bytes() == first
    with zipfile.ZipFile(tmp_path / name) as wheel:
        names = wheel.namelist()
        about = name.split("-py3")[0] + ".dist-info"
        rows = [line.rsplit(",", 2) for line in wheel.read(f"{about}/RECORD").decode().splitlines()]
        assert [row[0] for row in rows] == names
        for entry, digest, size in rows[:-1]:
            data = wheel.read(entry)
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={found}", str(len(data)))
        assert not any("__pycache__" in each or "spanqa/models/" in each for each in names)
        licences = re.findall("^License-File: (.+)$", wheel.read(f"{about}/METADATA").decode(), re.M)
        assert licences and {f"{about}/licenses/{each}" for each in licences} <= set(names)
        assert "spanqa/serve/web/page.html" in names or any(each.startswith("spanqa/serve/web/") for each in names)
        wheel.extractall(tmp_path / "there")
    code = f"from spanqa import Reader, __file__; print(__file__); print(Reader.load({str(mini.checkpoint.path)!r}).ask('Who built it?', 'Anna built it.').text)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "there"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [str(tmp_path / "there" / "spanqa" / "__init__.py"), "Anna"]


def test_what_is_needed_is_pinned_with_what_that_needs() -> None:
    found = dict(each.split("==") for each in pinned() if "==" in each)
    assert {"numpy", "tokenizers", "huggingface-hub", "tqdm"} <= set(found) and "spanqa" not in found
    assert not any("+" in number for number in found.values())
    served = pinned(["serve"])
    assert {each.split("==")[0] for each in served} >= {"fastapi", "starlette", "uvicorn", "numpy"}
    without = {each.split("==")[0] for each in pinned(without=["huggingface-hub"])}
    assert "numpy" in without and "huggingface-hub" not in without and "filelock" not in without


@pytest.mark.skipif(not installed("sign"), reason="needs spanqa[sign]")
def test_a_signed_model_is_verified_and_copied_with_its_signature_and_keys(
    tmp_path: Path, plain: Target, mini: Reader
) -> None:
    from spanqa.signing import SIGNATURE, Signer, sign, verified_copy
    from test_signing import ec, write_key

    model, out = tmp_path / "Model", tmp_path / "out"
    shutil.copytree(mini.checkpoint.path, model)
    for name in ("one", "two"):
        write_key(tmp_path / f"{name}.pem", ec.generate_private_key(ec.SECP256R1()))
    sign(model, Signer(tmp_path / "one.pem"))
    key, other = str(tmp_path / "one.pub"), str(tmp_path / "two.pub")
    with pytest.raises(SignatureError, match="made by another key"):
        write_folder(plain, str(model), out, DeploySettings(), verify_keys=[other])
    assert not out.exists()
    write_folder(plain, str(model), out, DeploySettings(), verify_keys=[key, other])
    assert "keys: 0-one.pub, 1-two.pub" in (out / "service.txt").read_text()
    with verified_copy(out / "model", [str(out / "keys" / "0-one.pub")]):
        pass
    assert (out / "model" / SIGNATURE).is_file()
    write_folder(plain, str(model), tmp_path / "unverified", DeploySettings())
    assert not (tmp_path / "unverified" / "model" / SIGNATURE).exists()


def test_the_command(tmp_path: Path, command: Command) -> None:
    target = "onnx"
    done = command("deploy", "nowhere", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "'nowhere' is not one of" in re.sub(r"[│\s]+", " ", done.stderr)
    done = command("deploy", target, "--out", str(tmp_path / "out"), "--verify", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["made"] is True and said["checked"]
    done = command("deploy", target, "--out", str(tmp_path / "out"), "--verify")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"{tmp_path / 'out'}: passes"
    done = command("deploy", target, "--out", str(tmp_path / "out"), "--verify", "--name", "tide")
    assert done.returncode == 1 and "exists, so it is only checked" in done.stderr
    done = command("deploy", target, "--out", str(tmp_path / "out"))
    assert done.returncode == 1 and "already exists" in done.stderr


def test_what_is_no_program_is_named_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    with pytest.raises(DeploymentError, match=r"^1/model\.py is missing\. Make the folder again\.$"):
        check_program(file, "1/model.py")
    for content, reason in (
        (b"x = (", r", line 1: "),
        (b"x = '\x00'", r"(,| is not Python)"),
        (b"# \xff\nx", r"(,| is not Python)"),
    ):
        file.write_bytes(content)
        with pytest.raises(DeploymentError, match=rf"^1/model\.py{reason}"):
            check_program(file, "1/model.py")
    file.write_text("x = 1\n")
    check_program(file, "1/model.py")
