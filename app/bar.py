"""The bar that changes the setting: a request and its study come in, for each axis the values and where they lead."""

from dataclasses import dataclass
from urllib.parse import urlencode

from fastapi import Request

from app import axes
from app.axes import Axis, Setting
from app.state import base_of, path_of, study_path
from app.studies import Study

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
    found = []
    for axis in axes.AXES:
        values = axes.values_of(axis, study.all_saes)
        if len(values) > 1:
            there = [axes.nearest(known, axis, value, here) for value in values]
            found.append(Choice(axis, [_option(request, study, axis, one) for one in there]))
    return found


def _option(request: Request, study: Study, axis: Axis, there: Setting) -> Option:
    current = study.setting is not None and axis.of(there) == axis.of(study.setting)
    return Option(str(axis.of(there)), _address(request, study, there), current)


def _address(request: Request, study: Study, there: Setting) -> str:
    """This page at another setting; a latent's page becomes the list: its number means another latent there."""
    given = [*request.query_params.multi_items()]
    rest = path_of(request.scope).removeprefix("/s/").partition("/")[2]
    if "latent" in request.path_params:
        given += [(key, str(request.path_params[key])) for key in ("variant", "layer")]
        rest = "latents"
    saes = axes.members(study.all_saes, there)
    layers, variants = {str(sae.layer) for sae in saes}, {sae.variant for sae in saes}
    kept = [
        (key, value)
        for key, value in given
        if key not in _DROPPED and (key != "layer" or value in layers) and (key not in _VARIANTS or value in variants)
    ]
    path = study_path(base_of(request), study.name_of(there), f"/{rest}" if rest else "")
    return f"{path}?{urlencode(kept, safe=':')}" if kept else path
