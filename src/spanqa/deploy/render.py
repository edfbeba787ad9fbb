"""Templates to files. They lie under templates/, one folder for each target, as what they become.

A template is Jinja's. Its environment is strict: a name that is not given is an error, never an empty string.
"""

import stat
from importlib import resources
from pathlib import Path
from typing import Any

from spanqa.extras import require


def render(template: str, **values: Any) -> str:
    """Return a template, such as "kubernetes/base/service.yaml", with values in the place of its names."""
    require("deploy")
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )  # no HTML: nothing is escaped
    text = resources.files("spanqa.deploy").joinpath("templates", *template.split("/")).read_text("utf-8")
    return environment.from_string(text).render(**values)


def write(folder: Path, templates: str, **values: Any) -> None:
    """Write all files under a folder of templates to the same places under `folder`. A script (#!) can be run."""
    root = resources.files("spanqa.deploy").joinpath("templates", *templates.split("/"))
    with resources.as_file(root) as found:
        names = sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file())
    for name in names:
        text = render(f"{templates}/{name}", **values)
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
        if text.startswith("#!"):
            file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
