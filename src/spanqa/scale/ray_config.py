"""What `spanqa serve --ray` serves: the models, how many replicas each may have, and what a replica needs.

A file of these fields is the config file of the command line; in Ray's own config files they are the `args` of the application. Ray
takes a name that it does not know as if nothing had been said; here it is refused.

    models:
      - name: mini
        model: spanqa-mini
        max_replicas: 4
        num_cpus: 2
    settings:
      max_wait: 2
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from spanqa.errors import InputError

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class RayModel(_Strict):
    """A model, and its replicas. Names that Ray has too mean what they mean there; times are seconds."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Its name for clients, and in addresses."""

    model: str = "spanqa-mini"
    """Name of a bundled model, a folder that every node has, or a Hugging Face hub id."""
    revision: str | None = None
    verify_key: tuple[str, ...] = ()
    """Load the model only if it was signed with one of these, as with --verify-key."""
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    threads: Count | None = None
    """CPU threads of a replica. Default: as many as `num_cpus`."""
    max_seq_length: int | None = None
    overlap: int | None = None
    max_answer_tokens: int | None = None

    min_replicas: Count = 1
    max_replicas: Count = 4
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 4
    """As many requests should be in work or wait for each replica; with more, replicas are added, with less, taken away."""
    upscale_delay_s: Seconds = 10
    """So long must there be too many before one is added."""
    downscale_delay_s: Seconds = 300
    """So long must there be too few before one is taken away."""
    look_back_period_s: Annotated[float, Field(gt=10)] = 30
    """The mean of so many seconds counts; more than 10, after which Ray counts again."""
    max_ongoing_requests: Count = 16
    """Most requests that a replica works on at a time; the others wait in the ingress."""
    max_queued_requests: Count = 64
    """Most requests that wait in each ingress; one more is refused with 429."""

    num_cpus: Annotated[float, Field(ge=0)] = 1
    """Cores that Ray sets aside for a replica; a part of one is fine."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs that Ray sets aside for a replica; 0.25 lets four share one."""

    @model_validator(mode="after")
    def _check(self) -> "RayModel":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}")
        if self.max_ongoing_requests < self.target_ongoing_requests:
            raise ValueError(
                f"max_ongoing_requests is {self.max_ongoing_requests}, less than target_ongoing_requests, "
                f"{self.target_ongoing_requests:g}; a replica would never be busy enough for another"
            )
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError(f"num_gpus is {self.num_gpus:g}; expected a part of one, or a whole number")
        return self


class RayConfig(_Strict):
    """Models by name, and what holds for all of them. `settings` are the fields of `ServeSettings`, which the command line checks."""

    models: tuple[RayModel, ...]
    """The first one is also found without a name."""
    settings: dict[str, JsonValue] = {}
    key_file: str | None = None
    """File with API keys, one a line, on the node where the application is built."""
    log_format: Literal["text", "json"] = "text"
    ingress_replicas: Count = 1
    """Processes that take requests and hand them to replicas. With two, one can die, and the other goes on."""
    drain_timeout: Seconds = 30
    """A replica that is taken away may finish what it works on for so long."""

    @model_validator(mode="after")
    def _check(self) -> "RayConfig":
        if not self.models:
            raise ValueError("models: there is none; expected at least one")
        names = [each.name for each in self.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"models: there are two of the name {twice!r}")
        return self


def read_ray_config(path: str | Path) -> RayConfig:
    """Return what a file says: JSON if its name ends with .json, else YAML.

    Raises:
        InputError: the file cannot be read, or says something that cannot be used.
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"The config file {str(path)!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        says = " ".join(str(error).split())
        raise InputError(f"The config file {str(path)!r} is neither YAML nor JSON: {says}.") from None
    return ray_config(value, f"The config file {str(path)!r}")


def ray_config(value: object, what: str = "The configuration") -> RayConfig:
    """Return a configuration that was given as plain values: dictionaries, lists, texts and numbers.

    Raises:
        InputError: it names each field that is not known, is missing, or has a value that cannot be used.
    """
    if not isinstance(value, Mapping):
        found = "empty" if value is None else type(value).__name__
        raise InputError(f"{what} is {found}; expected fields, such as models.")
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):
        raise InputError(f"{what} holds itself, or is nested too deeply; expected fields, such as models.") from None
    try:
        return RayConfig.model_validate_json(text)
    except ValidationError as error:
        names = {1: list(RayConfig.model_fields), 3: list(RayModel.model_fields)}
        raise InputError(f"{what} cannot be used. {explained(error, names)}") from None


def explained(error: ValidationError, names: Mapping[int, Sequence[str]], *where: str) -> str:
    """Return what is wrong, one sentence a field. `names` are the fields that there are, by depth, and `where` is the place they are in."""
    found = error.errors(include_url=False, include_context=False)
    return " ".join(_sentence(dict(each), names.get(len(each["loc"]), ()), where) for each in found)


def _sentence(error: Mapping[str, Any], names: Sequence[str], where: Sequence[str]) -> str:
    place = ".".join(map(str, (*where, *error["loc"])))
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(error["loc"][-1]), names, 1)
        return f"{place}: there is no such field{f'; did you mean {close[0]}?' if close else '.'}"
    if error["type"] == "missing":
        return f"{place} is missing."
    says = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{f'{place}: ' if place else ''}{says}."
    return f"{place} is {error['input']!r}: {says[:1].lower()}{says[1:]}."
