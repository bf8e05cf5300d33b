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
from pipeline.builds import read_facts
from pipeline.config import Study, hook_name
from pipeline.measures.comparisons import difference_table, tell_table
from pipeline.measures.metrics import METRICS, Metric, metrics_table, sae_metrics_table
from pipeline.progress import Advance, Progress
from pipeline.runs import ModelRun, Run, SaeRun, draws
from pipeline.saes.architectures import seeds_of
from pipeline.stages import STAGES, Task
from pipeline.text.corpus import Corpus
from pipeline.variants.table import find_variant

SCHEMA = Path(core.__file__).with_name("schema.sql")


class Part(NamedTuple):
    """Rows in a Parquet file, and the columns that are the same in all of them (such as `sae`)."""

    path: Path
    constants: Mapping[str, int | str]


Source: TypeAlias = "pa.Table | Sequence[Part | pa.Table]"
"""A table's rows: in memory, or in Parquet files that are read in the order given."""

Numbers: TypeAlias = Mapping[SaeRun, int]
"""SAEs that are finished, by their numbers in the study."""

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
    models: list[ModelRun] = field(default_factory=list)
    """Those that the run has come to."""
    tasks: list[Task] = field(default_factory=list)
    """Of these models, in the order of the study."""
    done: set[Task] = field(default_factory=set)
    _texts: dict[ModelRun, dict[str, pa.Table]] = field(default_factory=dict)
    published: int = 0
    """SAEs that the database has."""
    _not_before: float = 0.0

    def begin(self, model: ModelRun, tasks: Sequence[Task]) -> None:
        """A model's turn has come."""
        self.models.append(model)
        self.tasks += tasks

    @property
    def saes(self) -> dict[SaeRun, int]:
        """SAEs all of whose own stages are done, and the number of each: its place in the study."""
        every = [sae for model in self.models for variant in model.variants for sae in variant.saes]
        wanting = {task.run for task in self.tasks if task.stage.scope == "sae" and task not in self.done}
        return {sae: number for number, sae in enumerate(every) if sae not in wanting}

    def path(self, stage: str, run: Run) -> Path:
        """The folder of a stage."""
        return Task(STAGES[stage], run).path

    def runs(self, stage: str) -> list[Any]:
        """What a stage is done for, in the order of the study."""
        return [task.run for task in self.tasks if task.stage.name == stage and task in self.done]

    def texts(self, model: ModelRun) -> dict[str, pa.Table]:
        """The tables of a model's text, as its tokeniser cuts it: read once, as they stay what they are."""
        if model not in self._texts:
            words = pa.table({"token": range(len(model.vocabulary)), "text": model.vocabulary})
            tables = {**Corpus.load(self.path("corpus", model)).tables(), "vocabulary": words}
            name = model.info.model
            self._texts[model] = {
                key: table.append_column("model", pa.array([name] * table.num_rows, pa.string()))
                for key, table in tables.items()
            }
        return self._texts[model]

    @property
    def planned(self) -> int:
        """SAEs of the whole study; a model that is not loaded yet counts where its layers are listed by number."""
        study = self.study
        each = sum(draws(study, name) for name in study.variants) * len(study.hooks)
        each *= sum(seeds_of(study, config) for config in study.saes)
        layers = [len(model.layers) for model in self.models]
        later = [study.layers if model.layers is None else model.layers for model in study.models[len(self.models) :]]
        return each * (sum(layers) + sum(len(asked) for asked in later if not isinstance(asked, str)))

    def due(self) -> bool:
        """Whether the database may be written again: a large one after every SAE would take most of the time."""
        return time.monotonic() >= self._not_before

    def written(self, started: float) -> None:
        """Note when the database was written."""
        now = time.monotonic()
        self._not_before = now + min(MOST_SECONDS, max(FEWEST_SECONDS, (now - started) / SHARE))


