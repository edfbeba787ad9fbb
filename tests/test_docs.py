"""What the README and the documentation show is what happens."""

import doctest
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_the_benchmark_page_is_made_from_the_records() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import page; print(page.render(), end='')"],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ROOT / "docs" / "benchmarks.md").read_text("utf-8") == made.stdout
