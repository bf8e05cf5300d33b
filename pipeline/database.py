"""Writes the study's database, whole or not at all, from the artefacts that are finished."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa
import yaml

import core
from core.files import replacing, writing
from pipeline.artefacts import Artefacts, timing
from pipeline.autointerp import needs_sample, score_metrics
from pipeline.config import Study, hook_name
from pipeline.measures.comparisons import difference_table, tell_table
from pipeline.measures.metrics import METRICS, Metric, metrics_table, sae_metrics_table
from pipeline.progress import Advance, Progress
from pipeline.sae_stages import SaeRun
from pipeline.saes.architectures import seeds_of
from pipeline.stages import Context, VariantRun, draws
from pipeline.variants.table import find_variant

SCHEMA = Path(core.__file__).with_name("schema.sql")


class Part(NamedTuple):
    """Rows in a Parquet file, and the columns that are the same in all of them (such as `sae`)."""

    path: Path
    constants: Mapping[str, int | str]


Source: TypeAlias = "pa.Table | Sequence[Part | pa.Table]"
"""A table's rows: in memory, or in Parquet files that are read in the order given."""

Derived: TypeAlias = Mapping[str, Callable[[duckdb.DuckDBPyConnection], pa.Table]]
"""Tables that follow from the others: called with the database when all those are there."""


def write_study(path: Path, tables: Mapping[str, Source], derived: Derived | None = None) -> None:
    """Write a study database to `path`, replacing what is there only once the new file is complete.

    `tables` maps names of schema.sql to rows whose columns bear the schema's names; a table left out stays
    empty. `derived` tables are made when all others are there. A reader with the old file open goes on reading
    the old content. Raises UserError for a full disk.
    """
    with writing(path, duckdb.IOException), replacing(path) as partial, _removed(partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        _fill(partial, tables, derived or {})


@contextmanager
def _removed(partial: Path) -> Iterator[None]:
    """Nothing of what DuckDB keeps beside a database, before or afterwards."""
    partial.unlink(missing_ok=True)
    _remove(partial)
    try:
        yield
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # how DuckDB tells Ctrl-C during a query
            raise KeyboardInterrupt from error
        raise
    finally:
        _remove(partial)


def _remove(database: Path) -> None:
    database.with_name(database.name + ".wal").unlink(missing_ok=True)
    shutil.rmtree(database.with_name(database.name + ".tmp"), ignore_errors=True)


def _fill(path: Path, tables: Mapping[str, Source], derived: Derived) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET preserve_insertion_order = true")
        connection.execute(SCHEMA.read_text(encoding="utf-8"))
        _insert(connection, "metrics", tables.get("metrics", []))
        for column, *_ in _scores(connection):
            connection.execute(f'ALTER TABLE latents ADD COLUMN "{column}" DOUBLE')
        for name, source in tables.items():
            if name != "metrics":
                _insert(connection, name, source)
        _derive(connection)
        for name, make in derived.items():
            _insert(connection, name, make(connection))
        connection.execute("CHECKPOINT")


def _scores(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str, str, str]]:
    """Columns of `latents` that hold scores, with scorer and protocol."""
    query = "SELECT metric, scorer, explain_from, score_on FROM metrics WHERE scorer IS NOT NULL ORDER BY position"
    return connection.execute(query).fetchall()


_SETTING = "sae, model, hook, name, variant_seed, sae_seed, variant, layer, is_trained"


def _saes(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = connection.execute(f"SELECT {_SETTING} FROM saes JOIN variants USING (variant) ORDER BY sae").fetchall()
    return [dict(zip(_SETTING.split(", "), row, strict=True)) for row in rows]


def statistics_of(
    connection: duckdb.DuckDBPyConnection,
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]], dict[tuple[int, int], dict[int, float]]]:
    """SAEs; by SAE, the numeric columns of its alive latents, nan where there is no value; and by two SAEs, the
    correlation of the first one's latents with their best match in the second.
    """
    described = connection.execute("DESCRIBE latents").fetchall()
    columns = ", ".join(f'CAST("{name}" AS DOUBLE) AS "{name}"' for name, kind, *_ in described if kind != "VARCHAR")
    query = f"SELECT {columns} FROM latents WHERE sae = ? AND state = 'alive' ORDER BY latent"
    saes, found = _saes(connection), {}
    for sae in saes:
        arrays = connection.execute(query, [sae["sae"]]).fetchnumpy()
        found[sae["sae"]] = {name: np.ma.filled(array, np.nan) for name, array in arrays.items()}
    matches: dict[tuple[int, int], dict[int, float]] = {}
    query = "SELECT sae, other_sae, latent, correlation FROM matches WHERE rank = 0"
    for one, other, latent, correlation in connection.execute(query).fetchall():
        matches.setdefault((one, other), {})[latent] = correlation
    return saes, found, matches


