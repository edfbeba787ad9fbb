"""`spanqa info`: what is installed, and what auto chooses."""

import json
import platform
from typing import Any

import typer

from spanqa.cli import options

_INT8 = {
    True: "pays here as a rule: this processor multiplies 8-bit integers natively. `spanqa quantize` measures it.",
    False: "does not pay here: this processor has neither VNNI nor AMX, so that floats are faster.",
    None: "may pay here: `spanqa quantize` measures it.",
}
"""Whether an int8 copy is faster, by what is known of the processor."""


def info(
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Show the installed backends, the model and its settings, and which backend would be used and why."""
    from spanqa import __version__
    from spanqa.backends.base import cpu_has_int8
    from spanqa.backends.registry import BACKENDS
    from spanqa.extras import NEEDS, package_version

    reader = options.load_reader(
        model=model, revision=revision, backend=backend, device=device, dtype=dtype, threads=threads
    )
    checkpoint = reader.checkpoint
    facts: dict[str, Any] = {
        "spanqa": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "model": {
            "path": str(checkpoint.path),
            "architecture": checkpoint.model_type,
            "megabytes": round(checkpoint.weights.bytes / 1e6, 1),
            "sha256": checkpoint.weights.sha256,
            "max_seq_length": checkpoint.max_seq_length,
        },
        "settings": {
            "max_seq_length": reader.windows.max_seq_length,
            "overlap": "min(128, room // 2)" if reader.windows.overlap is None else reader.windows.overlap,
            "max_answer_tokens": reader.answers.max_answer_tokens,
            "no_answer_threshold": reader.answers.no_answer_threshold,
            "probability": "calibrated" if reader.calibrated else "uncalibrated",
        },
        "backends": {
            each.name: {
                "installed": each.installed,
                "versions": {package: package_version(package) for package in NEEDS[each.name].packages}
                if each.installed
                else {},
                "devices": list(each.devices),
                "dtypes": list(each.dtypes),
                "architectures": each.architectures,
                "install": f"pip install 'spanqa[{NEEDS[each.name].extra}]'"
                if NEEDS[each.name].extra
                else "installed with spanqa",
            }
            for each in BACKENDS.values()
        },
        "int8": _INT8[cpu_has_int8()],
        "would use": {
            "backend": reader.backend.name,
            "device": reader.backend.device,
            "dtype": reader.backend.dtype,
            "because": reader.reason,
        },
    }
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    console = options.output()
    console.print(f"spanqa {facts['spanqa']}, Python {facts['python']}, {facts['machine']}\n")
    for name in ("model", "settings"):
        grid = Table.grid("", Column(overflow="fold"), padding=(0, 2))
        for key, value in facts[name].items():
            grid.add_row(f"  {key}", escape(_printable(str(value))))
        console.print(f"[bold]{name}[/bold]")
        console.print(grid)
        console.print()
    columns = [
        Column(title, overflow="fold") for title in ("backend", "installed", "devices", "dtypes", "how to install")
    ]
    columns[0].no_wrap = columns[-1].no_wrap = True
    table = Table(*columns, box=None, padding=(0, 1))
    for name, each in facts["backends"].items():
        there = ", ".join(f"{package} {number}" for package, number in each["versions"].items()) or "yes"
        cells = (", ".join(each[key]) for key in ("devices", "dtypes"))
        table.add_row(name, there if each["installed"] else "no", *cells, escape(each["install"]))
    console.print(table)
    everything = facts["backends"]["torch"]["architectures"]
    console.print(f"\n[bold]architectures[/bold]  {facts['backends']['numpy']['architectures']}; torch: {everything}")
    console.print(f"\n[bold]int8[/bold]  {facts['int8']}")
    use = facts["would use"]
    console.print(f"\nUses [bold]{use['backend']}[/bold] on {use['device']} in {use['dtype']}: {use['because']}.")


def _printable(text: str) -> str:
    """Return a text for one line of a terminal: a path may hold control characters."""
    return text if text.isprintable() else repr(text)
