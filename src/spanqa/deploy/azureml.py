"""Azure ML managed online endpoints: a scoring script over our own server, its environment, endpoint, deployment and autoscale rules.

README.md
model/                  registered as the model
code/                   score.py, carried.py, the wheel, public keys
conda.yml               the environment: Azure's inference server, and what spanqa needs
endpoint.yml            or endpoint-private.yml
deployment.yml
autoscale.json          rules of Azure Monitor, as a template of the resource manager

`score.py` hands each request to the application of `spanqa serve` in its process: status codes, limits, deadline and batches are the same.
The front end of Azure ML gives clients 424 for all of them but 200, with the real one in ms-azureml-model-error-statuscode.

Sources: Azure Machine Learning, "CLI (v2) managed online deployment YAML schema", "Manage and increase quotas and limits for resources".
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spanqa.deploy.checks import check_fields, check_program
from spanqa.deploy.container import memory
from spanqa.deploy.manifests import read_yaml
from spanqa.deploy.render import write
from spanqa.deploy.target import Deployment, Target
from spanqa.deploy.wheel import carry, pinned
from spanqa.errors import DeploymentError
from spanqa.extras import require
from spanqa.files import read_object, read_text

_SERVER = {
    "azureml-inference-server-http": "1.5.1", "fastapi": "0.141.1", "pydantic": "2.12.5", "starlette": "1.10.0", "opentelemetry-api": "1.33.0",
}  # fmt: skip
"""Azure's inference server, and what it says the versions of. No newer FastAPI takes its OpenTelemetry."""

THREADS = 32
_IMAGES = {
    "cpu": "mcr.microsoft.com/azureml/openmpi5.0-ubuntu24.04:20250217.v1",
    "cuda": "mcr.microsoft.com/azureml/openmpi5.0-cuda12.6-ubuntu24.04:latest",
}
_INSTANCES = {
    "cpu": {"Standard_DS3_v2": 14, "Standard_DS4_v2": 28, "Standard_DS5_v2": 56},
    "cuda": {"Standard_NC4as_T4_v3": 16, "Standard_NC24ads_A100_v4": 80},
}
"""Gigabytes of memory, of the GPU where there is one."""

_MOST_SECONDS = 180

_IDENTITY = {"type!": ("system_assigned", "user_assigned"), "user_assigned_identities": list}
_PROBE = dict.fromkeys(("initial_delay", "period", "timeout", "success_threshold", "failure_threshold"), int)
_ENDPOINT = {
    "$schema": str, "name!": str, "description": str, "tags": dict, "auth_mode": ("key", "aml_token", "aad_token"), "identity": _IDENTITY,
    "traffic": dict, "mirror_traffic": dict, "public_network_access": ("enabled", "disabled"),
}  # fmt: skip
_ROUTE = {"path": str, "port": int}
_DEPLOYMENT = {
    "$schema": str, "name!": str, "endpoint_name!": str, "description": str, "tags": dict,
    "model!": {"path!": str, "type": ("custom_model",), "name": str, "version": object, "description": str, "tags": dict},
    "model_mount_path": str,
    "code_configuration!": {"code!": str, "scoring_script!": str},
    "environment!": {
        "image": str, "conda_file": str, "name": str, "version": object, "description": str, "tags": dict,
        "inference_config": {"liveness_route": _ROUTE, "readiness_route": _ROUTE, "scoring_route": _ROUTE},
    },
    "environment_variables": dict, "instance_type!": str, "instance_count!": int, "app_insights_enabled": bool,
    "scale_settings": {"type": ("default",)},
    "request_settings": {"request_timeout_ms": int, "max_concurrent_requests_per_instance": int, "max_queue_wait_ms": int},
    "liveness_probe": _PROBE, "readiness_probe": _PROBE, "data_collector": dict, "egress_public_network_access": ("enabled", "disabled"),
}  # fmt: skip
_CONDA = {"name": str, "channels": list, "dependencies!": list}
_TRIGGER = {
    "metricName!": str, "metricResourceUri!": str, "timeGrain!": str, "statistic!": ("Average", "Min", "Max", "Sum", "Count"),
    "timeWindow!": str, "timeAggregation!": ("Average", "Minimum", "Maximum", "Total", "Count", "Last"),
    "operator!": ("Equals", "NotEquals", "GreaterThan", "GreaterThanOrEqual", "LessThan", "LessThanOrEqual"), "threshold!": (int, float),
}  # fmt: skip
_ACTION = {
    "direction!": ("None", "Increase", "Decrease"),
    "type!": ("ChangeCount", "PercentChangeCount", "ExactCount", "ServiceAllowedNextValue"),
    "value": str,
    "cooldown!": str,
}
_PROFILE = {
    "name!": str,
    "capacity!": {"minimum!": str, "maximum!": str, "default!": str},
    "rules!": [{"metricTrigger!": _TRIGGER, "scaleAction!": _ACTION}],
    "fixedDate": dict,
    "recurrence": dict,
}
_AUTOSCALE = {
    "$schema!": str, "contentVersion!": str, "parameters": dict,
    "resources!": [{
        "type!": ("Microsoft.Insights/autoscalesettings",), "apiVersion!": str, "name!": str, "location!": str, "tags": dict,
        "properties!": {
            "enabled": bool, "targetResourceUri!": str, "targetResourceLocation": str, "profiles!": [_PROFILE], "notifications": list,
        },
    }],
}  # fmt: skip
"""What the files may hold, as `check_fields` reads it."""


