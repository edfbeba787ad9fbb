"""What each optional part of spanqa needs, and the error when it is missing.

Nothing is imported here: a package counts as installed if Python can find it.
"""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from spanqa.errors import NotInstalledError


@dataclass(frozen=True, slots=True)
class Need:
    """`what` needs `packages` (import names). pip installs them with `spanqa[extra]`; "" means the base package."""

    what: str
    packages: tuple[str, ...]
    extra: str


NEEDS: dict[str, Need] = {
    "numpy": Need("Backend 'numpy'", (), ""),
    "openvino": Need("Backend 'openvino'", ("openvino",), ""),
    "torch": Need("Backend 'torch'", ("torch", "transformers"), "torch"),
    "onnx": Need("Backend 'onnx'", ("onnx", "onnxruntime"), "onnx"),
    "jax": Need("Backend 'jax'", ("jax",), "jax"),
    "tensorflow": Need("Backend 'tensorflow'", ("tensorflow",), "tensorflow"),
    "train": Need("Training", ("torch", "transformers", "accelerate"), "train"),
    "adapt": Need("Adapting to texts", ("torch", "transformers", "accelerate", "datasets", "pyarrow"), "train"),
    "parquet": Need("Reading Parquet files", ("pyarrow",), "batch"),
    "zstd": Need("Reading and writing .zst", ("pyarrow",), "batch"),
    "ray": Need("Ray", ("ray", "pyarrow", "pandas"), "ray"),
    "datasets": Need("Reading a folder of Hugging Face datasets", ("datasets",), "train"),
    "report": Need("Writing a report", ("matplotlib",), "report"),
    "figures": Need("Drawing figures", ("matplotlib",), "explain"),
    "gradients": Need("Explaining by gradients", ("torch", "transformers"), "torch"),
    "quantize": Need("Quantizing", ("nncf",), "quantize"),
    "serve": Need("Serving", ("fastapi", "uvicorn", "httptools", "prometheus_client", "swagger_ui_bundle"), "serve"),
    "tracing": Need("Tracing", ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"), "tracing"),
    "sign": Need("Signing and verifying models", ("model_signing", "OpenSSL"), "sign"),
    "deploy": Need("Deploying", ("jinja2", "packaging", "yaml"), "deploy"),
    "kubernetes": Need("Checking manifests of Kubernetes", ("kubernetes_validate", "jsonschema"), "deploy"),
    "client": Need("The client", ("httpx",), "client"),
    "transformers": Need("Reviving the pipeline of transformers", ("transformers", "torch"), "torch"),
}
"""Every optional part, by name. The names of backends are those of `spanqa.backends.registry`."""


def missing(name: str) -> list[str]:
    """Return the packages that a part needs and that are not installed."""
    return [package for package in NEEDS[name].packages if not _is_there(package)]


def _is_there(package: str) -> bool:
    """Return whether Python can find a package; opentelemetry.sdk may be missing where opentelemetry is there."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # what is before the dot is missing
        return False


def installed(name: str) -> bool:
    """Return whether everything that a part needs is installed."""
    return not missing(name)


def require(name: str) -> None:
    """Check that a part can be used.

    Raises:
        NotInstalledError: packages are missing. The message names them and the command that installs them.
    """
    lacking = missing(name)
    if lacking:
        extra = NEEDS[name].extra
        listed = " and ".join(filter(None, (", ".join(lacking[:-1]), lacking[-1])))
        raise NotInstalledError(
            f"{NEEDS[name].what} needs {listed}, which {'is' if len(lacking) == 1 else 'are'} not installed. "
            f"Install with: pip install '{f'spanqa[{extra}]' if extra else 'spanqa'}'"
        )


def package_version(package: str) -> str:
    """Return the version of an installed package, by its import name (tensorflow may be installed as tensorflow-cpu)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return version(packages_distributions()[package][0])


def import_without(name: str, hidden: str) -> Any:
    """Import a library without a module that it would load and can do without; where that is loaded already, it stays."""
    if hidden in sys.modules:
        return importlib.import_module(name)
    sys.modules[hidden] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[hidden]
