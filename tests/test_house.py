"""Guards on the house itself: what it exports, what importing it loads, and that its words are true."""

import ast
import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import spanqa
from spanqa.backends.registry import BACKENDS
from spanqa.extras import installed

SOURCE = Path(spanqa.__file__).parent
TESTS = Path(__file__).parent
HEAVY = {
    "torch", "transformers", "openvino", "jax", "tensorflow", "onnxruntime", "nncf", "ray", "huggingface_hub", "typer",
    "rich",
}  # fmt: skip
"""What takes long to import: frameworks, and what only the command line or a download needs."""
CORE = [
    path
    for path in sorted([*SOURCE.glob("*.py"), *(SOURCE / "backends").glob("*.py")])
    if path.stem not in ("__init__", "__main__", "pipelines")
]
Matched = set[tuple[str, int]]
MODULES = [
    ".".join(("spanqa", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(SOURCE.rglob("*.py"))
    if path.stem != "__main__"
]


def loaded_by(code: str) -> set[str]:
    """The packages that are loaded when the code has run in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(done.stdout.split())


def test_exported_names_are_sorted_and_all_there() -> None:
    assert spanqa.__all__ == sorted(spanqa.__all__)
    for name in spanqa.__all__:
        value = getattr(spanqa, name)
        assert value.__name__ == name
        assert value.__module__.startswith("spanqa.")
        assert name in dir(spanqa)
    with pytest.raises(AttributeError, match="module 'spanqa' has no attribute 'Penmar'"):
        _ = spanqa.Penmar


def test_importing_spanqa_loads_no_framework_and_prints_nothing() -> None:
    loaded = loaded_by("import spanqa")
    assert not loaded & (HEAVY | {"numpy", "tokenizers", "safetensors"})


def test_importing_the_core_loads_no_framework() -> None:
    loaded = loaded_by("import spanqa.reader, spanqa.squad, spanqa.backends.registry, spanqa.backends.numpy")
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_asking_with_numpy_loads_no_framework() -> None:
    loaded = loaded_by("import spanqa\nspanqa.Reader.load(backend='numpy').ask('Who?', 'Anna did.')")
    assert not loaded & HEAVY


def test_asking_with_openvino_loads_it_alone() -> None:
    loaded = loaded_by("import spanqa\nspanqa.Reader.load(backend='openvino').ask('Who?', 'Anna did.')")
    assert loaded & HEAVY == {"openvino"}


def imported(name: str) -> ModuleType:
    """The module; the test is skipped where a package that it needs is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("spanqa"):
            raise
        pytest.skip(f"{name} needs {error.name}, which is not installed")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    failed, _ = doctest.testmod(imported(name))
    assert failed == 0


def test_there_are_examples_in_docstrings() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = ["spanqa.answers", "spanqa.batches", "spanqa.encoder", "spanqa.spans"]
    assert all(any(test.examples for test in finder.find(importlib.import_module(name))) for name in names)


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_a_core_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


# --- every message is read by a test


def raise_statements() -> Iterator[tuple[str, range]]:
    """File and lines of every statement in the core that raises an error with a message."""
    for path in CORE:
        if path.stem in BACKENDS and not BACKENDS[path.stem].installed:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.end_lineno):
                continue
            if getattr(node.exc.func, "id", "") != "AssertionError":  # our own mistakes, not the user's
                yield str(path), range(node.lineno, node.end_lineno + 1)


@pytest.mark.last
def test_every_message_that_the_core_raises_is_matched_by_a_test(
    request: pytest.FixtureRequest, matched: Matched
) -> None:
    """By the tests that ran before: each statement must have raised an error whose text a `pytest.raises` matched."""
    ran = {item.path for item in request.session.items}
    if request.config.option.keyword or not ran.issuperset(TESTS.glob("test_*.py")):
        pytest.skip("this needs the whole suite to run before it")
    if not all(map(installed, (*BACKENDS, "quantize"))):
        pytest.skip("this needs every backend, and nncf")
    statements = list(raise_statements())
    assert len(statements) > 60
    unread = [f"{file}:{lines[0]}" for file, lines in statements if not any((file, line) in matched for line in lines)]
    assert unread == []
