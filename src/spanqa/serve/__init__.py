"""Answers over HTTP: one engine for many clients, clear refusals when it is full, and a page to try it.

     request ──► guard.py ──► routes/ ──► service.py ──► queue.py ──► engine ──► answers
                 who asks,    one file    the reader,    who is let in, and
                 how much     a protocol  the state      what gives up when

    settings.py   what an operator can set            problems.py   what can go wrong, in one form
    app.py        the ASGI application of all that    metrics.py, logs.py   what operators see

    from spanqa.serve import Service, make_app
    service = Service()
    service.start(Reader.load())
    app = make_app(service)                 # any ASGI server runs it, and Starlette and FastAPI mount it

It needs `pip install spanqa[serve]`.
"""

from spanqa.serve.app import make_app
from spanqa.serve.service import Service
from spanqa.serve.settings import ServeSettings

__all__ = ["ServeSettings", "Service", "make_app"]
