"""Which of a study's SAEs a page shows: one setting, written as parameters of the study's segment of the address.

`/s/sizes;model=gemma;sae_seed=1` is the study `sizes` with another model and another training of the SAEs than the
first. What is not written is as in the study's first SAE.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

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


def split(segment: str, names: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    """The study's bare name and its parameters; `names` are the studies' own, which may hold semicolons."""
    known = max((n for n in names if segment == n or segment.startswith(f"{n};")), key=len, default=None)
    name = segment.split(";")[0] if known is None else known
    parts = [part.partition("=") for part in segment[len(name) :].split(";") if part]
    return name, [(key, _unescaped(value)) for key, _, value in parts]


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


def read(parameters: Iterable[tuple[str, str]], saes: Sequence[Sae], study: str) -> Setting:
    """The setting that parameters ask for; raises a 404 that says what there is."""
    ways = [Way("Overview", f"/s/{quote(study)}"), Way("All studies", "/")]
    found = first(saes)
    for key, text in parameters:
        axis = next((axis for axis in AXES if axis.key == key), None)
        if axis is None:
            raise not_found("part of a setting", key, [axis.key for axis in AXES], ways)
        values = {str(value): value for value in values_of(axis, saes)}
        if text not in values:
            raise not_found(axis.key, text, values, ways)
        found = replace(found, **{axis.field: values[text]})
    known = settings(saes)
    if found not in known:
        raise not_found("setting", written(found), [written(one) for one in known], ways)
    return found


def values_of(axis: Axis, saes: Sequence[Sae]) -> list[Any]:
    """The values that an axis has, in the order of the study."""
    found = dict.fromkeys(axis.of(sae) for sae in sorted(saes, key=lambda sae: sae.sae))
    return sorted(found) if axis.key.endswith("_seed") else list(found)


def written(setting: Setting, usual: Setting | None = None) -> str:
    """The parameters that give a setting, each with a semicolon before it; without those that are as usual."""
    told = [axis for axis in AXES if usual is None or axis.of(setting) != axis.of(usual)]
    return "".join(f";{axis.key}={_escaped(str(axis.of(setting)))}" for axis in told)


def nearest(known: Sequence[Setting], axis: Axis, value: Any, setting: Setting) -> Setting:
    """Of the settings with a value, the one that keeps most of another setting, the earlier axes first."""
    there = [one for one in known if axis.of(one) == value]
    return max(there, key=lambda one: [a == b for a, b in zip(astuple(one), astuple(setting), strict=True)])


def told(setting: Setting) -> Mapping[str, Any]:
    """A setting by the keys of the address."""
    return {axis.key: axis.of(setting) for axis in AXES}


def _seedless(one: Setting | Sae) -> tuple[str, str, str, int]:
    """All but the draw of the variant: the trained one has no other draws."""
    return one.model, one.hook, one.name, one.sae_seed


def _setting(sae: Sae) -> Setting:
    return Setting(*(axis.of(sae) for axis in AXES))


def _escaped(text: str) -> str:
    # A slash in a model's name would end the segment, however often servers and proxies unquote it: no percent signs.
    return quote(text, safe="").replace("~", "%7E").replace("%", "~")


def _unescaped(text: str) -> str:
    return unquote(text.replace("~", "%"))
