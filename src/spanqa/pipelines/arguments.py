"""The arguments of transformers' factory `pipeline(...)`: what each means here, and what replaces the others.

An argument is honoured, or it is accepted because the result is what the old call meant, or it is an error that names the
replacement. None is ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from spanqa.errors import InputError

_DTYPES = {
    "auto": "auto", "float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16",
    "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "int8": "int8",
}  # fmt: skip

_SPREAD = ("balanced", "balanced_low_0", "sequential")  # values of device_map that divide one model among several GPUs

_OTHER_NAMES: dict[str, str] = {"torch_dtype": "dtype", "use_auth_token": "token"}

_LOAD_IT_YOURSELF = "Load the model with AutoModelForQuestionAnswering.from_pretrained and this argument, and give model and tokenizer to pipeline."
_TEXT_ONLY = "A question-answering model reads text alone. Leave it out."
_HUB = "Fetch the model first (hf download NAME --local-dir FOLDER), and give the folder; HF_HOME and HF_HUB_OFFLINE work too."

_REPLACED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_fast": ((None, True), "spanqa reads fast tokenizers only. Leave it out."),
    "framework": ((None, "pt"), "Choose a backend with backend= instead (see `spanqa info`)."),
    "feature_extractor": ((None,), _TEXT_ONLY),
    "image_processor": ((None,), _TEXT_ONLY),
    "video_processor": ((None,), _TEXT_ONLY),
    "processor": ((None,), _TEXT_ONLY),
    "modelcard": (
        (None,),
        "The pipeline has no model card. Leave it out; save_pretrained copies the folder's README.md.",
    ),
    "binary_output": ((None, False), "Answers are dictionaries. Pickle them yourself with pickle.dumps."),
    "code_revision": ((None,), "spanqa runs no code of a model. Leave it out."),
    "attn_implementation": ((None, "eager", "sdpa"), "The backend chooses how it computes attention. Leave it out."),
    "low_cpu_mem_usage": ((None, True, False), ""),
    "use_safetensors": ((None, True), "spanqa reads safetensors only. Leave it out."),
    "load_in_8bit": ((None, False), "Make an int8 copy with `spanqa quantize`, and give it with dtype='int8'."),
    "load_in_4bit": ((None, False), "Make an int8 copy with `spanqa quantize`, and give it with dtype='int8'."),
    "quantization_config": ((None,), "Make an int8 copy with `spanqa quantize`, and give it with dtype='int8'."),
    "cache_dir": ((None,), _HUB),
    "local_files_only": ((None, False), _HUB),
    "force_download": ((None, False), _HUB),
    "proxies": ((None,), _HUB),
    "subfolder": ((None, ""), _HUB),
}
"""Arguments of the factory and of its `model_kwargs`: the values that change nothing, and what to do instead of any other."""


@dataclass(frozen=True, slots=True)
class Loading:
    """What the arguments ask for, in the words of `Reader.load`.

    `token` says whether a token of the hub was given that is not the one of this machine. `trust_remote_code`: whether the
    caller expects the model's own code to run.
    """

    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    token: bool = False
    trust_remote_code: bool = False


def read_arguments(given: Mapping[str, Any]) -> tuple[Loading, dict[str, Any]]:
    """Return how the model is to be loaded, and the arguments that are no matter of loading: the parameters of calls.

    Raises:
        InputError: an argument contradicts another one, or has no meaning here; the message names the replacement.
    """
    arguments = _with_model_kwargs(given)
    for name, (harmless, instead) in _REPLACED.items():
        value = arguments.pop(name, None)
        if not any(value is each or (isinstance(value, str) and value == each) for each in harmless):
            raise InputError(f"{name} is {value!r:.60}. {instead}")
    loading = Loading(
        backend=arguments.pop("backend", "auto"),
        device=_device(arguments.pop("device", None), arguments.pop("device_map", None)),
        dtype=_dtype(arguments.pop("dtype", None)),
        revision=arguments.pop("revision", None),
        token=_is_foreign(arguments.pop("token", None)),
        trust_remote_code=bool(arguments.pop("trust_remote_code", None)),
    )
    return loading, arguments


def tokenizer_of(tokenizer: Any) -> Any:
    """Return the tokenizer, or its name where it was given as (name, options).

    Raises:
        InputError: an option changes the tokenizer.
    """
    if not isinstance(tokenizer, tuple):
        return tokenizer
    if len(tokenizer) != 2 or not isinstance(tokenizer[1], Mapping):
        raise InputError(f"tokenizer is {tokenizer!r:.100}. Expected (name, options), where options is a dictionary.")
    name, options = tokenizer
    changing = [f"{option}={value!r:.60}" for option, value in options.items() if (option, value) != ("use_fast", True)]
    if changing:
        raise InputError(
            f"tokenizer has the option {changing[0]}. Load it with transformers.AutoTokenizer.from_pretrained and its options, and "
            "give tokenizer=the tokenizer."
        )
    return name


def check_nothing_else(loading: Loading, **others: Any) -> None:
    """Check that beside a `Reader` no argument was given that the reader decides already.

    Raises:
        InputError: one was.
    """
    decided = {name: getattr(loading, name) for name in ("backend", "device", "dtype", "revision")}
    for name, value in (decided | others).items():
        if value is not None and not (isinstance(value, str) and value == "auto"):
            raise InputError(
                f"{name} was given together with a Reader, which has its own. Leave {name} out, or give it to Reader.load."
            )


def _with_model_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments under their names of today, those of `model_kwargs` among them; None means not given."""
    outer = dict(given)
    inner = outer.pop("model_kwargs", None) or {}
    if not isinstance(inner, Mapping):
        raise InputError(f"model_kwargs is {inner!r:.60}. Expected a dictionary.")
    known = {*_REPLACED, *_OTHER_NAMES, *_OTHER_NAMES.values(), "device_map", "revision", "trust_remote_code"}
    unknown = [name for name in inner if name not in known]
    if unknown:
        raise InputError(f"model_kwargs has {unknown[0]!r}, which spanqa does not have. {_LOAD_IT_YOURSELF}")
    arguments: dict[str, Any] = {}
    for old_name, value in (*outer.items(), *inner.items()):
        name = _OTHER_NAMES.get(str(old_name), str(old_name))
        if value is None or (name == "dtype" and value == "auto"):
            continue
        if name in arguments and str(arguments[name]).removeprefix("torch.") != str(value).removeprefix("torch."):
            shown = "" if name == "token" else f": {arguments[name]!r:.60} and {value!r:.60}"
            raise InputError(f"{name} was given twice{shown}. Give it once.")
        arguments[name] = value
    return arguments


