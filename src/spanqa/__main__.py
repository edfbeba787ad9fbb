"""`spanqa` and `python -m spanqa`."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed with one message, 2 wrong usage."""
    import typer

    from spanqa.cli import app
    from spanqa.errors import SpanQAError

    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="spanqa")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except SpanQAError as error:
        if debug:
            raise
        typer.echo(f"spanqa: {error}", err=True)
        return 1
    except BrokenPipeError:  # the program that reads our output has ended (`| head`)
        _forget_output()
        return 1
    return 0


def main() -> NoReturn:
    """Run the command line and end the process at once.

    Taking the libraries apart one by one takes 0.1 to 0.2 s, and the system frees everything anyway.
    """
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def _forget_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
