"""/s/STUDY/latent/VARIANT/LAYER/LATENT: everything that is known of one latent."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.display import contexts
from app.display.latent import LatentView, groups_of, histogram_figure, load_latent, texts_for
from app.pages.address import Number, OpenStudy, Ordered, order_of
from app.pages.render import page
from app.study import queries
from app.study.study import Study

router = APIRouter()

KINDS = ("top", "quantile", "non_activating")


@router.get("/s/{study}/latent/{variant}/{layer}/{latent}", name="latent")
def latent(
    request: Request, study: OpenStudy, variant: str, layer: Number, latent: Number, query: Annotated[Ordered, Query()]
) -> Response:
    """A latent's page; `sort` and `order` say which latents come before and after it."""
    sae = study.sae(variant, layer)
    view = load_latent(study, sae, latent, KINDS)
    order = order_of(study, query)
    effects = queries.logit_effects(study.reader, sae.sae, latent)
    texts = texts_for(study, view, more={token for row in effects for token in row["tokens"]})
    contexts = {kind: _contexts(view, texts, kind) for kind in KINDS}
    state = {"sort": order.column, "order": "desc" if order.descending else "asc"}
    context = {
        "view": view,
        "order": order,
        "place": queries.place(study.reader, sae.sae, latent, order),
        "sort_label": _sort_label(study, order.column),
        "top": contexts["top"],
        "strata": groups_of(contexts["quantile"]),
        "silent": contexts["non_activating"],
        "figure": histogram_figure(view),
        "effects": [_effects(row, texts) for row in effects],
        "explanations": [row | {"rules": _pretty(row["rules"])} for row in view.explanations],
        "matches": queries.matches(study.reader, sae.sae, latent, study.numbers),
        "order_query": state,
    }
    return page(request, "latent", context, study)


def _contexts(view: LatentView, texts: dict[int, str], kind: str) -> list[contexts.Context]:
    rows = [row for row in view.context_rows if row["kind"] == kind]
    return contexts.build_contexts(rows, texts, view.largest)


def _sort_label(study: Study, column: str) -> str:
    return "index" if column == "latent" else study.statistic(column).label


def _effects(row: dict[str, Any], texts: dict[int, str]) -> dict[str, Any]:
    pairs = zip(row["tokens"], row["effects"], strict=False)
    return {"sign": row["sign"], "tokens": [(texts.get(token, f"⟨{token}⟩"), effect) for token, effect in pairs]}


def _pretty(rules: str | None) -> str:
    try:
        return json.dumps(json.loads(rules), indent=1, ensure_ascii=False) if rules else ""
    except ValueError:
        return rules or ""
