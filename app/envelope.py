"""What every request and every response goes through: limits and the same-origin rule in, security headers out."""

from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PageError

MOST_BODY = 64 * 1024
"""Bytes in the body of a request; the largest form holds a title and some numbers."""
MOST_ADDRESS = 8 * 1024
"""Bytes in an address with its query."""

READS = ("GET", "HEAD", "OPTIONS")

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
"""No inline script, no inline style: what a corpus smuggles into a page stays text."""


class Envelope:
    """Refuses what is too large or comes from another site; tells requests the base path; adds headers to responses."""

    def __init__(self, app: ASGIApp, base_path: str, refuse: Callable[[Request, Exception], Response]) -> None:
        self._app, self._base_path, self._refuse = app, base_path, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

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
        error = _refusal(scope)
        answer = self._refuse(Request(scope), error) if error else self._app
        await answer(scope, receive, send_with_headers)


def _refusal(scope: Scope) -> PageError | None:
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if size > MOST_ADDRESS:
        message = f"The address is {size:,} bytes long."
        return PageError(414, "That address is too long", message, f"It may have {MOST_ADDRESS:,}.")
    return None if scope["method"] in READS else _refused_write(Headers(scope=scope))


def _refused_write(headers: Headers) -> PageError | None:
    if not _same_origin(headers):
        message = "This form was sent by a page of another site."
        return PageError(403, "That came from elsewhere", message, "Open the dashboard itself and send it from there.")
    length = headers.get("content-length", "")
    if not length.isdecimal():
        message = "The request does not say how long its body is."
        return PageError(411, "That request has no length", message, "Send it with a Content-Length.")
    if int(length) > MOST_BODY:
        message = f"The request has {int(length):,} bytes."
        return PageError(413, "That is too much", message, f"It may have {MOST_BODY:,}.")
    return None


def _same_origin(headers: Headers) -> bool:
    """Whether a write comes from a page of this server, or from a program: no other site can borrow its credentials.

    Browsers say so in Sec-Fetch-Site where the connection is secure or local, and in Origin everywhere.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("x-forwarded-host", headers.get("host"))
