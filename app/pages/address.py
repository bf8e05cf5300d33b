"""What an address says: the study and its setting, the parameters of each page, and links with some of them changed."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import PageError, bad_request
from app.security import base_of, path_of
from app.study import axes, queries
from app.study.axes import Axis, Setting
from app.study.files import Entry, StudyPendingError
from app.study.records import OPERATORS, SCORE_STATES, Condition, Order, Sae
from app.study.study import Studies, Study

Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Link = Callable[..., str]

_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|>|<|=)\s*(\S+)\s*")


class MovedError(Exception):
    """An address as they were once; `address` is what it is now."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


def find_study(request: Request, study: str) -> Entry:
    """The study of an address; raises a 404, or MovedError where the setting is in its name."""
    studies: Studies = request.app.state.studies
    try:
        return studies.entry(study)
    except PageError:
        name, asked = studies.split(study)
        if name == study or request.method != "GET" or not asked.keys() <= set(axes.KEYS):
            raise
        studies.entry(name)
        rest = quoted(path_of(request.scope).removeprefix(f"/s/{study}"))
        given = {key: request.query_params.getlist(key) for key in request.query_params}
        raise MovedError(base_of(request) + axes.address(axes.study_path(name) + rest, asked | given)) from None


def open_study(request: Request, entry: Annotated[Entry, Depends(find_study)]) -> Iterator[Study]:
    """The study of an address, open at its setting; raises a PageError, or StudyPendingError while it has no file."""
    studies: Studies = request.app.state.studies
    given = request.query_params
    with studies.reading(entry, **{key: given[key] for key in axes.KEYS if given.get(key)}) as study:
        yield study


FoundStudy = Annotated[Entry, Depends(find_study)]
# Closed before the answer is sent: a slow reader keeps no cursor.
OpenStudy = Annotated[Study, Depends(open_study, scope="function")]


def pool_seeds(study: OpenStudy) -> Study:
    """The study for a page that shows all seeds together where they are asked for."""
    return replace(study, pools=True)


PooledStudy = Annotated[Study, Depends(pool_seeds, scope="function")]


class Query(BaseModel):
    """Query parameters; an empty one counts as absent, so that plain forms work."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if value not in ("", [], [""])}


class Ordered(Query):
    """A choice of order over latents."""

    sort: str | None = None
    order: Literal["asc", "desc"] | None = None


class ListQuery(Ordered):
    """The list of latents."""

    variant: str | None = None
    layer: Number | None = None
    state: Literal["alive", "dead"] | None = None
    score_state: Annotated[str, Field(max_length=200)] | None = None
    q: Annotated[str, Field(max_length=200)] = ""
    page: Annotated[int, Field(ge=1, le=100_000)] = 1
    where: list[str] = []
    metric: str | None = None
    op: Literal[">=", "<=", ">", "<", "="] = ">="
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None


class CompareQuery(Ordered):
    """Two variants' latents side by side."""

    left: str | None = None
    right: str | None = None
    layer: Number | None = None
    left_latent: Number | None = None
    right_latent: Number | None = None
    pair: Literal["rank", "match"] = "rank"
    scale: Literal["shared", "own"] = "shared"
    show: Literal["top", "quantile", "non_activating"] = "top"


class OverviewQuery(Query):
    """The overview of a study with many random variants: the layer and the variant that are shown in full."""

    layer: Number | None = None
    variant: str | None = None


class PlotQuery(Query):
    """The plots: the statistic whose distribution is drawn, and the two of the scatter plot."""

    metric: str | None = None
    x: str | None = None
    y: str | None = None


def conditions(study: Study, query: ListQuery) -> list[Condition]:
    """The filters of a list, with the one that its form adds; raises a 400 for what is no filter."""
    texts = list(query.where)
    if query.metric and query.value is not None:
        texts.append(f"{query.metric}{query.op}{query.value!r}")
    found: dict[str, Condition] = {}
    for text in texts:
        condition = _condition(study, text)
        found[str(condition)] = condition
    return list(found.values())


def score_state(study: Study, query: ListQuery) -> str | None:
    """The state of scoring that a list is filtered by; raises a 400 for one that no latent can be in."""
    known = dict.fromkeys(
        [
            *SCORE_STATES,
            *(state for counts in queries.score_states(study.reader, study.numbers).values() for state in counts),
        ]
    )
    if query.score_state is not None and query.score_state not in known:
        raise bad_request("score_state", query.score_state, known)
    return query.score_state


