"""Manifests of Kubernetes: read, and checked against schemas in which a misspelt field is an error.

Kubernetes' own kinds are checked by kubernetes-validate, from `OLDEST` to the newest version that it knows. Kinds that others define are
checked against schemas/, which scripts/trim_crds makes; those in `UNCHECKED` are not.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from spanqa.errors import DatasetError, DeploymentError
from spanqa.extras import require
from spanqa.files import read_text

OLDEST = "1.31"
SCHEMAS = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "kserve-inferenceservices-v1beta1.json",
    ("keda.sh/v1alpha1", "ScaledObject"): "keda-scaledobjects-v1alpha1.json",
}
UNCHECKED = {("monitoring.coreos.com/v1", "ServiceMonitor"): "spanqa has no schema of the Prometheus Operator"}
FILL_IN = "FILL-IN"
"""Begins a value that only the person who deploys can know."""

Manifest = dict[str, Any]


def read_manifests(path: Path) -> list[Manifest]:
    """Return the manifests in a YAML file. Their apiVersion and kind are texts.

    Raises:
        DatasetError: it cannot be read, or is not UTF-8.
        DeploymentError: it is not YAML, or holds nothing, or something else.
    """
    import yaml

    try:
        found = read_yaml(read_text(path))
    except DatasetError:
        raise
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise DeploymentError(
            f"{path.name!r} is not YAML that Kubernetes takes: {' '.join(str(error).split())}"
        ) from None
    if not found:
        raise DeploymentError(f"{path.name!r} holds nothing. Expected a manifest.")
    for each in found:
        if not isinstance(each, dict) or not all(isinstance(each.get(field), str) for field in ("apiVersion", "kind")):
            raise DeploymentError(f"{path.name!r} holds something without apiVersion and kind. Expected a manifest.")
    return found


def read_yaml(text: str) -> list[Any]:
    """Return the documents in a text, without empty ones, as what JSON has: that is all that Kubernetes takes.

    A field without a value is left out, since to Kubernetes it is one that is not there.

    Raises:
        YAMLError: it is not YAML, or has a key twice.
        TypeError, ValueError: a key is no text, something contains itself, or an element of a list has no value.
    """
    import yaml

    found = [each for each in yaml.load_all(text, _loader()) if each is not None]
    return [_with_values(each) for each in json.loads(json.dumps(found, default=str))]


def _with_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_values(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        if None in value:
            raise ValueError("an element of a list has no value.")
        return [_with_values(each) for each in value]
    return value


@cache
def _loader() -> Any:
    """Return a loader to which a key that is there twice is an error, as it is to Kubernetes; with libyaml, if it is there."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    return Loader


def check_schemas(manifests: Iterable[tuple[str, Manifest]]) -> list[str]:
    """Check manifests, each with the name of where it stands, against their schemas, and return what was checked.

    Raises:
        DeploymentError: one is not as Kubernetes, or whoever defines its kind, takes it.
    """
    require("kubernetes")
    import kubernetes_validate

    found: dict[str, tuple[str, Manifest]] = {}
    for where, manifest in manifests:  # most are in several overlays, and are the same there
        metadata = manifest.get("metadata")
        if not (isinstance(metadata, dict) and isinstance(metadata.get("name"), str)):
            raise DeploymentError(f"{where}: {manifest['kind']} has no metadata.name. Give it the name that it had.")
        found.setdefault(json.dumps(manifest, sort_keys=True), (where, manifest))
    own, counts = [], {"Kubernetes": 0}
    lines = []
    for where, manifest in found.values():
        kind = (manifest["apiVersion"], manifest["kind"])
        if kind in UNCHECKED:
            lines.append(f"not checked: {where}, {kind[1]}, because {UNCHECKED[kind]}")
        elif kind in SCHEMAS:
            _check(where, manifest, _validator(SCHEMAS[kind]).iter_errors(manifest))
            counts[kind[0]] = counts.get(kind[0], 0) + 1
        else:
            own.append((where, manifest))
            counts["Kubernetes"] += 1
            continue
        # Definitions of kinds say nothing about metadata: every kind has the same.
        own.append((where, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest.get("metadata")}))
    versions = _versions()
    for version in versions:
        for where, manifest in own:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                _check(where, manifest, [error], f" of Kubernetes {version}")
            except kubernetes_validate.SchemaNotFoundError:
                raise DeploymentError(
                    f"{where}: Kubernetes {version} has no {manifest['kind']} of {manifest['apiVersion']}. "
                    "Check apiVersion and kind."
                ) from None
    passed = counts.pop("Kubernetes")
    said = [f"{passed} manifests pass the schemas of Kubernetes {versions[0]} to {versions[-1]}"] if passed else []
    return [*said, *(f"{count} pass the schema of {name}" for name, count in counts.items()), *lines]


def _check(where: str, manifest: Manifest, errors: Iterable[Any], whose: str = "") -> None:
    from jsonschema.exceptions import best_match

    error = best_match(iter(errors))
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "its fields"
        raise DeploymentError(f"{where}: {manifest['kind']}{whose}, {place}: {error.message[:300]}")


def _versions() -> list[str]:
    from kubernetes_validate.utils import all_versions

    known = {re.sub(r"(\d+\.\d+).*", r"\1", each) for each in all_versions()}
    return sorted((each for each in known if _number(each) >= _number(OLDEST)), key=_number)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    text = resources.files("spanqa.deploy").joinpath("schemas", name).read_text("utf-8")
    return Draft202012Validator(json.loads(text))


def to_fill_in(value: Any, place: str = "") -> Iterator[str]:
    """Find the values that a person has to fill in, and return where they are."""
    if isinstance(value, str) and FILL_IN in value:
        yield place
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from to_fill_in(each, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from to_fill_in(each, f"{place}[{number}]")


def check_pod(pod: Mapping[str, Any], where: str) -> None:
    """Check what has to agree within the specification of a pod.

    Raises:
        DeploymentError: a probe names a port, or a mount a volume, that is not there; or the pod is killed before the server has drained.
    """
    volumes = {each["name"] for each in pod.get("volumes", ())}
    for container in pod["containers"]:
        here = f"{where}, container {container['name']}"
        ports = port_names([container])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if port is not None and port not in ports:
                raise DeploymentError(f"{here}: {probe} asks port {port!r}; the ports are {_listed(ports)}.")
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                raise DeploymentError(f"{here} mounts volume {mount['name']!r}; the volumes are {_listed(volumes)}.")
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        arguments = container.get("args", [])
        drain = [_seconds(here, arguments, *each) for each in (("--drain-delay", 5), ("--drain-timeout", 30))]
        needed = sleep + sum(drain)
        grace = pod.get("terminationGracePeriodSeconds", 30)
        if grace <= needed:
            raise DeploymentError(
                f"{here}: terminationGracePeriodSeconds is {grace}; preStop, --drain-delay and --drain-timeout take "
                f"{needed:g}. Expected more, so that requests in work are answered."
            )


def port_names(containers: Iterable[Mapping[str, Any]]) -> set[str | int]:
    """Return the names and the numbers of the ports of containers."""
    ports = [port for each in containers for port in each.get("ports", ())]
    return {port["containerPort"] for port in ports} | {port["name"] for port in ports if "name" in port}


def _seconds(where: str, arguments: list[str], option: str, default: float) -> float:
    for place, each in enumerate(arguments):
        name, equals, value = each.partition("=")
        if name == option:
            given = value if equals else "".join(arguments[place + 1 : place + 2])
            try:
                return float(given)
            except ValueError:
                raise DeploymentError(f"{where}: {option} is {given!r}. Expected seconds.") from None
    return default


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