def _device(device: Any, device_map: Any) -> str:
    """Return the device in spanqa's words: "auto", "cpu", "cuda:0"."""
    if device_map is not None:
        if device is not None:
            raise InputError(f"device is {device!r} and device_map is {device_map!r:.60}. Give device alone.")
        devices = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
        if not devices or any(each != devices[0] for each in devices) or devices[0] in _SPREAD:
            raise InputError(
                f"device_map is {device_map!r:.100}; spanqa does not divide a model. Give device='cuda:0', or device='cuda:0,cuda:1' "
                "for a replica on each."
            )
        device = devices[0]
    if device is None:
        return "auto"
    if isinstance(device, Integral) and not isinstance(device, bool):
        return f"cuda:{device}" if int(device) >= 0 else "cpu"
    if not isinstance(device, str) and type(device).__name__ != "device":
        raise InputError(
            f"device is {device!r:.60}. Expected a number, such as 0 (-1 is the CPU), or a name, such as 'cuda:0'."
        )
    return str(device)


def _dtype(dtype: Any) -> str:
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"dtype is {dtype!r:.60}. Expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def _is_foreign(token: Any) -> bool:
    """Return whether a token of the hub differs from the one that this machine uses anyway."""
    if token is None or token is True:
        return False
    import huggingface_hub

    return bool(token != huggingface_hub.get_token())
