"""What the README and the documentation show is what happens."""

import doctest
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import spanqa

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if path.exists())
COMMANDS = [
    pytest.param(page, match[1], match[2], id=f"{page.name}: {match[1][:40]}")
    for page in PAGES
    for match in re.finditer(r"```console\n\$ (spanqa .*)\n((?:.*\n)*?)```", page.read_text("utf-8"))
]

pytestmark = pytest.mark.skipif(not PAGES, reason="the documentation is not here (an installed wheel is tested)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_documentation_gives_what_it_shows(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize(("page", "line", "shown"), COMMANDS)
def test_commands_in_the_documentation_print_what_it_shows(
    page: Path,
    line: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    line, _, standard_input = line.partition(" < ")
    _, *arguments = shlex.split(line)
    arguments = [str(tmp_path / "results") if argument == "results" else argument for argument in arguments]
    monkeypatch.chdir(ROOT)
    text = (ROOT / standard_input).read_text("utf-8") if standard_input else ""
    done = command(*arguments, standard_input=text)
    assert done.returncode == 0, done.stderr
    assert without_decimals(done.stdout) == without_decimals(shown)


def without_decimals(text: str) -> list[str]:
    """The lines with decimal numbers blanked (they differ a little between precisions) and spaces squeezed."""
    return [" ".join(re.sub(r"-?\d+\.\d+", "#", line).split()) for line in text.splitlines() if line.strip()]


def test_the_benchmark_page_and_the_results_in_the_readme_are_made_from_the_records() -> None:
    code = "import json, page; print(json.dumps([page.render(), page.render_readme(page.README.read_text('utf-8'))]))"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    )
    benchmarks, readme = json.loads(made.stdout)
    assert (ROOT / "docs" / "benchmarks.md").read_text("utf-8") == benchmarks
    assert (ROOT / "README.md").read_text("utf-8") == readme
    assert "| F1 on 2,000 questions |" in readme


# --- the picture of the data flow, and the list of files

PACKAGE = ROOT / "src" / "spanqa"


def picture(text: str) -> str:
    """Return the picture of the data flow that a text contains, without its indentation."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if "Example ──►" in line)
    last = next(i for i, line in enumerate(lines) if "used by:" in line)
    return textwrap.dedent("\n".join(lines[first : last + 1]))


def test_readme_design_and_package_show_the_same_picture() -> None:
    readme = picture((ROOT / "README.md").read_text("utf-8"))
    assert picture((ROOT / "docs" / "design.md").read_text("utf-8")) == readme
    assert picture(spanqa.__doc__ or "") == readme


def test_every_file_in_the_picture_exists() -> None:
    names = re.findall(r"\w+(?:\.py|/)", picture(spanqa.__doc__ or ""))
    assert len(names) > 10
    assert [name for name in names if not (PACKAGE / name).exists()] == []


def test_the_readme_lists_every_module_of_the_package_once() -> None:
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    listed = re.findall(r"^\| `([\w.]+/?)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(modules | folders)


def test_the_reference_names_modules_that_exist() -> None:
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text("utf-8"), re.MULTILINE)
    assert len(names) > 20
    paths = [PACKAGE.joinpath(*name.split(".")[1:]) for name in names]
    assert [str(path) for path in paths if not (path.is_dir() or path.with_suffix(".py").exists())] == []


def test_the_alert_rules_are_those_of_the_example_and_ask_for_metrics_that_exist() -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    from spanqa.serve.metrics import Metrics

    rules = (ROOT / "examples" / "alerts.yml").read_text("utf-8")
    assert rules in (ROOT / "docs" / "guide" / "deploy.md").read_text("utf-8")
    shown = re.findall(r"^# TYPE (spanqa_\w+)", Metrics().render()[0].decode(), re.MULTILINE)
    asked = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bspanqa_\w+", rules)}
    assert asked and asked <= set(shown), sorted(asked - set(shown))
