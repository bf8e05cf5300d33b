"""Templates: the environment, the filters for numbers and tokens, and the choice between a page and its partial."""

import math
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from app import tokens
from app.bar import bar
from app.records import POOLS, SCORE_STATES, Metric
from app.state import base_of, quoted
from app.studies import Study

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "static"

SHORT_STATES = {
    "too_few_contexts": "too few contexts",
    "too_few_non_activating_contexts": "rarely silent",
    "sae_failed": "SAE failed",
}
"""The same where space is short; a state that is missing here is its own word."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


def number(value: float | None) -> str:
    """A number as people write it: a count in full, anything else to about three significant digits."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not finite"
    return _written(value).replace("-", MINUS)


def _written(value: float) -> str:
    size = abs(value)
    if isinstance(value, int) or (value == int(value) and 1000 <= size < 1e15):
        return f"{int(value):,}"
    if 0 < size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}{TIMES}10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return f"{value:,.{3 if size < 10 else 1 if size < 1000 else 0}f}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    if value is None:
        return DASH
    return f"{value:.0%}" if value in (0, 1) or 0.1 <= value < 0.995 else f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def definition(metric: Metric) -> str:
    """What a tooltip says of a metric."""
    direction = {True: "Higher is better.", False: "Lower is better.", None: ""}[metric.higher_is_better]
    unit = f"Unit: {metric.unit}." if metric.unit else ""
    return " ".join(part for part in (metric.description, unit, direction) if part)


@pass_context
def _url_for(context: Context, name: str, /, **parameters: Any) -> str:
    # Paths without a host work behind any proxy; Starlette's own url_for writes the host that it was asked by.
    request: Request = context["request"]
    written = {key: quoted(value) if isinstance(value, str) else value for key, value in parameters.items()}
    return base_of(request) + str(request.app.url_path_for(name, **written))


@pass_context
def _asset(context: Context, name: str) -> str:
    # The time stamp in the address lets browsers keep the file for as long as it stays the same.
    file = STATIC / name
    version = f"?v={file.stat().st_mtime_ns:x}" if file.is_file() else ""
    return _url_for(context, "static", path=f"/{name}") + version


def _boxed(value: Any) -> Any:
    # What is Markup has been through here already, or is sent back by a form as it is: `| e`.
    return tokens.boxed(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def environment() -> Environment:
    """The templates' environment: everything is escaped, invisible characters are drawn, unknown names are errors."""
    env = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_boxed,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(
        url_for=_url_for, asset=_asset, score_states=SCORE_STATES, short_states=SHORT_STATES, pools=POOLS
    )
    env.filters.update(
        number=number,
        percent=percent,
        duration=duration,
        definition=definition,
        chip=tokens.chip,
        visible=tokens.visible,
    )
    return env


TEMPLATES = Jinja2Templates(env=environment())


def is_partial(request: Request) -> bool:
    """Whether HTMX asks, and not for a page out of the browser's history."""
    headers = request.headers
    return headers.get("HX-Request") == "true" and headers.get("HX-History-Restore-Request") != "true"


def page(
    request: Request, name: str, context: dict[str, Any], study: Study | None = None, status: int = 200
) -> Response:
    """Render pages/NAME.html, or partials/NAME.html alone when HTMX asks for it."""
    folder = "partials" if is_partial(request) else "pages"
    shared: dict[str, Any] = {"study": study, "entry": None, "progress": None, "seen": 0, "base": base_of(request)}
    if study is not None:
        shared |= {"entry": study.entry, "progress": study.entry.progress, "seen": len(study.all_saes)}
        shared["bar"] = bar(request, study)
    return TEMPLATES.TemplateResponse(request, f"{folder}/{name}.html", shared | context, status_code=status)
