"""Limits, the rules about hosts and origins, and the headers that every response gets."""

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from ipaddress import ip_address

from fastapi import Request
from fastapi.responses import Response
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PageError
from app.settings import Settings

MOST_BODY = 64 * 1024
"""Bytes in the body of a request; the largest form holds a title and some numbers."""
MOST_ADDRESS = 8 * 1024
"""Bytes in an address with its query."""

READS = ("GET", "HEAD", "OPTIONS")
PRIVATE = ("/blind/", "/api/")
"""Paths whose addresses are secrets, or whose answers are for one program: nobody in between keeps what they say."""

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
    """Refuses what is too large, comes from another site or asks for another host; tells requests the base path.

    HEAD is GET without a body, on every page. Responses get headers.
    """

    def __init__(self, app: ASGIApp, settings: Settings, refuse: Callable[[Request, Exception], Response]) -> None:
        self._app, self._base_path, self._refuse = app, settings.base_path, refuse
        self._hosts = Hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._settle(scope)
        sender = _Sender(scope, send)
        try:
            self._check(scope)
            if scope["method"] not in READS:
                receive = await _whole_body(receive)
        except PageError as error:
            response = self._refuse(Request(scope), error)
            response.headers["Connection"] = "close"  # what is left of the body is nobody's
            await response(scope, receive, sender)
            return
        # uvicorn, which looks at its own scope, has to see HEAD.
        await self._app({**scope, "method": "GET"} if sender.head else scope, receive, sender)

    def _settle(self, scope: Scope) -> None:
        """Put the base path into the path, as servers do that know it, whether a proxy has taken it off or not."""
        scope["root_path"] = self._base_path
        if not f"{scope['path']}/".startswith(f"{self._base_path}/"):
            scope["path"] = self._base_path + scope["path"]

    def _check(self, scope: Scope) -> None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if size > MOST_ADDRESS:
            message = f"The address is {size:,} bytes long."
            raise PageError(414, "That address is too long", message, f"It may have {MOST_ADDRESS:,}.")
        headers = Headers(scope=scope)
        host = self._hosts.refused(headers)
        if host is not None:
            message = f"This server does not answer to the name “{host}”."
            advice = "Whoever runs it can add the name to LINEUP_HOSTS."
            raise PageError(421, "That is not the name of this server", message, advice)
        if scope["method"] not in READS:
            _check_write(headers)


class _Sender:
    """Sends a response with our headers; to HEAD, the headers alone."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send, self.head = send, scope["method"] == "HEAD"
        self._private = path_of(scope).startswith(PRIVATE) or scope["method"] not in READS

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(SECURITY_HEADERS)
            html = headers.get("content-type", "").startswith("text/html")
            if html:
                headers.add_vary_header("HX-Request")
            if self._private:
                headers["Cache-Control"] = "no-store"
            elif html:
                headers.setdefault("Cache-Control", "no-cache")
            if "location" in headers:
                # Starlette, to take a slash off, writes the host that it was asked by: a proxy's own name for us.
                headers["Location"] = "/" + re.sub("^https?://[^/]*", "", headers["location"]).lstrip("/")
        elif self.head:
            message = {**message, "body": b""}
        await self._send(message)


def _check_write(headers: Headers) -> None:
    if not _same_origin(headers):
        message = "This form was sent by a page of another site."
        raise PageError(403, "That came from elsewhere", message, "Open the dashboard itself and send it from there.")
    length = headers.get("content-length", "")
    if not length.isdecimal() or len(length) > 18:
        message = "The request does not say how long its body is."
        raise PageError(411, "That request has no length", message, "Send it with a Content-Length.")
    if int(length) > MOST_BODY:
        raise _too_much(f"The request has {int(length):,} bytes.")
    charset = parse_options_header(headers.get("content-type"))[1].get(b"charset", b"utf-8")
    if charset.lower() != b"utf-8":
        # Some of Python's character sets can say half a character, which no page and no file can hold.
        message = f"The request is written in {charset.decode('latin-1')}."
        raise PageError(415, "That is another character set", message, "Send it in UTF-8.")


async def _whole_body(receive: Receive) -> Receive:
    """Read the body, whatever its headers say of its length; gives what tells it to the application.

    Raises a 413 as soon as it is too long.
    """
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return receive
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BODY:
            raise _too_much("The request has more bytes than it says.")
    told = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(told, None) or await receive()

    return again


def _too_much(message: str) -> PageError:
    return PageError(413, "That is too much", message, f"It may have {MOST_BODY:,}.")


def _same_origin(headers: Headers) -> bool:
    """Whether a write comes from a page of this server, or from a program: no other site can borrow its credentials.

    Browsers say so in Sec-Fetch-Site where the connection is secure or local, and in Origin everywhere.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == asked(headers).lower()


class Hosts:
    """The names that a server answers to.

    A page elsewhere can have its own name lead to this machine (DNS rebinding); the browser then takes what is here
    for that page's own, and tells us the name as Host. A number needs no name service, so IP addresses are always good,
    as is localhost.

    Where none are given: local ones, if only this machine can reach the server; else all, for whoever makes a server
    listen to others has published it, under names that it cannot know.
    """

    def __init__(self, settings: Settings) -> None:
        self._own = bare(settings.host)
        self._patterns = settings.hosts or (() if _local(self._own) else ("*",))

    def refused(self, headers: Headers) -> str | None:
        """The first name in the headers that is not ours; a request without any is a program's."""
        names = [*headers.getlist("host"), asked(headers)]
        return next((name for name in names if name and not self._ours(bare(name))), None)

    def _ours(self, name: str) -> bool:
        return _local(name) or _number(name) or name == self._own or any(fnmatchcase(name, p) for p in self._patterns)


def asked(headers: Headers) -> str:
    """The host, with its port, that the browser asked: as the first proxy says, or as it stands in the request."""
    return headers.get("x-forwarded-host", headers.get("host", "")).split(",")[0].strip()


def origin(request: Request) -> str:
    """What stands before the path in the address that the browser asked."""
    scheme = request.headers.get("x-forwarded-proto", "").split(",")[0].strip()
    return f"{scheme if scheme in ('http', 'https') else request.scope['scheme']}://{asked(request.headers)}"


def bare(host: str) -> str:
    """A host without its port, in small letters."""
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return (name.partition(":")[0] if name.count(":") == 1 else name).rstrip(".")


def _local(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or (_number(name) and ip_address(name).is_loopback)


def _number(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def path_of(scope: Scope) -> str:
    """The path of a request below that."""
    return str(scope["path"]).removeprefix(_base(scope))


def base_of(request: Request) -> str:
    """The path under which the dashboard is published, without a slash at its end."""
    return _base(request.scope)


def _base(scope: Scope) -> str:
    # Within a mount, such as /static, the root path is longer.
    return str(scope.get("app_root_path", scope.get("root_path", ""))).rstrip("/")
