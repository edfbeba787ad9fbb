"""Answers over HTTP: one engine for many clients, clear refusals when it is full, and a page to try it.

     request ──► guard.py ──► routes/ ──► service.py ──► queue.py ──► engine ──► answers
                 who asks,    one file    the reader,    who is let in, and
                 how much     a protocol  the state      what gives up when

    settings.py   what an operator can set            problems.py   what can go wrong, in one form
    app.py        the ASGI application of all that    metrics.py, logs.py   what operators see
    server.py     a process that serves it            workers.py    several that share an address
    listening.py  addresses and sockets               connections.py   what a client may do with one

    from spanqa.serve import Service, make_app
    service = Service()
    service.start(Reader.load())
    app = make_app(service)                 # any ASGI server runs it, and Starlette and FastAPI mount it

It needs `pip install spanqa[serve]`. Importing it loads nothing: each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanqa.serve.app import make_app
    from spanqa.serve.service import Service
    from spanqa.serve.settings import ServeSettings

_HOMES = {"ServeSettings": "settings", "Service": "service", "make_app": "app"}

__all__ = ["ServeSettings", "Service", "make_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spanqa.serve' has no attribute {name!r}")
    value = getattr(import_module(f"spanqa.serve.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
