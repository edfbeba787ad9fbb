"""Hugging Face Inference Endpoints: a model repository with a handler for the default container, and the request for an endpoint.

README.md
repository/       what is pushed to the hub: the model, its card, handler.py, requirements.txt, carried.py and the wheel
container/        an image of our own server, and the request that uses it
endpoint.json     the arguments of HfApi.create_inference_endpoint, for the handler
endpoint.py       shows what would be sent, and sends it with --create

The default container has transformers 4.51 with torch 2.5, older than spanqa's torch backend needs: there the handler runs on OpenVINO,
on a CPU. A model that needs torch, and any GPU, take the container; so does one whose signature is verified at each start, since a handler
lies beside the model, where nothing may be added.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spanqa.checkpoint import CARD
from spanqa.deploy.checks import check_fields, check_program
from spanqa.deploy.container import PORT, emit_container, memory, verify_container
from spanqa.deploy.render import write
from spanqa.deploy.target import Deployment, Target
from spanqa.deploy.wheel import carry
from spanqa.errors import DeploymentError
from spanqa.extras import require
from spanqa.files import read_object, read_text, write_json, write_text
from spanqa.signing import SIGNATURE

REPOSITORY = "YOUR-NAME/{name}"

_CPUS = {"x2": 4, "x4": 8, "x8": 16, "x16": 32}
_GPUS = {"nvidia-t4": 14, "nvidia-l4": 24, "nvidia-a100": 80}
"""Gigabytes of instances at AWS in 2025, https://huggingface.co/docs/inference-endpoints/support/pricing: sizes of intel-spr, and GPUs."""

ARGUMENTS = {
    **dict.fromkeys(("name!", "repository!", "framework!", "instance_type!", "instance_size!", "region!"), str),
    "accelerator!": ("cpu", "gpu", "neuron"),
    "vendor!": ("aws", "azure", "gcp"),
    "min_replica!": int,
    "max_replica!": int,
    "scaling_metric": ("pendingRequests", "hardwareUsage"),
    "scaling_threshold": (int, float),
    "scale_to_zero_timeout": int,
    "revision": str,
    "task": str,
    "type": ("authenticated", "public", "private"),
    "namespace": str,
    "private_link_account_id": str,
    "private_link_region": str,
    "custom_image": {"url": str, "port": int, "healthRoute": str},
    "container_registry_username": str,
    "container_registry_password": str,
    "container_command": list,
    "container_args": list,
    "env": dict,
    "secrets": dict,
    "domain": str,
    "path": str,
    "cache_http_responses": bool,
    "tags": list,
}
"""What `HfApi.create_inference_endpoint` takes, in huggingface_hub 2.4, as `check_fields` reads it."""

_TASK = "question-answering"
_HANDLER = ("handler.py", "carried.py", "requirements.txt")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def emit(folder: Path, deployment: Deployment) -> None:
    """Write the image and its endpoint, and the handler and its own, unless only the image can run or verify the model."""
    settings, repository, container = deployment.settings, folder / "repository", folder / "container"
    handled = not (deployment.needs_torch or deployment.keys)
    image = settings.image or f"YOUR-REGISTRY/{deployment.name}:1"
    container.mkdir()
    if deployment.keys:
        shutil.copytree(folder / "keys", container / "keys")
    values = {
        "name": deployment.name,
        "repository": REPOSITORY.format(name=deployment.name),
        "handled": handled,
        "signed": bool(deployment.keys),
        "settings": settings,
        "image": image,
        "port": PORT,
        "dockerfile": emit_container(container, deployment, model_at="/repository"),
    }
    write(folder, "huggingface/top", **values)
    write(container, "huggingface/container", **values)
    endpoint = _endpoint(deployment)
    custom = {
        "framework": "custom",
        "custom_image": {"url": image, "port": PORT, "healthRoute": "/ready"},
        "env": {"SPANQA_ALLOWED_HOST": "*"},  # the platform's front end says which
    }
    write_json(container / "endpoint.json", endpoint | custom)
    if handled:
        write(repository, "huggingface/repository", **values)
        carry(repository, settings)
        write_json(folder / "endpoint.json", endpoint)
    if not (repository / SIGNATURE).exists():  # which speaks of the card too
        _complete_card(repository / CARD, deployment)


def _endpoint(deployment: Deployment) -> dict[str, Any]:
    """Return the arguments of `HfApi.create_inference_endpoint`."""
    settings = deployment.settings
    gpu = settings.device == "cuda"
    kind, size = instance(memory(deployment), gpu=gpu)
    arguments = {
        "name": deployment.name,
        "repository": REPOSITORY.format(name=deployment.name),
        "framework": "pytorch",
        "task": "custom",
        "type": "authenticated",
        "vendor": "aws",
        "region": settings.region or "us-east-1",
        "accelerator": "gpu" if gpu else "cpu",
        "instance_type": kind,
        "instance_size": size,
        "min_replica": settings.min_replicas,
        "max_replica": settings.max_replicas,
        "scaling_metric": "pendingRequests",
        "scaling_threshold": 1.5,
    }
    return arguments | ({"scale_to_zero_timeout": 60} if settings.min_replicas == 0 else {})


