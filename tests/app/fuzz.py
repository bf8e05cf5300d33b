"""Asks every route for what no page links to: `python -m tests.app.fuzz REQUESTS [SEED]`.

Values of wrong types and sizes, all of Unicode, encoded slashes, parameters several times, other methods, forms and
JSON that are none. A request passes when its answer is below 500 and holds no traceback.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from urllib.parse import quote, quote_plus

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.testclient import TestClient

from app import blind, pages
from app.blind.design import Design
from app.main import create_app
from app.pages import address
from app.settings import Settings
from app.study.axes import KEYS
from tests.app.blind_client import blind_study, invitation, own_link, set_up

FOUND = [
    import_module(f"{room.__name__}.{found.name}") for room in (pages, blind) for found in iter_modules(room.__path__)
]
MODULES = [module for module in FOUND if hasattr(module, "router")]
ROUTES = [route for module in MODULES for route in module.router.routes if isinstance(route, APIRoute)]
MODELS = [kind for module in (*MODULES, address) for kind in vars(module).values() if isinstance(kind, type)]
FIELDS = {name for kind in (*MODELS, Design) if issubclass(kind, BaseModel) for name in kind.model_fields}
NAMES = sorted({*FIELDS, *KEYS})
"""Of parameters and fields, on whatever route they mean something."""
VALUES = (
    *("", "0", "1", "3", "-1", "1.5", "1e3", "1e309", "-1e309", "nan", "inf", "9" * 30, "9" * 400, "9" * 5000, "1_0"),
    *("true", "null", "None", "[]", "{}", "[1]", "٣", "½", "²", " ", "\x00", "a\x00b", "\n", "\r\n", "\t", "\x7f"),
    *("..", "../..", "/", "//", "\\", "%", "%00", "%2f", ";", ";model=toy", ";sae_seed=-1", "~", "~FF", "=", "&", "?"),
    *("'", '"', "'; DROP TABLE latents; --", "<script>alert(1)</script>", "{{ 7 * 7 }}", "${x}", "a" * 300, "a" * 3000),
    *(
        "\u202e",
        "\u2066",
        "\ufeff",
        "\ufffe",
        "\U0010ffff",
        "👩\u200d🔬",
        "naïve",
        "東京",
        "é" * 100,
        "\ud800",
        "\udfff",
    ),
    *(
        "small",
        "trained",
        "control",
        "toy",
        "topk",
        "detection_auroc",
        "density",
        "latent",
        "sae",
        "desc",
        "rank",
        "match",
    ),
    *(
        "density>0",
        "density>nan",
        "density>1e999",
        "density<-1e-400",
        "state=1",
        "density>=",
        ">1",
        "density>" + "9" * 400,
    ),
    *("single", "pair", "top", "dead", "alive", "scored", "failed", "own", "40", "12", "0.1", "test"),
)
"""Some of them right, so that the others are asked about behind the first check."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
TYPES = (
    *("application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""),
    *("multipart/form-data", "application/json; charset=utf-16", "multipart/form-data; boundary=x; charset=utf-7", "é"),
)


class Fuzzer:
    """Requests to a server with a study, an experiment, and a person and a program in it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        app = create_app(Settings(paths=(blind_study(folder),), hosts=("testserver",)))
        self._client = TestClient(app)
        page = set_up(self._client).text
        invite = invitation(page).rpartition("/")[2]
        token = self._client.post("/api/blind/sessions", json={"invite": invite}).json()["token"]
        self._bearer = f"Bearer {token}"
        trial = self._client.get("/api/blind/trial", headers={"Authorization": self._bearer}).json()["trial"]
        self._client.post(f"/blind/join/{invite}")
        self._cookies = dict(self._client.cookies)
        self._known = {"invite": invite, "token": own_link(page).rpartition("/")[2], "trial": trial}
        self._known |= {"study": "small", "variant": "control", "layer": "1", "latent": "3"}
        self._client.follow_redirects = False

    def request(self) -> dict[str, Any]:
        """What to ask for, as arguments of the client's."""
        rng, route = self._rng, self._rng.choice(ROUTES)
        method = next(iter(route.methods)) if rng.random() < 0.9 else rng.choice(METHODS)
        query = "&".join(
            f"{_quoted(self._name(route))}={_quoted(self._value())}" for _ in range(rng.choice((0, 1, 2, 5)))
        )
        headers = {"HX-Request": "true"} if rng.random() < 0.2 else {}
        headers |= {"Authorization": rng.choice((self._bearer, "Bearer", "Bearer x", "Basic x", "é"))}
        cookie = rng.choice(({}, self._cookies, {"lineup_rater": rng.choice(("x", ".", "a.b", "a" * 3000))}))
        headers |= {"Cookie": "; ".join(f"{name}={value}" for name, value in cookie.items())}
        body, kind = self._body(route) if method not in ("GET", "HEAD", "OPTIONS") else (b"", "")
        headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        encoded = {name: value.encode() for name, value in headers.items() if value}
        return {"method": method, "url": f"{self._path(route)}?{query}", "content": body, "headers": encoded}

    def send(self, request: dict[str, Any]) -> tuple[int, str]:
        """The status of the answer, and what is wrong with it."""
        try:
            response = self._client.request(**request)
        except Exception as error:  # what the server would have answered with a 500
            return 500, f"{type(error).__name__}: {error}"
        self._client.cookies.clear()
        wrong = "a traceback" if "Traceback" in response.text else "" if response.status_code < 500 else response.text
        return response.status_code, wrong

    def _value(self) -> str:
        rng = self._rng
        if rng.random() < 0.15:
            return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 9)))
        return rng.choice((*VALUES, *self._known.values()))

    def _name(self, route: APIRoute) -> str:
        if self._rng.random() < 0.1:
            return self._value()
        own = [name for field in route.dependant.query_params for name in _names(field)]
        return self._rng.choice(own or NAMES if self._rng.random() < 0.8 else NAMES)

    def _path(self, route: APIRoute) -> str:
        if self._rng.random() < 0.03:
            return f"/static/{_quoted(self._value())}"
        path = route.path
        for name in route.param_convertors:
            value = self._known.get(name, "x") if self._rng.random() < 0.7 else self._value()
            path = path.replace(f"{{{name}}}", _quoted(value))
        return path + (self._rng.choice(("/", "//", "%2f", ";", "/..")) if self._rng.random() < 0.1 else "")

    def _body(self, route: APIRoute) -> tuple[bytes, str]:
        rng = self._rng
        field = route.body_field
        own = _names(field) if field is not None else []
        own = NAMES if own in ([], ["design"]) else own
        names = [name if rng.random() < 0.9 else rng.choice(NAMES) for name in own if rng.random() < 0.9]
        wanted = "application/json" if route.path.startswith("/api/") else "application/x-www-form-urlencoded"
        kind = wanted if rng.random() < 0.8 else rng.choice(TYPES)
        if rng.random() < 0.1:
            return rng.choice((b"", b"{", b"\xff\xfe", b"[" * 5000, b"--x\r\n\r\n", b"null", b"x" * 70_000)), kind
        if "json" in kind:
            return json.dumps({name: self._json() for name in names}).encode(), kind
        if "multipart" in kind:
            head = 'Content-Disposition: form-data; name="{}"'
            parts = [f"--x\r\n{head.format(name)}\r\n\r\n{self._value()}\r\n" for name in names]
            return "".join([*parts, "--x--\r\n"]).encode(errors="surrogatepass"), kind
        return "&".join(f"{name}={_quoted(self._value())}" for name in names).encode(), kind

    def _json(self, depth: int = 0) -> Any:
        rng = self._rng
        kind = rng.choice(("text", "text", "number", "list", "map", "other"))
        if kind == "list" and depth < 3:
            return [self._json(depth + 1) for _ in range(rng.randrange(4))]
        if kind == "map" and depth < 3:
            return {self._value(): self._json(depth + 1) for _ in range(rng.randrange(3))}
        if kind == "number":
            return rng.choice(
                (0, 1, 3, -1, 40, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf"))
            )
        if kind == "other":
            return rng.choice((None, True, False, "a\ud800"))
        return self._value()


def _names(field: Any) -> list[str]:
    kind = field.field_info.annotation
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else [field.name]


def _quoted(text: str) -> str:
    return quote_plus(text, errors="surrogatepass") if len(text) % 2 else quote(text, safe="", errors="surrogatepass")


def fuzz(count: int, seed: int = 0) -> tuple[Counter[int], list[str]]:
    """Counts of statuses, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), seed)
        statuses: Counter[int] = Counter()
        findings = []
        for _ in range(count):
            request = fuzzer.request()
            status, wrong = fuzzer.send(request)
            statuses[status] += 1
            findings += [f"{request}: {wrong}"] if wrong else []
        return statuses, findings


if __name__ == "__main__":
    counts, found = fuzz(*map(int, sys.argv[1:]))
    sys.stdout.write("\n".join([*found, str(dict(sorted(counts.items()))), ""]))
