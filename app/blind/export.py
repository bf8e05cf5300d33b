"""The log of answers as flat rows, and these as CSV or Parquet."""

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import duckdb

from app.blind.design import Experiment, right
from app.blind.store import Item, Logged

Row: TypeAlias = dict[str, Any]

COLUMNS = {
    "experiment": "VARCHAR",
    "study": "VARCHAR",
    "form": "VARCHAR",
    "tier": "INTEGER",
    "pseudonym": "VARCHAR",
    "rater": "VARCHAR",
    "practice_session": "BOOLEAN",
    "position": "INTEGER",
    "kind": "VARCHAR",
    "pair": "INTEGER",
    "left_variant": "VARCHAR",
    "left_layer": "INTEGER",
    "left_latent": "INTEGER",
    "right_variant": "VARCHAR",
    "right_layer": "INTEGER",
    "right_latent": "INTEGER",
    "truth": "VARCHAR",
    "revision": "INTEGER",
    "event": "VARCHAR",
    "answer": "INTEGER",
    "correct": "BOOLEAN",
    "reason": "VARCHAR",
    "seconds": "DOUBLE",
    "hidden_seconds": "DOUBLE",
    "written_at": "TIMESTAMP",
    "stands": "BOOLEAN",
}
"""Columns and their types. Pseudonym, position and revision name an event: a session's own token gives rights."""

_RUN = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""Beginnings of a text that a spreadsheet would run; the wide ones are read as the narrow ones in some languages."""


def label_rows(experiment: Experiment, events: Sequence[Logged], items: Sequence[Item]) -> list[Row]:
    """One row an event of the log, practice too; `stands` is true for the last answer to a trial, unless undone."""
    latents = {item.item: item for item in items}
    last = {(event.session, event.position): event.revision for event in sorted(events, key=lambda e: e.revision)}
    return [_row(experiment, event, latents, last[event.session, event.position]) for event in events]


def _row(experiment: Experiment, event: Logged, latents: dict[int, Item], last: int) -> Row:
    design = experiment.design
    values: Row = {
        "experiment": experiment.experiment,
        "study": design.study,
        "form": design.form,
        "tier": design.tier,
        "pair": latents[event.left].pair,
        "correct": None if event.answer is None else right(design.form, event.truth, event.answer),
        "stands": event.revision == last and event.event != "undo",
    }
    for side, number in (("left", event.left), ("right", event.right)):
        latent = None if number is None else latents[number]
        for name in ("variant", "layer", "latent"):
            values[f"{side}_{name}"] = getattr(latent, name, None)
    return {name: values[name] if name in values else getattr(event, name) for name in COLUMNS}


def write_csv(rows: Sequence[Row]) -> str:
    """CSV with a header; texts that a spreadsheet would run begin with an apostrophe, times are UTC in ISO 8601."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    writer.writerows([_cell(row[name]) for name in COLUMNS] for row in rows)
    return file.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and (value.startswith(("\t", "\r", "\n")) or value.lstrip().startswith(_RUN)):
        return f"'{value}"
    if isinstance(value, datetime):
        return f"{value.isoformat(timespec='microseconds')}Z"
    return str(value).lower() if isinstance(value, bool) else value


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """A Parquet file with the types of `COLUMNS`; raises duckdb.Error when it cannot be written."""
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    values = ", ".join(f"unnest(?::{kind}[])" for kind in COLUMNS.values())
    quoted = str(path).replace("'", "''")
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"CREATE TABLE labels ({columns})")
        connection.execute(f"INSERT INTO labels SELECT {values}", [[row[name] for row in rows] for name in COLUMNS])
        connection.execute(f"COPY labels TO '{quoted}' (FORMAT parquet)")