def publish(finished: Finished, progress: Progress, database: Path, *, complete: bool = False) -> None:
    """Write the database with all that is finished, and tell how far the study is; not all too often, and only when
    there are more SAEs. Nothing is made for it.
    """
    if not complete and not (finished.due() and len(finished.saes) > finished.published):
        return
    started, saes, stage = time.monotonic(), finished.saes, STAGES["database"]
    with progress.stage(stage.name, stage.label, stage.unit) as advance:
        derive = _derived(finished.study, advance) if complete else {}
        write_study(database, _tables(finished, saes, database.parent, complete), derive)
    finished.published = len(saes)
    finished.written(started)
    progress.finished_sae(len(saes), finished.planned, finished.artefacts.made.count("latents"))


def _derived(study: Study, advance: Advance) -> Derived:
    """What is computed from the other tables, when all of them are there."""
    statistics = [metric.name for metric in metrics_of_study(study) if metric.level == "latent"]
    return {
        "tells": lambda database: tell_table(*statistics_of(database), statistics, study.seed, advance),
        "differences": lambda database: difference_table(*metrics_of(database)),
    }


def _tables(finished: Finished, saes: Numbers, beside: Path, complete: bool) -> dict[str, Source]:
    sampled = ["sampled"] if needs_sample(finished.study.autointerp) else []
    return {
        "study": _study(finished, complete),
        "provenance": _pairs(_provenance(finished)),
        "timings": _timings(finished, saes),
        "models": pa.Table.from_pylist([model.info.__dict__ for model in finished.models]),
        "variants": _variants(finished),
        "tensors": [
            Part(
                finished.path("variant", variant) / "tensors.parquet",
                {"model": variant.model.info.model, "variant_seed": variant.draw},
            )
            for variant in finished.runs("variant")
        ],
        **{
            name: [finished.texts(model)[name] for model in finished.models]
            for name in ("articles", "sequences", "vocabulary")
        },
        "metrics": metrics_table(metrics_of_study(finished.study)),
        "saes": pa.Table.from_pylist([_sae(finished, sae, saes, beside) for sae in saes], schema=_SAES),
        **{name: _parts(finished, saes, "latents", name) for name in PARTS},
        "sae_metrics": [
            *_parts(finished, saes, "codes", "sae_metrics"),
            *_parts(finished, saes, "latents", "sae_metrics"),
            *_losses(finished, saes),
            *_stabilities(finished, saes),
        ],
        **{
            name: [part for stage in ("scores", *sampled) for part in _parts(finished, saes, stage, name)]
            for name in ("explanations", "scores")
        },
        "matches": _matches(finished, saes),
        **{name: _curves(finished, saes, name) for name in ("specifications", "specification_curves")},
    }


def metrics_of_study(study: Study) -> list[Metric]:
    """What is measured of SAEs and latents, the study's scores in front of their best match."""
    return [*METRICS[:-1], *score_metrics(study.autointerp), METRICS[-1]]


def _parts(finished: Finished, saes: Numbers, stage: str, name: str) -> list[Part]:
    return [Part(finished.path(stage, sae) / f"{name}.parquet", {"sae": number}) for sae, number in saes.items()]


def _losses(finished: Finished, saes: Numbers) -> list[Part]:
    return [
        Part(finished.path("losses", variant) / f"{place}.parquet", {"sae": saes[sae]})
        for variant in finished.runs("losses")
        for place, sae in enumerate(variant.saes)
        if sae in saes
    ]


def _pairs_of(finished: Finished, saes: Numbers, stage: str) -> Iterator[tuple[Path, int, int]]:
    """Pairs of finished SAEs that a stage is done for: the folder, the later one's number and the other's."""
    for pair in finished.runs(stage):
        if pair.sae in saes and pair.earlier in saes:
            yield finished.path(stage, pair), saes[pair.sae], saes[pair.earlier]