def metrics_of(
    connection: duckdb.DuckDBPyConnection,
) -> tuple[list[dict[str, Any]], dict[str, dict[int, float]]]:
    """SAEs and, by metric and SAE, the metrics that have a value."""
    rows = connection.execute("SELECT metric, sae, value FROM sae_metrics WHERE status = 'ok' ORDER BY metric, sae")
    found: dict[str, dict[int, float]] = {}
    for metric, sae, value in rows.fetchall():
        found.setdefault(metric, {})[sae] = value
    return _saes(connection), found


def _insert(connection: duckdb.DuckDBPyConnection, name: str, source: Source) -> None:
    for part in [source] if isinstance(source, pa.Table) else source:
        if isinstance(part, Part):
            _insert_part(connection, name, part)
        elif part.num_rows:
            connection.register("rows", part)
            connection.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM rows')
            connection.unregister("rows")


def _insert_part(connection: duckdb.DuckDBPyConnection, name: str, part: Part) -> None:
    constants = "".join(f', ? AS "{column}"' for column in part.constants)
    query = f'INSERT INTO "{name}" BY NAME SELECT *{constants} FROM read_parquet(?)'
    connection.execute(query, [*part.constants.values(), str(part.path)])


def _derive(connection: duckdb.DuckDBPyConnection) -> None:
    """Fill the columns of `latents` that follow from other tables, where those have rows.

    Which latents qualify is in the rows of the lexical explainer, the first by name, which are always there. Where a
    scorer rated several explanations, that of the language model, the last by name, counts.
    """
    connection.execute("""
        UPDATE latents SET score_state =
            CASE e.status WHEN 'ok' THEN 'scored' WHEN 'failed' THEN 'failed' ELSE e.reason END
        FROM explanations e WHERE e.sae = latents.sae AND e.latent = latents.latent
        AND (e.explainer, e.explain_from) =
            (SELECT min((explainer, explain_from)) FROM explanations)""")
    for column, *protocol in _scores(connection):
        connection.execute(
            f"""
            UPDATE latents SET "{column}" = s.auroc
            FROM (SELECT sae, latent, last(auroc ORDER BY explainer) AS auroc FROM scores
                  WHERE scorer = ? AND explain_from = ? AND score_on = ? AND status = 'ok' AND NOT shuffled
                  GROUP BY ALL) s
            WHERE s.sae = latents.sae AND s.latent = latents.latent""",
            protocol,
        )
    connection.execute("""
        UPDATE latents SET best_match_correlation = m.correlation
        FROM (SELECT sae, latent, max(correlation) AS correlation FROM matches GROUP BY ALL) m
        WHERE m.sae = latents.sae AND m.latent = latents.latent""")


PARTS = ("latents", "contexts", "histograms", "logit_effects")
"""Tables that the collecting stage leaves, a Parquet file each."""


FEWEST_SECONDS = 5.0
MOST_SECONDS = 600.0
"""Between two times that the database is written."""
SHARE = 0.2
"""Writing the database takes at most this share of the run, after its first time."""


@dataclass
class Finished:
    """What the run has finished so far; grows as it goes on."""

    study: Study
    artefacts: Artefacts
    contexts: list[Context] = field(default_factory=list)
    variants: list[VariantRun] = field(default_factory=list)
    saes: list[SaeRun] = field(default_factory=list)
    losses: list[tuple[list[SaeRun], Path]] = field(default_factory=list)
    matches: list[tuple[SaeRun, SaeRun, Path]] = field(default_factory=list)
    stabilities: list[tuple[SaeRun, SaeRun, Path]] = field(default_factory=list)
    specifications: list[tuple[SaeRun, SaeRun, Path]] = field(default_factory=list)
    _not_before: float = 0.0

    def number(self, sae: SaeRun) -> int:
        """The SAE's number: its place in the study."""
        return self.saes.index(sae)

    @property
    def planned(self) -> int:
        """SAEs of the whole study; a model that is not loaded yet counts where its layers are listed by number."""
        study = self.study
        each = sum(draws(study, name) for name in study.variants) * len(study.hooks)
        each *= sum(seeds_of(study, config) for config in study.saes)
        layers = [len(context.layers) for context in self.contexts]
        later = [study.layers if model.layers is None else model.layers for model in study.models[len(self.contexts) :]]
        return each * (sum(layers) + sum(len(asked) for asked in later if not isinstance(asked, str)))

    def due(self) -> bool:
        """Whether the database may be written again: a large one after every SAE would take most of the time."""
        return time.monotonic() >= self._not_before

    def written(self, started: float) -> None:
        """Note when the database was written."""
        now = time.monotonic()
        self._not_before = now + min(MOST_SECONDS, max(FEWEST_SECONDS, (now - started) / SHARE))


