"""Templates: the environment, the filters for numbers and tokens, and the choice between a page and its partial."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from app.display import contexts
from app.pages.address import bar, quoted
from app.security import base_of
from app.study.axes import address
from app.study.records import POOLS, SCORE_STATES, Metric
from app.study.study import Study
from core.text import duration, number, percent

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "static"

SHORT_STATES = {
    "too_few_contexts": "too few contexts",
    "too_few_non_activating_contexts": "rarely silent",
    "sae_failed": "SAE failed",
}
"""The same where space is short; a state that is missing here is its own word."""


def definition(metric: Metric) -> str:
    """What a tooltip says of a metric."""
    direction = {True: "Higher is better.", False: "Lower is better.", None: ""}[metric.higher_is_better]
    unit = f"Unit: {metric.unit}." if metric.unit else ""
    return " ".join(part for part in (metric.description, unit, direction) if part)


@pass_context
def _url_for(context: Context, name: str, /, query: Mapping[str, Any] | None = None, **parameters: Any) -> str:
    # Paths without a host work behind any proxy; Starlette's own url_for writes the host that it was asked by.
    request: Request = context["request"]
    written = {key: quoted(value) if isinstance(value, str) else value for key, value in parameters.items()}
    return address(base_of(request) + str(request.app.url_path_for(name, **written)), query or {})


@pass_context
def _study_url(context: Context, name: str, /, query: Mapping[str, Any] | None = None, **parameters: Any) -> str:
    # A page of the study that this page is of, at the same setting.
    study: Study = context["study"]
    return _url_for(context, name, query=study.parameters | dict(query or {}), study=study.name, **parameters)


@pass_context
def _asset(context: Context, name: str) -> str:
    # The time stamp in the address lets browsers keep the file for as long as it stays the same.
    file = STATIC / name
    version = f"?v={file.stat().st_mtime_ns:x}" if file.is_file() else ""
    return _url_for(context, "static", path=f"/{name}") + version


def _boxed(value: Any) -> Any:
    # What is Markup has been through here already, or is sent back by a form as it is: `| e`.
    return contexts.boxed(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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
        url_for=_url_for,
        study_url=_study_url,
        asset=_asset,
        score_states=SCORE_STATES,
        short_states=SHORT_STATES,
        pools=POOLS,
    )
    env.filters.update(
        number=number,
        percent=percent,
        duration=duration,
        definition=definition,
        chip=contexts.chip,
        visible=contexts.visible,
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