def _stabilities(finished: Finished, saes: Numbers) -> list[pa.Table]:
    """Seed stability of every SAE: its mean over the SAEs that differ in the seed alone, once all of them are there."""
    tasks = [task for task in finished.tasks if task.stage.name == "stability"]
    waiting = {sae for task in tasks if task not in finished.done for sae in task.run.saes}
    found: dict[int, list[float]] = {number: [] for sae, number in saes.items() if sae not in waiting}
    for folder, *pair in _pairs_of(finished, saes, "stability"):
        value = json.loads((folder / "stability.json").read_text(encoding="utf-8"))
        for number in found.keys() & set(pair) if value is not None else ():
            found[number].append(value)
    reason = "there is no other SAE seed to compare with, or one of the SAEs has no alive latent"
    tables = []
    for sae, values in found.items():
        known = {"seed_stability": fmean(values)} if values else {}
        table = sae_metrics_table(known, {} if known else {"seed_stability": reason})
        tables.append(table.append_column("sae", pa.array([sae], pa.int32())))
    return tables


def _matches(finished: Finished, saes: Numbers) -> list[Part]:
    parts = []
    for folder, here, there in _pairs_of(finished, saes, "matches"):
        parts.append(Part(folder / "forward.parquet", {"sae": here, "other_sae": there}))
        parts.append(Part(folder / "backward.parquet", {"sae": there, "other_sae": here}))
    return parts


def _curves(finished: Finished, saes: Numbers, name: str) -> list[Part]:
    return [
        Part(folder / f"{name}.parquet", {"trained_sae": trained, "random_sae": random})
        for folder, random, trained in _pairs_of(finished, saes, "specifications")
    ]


def _study(finished: Finished, complete: bool) -> pa.Table:
    study = finished.study
    config = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    row = {"name": study.name, "title": study.title or study.name, "config": config, "seed": study.seed}
    return pa.Table.from_pylist([row | {"complete": complete, "planned_saes": finished.planned}])


def _pairs(values: dict[str, str]) -> pa.Table:
    return pa.table({"key": list(values), "value": list(values.values())})


def _provenance(finished: Finished) -> dict[str, str]:
    first = finished.models[0]
    facts = {"precision": first.base["precision"], "device": first.base["device"]}
    for model in finished.models:
        of = f" of {model.info.model}" if len(finished.models) > 1 else ""
        facts[f"SHA-256 of the token ids{of}"] = model.base["tokens"]
        facts[f"SHA-256 of the trained weights{of}"] = model.base["weights"]
    for sae in finished.study.saes:
        facts[f"training of {sae.label}"] = json.dumps(sae.model_dump())
    if first.answers:
        facts["language model"] = f"{finished.study.autointerp.llm.model}, {first.answers}"
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


def _sae(finished: Finished, sae: SaeRun, saes: Numbers, beside: Path) -> dict[str, Any]:
    folder = finished.path("sae", sae)
    facts = read_facts(folder)
    return {
        "sae": saes[sae],
        "model": sae.model.info.model,
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
        "collected_tokens": read_facts(finished.path("codes", sae))["tokens"],
        "normalisation": facts["normalisation"],
        "path": str(folder.relative_to(beside)),
        "sha256": facts["sha256"],
    }


def _timings(finished: Finished, saes: Numbers) -> pa.Table:
    """A row for each artefact that is there, with the number of the SAE, or of the later one of two."""
    rows = [_took(finished, task, saes) for task in finished.tasks if task in finished.done]
    fields = [("stage", pa.string()), ("model", pa.string()), ("variant", pa.string()), ("sae", pa.int32())]
    fields += [("seconds", pa.float64()), ("tokens", pa.int64()), ("hardware", pa.string())]
    return pa.Table.from_pylist([row for row in rows if row], schema=pa.schema(fields))


def _took(finished: Finished, task: Task, saes: Numbers) -> dict[str, Any] | None:
    run = task.run
    row = {"stage": task.stage.name, "model": run.model.info.model, "variant": None, "sae": None}
    match task.stage.scope:
        case "variant":
            row["variant"] = run.name
        case "sae" | "pair":
            if run.saes[0] not in saes:
                return None
            row |= {"variant": run.saes[0].variant.name, "sae": saes[run.saes[0]]}
    if task.stage.kept:
        return row | timing(task.path)
    first = next((sae for sae in run.saes if sae in saes), None)  # whose codes noted the time of what is deleted by now
    return row | read_facts(finished.path("codes", first))[task.stage.name] if first else None