def publish(finished: Finished, progress: Progress, database: Path, *, complete: bool = False) -> None:
    """Write the database with all that is finished, and tell how far the study is; not all too often."""
    if not (complete or finished.due()):
        return
    started = time.monotonic()
    with progress.stage("publish", "writing the database", "statistics") as advance:
        derive = _derived(finished.study, advance) if complete else {}
        write_study(database, _tables(finished, database.parent, complete), derive)
    finished.written(started)
    progress.finished_sae(len(finished.saes), finished.planned, finished.artefacts.made.count("latents"))


def _derived(study: Study, advance: Advance) -> Derived:
    """What is computed from the other tables, when all of them are there."""
    statistics = [metric.name for metric in metrics_of_study(study) if metric.level == "latent"]
    return {
        "tells": lambda database: tell_table(*statistics_of(database), statistics, study.seed, advance),
        "differences": lambda database: difference_table(*metrics_of(database)),
    }


def _tables(finished: Finished, beside: Path, complete: bool) -> dict[str, Source]:
    return {
        "study": _study(finished, complete),
        "provenance": _pairs(_provenance(finished)),
        "timings": _timings(finished),
        "models": pa.Table.from_pylist([context.info.__dict__ for context in finished.contexts]),
        "variants": _variants(finished),
        "tensors": [
            Part(v.tensors() / "tensors.parquet", {"model": v.context.info.model, "variant_seed": v.draw})
            for v in finished.variants
        ],
        **_texts(finished.contexts),
        "metrics": metrics_table(metrics_of_study(finished.study)),
        "saes": pa.Table.from_pylist([_sae(finished, sae, beside) for sae in finished.saes], schema=_SAES),
        **{name: _parts(finished, SaeRun.latents, name) for name in PARTS},
        "sae_metrics": [
            *_parts(finished, SaeRun.latents, "sae_metrics"),
            *_losses(finished),
            *_stabilities(finished),
        ],
        **{name: _scored(finished, name) for name in ("explanations", "scores")},
        "matches": _matches(finished),
        **{name: _curves(finished, name) for name in ("specifications", "specification_curves")},
    }


def metrics_of_study(study: Study) -> list[Metric]:
    """What is measured of SAEs and latents, the study's scores in front of their best match."""
    return [*METRICS[:-1], *score_metrics(study.autointerp), METRICS[-1]]


def _texts(contexts: list[Context]) -> dict[str, Source]:
    """The text of each model, as its tokeniser cuts it."""
    tables: dict[str, list[pa.Table]] = {}
    for context in contexts:
        words = pa.table({"token": range(len(context.vocabulary)), "text": context.vocabulary})
        for name, table in {**context.corpus.tables(), "vocabulary": words}.items():
            model = pa.array([context.info.model] * table.num_rows, pa.string())
            tables.setdefault(name, []).append(table.append_column("model", model))
    return dict(tables)


def _parts(finished: Finished, stage: Callable[[SaeRun], Path], name: str) -> list[Part]:
    return [Part(stage(sae) / f"{name}.parquet", {"sae": at}) for at, sae in enumerate(finished.saes)]


def _scored(finished: Finished, name: str) -> list[Part]:
    sampled = needs_sample(finished.study.autointerp)
    return _parts(finished, SaeRun.scores, name) + (_parts(finished, SaeRun.sampled_scores, name) if sampled else [])


def _losses(finished: Finished) -> list[Part]:
    return [
        Part(folder / f"{place}.parquet", {"sae": finished.number(sae)})
        for saes, folder in finished.losses
        for place, sae in enumerate(saes)
    ]


def _stabilities(finished: Finished) -> list[pa.Table]:
    """Seed stability of every SAE whose variant is done: its mean over the SAEs that differ in the seed alone."""
    found: dict[int, list[float]] = {finished.number(sae): [] for group, _ in finished.losses for sae in group}
    for one, other, folder in finished.stabilities:
        value = json.loads((folder / "stability.json").read_text(encoding="utf-8"))
        if value is not None:
            found[finished.number(one)].append(value)
            found[finished.number(other)].append(value)
    reason = "there is no other SAE seed to compare with, or one of the SAEs has no alive latent"
    tables = []
    for sae, values in found.items():
        known = {"seed_stability": fmean(values)} if values else {}
        table = sae_metrics_table(known, {} if known else {"seed_stability": reason})
        tables.append(table.append_column("sae", pa.array([sae], pa.int32())))
    return tables


def _matches(finished: Finished) -> list[Part]:
    parts = []
    for one, other, folder in finished.matches:
        here, there = finished.number(one), finished.number(other)
        parts.append(Part(folder / "forward.parquet", {"sae": here, "other_sae": there}))
        parts.append(Part(folder / "backward.parquet", {"sae": there, "other_sae": here}))
    return parts


