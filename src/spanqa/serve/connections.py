"""uvicorn's HTTP connection, with bounds that it lacks: how many there are, how long a client may take, and how much it may send.

    waiting     a connection waits while its client owes us a request: it is idle, or has sent a part of one
    too many    the connection that has waited longest is closed, so that idle ones keep nobody out
    slow        a head must be there in `HEAD_SECONDS`, an answer must be taken in `WRITE_SECONDS`; a body has the seconds of the
                settings, and `BODY_GRACE` more for the guard to say that they are over
    large       what is no body (head, trailers, the framing of chunks) is at most `HEAD_BYTES`, and one read more
    upgrade     a request for another protocol, as Java's client and `curl --http2` send it first, is answered as if it asked for none

The size of a body is for `spanqa.serve.guard` to bound. It is written for `uvicorn.protocols.http.httptools_impl`.
"""

from asyncio import BaseTransport, TimerHandle
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from spanqa.serve.problems import Problem, response_of

HEAD_SECONDS = 20.0
BODY_GRACE = 5.0
WRITE_SECONDS = 60.0
HEAD_BYTES = 65_536

_FRAMING = 8
"""A chunk of one byte is six bytes on the wire; some clients write its size with zeros in front."""


class Connections:
    """Those of one server: at most `most`, and those that wait, longest first. A body may take `body_seconds` to arrive."""

    def __init__(self, most: int, body_seconds: float) -> None:
        self.most, self.body_seconds = most, body_seconds
        self.waiting: dict[BoundedConnection, None] = {}


class BoundedConnection(HttpToolsProtocol):
    """A connection of a client."""

    def __init__(self, *args: Any, shared: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting, self._most, self._body_seconds = shared.waiting, shared.most, shared.body_seconds
        self._reading: TimerHandle | None = None
        self._writing: TimerHandle | None = None
        self._received = self._body = 0
        self._complete = True  # no request is being received
        self._upgrade: list[bytes] = []  # the head of a request that asks for another protocol, without that

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._waiting[self] = None
        self._idle()
        if len(self.connections) > self._most:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.pop(self, None)
        self._read_within(None)
        self._write_within(None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)  # set to 0 by `on_message_begin`: the bytes that a request begins with do not count
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as found:  # it would take the body for the other protocol
                data = b"".join((*self._upgrade, data[found.args[0] :]))
                self._upgrade = []
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")
                return
        if self.transport.is_closing():
            return
        if self._received - _FRAMING * self._body > HEAD_BYTES:
            self._refuse("headers_too_large", f"Headers and trailers have more than {HEAD_BYTES:,} bytes.")
        elif self._complete and not self._in_work:  # line ends between requests, or the rest of one that was refused
            self._idle()

    def on_message_begin(self) -> None:
        self._received = self._body = 0
        self._complete = False
        self._read_within(HEAD_SECONDS)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            lines = (b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
            version = self.parser.get_http_version().encode()
            self._upgrade = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n", *lines, b"\r\n"]
            return
        self._read_within(self._body_seconds + BODY_GRACE)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        self._received = self._body = 0
        self._complete = True
        self._read_within(None)
        if self._in_work:
            self._waiting.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._write_within(WRITE_SECONDS)
        elif not self._in_work:
            self._waiting[self] = None

    def pause_writing(self) -> None:
        self._write_within(WRITE_SECONDS)
        super().pause_writing()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._write_within(None)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse("bad_request", "This is not valid HTTP/1.1 (RFC 9112).")

    @property
    def _in_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _idle(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _read_within(self, seconds: float | None) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _write_within(self, seconds: float | None) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self._writing = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _late(self) -> None:
        self._refuse("request_timeout", "The request did not arrive in time.")

    def _refuse(self, error_type: str, message: str) -> None:
        """Say what is wrong, unless another answer is due on this connection, and close it."""
        if self._in_work:
            self.transport.abort()
            return
        said = response_of(Problem(error_type, message))
        status = f"HTTP/1.1 {said.status_code} {HTTPStatus(said.status_code).phrase}".encode()
        headers = [b"%b: %b" % header for header in said.raw_headers]
        self.transport.write(b"\r\n".join((status, *headers, b"connection: close", b"", bytes(said.body))))
        self.transport.close()
        self._write_within(WRITE_SECONDS)
