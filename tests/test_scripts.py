"""Scripts that others rely on: environments of peers, and the record of the platform tests."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="the scripts are not here (an installed wheel is tested)")

PYTHON = f"""#!{sys.executable}
import os, shutil, sys
from pathlib import Path

arguments = sys.argv[1:]
if arguments[:2] == ["-m", "venv"]:
    (Path(arguments[2]) / "bin").mkdir()
    shutil.copy(__file__, Path(arguments[2]) / "bin" / "python")
elif arguments[:2] == ["-m", "pip"]:
    folder = Path(__file__).parents[1]
    (folder / "installed").open("a").write(arguments[-1] + "\\n")
    sys.exit(arguments[-1] == os.environ.get("BROKEN"))
else:
    sys.argv = arguments[1:]
    exec(arguments[1])
"""
"""Stands for an interpreter: makes environments and installs packages in no time."""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`make("--make")` runs the maker of an environment of two packages; `broken` is one that cannot be installed."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    maker = tmp_path / "make_peer_env"
    maker.write_text("version 1")

    def run(what: str, *, check: str = "pass", broken: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "SPANQA_ENVS": str(tmp_path / "envs"), "PYTHON": str(tmp_path / "python"), "BROKEN": broken
        }  # fmt: skip
        command = [SCRIPTS / "make_env", what, maker, check, "one==1", "two==2"]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


def test_an_environment_is_made_once_and_found_again(
    make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert make("--find").returncode == 1
    first = make("--make")
    folder = Path(first.stdout.strip())
    assert (first.returncode, folder.parent) == (0, tmp_path / "envs")
    assert folder.name.startswith("peer-")
    assert make("--make").stdout == make("--find").stdout == first.stdout
    assert (folder / "installed").read_text() == "one==1\ntwo==2\n", "installed once"
    assert list((tmp_path / "envs").iterdir()) == [folder], "nothing is left beside it"


def test_a_changed_maker_makes_another_environment(
    make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    first = make("--make").stdout
    (tmp_path / "make_peer_env").write_text("version 2")
    assert make("--find").returncode == 1
    assert make("--make").stdout != first


@pytest.mark.parametrize("failure", [{"broken": "two==2"}, {"check": "raise SystemExit('another version')"}])
def test_half_an_environment_is_never_used(
    failure: dict[str, str], make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = make("--make", **failure)
    assert (done.returncode, done.stdout) == (1, "")
    assert list((tmp_path / "envs").iterdir()) == []
    assert make("--make").returncode == 0


def test_platform_tests_are_run_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "scripts" / "platforms").mkdir(parents=True)
    shutil.copy(SCRIPTS / "test-platforms", tmp_path / "scripts")
    for name, code in {"good": "echo fine", "bad": "echo oh; exit 3", "elsewhere": "echo no GPU; exit 77"}.items():
        test = tmp_path / "scripts" / "platforms" / name
        test.write_text(f"#!/bin/sh\n{code}\n")
        test.chmod(0o755)

    def run(*names: str) -> int:
        command = [sys.executable, tmp_path / "scripts" / "test-platforms", *names]
        return subprocess.run(command, capture_output=True, text=True).returncode

    def record() -> dict[str, object]:
        [path] = (tmp_path / "benchmarks" / "results" / "platforms").iterdir()
        stored = json.loads(path.read_text("utf-8"))
        assert path.name.startswith(stored["date"][:10])
        assert stored["processor"] and stored["versions"]["numpy"]
        assert all(test["seconds"] >= 0 for test in stored["tests"])
        return {test["name"]: (test["result"], test["last_line"]) for test in stored["tests"]}

    assert run("good", "elsewhere") == 0
    assert record() == {"good": ("passed", "fine"), "elsewhere": ("skipped", "no GPU")}
    assert run("bad") == 1
    assert record() == {"good": ("passed", "fine"), "elsewhere": ("skipped", "no GPU"), "bad": ("failed", "oh")}
    assert run("none") == 2
