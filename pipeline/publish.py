"""Puts together what is finished: artefacts come in, the study's database goes out."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline.artefacts import timing
from pipeline.config import hook_name
from pipeline.metrics import METRICS, metrics_table
from pipeline.progress import Advance
from pipeline.stages import Context, LayerRun
from pipeline.store import Part, Source, Tell, write_study
from pipeline.tell import tell_table
from pipeline.variants import VARIANTS

PARTS = ("latents", "contexts", "histograms", "logit_effects")
"""Tables that the collecting stage leaves, a Parquet file each."""


@dataclass
class Finished:
    """What the run has finished so far; grows as it goes on."""

    context: Context
    tensors: list[Path] = field(default_factory=list)
    layers: list[LayerRun] = field(default_factory=list)
    losses: dict[str, Path] = field(default_factory=dict)
    matches: list[tuple[LayerRun, LayerRun]] = field(default_factory=list)

    def sae(self, layer: LayerRun) -> int:
        """The SAE's number: its place in the study."""
        study = self.context.study
        return study.variants.index(layer.variant.name) * len(study.layers) + study.layers.index(layer.number)


def publish(finished: Finished, database: Path, *, complete: bool = False) -> None:
    """Write the database with all that is finished, and tell how far the study is."""
    context = finished.context
    with context.progress.stage("publish", "writing the database", "statistics") as advance:
        tell = _tell(context, advance) if complete else None
        write_study(database, _tables(finished, database.parent, complete), tell)
    fresh = context.artefacts.made.count("latents")
    context.progress.finished_sae(len(finished.layers), len(context.study.variants) * len(context.study.layers), fresh)


def _tables(finished: Finished, beside: Path, complete: bool) -> dict[str, Source]:
    context = finished.context
    return {
        "study": _study(context, complete),
        "provenance": _pairs(_provenance(context)),
        "timings": _timings(finished),
        "models": pa.Table.from_pylist([context.loaded.info.__dict__]),
        "variants": _variants(context),
        "tensors": [Part(folder / "tensors.parquet", {}) for folder in finished.tensors],
        **context.corpus.tables(),
        "vocabulary": pa.table({"token": range(len(context.vocabulary)), "text": context.vocabulary}),
        "metrics": metrics_table(),
        "saes": pa.Table.from_pylist([_sae(finished, layer, beside) for layer in finished.layers]),
        **{name: _parts(finished, name) for name in PARTS},
        "sae_metrics": [*_parts(finished, "sae_metrics"), *_losses(finished)],
        "explanations": _scored(finished, "explanations"),
        "scores": _scored(finished, "scores"),
        "matches": _matches(finished),
    }


def _tell(context: Context, advance: Advance) -> Tell:
    statistics = [metric.name for metric in METRICS if metric.level == "latent"]
    return lambda saes, latents: tell_table(saes, latents, statistics, context.study.seed, advance)


def _parts(finished: Finished, name: str) -> list[Part]:
    return [Part(layer.latents() / f"{name}.parquet", {"sae": finished.sae(layer)}) for layer in finished.layers]


def _scored(finished: Finished, name: str) -> list[Part]:
    return [Part(layer.scores() / f"{name}.parquet", {"sae": finished.sae(layer)}) for layer in finished.layers]


def _losses(finished: Finished) -> list[Part]:
    return [
        Part(finished.losses[layer.variant.name] / f"{layer.number}.parquet", {"sae": finished.sae(layer)})
        for layer in finished.layers
        if layer.variant.name in finished.losses
    ]


def _matches(finished: Finished) -> list[Part]:
    parts = []
    for one, other in finished.matches:
        folder, here, there = one.matches(other), finished.sae(one), finished.sae(other)
        parts.append(Part(folder / "forward.parquet", {"sae": here, "other_sae": there}))
        parts.append(Part(folder / "backward.parquet", {"sae": there, "other_sae": here}))
    return parts


def _study(context: Context, complete: bool) -> pa.Table:
    study = context.study
    config = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    row = {"name": study.name, "title": study.title or study.name, "config": config, "seed": study.seed}
    planned = len(study.variants) * len(study.layers)
    return pa.Table.from_pylist([row | {"complete": complete, "planned_saes": planned}])


def _pairs(values: dict[str, str]) -> pa.Table:
    return pa.table({"key": list(values), "value": list(values.values())})


def _provenance(context: Context) -> dict[str, str]:
    versions = {f"version of {name}": version for name, version in context.base["versions"].items()}
    return {
        "precision": context.compute.precision,
        "device": context.compute.device,
        "SHA-256 of the token ids": context.corpus.sha256,
        "SHA-256 of the trained weights": context.base["weights"],
        "training": json.dumps(context.study.sae.model_dump()),
        **versions,
    }


def _variants(context: Context) -> pa.Table:
    rows = []
    for position, name in enumerate(context.study.variants):
        row = VARIANTS[name]
        facts = {"label": row.label, "description": row.description, "is_trained": row.is_trained}
        rows.append({"variant": name, "position": position, **facts, "seed": context.study.seed})
    return pa.Table.from_pylist(rows)


def _sae(finished: Finished, layer: LayerRun, beside: Path) -> dict[str, Any]:
    context, facts = finished.context, layer.facts()
    config = context.study.sae
    return {
        "sae": finished.sae(layer),
        "model": context.loaded.info.model,
        "variant": layer.variant.name,
        "layer": layer.number,
        "hook_name": hook_name(layer.number),
        "architecture": config.architecture,
        "d_in": context.loaded.info.d_model,
        "d_sae": config.d_sae,
        "k": config.k,
        "seed": layer.seed,
        "training_steps": facts["training_steps"],
        "training_tokens": facts["training_tokens"],
        "collected_tokens": round(context.flat.size * (1 - facts["dropped"])),
        "normalisation": facts["normalisation"],
        "path": str(layer.train().relative_to(beside)),
        "sha256": facts["sha256"],
    }


def _timings(finished: Finished) -> pa.Table:
    first = finished.context.study.layers[0]
    rows = [
        {"stage": "forward", "variant": layer.variant.name, "layer": None, **layer.facts()["forward"]}
        for layer in finished.layers
        if layer.number == first
    ]
    for stage, variant, number, folder in _stages(finished):
        rows.append({"stage": stage, "variant": variant, "layer": number, **timing(folder)})
    fields = [("stage", pa.string()), ("variant", pa.string()), ("layer", pa.int32()), ("seconds", pa.float64())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, ("tokens", pa.int64()), ("hardware", pa.string())]))


def _stages(finished: Finished) -> list[tuple[str, str | None, int | None, Path]]:
    rows: list[tuple[str, str | None, int | None, Path]] = []
    for name, folder in zip(finished.context.study.variants, finished.tensors, strict=False):
        rows.append(("variant", name, None, folder))
    for layer in finished.layers:
        folders = {"train": layer.train(), "collect": layer.latents(), "score": layer.scores()}
        rows += [(stage, layer.variant.name, layer.number, folder) for stage, folder in folders.items()]
    rows += [("losses", name, None, folder) for name, folder in finished.losses.items()]
    rows += [("match", one.variant.name, one.number, one.matches(other)) for one, other in finished.matches]
    return rows
