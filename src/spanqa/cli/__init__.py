"""The command line: one file per command. Each is a thin function that parses, calls the library, and prints."""

import typer

from spanqa.cli.adapt import adapt
from spanqa.cli.ask import ask
from spanqa.cli.batch import batch
from spanqa.cli.check import check
from spanqa.cli.deploy import deploy
from spanqa.cli.diagnose import diagnose
from spanqa.cli.evaluate import evaluate
from spanqa.cli.explain import explain
from spanqa.cli.info import info
from spanqa.cli.quantize import quantize
from spanqa.cli.serve import serve
from spanqa.cli.sign import sign, verify
from spanqa.cli.train import train
from spanqa.cli.tune import tune

app = typer.Typer(
    name="spanqa",
    help="Find the answer to a question in a text, or learn that the text has no answer.",
    epilog="Add --debug to any command to see the traceback of an error.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    ask,
    batch,
    explain,
    evaluate,
    diagnose,
    train,
    adapt,
    tune,
    check,
    quantize,
    serve,
    deploy,
    sign,
    verify,
    info,
):
    app.command()(verb)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        from spanqa import __version__

        typer.echo(f"spanqa {__version__}")
        raise typer.Exit
