"""/s/STUDY/latents: an SAE's latents, sorted, filtered, searched, a page at a time."""

import math
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.display import contexts
from app.pages.address import ListQuery, OpenStudy, conditions, linker, order_of, sae_of, score_state
from app.pages.render import page
from app.study import queries
from app.study.records import OPERATORS, Selection
from app.study.study import Study

router = APIRouter()

PAGE_SIZE = 50


@router.get("/s/{study}/latents", name="latents")
def latents(request: Request, study: OpenStudy, query: Annotated[ListQuery, Query()]) -> Response:
    """A list of latents."""
    sae = sae_of(study, query.variant, query.layer)
    order, filters = order_of(study, query), conditions(study, query)
    selection = Selection(sae.sae, filters, query.state, score_state(study, query), query.q)
    rows, total = queries.latents(study.reader, selection, order, PAGE_SIZE, (query.page - 1) * PAGE_SIZE)
    order_query = {"sort": order.column, "order": "desc" if order.descending else "asc"}
    state = order_query | {
        "variant": sae.variant,
        "layer": sae.layer,
        "where": [str(condition) for condition in filters],
        "state": query.state,
        "score_state": query.score_state,
        "q": query.q,
        "page": query.page if query.page > 1 else None,
    }
    link = linker(request, study, "/latents", state)
    context = {
        "sae": sae,
        "variant": study.variant(sae.variant),
        "query": query,
        "order": order,
        "order_query": order_query,
        "filters": filters,
        "rows": rows,
        "snippets": _snippets(study, sae.sae, [row["latent"] for row in rows]),
        "total": total,
        "first": (query.page - 1) * PAGE_SIZE + 1,
        "pages": max(1, math.ceil(total / PAGE_SIZE)),
        "link": link,
        "operators": OPERATORS,
    }
    response = page(request, "latents", context, study)
    response.headers["HX-Push-Url"] = link()
    return response


def _snippets(study: Study, sae: int, numbers: list[int]) -> dict[int, contexts.Context]:
    rows = queries.contexts(study.reader, sae, numbers, ["top"], most=1)
    texts = queries.token_texts(study.reader, sae, contexts.token_ids(rows))
    return {row["latent"]: contexts.build_context(row, texts, max(row["activations"], default=0.0)) for row in rows}
