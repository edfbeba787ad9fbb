"""What a target is, and what is deployed to it. Nothing heavy is loaded here: the command line reads it for its help."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spanqa.errors import InputError

if TYPE_CHECKING:
    from spanqa.checkpoint import Checkpoint

NAMES = ("huggingface", "azureml", "kubernetes", "kserve", "triton", "vllm", "onnx")
"""Of all targets, in the order in which the documentation has them."""

_NAME = re.compile(r"[a-z]([a-z0-9]|-(?!-)){1,30}[a-z0-9]")
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII
)
"""The name of an image, as in https://pkg.go.dev/github.com/distribution/reference."""
_MOST_REPLICAS = 1000


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploySettings:
    """What a person can choose about a deployment. Everything else can be edited in the files."""

    name: str = _setting("", "Name of the service at the platform. Default: made from the model's name.")
    device: Literal["cpu", "cuda"] = _setting("cpu", "What it runs on.")
    min_replicas: int = _setting(1, "Fewest copies that run; 0 where the platform can scale to zero.")
    max_replicas: int = _setting(3, "Most copies that run.")
    image: str = _setting("", "Name of the image that you will build and push, such as registry.example.org/qa:1.")
    region: str = _setting("", "Region of the platform, such as westeurope.")
    from_pypi: str | None = _setting(None, "Install this published version of spanqa instead of the wheel of this one.")

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            raise InputError(
                f"name is {self.name!r}; expected 3 to 32 lower-case letters, digits and single dashes, a letter first."
            )
        if not 0 <= self.min_replicas <= self.max_replicas <= _MOST_REPLICAS or self.max_replicas < 1:
            raise InputError(
                f"min_replicas is {self.min_replicas} and max_replicas is {self.max_replicas}; expected 0 <= min <= max, "
                f"and 1 to {_MOST_REPLICAS} for max."
            )
        if self.image and not _IMAGE.fullmatch(self.image):
            raise InputError(
                f"image is {self.image!r}; expected the name of an image, such as registry.example.org/qa:1, in lower case."
            )
        if self.region and not re.fullmatch(r"[A-Za-z0-9-]+", self.region):
            raise InputError(f"region is {self.region!r}; expected letters, digits and dashes, such as westeurope.")
        if self.from_pypi is not None and not re.fullmatch(r"\d+(\.\d+)*([a-z]+\d+)?", self.from_pypi):
            raise InputError(f"from_pypi is {self.from_pypi!r}; expected a version, such as 1.0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model, and how it is to run. `name` is a DNS label of 3 to 32 characters."""

    model: "Checkpoint"
    name: str
    settings: DeploySettings
    keys: tuple[str, ...] = ()
    """The files in the folder `keys/` with which a container verifies the model's signature when it starts."""

    @property
    def needs_torch(self) -> bool:
        """Whether only the torch backend runs the model, or the device."""
        from spanqa.families import FAMILIES

        return self.model.model_type not in FAMILIES or self.settings.device != "cpu"


@dataclass(frozen=True, slots=True)
class Target:
    """A platform.

    `emit(folder, deployment)` writes the target's own files into a folder that is being made. `verify(folder)` checks such a folder, and
    returns what it checked, one line each; a line that begins with "not checked" says what could not be, and why. It raises
    `DeploymentError` for what the platform would not take. `carries`: spanqa itself runs there, so the folder carries it. `model`: the
    model's place in the folder; None where the target writes the model in a form of its own. `fixed`: patterns of the names of the files
    beside the model and the wheel that nobody should edit. `scales_to_zero`: min_replicas can be 0.
    """

    name: str
    emit: Callable[[Path, Deployment], None]
    verify: Callable[[Path], list[str]]
    model: str | None = "model"
    carries: bool = True
    fixed: tuple[str, ...] = ()
    scales_to_zero: bool = False


def label(name: str) -> str:
    """Return a name as a DNS label of 3 to 32 characters: lower-case letters, digits and single dashes.

    >>> label("Deepset/BERT_large 2")
    'deepset-bert-large-2'
    """
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-")
    made = made if made[:1].isalpha() else f"qa-{made}"[:32].strip("-")
    return made if len(made) >= 3 else f"{made}-qa"
