"""What a rater sees of a latent, as plain data, built once and frozen with the experiment.

Texts are the corpus's own, control characters and all: whoever draws them escapes them, and makes them visible with
`app.display.contexts.visible`.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict

from app.blind.design import Design, DesignError
from app.blind.sampling import Candidate, Pair, draw_pool
from app.display import contexts
from app.study import axes, queries
from app.study.files import Reader, Row
from app.study.study import Study

TOP_LEVEL = 9
"""The level of a latent's largest shown activation; 0 is not active."""
BINS = 20
"""Bins of a histogram, whatever the study's own has."""
TALLEST = 100
"""Height of a histogram's tallest bin."""

_TABLES = {2: ("histograms",), 3: ("logit_effects",), 4: ("latents", "explanations", "scores")}
"""What a tier reads beyond the tier before it."""
_CHUNK = 500

Cell: TypeAlias = tuple[str, int]
"""A token's text and its level."""
Rows: TypeAlias = Mapping[str, Mapping[int, Sequence[Row]]]
"""By table and latent."""


class _LackingError(Exception):
    """What a latent does not have."""


class Evidence(BaseModel):
    """What is shown of one latent; fields of a higher tier than the design's are None for every latent alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    contexts: tuple[tuple[Cell, ...], ...]
    """Windows of text; levels 0 to TOP_LEVEL are equal parts of the largest activation shown of this latent."""
    histogram: tuple[int, ...] | None = None
    """From tier 2: heights of BINS bins, square roots of counts, the tallest is TALLEST."""
    promoted: tuple[str, ...] | None = None
    """From tier 3: texts of the tokens whose logits it raises most, strongest first."""
    suppressed: tuple[str, ...] | None = None
    """From tier 3: texts of the tokens whose logits it lowers most."""
    density: float | None = None
    """Tier 4: share of tokens on which it is active, to three digits, as all numbers here."""
    max_activation: float | None = None
    """Tier 4: its largest activation in the whole corpus."""
    explanation: str | None = None
    """Tier 4: the explanation, where there is one."""
    scores: tuple[tuple[str, float], ...] | None = None
    """Tier 4: AUROC of the explanation by scorer; empty where there is none."""


@dataclass(frozen=True)
class Prepared:
    """A pair with what raters will see of it; `gold` is the random latent shuffled, where the design has gold."""

    pair: Pair
    trained: Evidence
    random: Evidence
    gold: Evidence | None


def prepare(study: Study, design: Design) -> list[Prepared]:
    """Draw the experiment's pool and build its evidence; the same design and study give the same.

    Raises DesignError when the study does not have what the design asks for.
    """
    rng = Random(design.seed)
    pairs = draw_pool(candidates(study, design), design, rng)
    shown: dict[tuple[int, int], Evidence] = {}
    members = [member for pair in pairs for member in (pair.trained, pair.random)]
    for sae in sorted({member.sae for member in members}):
        numbers = [member.latent for member in members if member.sae == sae]
        built = build(study.reader, sae, numbers, design, rng)
        shown |= {(sae, number): evidence for number, evidence in built.items()}
    prepared = []
    for pair in pairs:
        random = shown[pair.random.key]
        gold = shuffle_tokens(random, rng) if design.counts.gold and pair.role == "main" else None
        prepared.append(Prepared(pair, shown[pair.trained.key], random, gold))
    return prepared


def identity(study: Study) -> dict[str, Any]:
    """What the study was when the experiment was made: name, hash of its file, seed, hashes of tokens and SAEs.

    The SAEs are those of the setting that latents are drawn from: one for each variant and layer.
    """
    return {
        "name": study.entry.name,
        "setting": axes.told(study.setting) if study.setting else {},
        "title": study.row["title"],
        "config_sha256": hashlib.sha256(study.row["config"].encode()).hexdigest(),
        "seed": study.row["seed"],
        "provenance": {row["key"]: row["value"] for row in queries.provenance(study.reader)},
        "saes": {f"{sae.variant} {sae.layer}": sae.sha256 for sae in study.saes},
    }


def candidates(study: Study, design: Design) -> list[Candidate]:
    """Latents that may be drawn: alive, with `design.contexts` different whole windows among their top contexts.

    One rule and one query for trained and random ones. Raises DesignError for a variant or layer that is not there.
    """
    window = queries.window_length(study.reader)
    # A best match is a maximum over the other variants: trained latents have more of them than random ones.
    names = [metric.metric for metric in study.statistics if metric.metric != "best_match_correlation"]
    found = []
    for variant in (_trained(study), *_random(study, design)):
        for layer in design.layers:
            sae = _sae(study, variant, layer)
            for row in queries.latents_with_contexts(study.reader, sae, names, window, design.contexts):
                values = {name: row[name] for name in names}
                statistics = {n: v if v is not None and math.isfinite(v) else None for n, v in values.items()}
                found.append(Candidate(sae, row["latent"], variant, layer, row["share"], statistics))
    return found


def _trained(study: Study) -> str:
    for variant in study.variants:
        if variant.is_trained:
            return variant.variant
    raise DesignError(f"The study “{study.name}” has no trained variant to set others against: choose another study.")


def _random(study: Study, design: Design) -> Sequence[str]:
    known = [variant.variant for variant in study.variants if not variant.is_trained]
    for variant in design.variants:
        if variant not in known:
            raise DesignError(f"Unknown random variant '{variant}'. Known: {', '.join(known)}.")
    return design.variants


def _sae(study: Study, variant: str, layer: int) -> int:
    for sae in study.saes:
        if (sae.variant, sae.layer) == (variant, layer):
            return sae.sae
    there = ", ".join(map(str, study.layers_of(variant))) or "none yet"
    raise DesignError(f"Variant '{variant}' has no SAE at layer {layer}. Its layers: {there}.")


def build(reader: Reader, sae: int, latents: Sequence[int], design: Design, rng: Random) -> dict[int, Evidence]:
    """The evidence of latents of an SAE at `design.tier`; raises DesignError when the study lacks some of it."""
    window = queries.window_length(reader)
    built: dict[int, Evidence] = {}
    for start in range(0, len(latents), _CHUNK):
        part = latents[start : start + _CHUNK]
        rows = _load(reader, sae, part, design.tier)
        texts = _texts(reader, sae, rows)
        for latent in part:
            try:
                built[latent] = _evidence(rows, texts, latent, design, window, rng)
            except _LackingError as error:
                raise DesignError(
                    f"Latent {latent} of SAE {sae} lacks {error}: choose a lower tier or fewer contexts, or run"
                    " the study again."
                ) from error
    return built


def _load(reader: Reader, sae: int, latents: Sequence[int], tier: int) -> Rows:
    tables = [table for least, names in _TABLES.items() if tier >= least for table in names]
    found = {table: queries.of_latents(reader, table, sae, latents) for table in tables}
    found["contexts"] = queries.contexts(reader, sae, latents, ("top",))
    by_latent: dict[str, dict[int, list[Row]]] = {table: {} for table in found}
    for table, rows in found.items():
        for row in rows:
            by_latent[table].setdefault(row["latent"], []).append(row)
    return by_latent


def _texts(reader: Reader, sae: int, rows: Rows) -> dict[int, str]:
    ids: set[int] = set()
    for table in ("contexts", "logit_effects"):
        for own in rows.get(table, {}).values():
            ids |= contexts.token_ids(own)
    return {token: f"⟨{token}⟩" for token in ids} | queries.token_texts(reader, sae, ids)


def _evidence(rows: Rows, texts: Mapping[int, str], latent: int, design: Design, window: int, rng: Random) -> Evidence:
    fields: dict[str, Any] = {"contexts": _contexts(rows["contexts"].get(latent, ()), texts, design, window, rng)}
    if design.tier >= 2:
        fields["histogram"] = _heights(_one(rows, "histograms", latent)["counts"])
    if design.tier >= 3:
        effects = {row["sign"]: row["tokens"] for row in rows["logit_effects"].get(latent, ())}
        if set(effects) < {1, -1}:
            raise _LackingError("logit effects")
        fields["promoted"], fields["suppressed"] = (tuple(texts[t] for t in effects[sign]) for sign in (1, -1))
    if design.tier >= 4:
        fields |= _everything(rows, latent)
    return Evidence(**fields)


def _one(rows: Rows, table: str, latent: int) -> Row:
    for row in rows[table].get(latent, ()):
        return row
    raise _LackingError(f"its row in '{table}'")


def _contexts(
    rows: Sequence[Row], texts: Mapping[int, str], design: Design, window: int, rng: Random
) -> tuple[tuple[Cell, ...], ...]:
    """The strongest different windows in random order: their rank says how fast activations fall."""
    different: dict[tuple[int, ...], Row] = {}
    for row in rows:
        if len(row["tokens"]) == window:
            different.setdefault(tuple(row["tokens"]), row)
    if len(different) < design.contexts:
        raise _LackingError(f"contexts ({len(different)} different ones of {design.contexts})")
    chosen = rng.sample(list(different.values())[: design.contexts], design.contexts)
    largest = max((activation for row in chosen for activation in row["activations"]), default=0.0)
    return tuple(_cells(row, texts, largest) for row in chosen)


def _cells(row: Row, texts: Mapping[int, str], largest: float) -> tuple[Cell, ...]:
    cells = [(texts[token], 0) for token in row["tokens"]]
    for at, activation in zip(row["positions"], row["activations"], strict=True):
        cells[at] = (cells[at][0], level(activation, largest))
    return tuple(cells)


def level(activation: float, largest: float) -> int:
    """Which of TOP_LEVEL equal parts of `largest` an activation lies in, counted from 1; 0 when it is not active."""
    if activation <= 0 or largest <= 0:
        return 0
    return min(TOP_LEVEL, max(1, math.ceil(TOP_LEVEL * activation / largest)))


def _heights(counts: Sequence[int]) -> tuple[int, ...]:
    """Square roots, so that the tail is seen beside the first bins, as shares of the tallest."""
    merged = list(_rebinned(counts))
    most = max(merged)
    return tuple(round(TALLEST * math.sqrt(count / most)) if most else 0 for count in merged)


def _rebinned(counts: Sequence[int]) -> Iterator[float]:
    """The counts in BINS bins of equal width; a bin that is cut gives each part its share."""
    ratio = len(counts) / BINS
    for at in range(BINS):
        low, high = at * ratio, (at + 1) * ratio
        cut = range(math.floor(low), min(len(counts), math.ceil(high)))
        yield sum(counts[i] * max(0.0, min(high, i + 1) - max(low, i)) for i in cut)


def _everything(rows: Rows, latent: int) -> dict[str, Any]:
    numbers = _one(rows, "latents", latent)
    explained = next((row for row in rows["explanations"].get(latent, ()) if row["status"] == "ok"), None)
    explainer = explained["explainer"] if explained else None
    scored = [row for row in rows["scores"].get(latent, ()) if row["auroc"] is not None and not row["shuffled"]]
    return {
        "density": _three_digits(numbers["density"]),
        "max_activation": _three_digits(numbers["max_activation"]),
        "explanation": explained["text"] if explained else None,
        "scores": tuple(
            (row["scorer"], _three_digits(row["auroc"])) for row in scored if row["explainer"] == explainer
        ),
    }


def _three_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def shuffle_tokens(evidence: Evidence, rng: Random) -> Evidence:
    """Gold: all tokens of all contexts, each with its level, in random order; how many of each there are stays."""
    cells = [cell for context in evidence.contexts for cell in context]
    rng.shuffle(cells)
    dealt = iter(cells)
    contexts = tuple(tuple(islice(dealt, len(context))) for context in evidence.contexts)
    return evidence.model_copy(update={"contexts": contexts})
