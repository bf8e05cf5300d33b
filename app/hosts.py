"""By which name this server is asked: the names it answers to, and the address that its own links begin with.

A page elsewhere can have its own name lead to this machine (DNS rebinding); the browser then takes what is here for
that page's own, and tells us the name as Host. A number needs no name service, so IP addresses are always good, as is
localhost.
"""

from fnmatch import fnmatchcase
from ipaddress import ip_address

from fastapi import Request
from starlette.datastructures import Headers

from app.settings import Settings


class Hosts:
    """The names that a server answers to.

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
