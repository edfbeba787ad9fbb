"""Kubernetes: a base and overlays of kustomize (CPU, GPU, KEDA), and the images that they run."""

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spanqa.deploy.container import emit_container, image_values, memory, verify_container
from spanqa.deploy.manifests import (
    FILL_IN,
    Manifest,
    check_pod,
    check_schemas,
    port_names,
    read_manifests,
    read_yaml,
    to_fill_in,
)
from spanqa.deploy.render import write
from spanqa.deploy.target import Deployment, Target
from spanqa.errors import DeploymentError

_DEVICES = ("cpu", "cuda")
_KUSTOMIZATION = "kustomization.yaml"
_FIELDS = frozenset(
    [
        "apiVersion",
        "kind",
        "metadata",
        "resources",
        "components",
        "crds",
        "namePrefix",
        "nameSuffix",
        "namespace",
        "commonLabels",
        "labels",
        "commonAnnotations",
        "patches",
        "patchesStrategicMerge",
        "patchesJson6902",
        "configMapGenerator",
        "secretGenerator",
        "generatorOptions",
        "replicas",
        "images",
        "replacements",
        "helmCharts",
        "helmGlobals",
        "vars",
        "transformers",
        "generators",
        "validators",
        "openapi",
        "buildMetadata",
        "configurations",
        "sortOptions",
    ]
)
"""Of a kustomization; kustomize refuses others, too."""
_LISTS = {"resources": (str, "names"), "components": (str, "names"), "patches": (dict, "patches")}


def emit(folder: Path, deployment: Deployment) -> None:
    """Write the manifests, and what the images are built from."""
    of = {
        device: replace(deployment, settings=replace(deployment.settings, device=device))  # type: ignore[arg-type]
        for device in _DEVICES
    }
    for each in of.values():
        emit_container(folder, each)
    settings = deployment.settings
    write(
        folder,
        "kubernetes",
        **image_values(deployment),
        gpu_memory=memory(of["cuda"]),
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        image=settings.image or f"{FILL_IN}/{deployment.name}:1",
        images={device: image_fields(settings.image if device == settings.device else "") for device in _DEVICES},
        dockerfile="Dockerfile.cuda" if settings.device == "cuda" else "Dockerfile",
        overlay="gpu" if settings.device == "cuda" else "cpu",
        keys=deployment.keys,
    )


def image_fields(image: str) -> dict[str, str]:
    """Return an image's name as kustomize writes it; the value to fill in where there is none.

    >>> image_fields("registry.example.org:5000/qa:1")
    {'newName': 'registry.example.org:5000/qa', 'newTag': '1'}
    """
    if not image:
        return {"newName": f"{FILL_IN}: registry and name", "newTag": f"{FILL_IN}: tag"}
    name, _, digest = image.partition("@")
    if digest:
        return {"newName": name, "digest": digest}
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return {"newName": name, "newTag": f"{FILL_IN}: tag"}
    return {"newName": path, "newTag": tag}


def verify(folder: Path) -> list[str]:
    """Check the manifests, each by itself and as kustomize puts them together, and what the images are built from.

    Raises:
        DeploymentError: something would not be taken, or does not agree.
    """
    lines = verify_container(folder)
    named: list[tuple[str, Manifest]] = []
    sets: dict[str, list[Manifest]] = {}
    missing: list[str] = []
    for path in sorted(folder.rglob(_KUSTOMIZATION)):
        kustomization = _read_kustomization(path)
        where = path.parent.relative_to(folder).as_posix()
        missing += [f"{where}: {place}" for place in to_fill_in(kustomization)]
        if kustomization["kind"] == "Kustomization":
            sets[where] = list(_resources(path.parent))
        for file in _files(path.parent, kustomization["resources"]):
            for manifest in read_manifests(file):
                name = file.relative_to(folder).as_posix()
                named.append((name, manifest))
                missing += [f"{name}: {place}" for place in to_fill_in(manifest)]
    lines += check_schemas(named)
    built = {where: _build(folder / where) for where in sets}
    whole = {where: manifests for where, manifests in built.items() if manifests is not None}
    if whole:
        check_schemas((where, manifest) for where, manifests in whole.items() for manifest in manifests)
        lines.append(f"{', '.join(whole)}: kustomize builds them, and what it makes passes, too")
    else:
        lines.append("not checked: the patches of the overlays, because neither kubectl nor kustomize is installed")
    for where, manifests in (whole or sets).items():
        try:
            _check_together(where, manifests)
        except (AttributeError, KeyError, TypeError) as error:  # the schemas let optional fields be missing
            raise DeploymentError(f"{where}: something is missing, or of another type: {error}.") from None
    lines.append("names, labels, ports and times agree")
    lines += [f"still to fill in: {each}" for each in sorted(missing)]
    return lines


