"""Which of a study's SAEs a page shows: one setting, as query parameters of the address.

`/s/sizes?model=gemma&sae_seed=1` is the study `sizes` with another model and another training of the SAEs than the
first. What is not written is as in the study's first SAE.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from app.errors import Way, not_found
from app.study.records import Sae


@dataclass(frozen=True)
class Setting:
    """What says which SAEs are shown; within it there is one for each variant and layer."""

    model: str
    hook: str
    name: str
    variant_seed: int
    sae_seed: int


@dataclass(frozen=True)
class Axis:
    """One field of a setting: its key in the address, its name for people, and what it means."""

    key: str
    field: str
    label: str
    description: str

    def of(self, setting: Setting | Sae) -> Any:
        """The value that a setting or an SAE has."""
        return getattr(setting, self.field)


AXES = (
    Axis("model", "model", "Model", "the transformer"),
    Axis("hook", "hook", "Hook", "where in a layer the SAEs read: residual stream, output of the MLP or of attention"),
    Axis("sae", "name", "SAE", "which of the study's kinds of SAE"),
    Axis("variant_seed", "variant_seed", "Draw", "which draw of the random variants; the trained one has only one"),
    Axis("sae_seed", "sae_seed", "SAE seed", "which training of the SAEs, each from other initial weights"),
)


POOL = Axis("seeds", "", "Seeds", "one draw and one training, or all of them together")
"""Whether pages show all seeds of a model, hook and SAE together; those that show one SAE show the setting's."""
ALL = "all"
KEYS = (*(axis.key for axis in AXES), POOL.key)


def split(text: str, names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """A study's name and the parameters of a setting, out of `name?key=value&…`; `names` are the studies' own.

    Out of `name;key=value;…` with ~ for % too: addresses were written so once, and label files hold some.
    """
    known = (name for name in names if text == name or text.startswith((f"{name}?", f"{name};")))
    name = max(known, key=len, default=re.split("[?;]", text)[0])
    query = text[len(name) :]
    if query.startswith(";"):
        return name, dict(parse_qsl(query.replace("~", "%"), keep_blank_values=True, separator=";"))
    return name, dict(parse_qsl(query[1:], keep_blank_values=True))


def address(path: str, query: Mapping[str, Any]) -> str:
    """A path with a query, of which what is empty is left out."""
    kept = {key: value for key, value in query.items() if value not in (None, "", [], ())}
    return f"{path}?{urlencode(kept, doseq=True, safe=':')}" if kept else path


def study_path(study: str) -> str:
    """The path of a study's overview."""
    return f"/s/{quote(study, safe=':')}"


def first(saes: Sequence[Sae]) -> Setting:
    """The setting of a bare name: that of the first SAE, at the lowest seeds."""
    return _setting(min(saes, key=lambda sae: sae.sae))


def settings(saes: Sequence[Sae]) -> list[Setting]:
    """All settings that have SAEs, in the order of the study."""
    draws: dict[tuple[str, str, str, int], set[int]] = {}
    for sae in sorted(saes, key=lambda sae: sae.sae):
        draws.setdefault(_seedless(sae), set()).add(sae.variant_seed)
    return [Setting(*one[:3], draw, one[3]) for one, seeds in draws.items() for draw in sorted(seeds)]


def members(saes: Sequence[Sae], setting: Setting) -> list[Sae]:
    """The SAEs of a setting; a variant that was not drawn so often (the trained one never is) shows its last draw."""
    found: dict[tuple[str, int], Sae] = {}
    for sae in saes:
        place = (sae.variant, sae.layer)
        if _seedless(sae) == _seedless(setting) and sae.variant_seed <= setting.variant_seed:
            found[place] = max(found.get(place, sae), sae, key=lambda one: one.variant_seed)
    return list(found.values())


def pool(saes: Sequence[Sae], setting: Setting) -> list[Sae]:
    """The SAEs of a setting and of all that differ from it in seeds alone."""
    return [sae for sae in saes if (sae.model, sae.hook, sae.name) == (setting.model, setting.hook, setting.name)]


def read(asked: Mapping[str, str], saes: Sequence[Sae], study: str) -> Setting:
    """The setting that parameters ask for; raises a 404 that says what there is."""
    ways = [Way("Overview", study_path(study)), Way("All studies", "/")]
    found = first(saes)
    for key, text in asked.items():
        axis = next((axis for axis in (*AXES, POOL) if axis.key == key), None)
        if axis is None:
            raise not_found("part of a setting", key, KEYS, ways)
        values: dict[str, Any] = {ALL: ALL} if axis is POOL else {str(value): value for value in values_of(axis, saes)}
        if text not in values:
            raise not_found(axis.key, text, values, ways)
        if axis is not POOL:
            found = replace(found, **{axis.field: values[text]})
    known = settings(saes)
    if found not in known:
        raise not_found("setting", urlencode(told(found)), [urlencode(told(one)) for one in known], ways)
    return found


def values_of(axis: Axis, saes: Sequence[Sae]) -> list[Any]:
    """The values that an axis has, in the order of the study."""
    found = dict.fromkeys(axis.of(sae) for sae in sorted(saes, key=lambda sae: sae.sae))
    return sorted(found) if axis.key.endswith("_seed") else list(found)


def parameters(setting: Setting, usual: Setting) -> dict[str, Any]:
    """What an address says of a setting: where it differs from the usual one."""
    return {axis.key: axis.of(setting) for axis in AXES if axis.of(setting) != axis.of(usual)}


def nearest(known: Sequence[Setting], axis: Axis, value: Any, setting: Setting) -> Setting:
    """Of the settings with a value, the one that keeps most of another setting, the earlier axes first."""
    there = [one for one in known if axis.of(one) == value]
    return max(there, key=lambda one: [a == b for a, b in zip(astuple(one), astuple(setting), strict=True)])


def told(setting: Setting) -> dict[str, Any]:
    """A setting by the keys of the address."""
    return {axis.key: axis.of(setting) for axis in AXES}


def _seedless(one: Setting | Sae) -> tuple[str, str, str, int]:
    """All but the draw of the variant: the trained one has no other draws."""
    return one.model, one.hook, one.name, one.sae_seed


def _setting(sae: Sae) -> Setting:
    return Setting(*(axis.of(sae) for axis in AXES))
