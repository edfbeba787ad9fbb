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
    ended_by = _end_at_signals()
    _prepare_streams()
    code = 0
    try:
        code = run(sys.argv[1:])
    except BaseException:  # a library that is being imported may turn an interrupt into any other error
        if not ended_by:
            raise
    if ended_by:
        code = 128 + ended_by[0]
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


def _end_at_signals() -> list[int]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the run as an exception does, so that nothing half-written stays; a second one ends it at once.

    Returns a list that will hold the signal. One that is ignored, as `nohup` does, stays so.
    """
    ended_by: list[int] = []

    def end(number: int, frame: FrameType | None) -> NoReturn:
        ended_by.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)
    return ended_by


def _prepare_streams() -> None:
    """Give closed standard streams a place, and write an escape for a character that the encoding of the output lacks."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _forget_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