def _read_kustomization(path: Path) -> Manifest:
    where = f"{path.parent.name}/{path.name}"
    found = read_manifests(path)
    if len(found) != 1 or found[0]["kind"] not in ("Kustomization", "Component"):
        raise DeploymentError(f"{where}: expected one Kustomization or Component.")
    unknown = sorted(found[0].keys() - _FIELDS)
    if unknown:
        raise DeploymentError(f"{where}: kustomize knows no field {', '.join(unknown)}.")
    for field, (kind, what) in _LISTS.items():
        value = found[0].setdefault(field, [])
        if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
            raise DeploymentError(f"{where}: {field} is {value!r}. Expected a list of {what}.")
    listed = [*found[0]["resources"], *found[0]["components"]]
    listed += [str(patch["path"]) for patch in found[0]["patches"] if "path" in patch]
    for each in listed:
        if not (path.parent / each).exists():
            raise DeploymentError(f"{where} lists {each!r}, which is not there.")
    return found[0]


def _files(folder: Path, resources: Iterable[str]) -> list[Path]:
    return [folder / each for each in resources if (folder / each).is_file()]


def _resources(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Manifest]:
    """Yield the manifests of a kustomization and of those that it builds on, without its patches."""
    if folder.resolve() in above:
        raise DeploymentError(f"{folder.name}/{_KUSTOMIZATION} builds on itself. Remove that from its resources.")
    for each in _read_kustomization(folder / _KUSTOMIZATION)["resources"]:
        path = folder / each
        yield from read_manifests(path) if path.is_file() else _resources(path, above | {folder.resolve()})


def _build(folder: Path) -> list[Manifest] | None:
    """Return what kustomize makes of a folder; None if it is not installed."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(folder)]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build", str(folder)]
    else:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DeploymentError(f"{folder.name}: kustomize does not build it: {' '.join(done.stderr.split())[-300:]}")
    return read_yaml(done.stdout)


def _check_together(where: str, manifests: list[Manifest]) -> None:
    """Check what no schema sees: that manifests find each other.

    Raises:
        DeploymentError: they do not.
    """
    of = {(each["kind"], each["metadata"]["name"]): each for each in manifests}
    deployments = {name: each for (kind, name), each in of.items() if kind == "Deployment"}
    for name, each in deployments.items():
        template = each["spec"]["template"]
        _check_selects(f"{where}: Deployment {name}", each["spec"]["selector"].get("matchLabels", {}), [template])
        account = template["spec"].get("serviceAccountName")
        if account and ("ServiceAccount", account) not in of:
            raise DeploymentError(
                f"{where}: Deployment {name} runs as {account!r}, a ServiceAccount that is not there."
            )
        check_pod(template["spec"], f"{where}: Deployment {name}")
    templates = [each["spec"]["template"] for each in deployments.values()]
    ports = port_names(container for each in templates for container in each["spec"]["containers"])
    for (kind, name), each in of.items():
        here, spec = f"{where}: {kind} {name}", each.get("spec", {})
        if kind == "Service":
            _check_selects(here, spec.get("selector", {}), templates)
            _check_ports(here, (port.get("targetPort", port["port"]) for port in spec["ports"]), ports)
        elif kind == "PodDisruptionBudget":
            _check_selects(here, spec.get("selector", {}).get("matchLabels", {}), templates)
        elif kind == "NetworkPolicy":
            _check_selects(here, spec.get("podSelector", {}).get("matchLabels", {}), templates)
            rules = [port for rule in spec.get("ingress", ()) for port in rule.get("ports", ())]
            _check_ports(here, (port["port"] for port in rules if "port" in port), ports)
        elif kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = spec["scaleTargetRef"]["name"]
            if target not in deployments:
                raise DeploymentError(f"{here} scales {target!r}, a Deployment that is not there.")
            _check_metrics(here, spec, deployments[target])
        elif kind == "ServiceMonitor":
            services = [other for (kind, _), other in of.items() if kind == "Service"]
            _check_selects(here, spec.get("selector", {}).get("matchLabels", {}), services)
            names = {port.get("name") for service in services for port in service["spec"]["ports"]}
            _check_ports(here, (endpoint.get("port") for endpoint in spec.get("endpoints", ())), names)


def _check_selects(where: str, wanted: Mapping[str, str], among: Iterable[Mapping[str, Any]]) -> None:
    if not any(wanted.items() <= each["metadata"].get("labels", {}).items() for each in among):
        raise DeploymentError(f"{where} selects {dict(wanted)}, labels that nothing has.")


def _check_ports(where: str, wanted: Iterable[Any], there: Iterable[Any]) -> None:
    names = set(there)
    for port in wanted:
        if port not in names:
            raise DeploymentError(f"{where} names port {port!r}; the ports are {', '.join(sorted(map(str, names)))}.")


def _check_metrics(where: str, spec: Mapping[str, Any], deployment: Manifest) -> None:
    limits = [
        each.get("resources", {}).get("limits", {}) for each in deployment["spec"]["template"]["spec"]["containers"]
    ]
    on_gpu = any("nvidia.com/gpu" in each for each in limits)
    if on_gpu and any(metric.get("resource", {}).get("name") == "cpu" for metric in spec.get("metrics", ())):
        raise DeploymentError(f"{where} scales on the processor, which says nothing about a GPU. Remove that metric.")


TARGET = Target(
    name="kubernetes",
    emit=emit,
    verify=verify,
    scales_to_zero=True,
)