def _condition(study: Study, text: str) -> Condition:
    parts = _CONDITION.fullmatch(text)
    shape = f"a statistic, one of {' '.join(OPERATORS)}, and a number, such as density>0.001"
    if parts is None:
        raise bad_request("where", text, shape)
    try:
        value = float(parts[3])
    except ValueError as error:
        raise bad_request("where", text, shape) from error
    return Condition(study.statistic(parts[1], "where").metric, parts[2], value)


def order_of(study: Study, query: Ordered, default: str | None = None) -> Order:
    """The order that an address asks for, or the default: best scores first, else the most active first."""
    sort = query.sort or default or study.headline
    if sort == "latent":
        return Order("latent", query.order == "desc")
    metric = study.statistic(sort)
    descending = metric.higher_is_better is not False if query.order is None else query.order == "desc"
    return Order(metric.metric, descending)


def sae_of(study: Study, variant: str | None, layer: int | None) -> Sae:
    """The SAE that an address asks for; the trained variant's first where it leaves that open. Raises a 404."""
    if not study.saes:
        raise StudyPendingError(study.entry)
    trained = sorted(study.saes, key=lambda sae: not study.variant(sae.variant).is_trained)
    name = variant or next((sae.variant for sae in trained if layer in (None, sae.layer)), trained[0].variant)
    known = study.variant(name)
    layers = study.layers_of(known.variant)
    return study.sae(name, layer if layer is not None else (layers or [0])[0])


def linker(request: Request, study: Study, rest: str, state: Mapping[str, Any]) -> Link:
    """A function that gives the address of a study's page with some parameters changed; None takes one away."""

    def link(**changes: Any) -> str:
        return base_of(request) + study.address(rest, {**state, **changes})

    return link


def quoted(text: str) -> str:
    """Text as it stands in the path of an address."""
    return quote(text, safe="/:")


_DROPPED = {"left_latent", "right_latent", "page"}
"""Parameters that mean nothing among other SAEs."""
_VARIANTS = {"variant", "left", "right"}
_SHORT = 28
"""Characters of an axis' values, in all, that stand side by side; more of them go into a menu."""


@dataclass(frozen=True)
class Option:
    """A value of an axis and the address of this page with it."""

    text: str
    href: str
    current: bool


@dataclass(frozen=True)
class Choice:
    """An axis with more than one value."""

    axis: Axis
    options: list[Option]

    @property
    def chosen(self) -> str:
        """The value that the page shows."""
        return next(option.text for option in self.options if option.current)

    @property
    def short(self) -> bool:
        """Whether the values may stand side by side."""
        return sum(len(option.text) + 2 for option in self.options) <= _SHORT


def bar(request: Request, study: Study) -> list[Choice]:
    """What can be chosen on a page of a study; nothing where it has one setting."""
    if study.setting is None:
        return []
    here, known = study.setting, axes.settings(study.all_saes)
    pooled = study.pools and study.all_seeds
    found = []
    for axis in axes.AXES:
        values = axes.values_of(axis, study.all_saes)
        if len(values) > 1 and not (pooled and axis.key.endswith("_seed")):
            there = [axes.nearest(known, axis, value, here) for value in values]
            found.append(Choice(axis, [_option(request, study, axis, one) for one in there]))
    if study.pools and study.several_seeds:
        both = [(text, {axes.POOL.key: value}) for text, value in (("one", None), ("all", axes.ALL))]
        options = [Option(text, _address(request, study, here, way), (text == "all") == pooled) for text, way in both]
        found.append(Choice(axes.POOL, options))
    return found


def _option(request: Request, study: Study, axis: Axis, there: Setting) -> Option:
    current = study.setting is not None and axis.of(there) == axis.of(study.setting)
    return Option(str(axis.of(there)), _address(request, study, there, {}), current)


def _address(request: Request, study: Study, there: Setting, seeds: Mapping[str, Any]) -> str:
    """This page at another setting; a latent's page becomes the list: its number means another latent there."""
    given = {key: request.query_params.getlist(key) for key in request.query_params}
    rest = path_of(request.scope).removeprefix("/s/").partition("/")[2]
    if "latent" in request.path_params:
        given |= {key: [str(request.path_params[key])] for key in ("variant", "layer")}
        rest = "latents"
    saes = axes.members(study.all_saes, there)
    known = {"layer": {str(sae.layer) for sae in saes}} | {key: {sae.variant for sae in saes} for key in _VARIANTS}
    kept = {
        key: values
        for key, values in given.items()
        if key not in (*_DROPPED, *axes.KEYS) and (key not in known or values[-1] in known[key])
    }
    path = axes.study_path(study.name) + (f"/{rest}" if rest else "")
    return base_of(request) + axes.address(path, {**study.parameters_of(there), **seeds, **kept})
