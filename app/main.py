"""The server: `create_app` puts routes, assets, headers and error pages together; `serve` runs it."""

import errno
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from app.blind import api, organiser, rating
from app.blind.access import Labels, labels_path, not_while_rating
from app.errors import PageError, Way, bad_request
from app.pages import compare, latent, latents, overview, plots, render, studies
from app.pages.address import MovedError
from app.security import SECURITY_HEADERS, Envelope, base_of, path_of
from app.settings import Settings
from app.study.files import Database, StudyPendingError
from app.study.study import Studies
from core.errors import UserError

PACKAGED_ASSETS: list[str | tuple[str, str]] = [("js_lib_htmx", "static/htmx"), ("plotly", "package_data")]
"""Front-end libraries out of installed Python packages, so that pages need no network."""


def create_app(settings: Settings) -> FastAPI:
    """Build the dashboard over the studies at `settings.paths`."""
    app = FastAPI(title="Latent Lineup", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.studies = Studies(settings.paths, settings.query_seconds)
    app.state.labels = Labels(labels_path(settings.labels, settings.paths))
    app.state.organiser_key = settings.organiser_key
    app.mount("/static", StaticFiles(directory=render.STATIC, packages=PACKAGED_ASSETS), name="static")
    for module in (studies, overview, organiser, rating, api):
        app.include_router(module.router)
    for module in (latents, latent, compare, plots):
        app.include_router(module.router, dependencies=[Depends(not_while_rating)])
    app.add_exception_handler(PageError, _page_error)
    app.add_exception_handler(StudyPendingError, _pending)
    app.add_exception_handler(MovedError, _moved)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _crash)
    app.add_middleware(Envelope, settings=settings, refuse=_page_error)
    return app


def serve(settings: Settings) -> None:
    """Run the dashboard until it is interrupted; raises UserError when it cannot start."""
    _check_paths(settings)
    with _listen(settings) as listener:
        port = listener.getsockname()[1]
        sys.stdout.write(
            f"Latent Lineup: http://{settings.reached_at}:{port}{settings.base_path}/  (Ctrl+C stops it)\n"
        )
        sys.stdout.flush()
        app = create_app(settings)
        config = uvicorn.Config(app, log_level=settings.log_level, access_log=False, timeout_graceful_shutdown=1)
        _Server(config, app.state.studies.database).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server that, told to stop, waits for no query."""

    def __init__(self, config: uvicorn.Config, database: Database) -> None:
        super().__init__(config)
        self._database = database

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._database.interrupt()
        super().handle_exit(sig, frame)


def _check_paths(settings: Settings) -> None:
    for path in settings.paths:
        try:
            if path.is_file() and path.suffix != ".duckdb":
                raise UserError(f"'{path}' is no study file: name a file that ends in .duckdb, or a folder of them.")
            path.open("rb").close() if path.is_file() else next(path.iterdir(), None)
        except FileNotFoundError as error:
            advice = "Make a study with `lineup demo`, or name a study file or a folder of them."
            raise UserError(f"There is nothing at '{path}'. {advice}") from error
        except OSError as error:
            raise UserError(
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
    except (OSError, ValueError) as error:
        # A name that is too long, or has odd characters, is a ValueError.
        listener.close()
        address = f"{settings.host}:{settings.port}"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(
                f"{address} is in use by another program: choose another port, or 0 for a free one."
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot listen on {address}: {reason}. Choose another host or port.") from error
    return listener


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.studies.database.close()
    app.state.labels.close()


def _page_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PageError)
    if path_of(request.scope).startswith("/api/"):
        content = {"error": error.title, "message": error.message, "advice": error.advice}
        return JSONResponse(content, status_code=error.status)
    return render.page(request, "error", {"error": error}, status=error.status)


def _pending(request: Request, error: Exception) -> Response:
    assert isinstance(error, StudyPendingError)
    context = {"entry": error.entry, "progress": error.entry.progress}
    return render.page(request, "waiting", context)


def _moved(_request: Request, error: Exception) -> Response:
    assert isinstance(error, MovedError)
    return RedirectResponse(error.address, 308)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1]) if len(first["loc"]) > 1 else "the address"
    if first["type"] == "missing":
        return _page_error(request, PageError(400, "That address does not work", f"{name} is missing."))
    expected = first["msg"].removeprefix("Input should be ")
    return _page_error(request, bad_request(name, first["input"], expected))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    ways = [Way("All studies", "/")]
    title = "No such page" if error.status_code == 404 else "That did not work"
    sentence = f"{request.method} {request.scope['path']}: {error.detail}."
    response = _page_error(request, PageError(error.status_code, title, sentence, "", ways))
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(_allowed(request))
    return response


def _allowed(request: Request) -> list[str]:
    """The methods that an address takes: its routes are one for each, and a mount takes GET."""
    found = set()
    for method in ("GET", "POST"):
        scope = {**request.scope, "method": method, "root_path": base_of(request)}
        for route in request.app.routes:
            takes = method == "GET" or not isinstance(route, Mount)
            if takes and route.matches(scope)[0] == Match.FULL:
                found |= {method, "HEAD"} if method == "GET" else {method}
    return sorted(found)


def _crash(request: Request, error: Exception) -> Response:
    sentence = f"The dashboard met an error that it does not know: {type(error).__name__}."
    advice = "The terminal of the server says where. Please report it, with the address of this page."
    response = _page_error(request, PageError(500, "Something broke", sentence, advice))
    response.headers.update(SECURITY_HEADERS)  # this is outside the envelope
    return response