def emit(folder: Path, deployment: Deployment) -> None:
    """Write everything but the model."""
    settings = deployment.settings
    cuda = settings.device == "cuda"
    extras = ["serve", *(["torch"] if deployment.needs_torch else []), *(["sign"] if deployment.keys else [])]
    requirements = [*map("==".join, _SERVER.items()), *pinned(extras, without=_SERVER)]
    if settings.from_pypi:
        requirements.append(f"spanqa[{','.join(extras)}]=={settings.from_pypi}")
    write(
        folder,
        "azureml",
        name=deployment.name,
        settings=settings,
        requirements=requirements,
        threads=THREADS,
        device=settings.device,
        image=_IMAGES[settings.device],
        instance=_instance(deployment),
        metric="GpuUtilizationPercentage" if cuda else "CpuUtilizationPercentage",
        location=settings.region or "[resourceGroup().location]",
        signed=bool(deployment.keys),
    )
    carry(folder / "code", settings)
    if deployment.keys:
        shutil.copytree(folder / "keys", folder / "code" / "keys")


def _instance(deployment: Deployment) -> str:
    """Return the smallest instance with room for the model."""
    need, sizes = memory(deployment), _INSTANCES[deployment.settings.device]
    return next((name for name, gigabytes in sizes.items() if need <= gigabytes * 1000), list(sizes)[-1])


def verify(folder: Path) -> list[str]:
    """Check the fields of each file, and what they say of each other."""
    lines = []
    endpoint, deployment = _read(folder / "endpoint.yml"), _read(folder / "deployment.yml")
    registered = {f"{name}!": str for name in ("model", "environment") if _is_registered(deployment.get(name))}
    check_fields(endpoint, _ENDPOINT, "endpoint.yml")
    check_fields(deployment, {**_DEPLOYMENT, **registered}, "deployment.yml")
    _check_deployment(folder, deployment, endpoint)
    conda = _read(folder / "conda.yml")
    check_fields(conda, _CONDA, "conda.yml")
    _check_python(conda)
    autoscale = _read(folder / "autoscale.json")
    check_fields(autoscale, _AUTOSCALE, "autoscale.json")
    _check_autoscale(autoscale)
    checked = ["endpoint.yml", "deployment.yml", "conda.yml", "autoscale.json"]
    private = folder / "endpoint-private.yml"
    if private.exists():
        other = _read(private)
        check_fields(other, _ENDPOINT, private.name)
        if other["name"] != endpoint["name"]:
            raise DeploymentError(f"{private.name}: name is {other['name']!r}; endpoint.yml has {endpoint['name']!r}.")
        checked.append(private.name)
        if "YOUR-" in private.read_text("utf-8"):
            lines.append(f"still to fill in, if you use it: the identity in {private.name}")
    check_program(folder / "code" / "score.py", "code/score.py")
    return [
        f"the fields of {', '.join(checked)}; score.py is Python",
        *lines,
        "not checked: what Azure itself says, because that needs a subscription; `az ml online-endpoint create --local` runs it in Docker",
    ]


def _read(file: Path) -> dict[str, Any]:
    """Read a YAML or JSON file with an object."""
    if not file.exists():
        raise DeploymentError(f"{str(file)!r} is missing. Make the folder again.")
    if file.suffix == ".json":
        try:
            return read_object(file)
        except ValueError as error:
            raise DeploymentError(str(error)) from None
    require("deploy")
    import yaml

    try:
        found = read_yaml(read_text(file))
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise DeploymentError(f"{str(file)!r} is not YAML: {' '.join(str(error).split())}.") from None
    if len(found) != 1 or not isinstance(found[0], dict):
        kinds = " and ".join(f"a {type(each).__name__}" for each in found) or "nothing"
        raise DeploymentError(f"{str(file)!r} holds {kinds}; expected fields.")
    return dict(found[0])


