"""What the tests share: tiny checkpoints, the bundled model, and which backends run.

SPANQA_TEST_BACKENDS   names, with commas, of backends that must be tested: one that is missing is then a failure.
                       Without it, those that are installed are tested and the others skipped.
SPANQA_DATA            a folder of question files (see CONTRIBUTING.md); the tests that read them skip without it.
SPANQA_TEST_SAMPLE     1 runs every test, but only the first and the last case of each, and property tests on few examples;
                       tests marked `every_version` still run all their cases. `scripts/wheel` sets it: it asks whether the
                       wheel works with other versions of what it depends on, not whether spanqa is right.
"""

import os

# Before NumPy is imported: its threads spin as they wait, so that on a busy machine two are slower than one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import io
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from traceback import extract_tb
from typing import Any

import hypothesis
import pytest

import browser as chromium
import tiny as tiny_checkpoints
from spanqa.backends.base import Backend
from spanqa.backends.registry import BACKENDS, load_backend
from spanqa.checkpoint import BUNDLED, find, open_checkpoint
from spanqa.errors import SpanQAError
from spanqa.reader import Reader

SAMPLE = os.environ.get("SPANQA_TEST_SAMPLE") == "1"
hypothesis.settings.register_profile(
    "spanqa",
    deadline=None,
    derandomize=True,
    max_examples=10 if SAMPLE else 60,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("spanqa")

NAMED = [name.strip() for name in os.environ.get("SPANQA_TEST_BACKENDS", "").split(",") if name.strip()]


def pytest_configure(config: pytest.Config) -> None:
    # In the background or under nohup signals are ignored, in the processes that a test starts too.
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    # jax, which is imported later, then compiles a graph once for all models of the same shape.
    compiled = tempfile.TemporaryDirectory(prefix="spanqa-jax-")
    config.add_cleanup(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    unknown = sorted(set(NAMED) - set(BACKENDS))
    if unknown:
        raise pytest.UsageError(f"SPANQA_TEST_BACKENDS names {', '.join(unknown)}; there are {', '.join(BACKENDS)}.")


MATCHED: set[tuple[str, int]] = set()
"""File and line of every error whose text was matched by a `pytest.raises`: where it was raised, and where it was made."""


class NotedRaises:
    """`pytest.raises` with `match`, that notes where in spanqa the error was raised and made.

    The two differ where an error is handed to a future, which raises it in another place.
    """

    def __init__(self, context: Any) -> None:
        self.context = context

    def __enter__(self) -> Any:
        return self.context.__enter__()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        matched = self.context.__exit__(kind, error, traceback)
        cause = error
        while cause is not None and (
            cause is error or str(cause) in str(error)
        ):  # an error can quote the one before it
            places = [(frame.filename, frame.lineno) for frame in extract_tb(cause.__traceback__)]
            MATCHED.update([place for place in places if "spanqa" in Path(place[0]).parts][-1:])
            cause = cause.__context__
        if hasattr(error, "made_at"):
            MATCHED.add(error.made_at)
        return matched


@pytest.fixture(scope="session", autouse=True)
def matched() -> Iterator[set[tuple[str, int]]]:
    raises, init = pytest.raises, SpanQAError.__init__

    def noted(*args: Any, **options: Any) -> Any:
        return NotedRaises(raises(*args, **options)) if options.get("match") else raises(*args, **options)

    def noted_init(self: SpanQAError, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        frame = sys._getframe(1)
        self.made_at = (frame.f_code.co_filename, frame.f_lineno)  # type: ignore[attr-defined]

    pytest.raises = noted  # type: ignore[assignment]
    SpanQAError.__init__ = noted_init  # type: ignore[method-assign]
    yield MATCHED
    pytest.raises, SpanQAError.__init__ = raises, init  # type: ignore[method-assign]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
    if SAMPLE:
        cases: dict[str, list[pytest.Item]] = {}
        for item in items:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        left_out = {
            id(item)
            for of_one_test in cases.values()
            for item in of_one_test[1:-1]
            if item.get_closest_marker("every_version") is None
        }
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
        items[:] = [item for item in items if id(item) not in left_out]


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("ask", ...)` runs the command line in this process, which has loaded already what it needs.

    A process of its own costs half a second, most of it imports; `test_cli.py` starts some where it matters.
    """

    def run(*arguments: str | Path, standard_input: str = "") -> subprocess.CompletedProcess[str]:
        from spanqa.__main__ import run as run_command

        command = ["spanqa", *map(str, arguments)]
        out, error = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n", write_through=True), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
            patch.setattr(sys, "argv", command)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(standard_input.encode()), "utf-8"))
            patch.setenv("COLUMNS", "200")
            patch.setenv("NO_COLOR", "1")
            code = run_command(command[1:])
        out.flush()
        printed = out.detach().getvalue().decode()  # type: ignore[attr-defined]
        return subprocess.CompletedProcess(command, code, printed, error.getvalue())

    return run


def need_backend(name: str) -> None:
    """Skip the test where the backend is not installed; fail it where SPANQA_TEST_BACKENDS names the backend."""
    if BACKENDS[name].installed:
        return
    if name in NAMED:
        pytest.fail(f"SPANQA_TEST_BACKENDS names {name!r}, which is not installed")
    pytest.skip(f"backend {name!r} is not installed")


@pytest.fixture(scope="session")
def need() -> Callable[[str], None]:
    """`need("torch")` skips or fails the test where the backend is not installed."""
    return need_backend


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small products of torch are faster on one thread, and far faster where other work keeps the processor busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The package, for tests against transformers' own models."""
    need_backend("torch")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny("bert")` is the folder of a tiny checkpoint, made once; it is not to be changed.

    `tiny("spanqa-mini")` is the bundled model, for tests that run on it too.
    """
    made: dict[str, Path] = {name: find(name) for name in BUNDLED}

    def folder(family: str = "bert", **changes: Any) -> Path:
        key = f"{family} {changes}" if changes else family
        if key not in made:
            made[key] = tiny_checkpoints.make(family, tmp_path_factory.mktemp(family), **changes)
        return made[key]

    return folder


@pytest.fixture
def tiny_copy(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`tiny_copy("bert")` is a copy of the folder, for the test to break."""

    def copy(family: str = "bert", **changes: Any) -> Path:
        return Path(shutil.copytree(tiny(family, **changes), tmp_path / f"{family}-copy", dirs_exist_ok=True))

    return copy


@pytest.fixture(scope="session")
def load() -> Callable[..., Backend]:
    """`load("numpy", folder)` is a backend on the CPU, in fp32 unless told otherwise."""

    def backend(name: str, folder: Path, dtype: str = "fp32") -> Backend:
        need_backend(name)
        return load_backend(name, open_checkpoint(folder), device="cpu", dtype=dtype)[0]

    return backend


@pytest.fixture(scope="session")
def backend_of(tiny: Callable[..., Path], load: Callable[..., Backend]) -> Callable[..., Backend]:
    """`backend_of("numpy", "bert")` is a backend that holds the tiny checkpoint, loaded once."""
    made: dict[tuple[str, str, str], Backend] = {}

    def backend(name: str, family: str = "bert", dtype: str = "fp32") -> Backend:
        key = (name, family, dtype)
        if key not in made:
            made[key] = load(name, tiny(family), dtype)
        return made[key]

    return backend


@pytest.fixture(scope="session")
def tiny_reader(tiny: Callable[..., Path]) -> Callable[..., Reader]:
    """`tiny_reader("bert")` is a reader of the tiny checkpoint on openvino in fp32, loaded once."""
    made: dict[str, Reader] = {}

    def reader(family: str = "bert") -> Reader:
        if family not in made:
            made[family] = Reader.load(tiny(family), backend="openvino", dtype="fp32")
        return made[family]

    return reader


@pytest.fixture(scope="session")
def mini() -> Reader:
    """The bundled model on openvino in fp32."""
    return Reader.load(backend="openvino", dtype="fp32")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """Chromium, closed when the tests of a file are over."""
    if SAMPLE:
        pytest.skip("whether pages look right does not depend on the versions of libraries")
    if chromium.PROGRAM is None:
        pytest.skip("no Chromium is installed (scripts/setup installs Debian's)")
    with chromium.Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real questions."""
    if not os.environ.get("SPANQA_DATA"):
        pytest.skip("SPANQA_DATA is not set: it names the folder of real questions (see CONTRIBUTING.md)")
    return Path(os.environ["SPANQA_DATA"])