def _curves(finished: Finished, name: str) -> list[Part]:
    return [
        Part(folder / f"{name}.parquet", {"trained_sae": finished.number(one), "random_sae": finished.number(other)})
        for one, other, folder in finished.specifications
    ]


def _study(finished: Finished, complete: bool) -> pa.Table:
    study = finished.study
    config = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    row = {"name": study.name, "title": study.title or study.name, "config": config, "seed": study.seed}
    return pa.Table.from_pylist([row | {"complete": complete, "planned_saes": finished.planned}])


def _pairs(values: dict[str, str]) -> pa.Table:
    return pa.table({"key": list(values), "value": list(values.values())})


def _provenance(finished: Finished) -> dict[str, str]:
    first = finished.contexts[0]
    facts = {"precision": first.compute.precision, "device": first.compute.device}
    for context in finished.contexts:
        of = f" of {context.info.model}" if len(finished.contexts) > 1 else ""
        facts[f"SHA-256 of the token ids{of}"] = context.corpus.sha256
        facts[f"SHA-256 of the trained weights{of}"] = context.base["weights"]
    for sae in finished.study.saes:
        facts[f"training of {sae.label}"] = json.dumps(sae.model_dump())
    if first.tools.client:
        facts["language model"] = f"{finished.study.autointerp.llm.model}, {first.tools.client.identity}"
    return facts | {f"version of {name}": version for name, version in first.base["versions"].items()}


def _variants(finished: Finished) -> pa.Table:
    rows = []
    for position, name in enumerate(finished.study.variants):
        row = find_variant(name)
        facts = {"label": row.label, "description": row.description, "is_trained": row.is_trained}
        rows.append({"variant": name, "position": position, **facts, "seed": finished.study.seed})
    return pa.Table.from_pylist(rows)


_SAES = pa.schema(
    [
        (name, pa.string())
        for name in ("model", "hook", "name", "variant", "hook_name", "architecture", "path", "sha256")
    ]
    + [(name, pa.int32()) for name in ("sae", "variant_seed", "sae_seed", "layer", "d_in", "d_sae", "k")]
    + [(name, pa.int64()) for name in ("seed", "training_steps", "training_tokens", "collected_tokens")]
    + [("normalisation", pa.float64())]
)


def _sae(finished: Finished, sae: SaeRun, beside: Path) -> dict[str, Any]:
    context, facts = sae.context, sae.facts()
    return {
        "sae": finished.number(sae),
        "model": context.info.model,
        "hook": sae.hook,
        "name": sae.config.label,
        "variant_seed": sae.variant.draw,
        "sae_seed": sae.sae_seed,
        "variant": sae.variant.name,
        "layer": sae.layer,
        "hook_name": hook_name(sae.layer, sae.hook),
        "architecture": sae.config.architecture,
        **{name: facts[name] for name in ("d_in", "d_sae", "k", "training_steps", "training_tokens")},
        "seed": sae.seed,
        "collected_tokens": round(context.flat.size * (1 - facts["dropped"])),
        "normalisation": facts["normalisation"],
        "path": str(sae.train().relative_to(beside)),
        "sha256": facts["sha256"],
    }


def _timings(finished: Finished) -> pa.Table:
    rows = []
    for variant in finished.variants:
        rows.append(_took("variant", variant, None, timing(variant.tensors())))
        first = next((sae for sae in finished.saes if sae.variant is variant), None)
        if first:  # whose own folder is deleted when the variant is done
            rows.append(_took("forward", variant, None, first.facts()["forward"]))
    for at, sae in enumerate(finished.saes):
        folders = {"train": sae.train(), "collect": sae.latents(), "score": sae.scores()}
        if needs_sample(finished.study.autointerp):
            folders["ask"] = sae.sampled_scores()
        rows += [_took(stage, sae.variant, at, timing(folder)) for stage, folder in folders.items()]
    rows += [_took("losses", group[0].variant, None, timing(folder)) for group, folder in finished.losses]
    for stage, pairs in (("match", finished.matches), ("stability", finished.stabilities)):
        rows += [_took(stage, one.variant, finished.number(one), timing(folder)) for one, _, folder in pairs]
    rows += [
        _took("specifications", other.variant, finished.number(other), timing(folder))
        for _, other, folder in finished.specifications
    ]
    fields = [("stage", pa.string()), ("model", pa.string()), ("variant", pa.string()), ("sae", pa.int32())]
    fields += [("seconds", pa.float64()), ("tokens", pa.int64()), ("hardware", pa.string())]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _took(stage: str, variant: VariantRun, sae: int | None, note: dict[str, Any]) -> dict[str, Any]:
    return {"stage": stage, "model": variant.context.info.model, "variant": variant.name, "sae": sae, **note}
