"""`spanqa` and `python -m spanqa`."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed with one message, 2 wrong usage."""
    debug = "--debug" in arguments
    try:
        import typer

        from spanqa.cli import app
        from spanqa.errors import SpanQAError

        try:
            app([argument for argument in arguments if argument != "--debug"], prog_name="spanqa")
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except SpanQAError as error:
            if debug:
                raise
            typer.echo(f"spanqa: {error}", err=True)
            return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the program that reads our output has ended (`| head`)
        _forget_output()
        return 1
    except OSError as error:  # a full disk, for example
        if debug:
            raise
        _forget_output()
        os.write(2, f"spanqa: {error.strerror or error}.\n".encode())
        return 1
    return 0


def main() -> NoReturn:
    """Run the command line and end the process at once.

    Taking the libraries apart one by one takes 0.1 to 0.2 s, and the system frees everything anyway.
    """
    _end_at_signals()
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # it was closed before we began
                stream.flush()
        except BrokenPipeError:
            code = code or 1
        except OSError as error:  # a full disk
            os.write(2, f"spanqa: the output cannot be written: {error.strerror}.\n".encode())
            code = code or 1
    os._exit(code)


def _end_at_signals() -> None:
    """Let SIGTERM and SIGHUP end the run as an exception does, so that nothing half-written stays. `nohup` keeps its meaning."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def _forget_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
