"""KServe: an InferenceService over our server, which speaks the Open Inference Protocol, in KServe's Standard mode.

The image holds the model: that needs no bucket, no credentials and no storage initializer, and it is the same image as elsewhere.
"""

from pathlib import Path

from spanqa.deploy.container import emit_container, image_values, verify_container
from spanqa.deploy.kubernetes import image_fields
from spanqa.deploy.manifests import FILL_IN, check_pod, check_schemas, read_manifests, to_fill_in
from spanqa.deploy.render import write
from spanqa.deploy.target import Deployment, Target
from spanqa.errors import DeploymentError

_FILE = "inferenceservice.yaml"


def emit(folder: Path, deployment: Deployment) -> None:
    """Write the InferenceService, and what its image is built from."""
    settings = deployment.settings
    dockerfile = emit_container(folder, deployment)
    write(
        folder,
        "kserve",
        **image_values(deployment),
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        image=settings.image or f"{FILL_IN}/{deployment.name}:1",
        prometheus="http://prometheus-operated.monitoring:9090",
        dockerfile=dockerfile,
        keys=deployment.keys,
    )


def verify(folder: Path) -> list[str]:
    """Check the InferenceService against KServe's schema, its pod against that of Kubernetes, and what the image is built from.

    Raises:
        DeploymentError: something would not be taken, or does not agree.
    """
    lines = verify_container(folder)
    found = read_manifests(folder / _FILE)
    services = [each for each in found if each["kind"] == "InferenceService"]
    if len(services) != 1:
        raise DeploymentError(f"{_FILE} holds {len(services)} InferenceServices. Expected one.")
    lines += check_schemas((_FILE, each) for each in found)
    predictor = services[0]["spec"]["predictor"]
    names = [each["name"] for each in predictor.get("containers", ())]
    if "kserve-container" not in names:
        raise DeploymentError(
            f"{_FILE}: the containers are {', '.join(names) or 'none'}. KServe expects a kserve-container."
        )
    check_pod(predictor, _FILE)
    lines.append("names, ports and times agree")
    image = predictor["containers"][names.index("kserve-container")].get("image", "")
    if not image:
        raise DeploymentError(f"{_FILE}: the kserve-container has no image. Name the one that you pushed.")
    if FILL_IN in image_fields(image).get("newTag", "") and FILL_IN not in image:
        lines.append(f"still to fill in: the tag of the image {image}")
    return lines + [f"still to fill in: {place}" for each in found for place in to_fill_in(each)]


TARGET = Target(name="kserve", emit=emit, verify=verify)
