"""`spanqa` and `python -m spanqa`."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line: exit code 0 done, 1 failed with one message, 2 wrong usage."""
    import typer

    from spanqa.cli import app
    from spanqa.errors import SpanQAError

    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    code: object = 0
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="spanqa")
    except SystemExit as stop:
        code = stop.code
    except SpanQAError as error:
        if debug:
            raise
        typer.echo(f"spanqa: {error}", err=True)
        code = 1
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        _forget_output()
        code = 1
    _leave(code if isinstance(code, int) else 0 if code is None else 1)


def _leave(code: int) -> NoReturn:
    """End the process at once: what the libraries would take apart one by one, the system frees anyway (0.1 to 0.2 s)."""
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
