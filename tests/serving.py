"""Servers for tests: in this process, over HTTP on a free port of 127.0.0.1, or without a network."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PASSAGE = (
    "The first pier of Lindow was built in 1871 by Anna Kestrel, a bridge engineer from Oslo. It burned down in 1902, and a "
    "second one of steel was opened by the mayor in 1908."
)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an ASGI application, and yield its address; the test must be marked `enable_socket`."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def ask(app: Any, method: str, path: str, **options: Any) -> Any:
    """Send one request to an ASGI application, and return the response of httpx."""
    import httpx

    async def send() -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())
