"""GET `/`, the page to try the model in a browser, `/assets/…`, its files, and `/docs`, Swagger UI without a network.

The page is plain files in `serve/web/`, with relative addresses, so that it works under any path that a proxy puts before it.
Its content security policy lets it load its own files and ask its own server, and nothing else.
"""

from pathlib import Path

import swagger_ui_bundle
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from spanqa.serve.service import Service

WEB = Path(__file__).parents[1] / "web"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI writes styles and data: pictures into its page."""

HEADERS = {
    "cache-control": "no-cache",  # keep it, but ask whether it has changed
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Named here, because a system's own table of types can be wrong."""

SWAGGER = ("swagger-ui.css", "swagger-ui-bundle.js")


def routes(service: Service) -> APIRouter:
    """Return the routes. They need neither the model nor an API key."""
    router = APIRouter(include_in_schema=False)
    ours = StaticFiles(directory=WEB)
    swagger = StaticFiles(directory=Path(str(swagger_ui_bundle.swagger_ui_path)))

    async def send(request: Request, files: StaticFiles, name: str, policy: str) -> Response:
        # Small files are sent whole; a response looks for Range when it is sent.
        request.scope["headers"] = [each for each in request.scope["headers"] if each[0] != b"range"]
        response = await files.get_response(name, request.scope)
        response.headers.update({**HEADERS, "content-security-policy": policy})
        if response.status_code == 200:
            response.headers["content-type"] = f"{TYPES[Path(name).suffix]}; charset=utf-8"
        return response

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return await send(request, ours, "index.html", POLICY)

    @router.api_route("/docs", methods=["GET", "HEAD"])
    async def docs(request: Request) -> Response:
        return await send(request, ours, "docs.html", DOCS_POLICY)

    @router.api_route("/assets/{name}", methods=["GET", "HEAD"])
    async def asset(request: Request, name: str) -> Response:
        if Path(name).suffix not in TYPES or name.endswith(".html"):
            raise HTTPException(404)
        return await send(request, swagger if name in SWAGGER else ours, name, POLICY)

    return router
