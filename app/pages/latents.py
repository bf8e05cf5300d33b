"""/s/STUDY/latents: an SAE's latents, sorted, filtered, searched, a page at a time."""

import math
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.display import contexts
from app.pages.address import ListQuery, conditions, linker, order_of, sae_of, score_state, study_path
from app.pages.render import page
from app.security import base_of
from app.study import queries
from app.study.records import OPERATORS, Selection
from app.study.study import Studies, Study

router = APIRouter()

PAGE_SIZE = 50


@router.get("/s/{study}/latents", name="latents")
def latents(request: Request, study: str, query: Annotated[ListQuery, Query()]) -> Response:
    """A list of latents."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        sae = sae_of(opened, query.variant, query.layer)
        order, filters = order_of(opened, query), conditions(opened, query)
        selection = Selection(sae.sae, filters, query.state, score_state(opened, query), query.q)
        rows, total = queries.latents(opened.reader, selection, order, PAGE_SIZE, (query.page - 1) * PAGE_SIZE)
        state = {
            "variant": sae.variant,
            "layer": sae.layer,
            "sort": order.column,
            "order": "desc" if order.descending else "asc",
            "where": [str(condition) for condition in filters],
            "state": query.state,
            "score_state": query.score_state,
            "q": query.q,
            "page": query.page if query.page > 1 else None,
        }
        link = linker(study_path(base_of(request), opened.name, "/latents"), state)
        context = {
            "sae": sae,
            "variant": opened.variant(sae.variant),
            "query": query,
            "order": order,
            "filters": filters,
            "rows": rows,
            "snippets": _snippets(opened, sae.sae, [row["latent"] for row in rows]),
            "total": total,
            "first": (query.page - 1) * PAGE_SIZE + 1,
            "pages": max(1, math.ceil(total / PAGE_SIZE)),
            "link": link,
            "operators": OPERATORS,
        }
        response = page(request, "latents", context, opened)
        response.headers["HX-Push-Url"] = link()
        return response


def _snippets(study: Study, sae: int, numbers: list[int]) -> dict[int, contexts.Context]:
    rows = queries.contexts(study.reader, sae, numbers, ["top"], most=1)
    texts = queries.token_texts(study.reader, sae, contexts.token_ids(rows))
    return {row["latent"]: contexts.build_context(row, texts, max(row["activations"], default=0.0)) for row in rows}
