"""/s/STUDY/compare: a latent of one variant beside a latent of another, on the same axes."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.display import contexts
from app.display.charts import Figure
from app.display.latent import LatentView, histogram_figure, load_latent, texts_for
from app.pages.address import CompareQuery, Link, OpenStudy, linker, order_of, sae_of
from app.pages.render import page
from app.study import queries
from app.study.files import Row
from app.study.records import Metric, Order, Sae
from app.study.study import Study

router = APIRouter()


@dataclass(frozen=True)
class Side:
    """One of the two latents, ready to be drawn. Without a `view` its SAE has no latent to show."""

    name: str
    sae: Sae
    place: Row
    view: LatentView | None
    contexts: list[contexts.Context]
    figure: Figure | None
    match: Row | None

    @property
    def number(self) -> int | None:
        """The latent's index."""
        return self.view.number if self.view else None


@dataclass(frozen=True)
class Statistic:
    """A number of both latents; the bars reach from 0 to 1 on the same scale."""

    metric: Metric
    left: float | None
    right: float | None
    left_bar: float
    right_bar: float


@router.get("/s/{study}/compare", name="compare")
def compare(request: Request, study: OpenStudy, query: Annotated[CompareQuery, Query()]) -> Response:
    """Two latents side by side."""
    left_sae, right_sae = _saes(study, query)
    order = _order(study, query, left_sae)
    left, right = _numbers(study, query, order, left_sae, right_sae)
    sides = _sides(study, query, order, (left_sae, left), (right_sae, right))
    state = _state(query, order, sides)
    link = linker(request, study, "/compare", state)
    context = {
        "left": sides[0],
        "right": sides[1],
        "query": query,
        "order": order,
        "sort_label": "index" if order.column == "latent" else study.statistic(order.column).label,
        "rows": [_statistic(metric, *sides) for metric in study.statistics],
        "layers": sorted(set(study.layers_of(left_sae.variant)) & set(study.layers_of(right_sae.variant))),
        "link": link,
        "state": state,
        "moves": _moves(link, query, *sides),
    }
    return page(request, "compare", context, study)


def _saes(study: Study, query: CompareQuery) -> tuple[Sae, Sae]:
    left = sae_of(study, query.left, query.layer)
    if query.right is not None:
        return left, study.sae(query.right, left.layer)
    others = [sae for sae in study.saes if sae.layer == left.layer and sae.variant != left.variant]
    return left, next(iter(others), left)


def _order(study: Study, query: CompareQuery, sae: Sae) -> Order:
    order = order_of(study, query)
    # Before anything is scored, the default order is empty: fall back to one that is not.
    if query.sort is None and not queries.place(study.reader, sae.sae, None, order).get("total"):
        return order_of(study, query, default="density")
    return order


def _numbers(study: Study, query: CompareQuery, order: Order, left: Sae, right: Sae) -> tuple[int | None, int | None]:
    first = query.left_latent
    if first is None:
        first = queries.place(study.reader, left.sae, None, order).get("first")
    second = query.right_latent
    if second is None and query.pair == "match" and first is not None:
        found = queries.matches(study.reader, left.sae, first, [right.sae], most=1)
        second = found[0]["other_latent"] if found else None
    if second is None:
        second = queries.place(study.reader, right.sae, None, order).get("first")
    return first, second


def _sides(
    study: Study, query: CompareQuery, order: Order, left: tuple[Sae, int | None], right: tuple[Sae, int | None]
) -> tuple[Side, Side]:
    views = [None if n is None else load_latent(study, sae, n, (query.show,)) for sae, n in (left, right)]
    there = [view for view in views if view]
    texts = texts_for(study, *there)
    ends = tuple(max((view.histogram_ends[axis] for view in there), default=1.0) for axis in (0, 1))
    shared = max((view.largest for view in there), default=0.0)
    sides = []
    for name, (sae, number), view, other in zip(("left", "right"), (left, right), views, (right, left), strict=True):
        scale = shared if query.scale == "shared" else view.largest if view else 0.0
        matches = [] if number is None else queries.matches(study.reader, sae.sae, number, [other[0].sae], most=1)
        sides.append(
            Side(
                name=name,
                sae=sae,
                place=queries.place(study.reader, sae.sae, number, order),
                view=view,
                contexts=contexts.build_contexts(view.context_rows, texts, scale) if view else [],
                figure=histogram_figure(view, (ends[0], ends[1])) if view else None,
                match=next(iter(matches), None),
            )
        )
    return sides[0], sides[1]


def _state(query: CompareQuery, order: Order, sides: tuple[Side, Side]) -> dict[str, Any]:
    left, right = sides
    return {
        "left": left.sae.variant,
        "right": right.sae.variant,
        "layer": left.sae.layer,
        "left_latent": left.number,
        "right_latent": right.number,
        "sort": order.column,
        "order": "desc" if order.descending else "asc",
        "pair": query.pair if query.pair != "rank" else None,
        "scale": query.scale if query.scale != "shared" else None,
        "show": query.show if query.show != "top" else None,
    }


def _moves(link: Link, query: CompareQuery, left: Side, right: Side) -> dict[str, str | None]:
    """Where each key leads; None where there is nowhere to go."""
    moves: dict[str, str | None] = {}
    for step in ("previous", "next"):
        to_left, to_right = _target(left, step), _target(right, step)
        follow = None if query.pair == "match" else right.number if to_right is None else to_right
        here = to_left is None and (query.pair == "match" or to_right is None)
        moved_left = left.number if to_left is None else to_left
        moves[step] = None if here else link(left_latent=moved_left, right_latent=follow)
        moves[f"left_{step}"] = None if to_left is None else link(left_latent=to_left)
        moves[f"right_{step}"] = None if to_right is None else link(right_latent=to_right)
    moves["match"] = link(right_latent=left.match["other_latent"]) if left.match else None
    moves["swap"] = link(
        left=right.sae.variant, right=left.sae.variant, left_latent=right.number, right_latent=left.number
    )
    return moves


def _target(side: Side, step: str) -> int | None:
    # A latent outside the order (dead, or without the value that is sorted by) leads to the order's first.
    outside = side.place.get("rank") is None and step == "next"
    return side.place.get("first" if outside else step)


def _statistic(metric: Metric, left: Side, right: Side) -> Statistic:
    values = [side.view.row[metric.metric] if side.view else None for side in (left, right)]
    most = metric.upper if metric.upper and metric.scale != "log" else max((abs(v) for v in values if v), default=0.0)
    bars = [min(1.0, abs(value) / most) if value and most else 0.0 for value in values]
    return Statistic(metric, values[0], values[1], bars[0], bars[1])