def _is_registered(value: Any) -> bool:
    """Whether a model or an environment is one that is at Azure already."""
    return isinstance(value, str) and value.startswith("azureml:")


def _check_deployment(folder: Path, deployment: Mapping[str, Any], endpoint: Mapping[str, Any]) -> None:
    where = "deployment.yml"
    if deployment["endpoint_name"] != endpoint["name"]:
        raise DeploymentError(
            f"{where}: endpoint_name is {deployment['endpoint_name']!r}; endpoint.yml has the name {endpoint['name']!r}."
        )
    if deployment["instance_count"] < 1:
        raise DeploymentError(f"{where}: instance_count is {deployment['instance_count']}; expected at least 1.")
    code = deployment["code_configuration"]["code"]
    paths = [f"{code}/{deployment['code_configuration']['scoring_script']}", f"{code}/carried.py"]
    if isinstance(deployment["model"], dict):
        paths.append(deployment["model"]["path"])
    if isinstance(deployment["environment"], dict):
        paths += [deployment["environment"][name] for name in ("conda_file",) if name in deployment["environment"]]
    for path in paths:
        if ":" not in path and not (folder / path).exists():  # one with a colon is at Azure
            raise DeploymentError(f"{where} needs {path!r}, which is missing.")
    said, requests = deployment.get("environment_variables", {}), deployment.get("request_settings", {})
    for name, value in said.items():
        if not isinstance(value, str):
            raise DeploymentError(f"{where}: environment_variables.{name} is {value!r}; expected a text, in quotes.")
    try:
        deadline = float(said.get("SPANQA_DEADLINE", 30))
    except ValueError:
        raise DeploymentError(
            f"{where}: SPANQA_DEADLINE is {said['SPANQA_DEADLINE']!r}; expected a number of seconds."
        ) from None
    seconds = requests.get("request_timeout_ms", 5000) / 1000
    if not deadline < seconds <= _MOST_SECONDS:
        raise DeploymentError(
            f"{where}: request_timeout_ms is {seconds * 1000:.0f} and SPANQA_DEADLINE is {deadline:g} seconds; expected more than the "
            f"deadline, and at most {_MOST_SECONDS * 1000}."
        )
    threads = re.search(r"--threads[ =](\d+)", said.get("GUNICORN_CMD_ARGS", ""))
    most = requests.get("max_concurrent_requests_per_instance", 1)
    if threads is None or int(threads[1]) < most:
        raise DeploymentError(
            f"{where}: GUNICORN_CMD_ARGS is {said.get('GUNICORN_CMD_ARGS')!r}; expected --threads {most} or more, since "
            f"max_concurrent_requests_per_instance is {most}."
        )


def _check_python(conda: Mapping[str, Any]) -> None:
    given = [each for each in conda.get("dependencies", []) if isinstance(each, str) and re.match(r"python\b", each)]
    match = re.fullmatch(r"python\s*[=>]=?\s*3\.(\d+)(\.\d+)*", given[0]) if len(given) == 1 else None
    if match is None or int(match[1]) < 11:
        raise DeploymentError(f"conda.yml asks for {', '.join(given) or 'no Python'}; expected python=3.11 or newer.")


def _check_autoscale(autoscale: Mapping[str, Any]) -> None:
    """Check what a wrong value of would let the deployment grow for ever, or not at all."""
    for resource in autoscale["resources"]:
        if not resource["properties"].get("enabled", False):
            raise DeploymentError("autoscale.json: properties.enabled is not true, so that no rule would do anything.")
        for profile in resource["properties"]["profiles"]:
            capacity = {name: int(value) if value.isdecimal() else -1 for name, value in profile["capacity"].items()}
            if not 1 <= capacity["minimum"] <= capacity["default"] <= capacity["maximum"]:
                raise DeploymentError(
                    f"autoscale.json: capacity is {profile['capacity']}; expected 1 <= minimum <= default <= maximum."
                )
            for rule in profile["rules"]:
                grows = rule["metricTrigger"]["operator"].startswith("Greater")
                direction = rule["scaleAction"]["direction"]
                if direction != ("Increase" if grows else "Decrease"):
                    raise DeploymentError(
                        f"autoscale.json: {rule['metricTrigger']['metricName']} {rule['metricTrigger']['operator']} has the direction "
                        f"{direction!r}; expected {'Increase' if grows else 'Decrease'!r}."
                    )


TARGET = Target(
    name="azureml",
    emit=emit,
    verify=verify,
)
