"""`spanqa` and `python -m spanqa`."""

import os
import sys


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed with one message, 2 wrong usage."""
    import typer

    from spanqa.cli import app
    from spanqa.errors import SpanQAError

    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="spanqa")
    except SpanQAError as error:
        if debug:
            raise
        typer.echo(f"spanqa: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
