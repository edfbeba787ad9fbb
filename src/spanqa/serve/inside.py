"""The application inside another server: its threads hand requests in, and wait for their responses.

Azure ML's scoring server owns the socket and calls a function for each request. Behind that function everything is as in
`spanqa serve`: status codes, limits, the deadline, and batches of what is asked at the same time.
"""

import asyncio
from collections.abc import Iterable
from threading import Thread

from starlette.types import Message, Scope

from spanqa.reader import Reader
from spanqa.serve.app import make_app
from spanqa.serve.server import warm_up
from spanqa.serve.service import Service
from spanqa.serve.settings import ServeSettings

Headers = Iterable[tuple[str, str]]


class Inside:
    """The routes of `spanqa serve` over a reader, without a socket; warmed up when it is made. For any number of threads."""

    def __init__(self, reader: Reader, settings: ServeSettings = ServeSettings(), *, name: str = "") -> None:
        self._service = Service(settings, name=name)
        self._app = make_app(self._service, {})
        for prepare in self._service.when_loading:
            prepare()
        self._service.start(reader, warm_up(reader))
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="spanqa-inside", daemon=True)
        self._thread.start()

    def answer(
        self, method: str, path: str, headers: Headers = (), body: bytes = b""
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return status, headers and body of the response; waits for it, at most the deadline of the settings."""
        return asyncio.run_coroutine_threadsafe(self._answer(method, path, headers, body), self._loop).result()

    async def _answer(
        self, method: str, path: str, headers: Headers, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            "client": None,
            "server": None,
        }
        arriving: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if not arriving:
                await asyncio.Event().wait()  # nobody tells us that a client has gone
            return arriving.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        start, content = sent[0], b"".join(each.get("body", b"") for each in sent[1:])
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        return start["status"], fields, content

    def close(self) -> None:
        """Drop what waits, and close the reader."""
        self._service.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
