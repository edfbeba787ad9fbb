"""Guards on the house itself: what it exports, what importing it loads, and that its words are true."""

import ast
import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import pytest

import spanqa
from conftest import NAMED, SAMPLE
from spanqa import errors
from spanqa.backends.registry import BACKENDS
from spanqa.extras import installed

SOURCE = Path(spanqa.__file__).parent
TESTS = Path(__file__).parent
HEAVY = {
    "torch", "transformers", "openvino", "jax", "tensorflow", "onnxruntime", "nncf", "ray", "pandas", "sklearn", "matplotlib",
    "huggingface_hub", "urllib3", "requests", "httpx", "typer", "rich",
}  # fmt: skip
"""What takes long to import: frameworks, and what only the command line or a download needs."""
CORE = sorted(path for folder in (".", "backends", "tokenizer_files") for path in (SOURCE / folder).glob("*.py"))
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
Matched = set[tuple[str, int]]
MODULES = [
    ".".join(("spanqa", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(SOURCE.rglob("*.py"))
    if path.stem != "__main__" and "templates" not in path.parts
]


def test_exported_names_are_sorted_and_all_there() -> None:
    assert spanqa.__all__ == sorted(spanqa.__all__)
    for name in spanqa.__all__:
        value = getattr(spanqa, name)
        assert value.__name__ == name
        assert value.__module__.startswith("spanqa.")
        assert name in dir(spanqa)
    with pytest.raises(AttributeError, match="module 'spanqa' has no attribute 'Penmar'"):
        _ = spanqa.Penmar


STEPS = {
    "import spanqa": "import spanqa",
    "import the core": "import spanqa.reader, spanqa.squad, spanqa.backends.registry, spanqa.backends.numpy",
    "ask with numpy": "spanqa.Reader.load(backend='numpy').ask('Who?', 'Anna did.')",
    "ask with openvino": "spanqa.Reader.load(backend='openvino').ask('Who?', 'Anna did.')",
}
"""What one fresh interpreter does, one step after the other."""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The packages that are loaded after each step."""
    show = "print(*{name.partition('.')[0] for name in sys.modules})"
    program = "\n".join(["import sys", *(f"{code}\n{show}" for code in STEPS.values())])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return {step: set(line.split()) for step, line in zip(STEPS, done.stdout.splitlines(), strict=True)}


def test_importing_spanqa_loads_no_framework_and_prints_nothing(loaded: dict[str, set[str]]) -> None:
    assert not loaded["import spanqa"] & (HEAVY | {"numpy", "tokenizers", "safetensors"})


def test_importing_the_core_and_asking_with_numpy_load_no_framework(loaded: dict[str, set[str]]) -> None:
    assert "numpy" in loaded["import the core"]
    assert not loaded["import the core"] & HEAVY
    assert not loaded["ask with numpy"] & HEAVY


def test_asking_with_openvino_loads_it_alone(loaded: dict[str, set[str]]) -> None:
    assert loaded["ask with openvino"] & HEAVY == {"openvino"}


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
    names = ["spanqa.batches", "spanqa.families", "spanqa.sentences", "spanqa.spans"]
    without = [name for name in names if not any(test.examples for test in finder.find(importlib.import_module(name)))]
    assert without == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_a_core_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


# --- every message is read by a test


NO_MESSAGES = ("AssertionError", "SystemExit")
"""Our own mistakes, and exits with a code."""


def messages() -> Iterator[tuple[str, range]]:
    """File and lines of every error with a message in the core: raised there, or handed to a future or a list."""
    for path in CORE:
        if path.stem in BACKENDS and not BACKENDS[path.stem].installed:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        raised = {id(node.exc): node for node in nodes if isinstance(node, ast.Raise)}
        for node in nodes:
            if not (isinstance(node, ast.Call) and node.args):
                continue
            name = getattr(node.func, "id", "")
            if name in ERRORS or (id(node) in raised and name not in NO_MESSAGES):
                statement = raised.get(id(node), node)
                yield str(path), range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)


@pytest.mark.last
def test_every_message_that_the_core_raises_is_matched_by_a_test(
    request: pytest.FixtureRequest, matched: Matched
) -> None:
    """By the tests that ran before: a `pytest.raises` must have matched the text of each error."""
    missing = [name for name in (*BACKENDS, "quantize") if not installed(name)]
    if missing and set(BACKENDS) <= set(NAMED):
        pytest.fail(f"SPANQA_TEST_BACKENDS names every backend, but these are not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"this needs every backend and nncf; these are not installed: {', '.join(missing)}")
    ran = {item.path for item in request.session.items}
    if request.config.option.keyword or SAMPLE or not ran.issuperset(TESTS.glob("test_*.py")):
        pytest.skip("this needs the whole suite to run before it")
    found = list(messages())
    assert len(found) > 120
    unread = [f"{file}:{lines[0]}" for file, lines in found if not any((file, line) in matched for line in lines)]
    assert not unread, "\n".join(unread)


@pytest.mark.parametrize("missing", ["jax", "quantize"])
def test_that_guard_fails_where_every_backend_is_named_and_one_or_nncf_is_missing(
    missing: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "installed", lambda name: name != missing)
    guard = test_every_message_that_the_core_raises_is_matched_by_a_test
    monkeypatch.setattr(sys.modules[__name__], "NAMED", list(BACKENDS))
    with pytest.raises(pytest.fail.Exception, match=f"these are not installed: {missing}"):
        guard(request, set())
    monkeypatch.setattr(sys.modules[__name__], "NAMED", ["numpy", "openvino"])
    with pytest.raises(pytest.skip.Exception, match=f"these are not installed: {missing}"):
        guard(request, set())


OURS = {
    ".py",
    ".html",
    ".css",
    ".js",
    ".svg",
    ".typed",
    ".md",
    ".json",
}  # and the files of the model that are named below
OF_OTHERS = {
    "vocab.txt",
    "tokenizer.json",
    "config.json",
    "model.safetensors",
    "keda-scaledobjects-v1alpha1.json",
    "kserve-inferenceservices-v1beta1.json",
}


def test_the_notices_name_every_file_that_comes_from_others() -> None:
    files = [
        path for path in SOURCE.rglob("*") if path.is_file() and not {"__pycache__", "templates"} & set(path.parts)
    ]
    others = {path.name for path in files if path.suffix not in OURS or path.name in OF_OTHERS}
    assert others == OF_OTHERS
    [notices] = [file for file in distribution("spanqa").files or () if file.name == "THIRD_PARTY_NOTICES.md"]
    text = Path(str(notices.locate())).read_text("utf-8")
    assert [name for name in sorted(others) if f"`{name}`" not in text and f"/{name}`" not in text] == []
