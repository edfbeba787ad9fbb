"""The image that several targets run: a Dockerfile, what is installed in it, and what goes to the builder.

One for CPUs is `Dockerfile` with `requirements.txt`, one for NVIDIA GPUs `Dockerfile.cuda` with `requirements-cuda.txt`. torch brings the
CUDA libraries, so both begin with the same image of Python. The user is a number, since Kubernetes checks that it is not root.
"""

import hashlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from spanqa.deploy.render import render
from spanqa.deploy.target import Deployment
from spanqa.deploy.wheel import pinned, write_wheel
from spanqa.errors import DeploymentError
from spanqa.files import read_text, write_text

PORT = 8080
UID = 10001
KEYS_AT = "/keys"


def emit_container(folder: Path, deployment: Deployment, *, model_at: str | None = None) -> str:
    """Write what an image is built from, for the device of the deployment, and return the name of the Dockerfile.

    `model_at` is where the platform mounts the model; None: the image holds the folder's `model`.
    """
    settings = deployment.settings
    cuda = settings.device == "cuda"
    requirements = "requirements-cuda.txt" if cuda else "requirements.txt"
    write_text(folder / requirements, "\n".join(pinned(_extras(deployment))) + "\n")
    wheel, sha256 = ("", "") if settings.from_pypi else write_wheel(folder)
    dockerfile = "Dockerfile.cuda" if cuda else "Dockerfile"
    text = render(
        "container/Dockerfile",
        device=settings.device,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",  # for which the pinned versions are known to exist
        requirements=requirements,
        wheel=wheel,
        wheel_sha256=sha256,
        version=settings.from_pypi,
        copies=model_at is None,
        model=model_at or "/model",
        keys=deployment.keys,
        keys_at=KEYS_AT,
        uid=UID,
        port=PORT,
        entrypoint=json.dumps(serve_command(deployment, model_at or "/model")),
    )
    write_text(folder / dockerfile, text)
    write_text(folder / ".dockerignore", render("container/dockerignore"))
    return dockerfile


def serve_command(deployment: Deployment, model: str = "/model") -> list[str]:
    """Return the command of a container: the server, on all addresses, with the model in a folder."""
    command = ["/venv/bin/spanqa", "serve", "--model", model, "--name", deployment.name]
    command += ["--host", "0.0.0.0", "--port", str(PORT), "--log-format", "json"]
    if deployment.needs_torch:
        command += ["--backend", "torch"]
    command += ["--device", deployment.settings.device]
    for key in deployment.keys:
        command += ["--verify-key", f"{KEYS_AT}/{key}"]
    return command


def image_values(deployment: Deployment) -> dict[str, Any]:
    """Return what templates need about the container: name, device, port, user, sizes."""
    return {
        "name": deployment.name,
        "device": deployment.settings.device,
        "port": PORT,
        "uid": UID,
        "memory": memory(deployment),
        "scratch": scratch(deployment),
    }


def memory(deployment: Deployment) -> int:
    """Return the memory of a container in MiB: a base, and five times the parameters in fp32, in steps of 256.

    Measured as VmHWM of `spanqa serve` under load, on two cores: 436 MiB with spanqa-mini (22.6 M parameters) and 1,478 MiB with a BERT of
    85.8 M on openvino, 722 MiB with spanqa-mini on torch. The base leaves room for texts that wait; with CUDA it is an estimate.
    """
    base = 4096 if deployment.settings.device == "cuda" else 1024 if deployment.needs_torch else 768
    parameters = sum(math.prod(shape) for shape in deployment.model.weights.shapes.values())
    return math.ceil((base + 5 * 4 * parameters / 2**20) / 256) * 256


def scratch(deployment: Deployment) -> int:
    """Return the size of /tmp in MiB: room for the copy of the model that is verified, where there are keys."""
    copied = deployment.model.weights.bytes if deployment.keys else 0
    return 128 + math.ceil(copied * 1.1 / 2**20)


def _extras(deployment: Deployment) -> list[str]:
    extras = ["serve"]
    if deployment.needs_torch:
        extras.append("torch")
    if deployment.keys:
        extras.append("sign")
    return extras


def verify_container(folder: Path) -> list[str]:
    """Check the Dockerfiles of a folder: that what they copy is there, and that the wheel is the one they expect.

    Raises:
        DeploymentError: it is not.
    """
    lines = []
    for path in sorted(folder.glob("Dockerfile*")):
        text = read_text(path)
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
            for source in sources.split():
                if not (folder / source).exists():
                    raise DeploymentError(
                        f"{path.name} copies {source!r}, which the folder lacks. Make the folder again."
                    )
        for wheel, digest in re.findall(r"/(spanqa-[^/]+\.whl)#sha256=(\w+)", text):
            if not (folder / wheel).is_file() or hashlib.sha256((folder / wheel).read_bytes()).hexdigest() != digest:
                raise DeploymentError(
                    f"{path.name} expects another {wheel}: there is none whose SHA-256 is {digest}. Make the folder again."
                )
        lines.append(f"{path.name}: what it copies is there, and the wheel is the one that it expects")
    for path in sorted(folder.glob("requirements*.txt")):
        loose = [line for line in read_text(path).split() if "==" not in line]
        if loose:
            lines.append(f"not pinned in {path.name}, because they are not installed here: {', '.join(loose)}")
    lines.append("not checked: that the images build, because there is no builder here")
    return lines
