"""The server: `create_app` puts routes, assets, headers and error pages together; `serve` runs it."""

import errno
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import render
from app.errors import PageError, ServeError, Way, bad_request
from app.routes import compare, health, latent, latents, overview, plots, progress, studies
from app.settings import Settings
from app.studies import Studies, StudyPendingError

PACKAGED_ASSETS: list[str | tuple[str, str]] = [("js_lib_htmx", "static/htmx"), ("plotly", "package_data")]
"""Front-end libraries out of installed Python packages, so that pages need no network."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
"""No inline script, no inline style: what a corpus smuggles into a page stays text."""


def create_app(settings: Settings) -> FastAPI:
    """Build the dashboard over the studies at `settings.paths`."""
    app = FastAPI(title="Latent Lineup", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.studies = Studies(settings.paths, settings.query_seconds)
    app.mount("/static", StaticFiles(directory=render.STATIC, packages=PACKAGED_ASSETS), name="static")
    for module in (studies, overview, latents, latent, compare, plots, progress, health):
        app.include_router(module.router)
    app.add_exception_handler(PageError, _page_error)
    app.add_exception_handler(StudyPendingError, _pending)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _crash)
    app.add_middleware(_Envelope, base_path=settings.base_path)
    return app


def serve(settings: Settings) -> None:
    """Run the dashboard until it is interrupted; raises ServeError when it cannot start."""
    _check_paths(settings)
    with _listen(settings) as listener:
        port = listener.getsockname()[1]
        shown = "127.0.0.1" if settings.host in ("", "0.0.0.0") else settings.host
        host = f"[{shown}]" if ":" in shown else shown
        sys.stdout.write(f"Latent Lineup: http://{host}:{port}{settings.base_path}/  (Ctrl+C stops it)\n")
        sys.stdout.flush()
        config = uvicorn.Config(create_app(settings), log_level=settings.log_level, access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


def _check_paths(settings: Settings) -> None:
    for path in settings.paths:
        try:
            path.open("rb").close() if path.is_file() else next(path.iterdir(), None)
        except FileNotFoundError as error:
            advice = "Make a study with `lineup demo`, or name a study file or a folder of them."
            raise ServeError(f"There is nothing at '{path}'. {advice}") from error
        except OSError as error:
            raise ServeError(
                f"Cannot read '{path}': {error.strerror}. Change its permissions or name another."
            ) from error


def _listen(settings: Settings) -> socket.socket:
    # Bound here and handed to uvicorn: a port that is taken is then found before anything starts.
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        address = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise ServeError(
                f"{address} is in use by another program: choose another port, or 0 for a free one."
            ) from error
        raise ServeError(
            f"Cannot listen on {address}: {error.strerror or error}. Choose another host or port."
        ) from error
    return listener


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.studies.database.close()


class _Envelope:
    """Tells requests the base path; adds the security headers to responses, and to pages what caches need."""

    def __init__(self, app: ASGIApp, base_path: str) -> None:
        self._app, self._base_path = app, base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.add_vary_header("HX-Request")
                    headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        if self._base_path:
            scope["root_path"] = self._base_path
        await self._app(scope, receive, send_with_headers)


def _page_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PageError)
    return render.page(request, "error", {"error": error}, status=error.status)


def _pending(request: Request, error: Exception) -> Response:
    assert isinstance(error, StudyPendingError)
    context = {"entry": error.entry, "progress": error.entry.progress}
    return render.page(request, "waiting", context)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = first["loc"][-1] if len(first["loc"]) > 1 else "the address"
    expected = first["msg"].removeprefix("Input should be ")
    return _page_error(request, bad_request(str(name), first["input"], expected))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    ways = [Way("All studies", "/")]
    title = "No such page" if error.status_code == 404 else "That did not work"
    sentence = f"{request.method} {request.url.path}: {error.detail}."
    return _page_error(request, PageError(error.status_code, title, sentence, "", ways))


def _crash(request: Request, error: Exception) -> Response:
    sentence = f"The dashboard met an error that it does not know: {type(error).__name__}."
    advice = "The terminal of the server says where. Please report it, with the address of this page."
    return _page_error(request, PageError(500, "Something broke", sentence, advice))
