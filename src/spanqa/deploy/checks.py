"""What several targets check of the files that a person may have edited."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spanqa.errors import DeploymentError


def check_fields(value: Any, wanted: Any, where: str) -> None:
    """Compare a value of a YAML or JSON file, and what it holds, with what is wanted. `where` is its place: a file, then fields.

    `wanted` is a type, several types, the values that there are, the fields of an object (with ! after those that have to be there), or
    a list with what its items are.

    Raises:
        DeploymentError: a field is unknown, missing, or has another type or value.
    """
    if isinstance(wanted, Mapping):
        known = {name.rstrip("!"): each for name, each in wanted.items()}
        if not isinstance(value, dict):
            raise DeploymentError(f"{where} is {value!r}; expected the fields {', '.join(known)}.")
        for name, each in value.items():
            if name not in known:
                raise DeploymentError(f"{where} has no field {name!r}; expected some of {', '.join(known)}.")
            check_fields(
                each, known[name], f"{where}: {name}" if where.endswith((".yml", ".json")) else f"{where}.{name}"
            )
        for name in known:
            if f"{name}!" in wanted and name not in value:
                raise DeploymentError(f"{where} lacks {name!r}. Add it, or make the folder again.")
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise DeploymentError(f"{where} is {value!r}; expected a list.")
        for number, each in enumerate(value):
            check_fields(each, wanted[0], f"{where}.{number}")
    elif isinstance(wanted, tuple) and isinstance(wanted[0], str):
        if value not in wanted:
            raise DeploymentError(f"{where} is {value!r}; expected one of {', '.join(wanted)}.")
    elif not isinstance(value, wanted) or (isinstance(value, bool) and wanted not in (bool, object)):
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        raise DeploymentError(
            f"{where} is {value!r}; expected a value of type {' or '.join(kind.__name__ for kind in kinds)}."
        )


def check_program(file: Path, name: str) -> None:
    """Check that a file is a Python program. `name` is its place in the folder.

    Raises:
        DeploymentError: it is missing, or no Python.
    """
    try:
        compile(file.read_text("utf-8"), name, "exec", dont_inherit=True)
    except FileNotFoundError:
        raise DeploymentError(f"{name} is missing. Make the folder again.") from None
    except SyntaxError as error:
        raise DeploymentError(f"{name}, line {error.lineno}: {error.msg}.") from None
    except ValueError as error:  # a NUL, or not UTF-8
        raise DeploymentError(f"{name} is not Python: {error}.") from None