def instance(mebibytes: int, *, gpu: bool) -> tuple[str, str]:
    """Return type and size of the smallest instance with so much memory: of the GPU, where there is one. A CPU has two cores at least."""
    sizes = _GPUS if gpu else _CPUS
    found = next((name for name, gigabytes in sizes.items() if mebibytes <= gigabytes * 1000), list(sizes)[-1])
    return (found, "x1") if gpu else ("intel-spr", found)


def _complete_card(card: Path, deployment: Deployment) -> None:
    """Let the front matter of the model's card name the task and the library, by which the hub finds what can run it."""
    text = re.sub(r"\r\n?", "\n", read_text(card)) if card.exists() else f"# {deployment.name}\n"
    match = _FRONT_MATTER.match(text)
    head = match[1] if match else ""
    said = _front_matter(card, head)
    wanted = {"pipeline_tag": _TASK, "library_name": said.get("library_name") or "spanqa"}
    for name, value in wanted.items():  # what else the author wrote is left as it is
        if said.get(name) != value:
            head = re.sub(rf"^{name}:.*\n", "", head, flags=re.MULTILINE) + f"{name}: {value}\n"
    try:
        complete = _front_matter(card, head) == said | wanted
    except DeploymentError:
        complete = False
    if not complete:
        raise DeploymentError(
            f"{card.name} of the model has a front matter that cannot be completed. Add to it: pipeline_tag: {_TASK}"
        )
    write_text(card, f"---\n{head}---\n{text[match.end() :] if match else text}")


def _front_matter(card: Path, head: str) -> dict[str, Any]:
    """Return the fields of a front matter.

    Raises:
        DeploymentError: it is not YAML, or has no fields.
    """
    require("deploy")
    import yaml

    try:
        found = yaml.safe_load(head)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise DeploymentError(
            f"{card.name} of the model: the front matter is not YAML: {' '.join(str(error).split())}."
        ) from None
    if not isinstance(found, dict | None):
        raise DeploymentError(
            f"{card.name} of the model: the front matter is a {type(found).__name__}; expected fields."
        )
    return found or {}


def verify(folder: Path) -> list[str]:
    """Check the card, the handler's files, the image, and the arguments of the endpoints."""
    lines = [_check_card(folder / "repository" / CARD)]
    lines += _check_handler(folder / "repository")
    lines += verify_container(folder / "container")
    for file in (folder / "endpoint.json", folder / "container" / "endpoint.json"):
        if file.exists():
            lines += _check_endpoint(file, file.relative_to(folder).as_posix())
    return [*lines, "not checked: the endpoint itself, because it needs an account and is billed"]


def _check_card(card: Path) -> str:
    signed = (card.parent / SIGNATURE).exists()
    match = _FRONT_MATTER.match(read_text(card)) if card.exists() or not signed else None
    tag = _front_matter(card, match[1] if match else "").get("pipeline_tag")
    if tag != _TASK and signed:  # nothing may be changed there; an endpoint with a container does not ask for it
        return f"the model's card does not name its task, {_TASK}; it is signed, and was left as it is"
    if tag != _TASK:
        raise DeploymentError(
            f"{str(card)!r}: pipeline_tag is {tag!r} in the front matter; expected {_TASK!r}, the task of the model."
        )
    return "the model's card names its task"


def _check_handler(repository: Path) -> list[str]:
    if not (repository / "handler.py").exists():
        return ["there is no handler: this deployment takes the container"]
    for name in _HANDLER:
        if not (repository / name).exists():
            raise DeploymentError(f"{str(repository / name)!r} is missing. Make the folder again.")
    for name in ("handler.py", "carried.py"):
        check_program(repository / name, f"repository/{name}")
    return ["handler.py and carried.py are Python"]


def _check_endpoint(file: Path, name: str) -> list[str]:
    try:
        arguments = read_object(file)
    except ValueError as error:
        raise DeploymentError(str(error)) from None
    check_arguments(arguments, name)
    lines = [f"{name} has the arguments of HfApi.create_inference_endpoint"]
    for field, value in arguments.items():
        if "YOUR-" in json.dumps(value):
            lines.append(f"still to fill in: {field} in {name}")
    return lines


def check_arguments(arguments: Mapping[str, Any], name: str = "endpoint.json") -> None:
    """Check arguments of `HfApi.create_inference_endpoint` (huggingface_hub 2.4): their names, types and values.

    Raises:
        DeploymentError: there is no such argument, one is missing, or one has a value that the platform does not take.
    """
    check_fields(arguments, ARGUMENTS, name)
    least, most = arguments["min_replica"], arguments["max_replica"]
    if not 0 <= least <= most or most < 1:
        raise DeploymentError(
            f"{name}: min_replica is {least} and max_replica is {most}; expected 0 <= min <= max, and at least 1 for max."
        )
    if "scale_to_zero_timeout" in arguments and least:
        raise DeploymentError(
            f"{name}: scale_to_zero_timeout is set, and min_replica is {least}. Only an endpoint with min_replica 0 scales to zero."
        )


TARGET = Target(
    name="huggingface",
    emit=emit,
    verify=verify,
    model="repository",
    scales_to_zero=True,
)
