"""All SQL of the dashboard: a reader and plain values in, rows out.

Names of columns come from callers that have looked them up among the file's own; they are quoted all the same.
"""

from collections.abc import Iterable, Sequence

from app.db import Reader, Row
from app.records import OPERATORS, Metric, Order, Sae, Selection, Variant


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values)) or "NULL"


def study(reader: Reader) -> Row | None:
    """The study's one row."""
    return reader.row("SELECT name, title, config, seed, complete, planned_saes FROM study")


def variants(reader: Reader) -> list[Variant]:
    """Variants in the order in which they are shown."""
    columns = ", ".join(Variant.__dataclass_fields__)
    return [Variant(**row) for row in reader.rows(f"SELECT {columns} FROM variants ORDER BY position")]


def saes(reader: Reader) -> list[Sae]:
    """SAEs, by variant and layer."""
    columns = ", ".join(f"saes.{name}" for name in Sae.__dataclass_fields__)
    return [
        Sae(**row)
        for row in reader.rows(
            f"SELECT {columns} FROM saes JOIN variants USING (variant) ORDER BY variants.position, layer, sae"
        )
    ]


def metrics(reader: Reader) -> list[Metric]:
    """What every number means, in the order in which they are shown."""
    columns = ", ".join(Metric.__dataclass_fields__)
    return [Metric(**row) for row in reader.rows(f"SELECT {columns} FROM metrics ORDER BY level, position, metric")]


def latent_columns(reader: Reader) -> set[str]:
    """The statistics that the file's table of latents has."""
    return {row["column_name"] for row in reader.rows("DESCRIBE latents")} - {"sae", "latent"}


def models(reader: Reader) -> list[Row]:
    """The transformers under study."""
    return reader.rows("SELECT * FROM models ORDER BY parameters")


def provenance(reader: Reader) -> list[Row]:
    """Versions, precision, hashes."""
    return reader.rows("SELECT key, value FROM provenance ORDER BY key")


def timings(reader: Reader) -> list[Row]:
    """What each stage took, in the order of its first run."""
    return reader.rows("SELECT stage, variant, layer, seconds, tokens, hardware FROM timings")


def tensors(reader: Reader, kinds: bool = True) -> list[Row]:
    """How many tensors of each kind were randomised; or, without `kinds`, every tensor with its hash."""
    if kinds:
        return reader.rows(
            "SELECT variant, kind, count(*) AS tensors, count(*) FILTER (randomised) AS randomised"
            " FROM tensors JOIN variants USING (variant) GROUP BY ALL ORDER BY any_value(position), kind"
        )
    return reader.rows(
        "SELECT variant, name, kind, randomised, shape, mean, std, sha256 FROM tensors"
        " JOIN variants USING (variant) ORDER BY position, name LIMIT 5000"
    )


def sae_metrics(reader: Reader) -> list[Row]:
    """Every metric of every SAE, with the reason where it has no value."""
    return reader.rows("SELECT sae, metric, value, status, reason FROM sae_metrics ORDER BY sae, metric")


def summaries(reader: Reader, columns: Sequence[str]) -> dict[int, Row]:
    """By SAE: `latents`, `alive`, and for each column its `quartiles` and `count` of latents that have a value."""
    parts = [_quartiles(column) for column in columns]
    selected = ", ".join(["sae", "count(*) AS latents", "count(*) FILTER (state = 'alive') AS alive", *parts])
    return {row["sae"]: row for row in reader.rows(f"SELECT {selected} FROM latents GROUP BY sae")}


def _quartiles(column: str) -> str:
    value = f"CAST({_quoted(column)} AS DOUBLE)"
    quartiles = f"quantile_cont({value}, [0.25, 0.5, 0.75]) FILTER (isfinite({value}))"
    return f"{quartiles} AS {_quoted('quartiles ' + column)}, count({value}) AS {_quoted('count ' + column)}"


def tells(reader: Reader) -> list[Row]:
    """How well each statistic tells trained from random latents; none in a file that has no such table."""
    there = "SELECT 1 FROM duckdb_tables() WHERE database_name = 'study' AND table_name = 'tells'"
    if reader.row(there) is None:
        return []
    return reader.rows(
        "SELECT variant, layer, statistic, matched, auroc, low, high, trained, random, reason"
        " FROM tells JOIN saes ON sae = random_sae JOIN variants USING (variant) ORDER BY variants.position, layer"
    )


def score_states(reader: Reader) -> list[Row]:
    """How many latents of each SAE are in which state of scoring."""
    return reader.rows("SELECT sae, score_state, count(*) AS latents FROM latents GROUP BY ALL ORDER BY ALL")


_LATENT = (
    "SELECT l.*, v.text AS top_text, e.text AS explanation FROM latents l"
    " LEFT JOIN vocabulary v ON v.token = l.top_token"
    " LEFT JOIN (SELECT sae, latent, first(text ORDER BY explainer) AS text FROM explanations"
    " WHERE status = 'ok' AND sae = ? GROUP BY sae, latent) e ON e.latent = l.latent WHERE l.sae = ?"
)


def latent(reader: Reader, sae: int, number: int) -> Row | None:
    """A latent's statistics, with its top token and explanation as text."""
    return reader.row(f"{_LATENT} AND l.latent = ?", [sae, sae, number])


def _where(selection: Selection) -> tuple[str, list[object]]:
    parts, values = [], list[object]()
    for condition in selection.conditions:
        assert condition.operator in OPERATORS
        parts.append(f"AND {_quoted(condition.column)} {condition.operator} ?")
        values.append(condition.value)
    for column, value in (("state", selection.state), ("score_state", selection.score_state)):
        if value:
            parts.append(f"AND {column} = ?")
            values.append(value)
    if selection.text:
        parts.append("AND (contains(lower(explanation), lower(?)) OR contains(lower(top_text), lower(?)))")
        values += [selection.text, selection.text]
    return " ".join(parts), values


def latents(reader: Reader, selection: Selection, order: Order, limit: int, offset: int) -> tuple[list[Row], int]:
    """A page of latents, and how many there are in all."""
    where, values = _where(selection)
    source = f"FROM ({_LATENT}) WHERE true {where}"
    parameters = [selection.sae, selection.sae, *values]
    total = reader.row(f"SELECT count(*) AS total {source}", parameters)
    direction = "DESC" if order.descending else "ASC"
    page = reader.rows(
        f"SELECT * {source} ORDER BY {_quoted(order.column)} {direction} NULLS LAST, latent LIMIT ? OFFSET ?",
        [*parameters, limit, offset],
    )
    return page, total["total"] if total else 0


def place(reader: Reader, sae: int, number: int | None, order: Order) -> Row:
    """Where a latent stands among the alive ones that have a value: `rank` from 1, `total`, and its neighbours.

    `rank`, `previous` and `next` are None for a latent outside the order; `alive` counts those without a value too.
    """
    column, direction = _quoted(order.column), "DESC" if order.descending else "ASC"
    found = reader.row(
        f"""
        WITH alive AS (SELECT latent, CAST({column} AS DOUBLE) AS value FROM latents WHERE sae = ? AND state = 'alive'),
        ranked AS (SELECT latent, row_number() OVER w AS rank, lag(latent) OVER w AS previous,
                   lead(latent) OVER w AS next
                   FROM alive WHERE isfinite(value) WINDOW w AS (ORDER BY value {direction}, latent))
        SELECT (SELECT count(*) FROM ranked) AS total, (SELECT count(*) FROM alive) AS alive,
               (SELECT latent FROM ranked WHERE rank = 1) AS first, rank, previous, next
        FROM (SELECT 1) LEFT JOIN ranked ON latent = ?
        """,
        [sae, number],
    )
    return found or {}


def contexts(reader: Reader, sae: int, numbers: Sequence[int], kinds: Iterable[str], most: int = 1000) -> list[Row]:
    """Contexts of some latents with their token ids, those of rank below `most`, strongest stratum first."""
    kinds = list(kinds)
    return reader.rows(
        f"""
        SELECT c.latent, c.kind, c.stratum, c.rank, c.sequence, c.start, c.positions, c.activations,
               s.tokens[c.start + 1 : c.start + c.length] AS tokens, a.title AS article
        FROM contexts c JOIN sequences s USING (sequence) LEFT JOIN articles a ON a.article = s.article
        WHERE c.sae = ? AND c.latent IN ({_marks(numbers)}) AND c.kind IN ({_marks(kinds)}) AND c.rank < ?
        ORDER BY c.latent, c.kind, c.stratum DESC, c.rank
        """,
        [sae, *numbers, *kinds, most],
    )


def token_texts(reader: Reader, tokens: Iterable[int]) -> dict[int, str]:
    """The text of tokens, by id."""
    ids = sorted(set(tokens))
    rows = reader.rows("SELECT token, text FROM vocabulary WHERE token IN (SELECT unnest(?::INTEGER[]))", [ids])
    return {row["token"]: row["text"] for row in rows}


def histogram(reader: Reader, sae: int, number: int) -> Row | None:
    """A latent's activations in equal-width bins from 0 to `upper`."""
    return reader.row("SELECT upper, counts FROM histograms WHERE sae = ? AND latent = ?", [sae, number])


def logit_effects(reader: Reader, sae: int, number: int) -> list[Row]:
    """Tokens that a latent promotes (sign 1) and suppresses (sign -1)."""
    return reader.rows(
        "SELECT sign, tokens, effects FROM logit_effects WHERE sae = ? AND latent = ? ORDER BY sign DESC",
        [sae, number],
    )


def explanations(reader: Reader, sae: int, number: int) -> list[Row]:
    """A latent's explanations, or why there is none."""
    return reader.rows(
        "SELECT explainer, text, rules, status, reason FROM explanations WHERE sae = ? AND latent = ?"
        " ORDER BY explainer",
        [sae, number],
    )


def scores(reader: Reader, sae: int, number: int) -> list[Row]:
    """The scores of a latent's explanations, or why there is none."""
    return reader.rows(
        "SELECT explainer, scorer, auroc, balanced_accuracy, positives, negatives, status, reason FROM scores"
        " WHERE sae = ? AND latent = ? ORDER BY explainer, scorer",
        [sae, number],
    )


def matches(reader: Reader, sae: int, number: int, other: int | None = None, most: int = 100) -> list[Row]:
    """A latent's best matches in other SAEs (or in one), by correlation on the same tokens."""
    return reader.rows(
        """
        SELECT s.variant, s.layer, m.other_sae, m.rank, m.other_latent, m.correlation, l.density, v.text AS top_text,
               (SELECT first(text ORDER BY explainer) FROM explanations e WHERE e.sae = m.other_sae
                AND e.latent = m.other_latent AND status = 'ok') AS explanation
        FROM matches m JOIN saes s ON s.sae = m.other_sae JOIN variants USING (variant)
        JOIN latents l ON l.sae = m.other_sae AND l.latent = m.other_latent
        LEFT JOIN vocabulary v ON v.token = l.top_token
        WHERE m.sae = ? AND m.latent = ? AND m.other_sae = coalesce(?, m.other_sae) AND m.rank < ?
        ORDER BY variants.position, s.layer, m.rank
        """,
        [sae, number, other, most],
    )


def bounds(reader: Reader, column: str, positive: bool = False) -> tuple[float, float] | None:
    """Smallest and largest finite value over all latents, of those above zero if `positive`."""
    name = f"CAST({_quoted(column)} AS DOUBLE)"
    row = reader.row(
        f"SELECT min({name}) AS low, max({name}) AS high FROM latents WHERE isfinite({name})"
        + (f" AND {name} > 0" if positive else "")
    )
    return None if row is None or row["low"] is None else (row["low"], row["high"])


def distribution(reader: Reader, column: str, low: float, high: float, bins: int, log: bool) -> list[Row]:
    """Latents in each of `bins` equal-width bins of a statistic (of its logarithm if `log`), by SAE."""
    name = f"CAST({_quoted(column)} AS DOUBLE)"
    value, ends = (f"log10({name})", "log10(?), log10(?)") if log else (name, "?::DOUBLE, ?::DOUBLE")
    return reader.rows(
        f"""
        WITH ends(low, high) AS (SELECT {ends}),
        binned AS (SELECT sae, least(?, greatest(0, floor(({value} - low) / nullif(high - low, 0) * ?)))::INTEGER AS bin
                   FROM latents, ends WHERE isfinite({name}) {f"AND {name} > 0" if log else ""})
        SELECT sae, coalesce(bin, 0) AS bin, count(*) AS latents FROM binned GROUP BY ALL ORDER BY ALL
        """,
        [low, high, bins - 1, bins],
    )


def sample(reader: Reader, columns: tuple[str, str], most: int) -> list[Row]:
    """Up to `most` latents of each SAE that have both statistics, spread by a hash so that the choice never changes."""
    x, y = (f"CAST({_quoted(column)} AS DOUBLE)" for column in columns)
    return reader.rows(
        f"SELECT sae, latent, {x} AS x, {y} AS y FROM latents WHERE isfinite({x}) AND isfinite({y})"
        " QUALIFY row_number() OVER (PARTITION BY sae ORDER BY hash(latent), latent) <= ? ORDER BY sae, latent",
        [most],
    )


def window_length(reader: Reader) -> int:
    """Tokens of a whole context window; 0 where the study has no contexts."""
    row = reader.row("SELECT max(length) AS length FROM contexts WHERE kind = 'top'")
    return int(row["length"] or 0) if row else 0


def latents_with_contexts(reader: Reader, sae: int, columns: Sequence[str], window: int, fewest: int) -> list[Row]:
    """Statistics of the alive latents that have at least `fewest` different top contexts of `window` tokens."""
    selected = "".join(f", CAST({_quoted(column)} AS DOUBLE) AS {_quoted(column)}" for column in columns)
    return reader.rows(
        f"""
        SELECT latent, density AS share{selected} FROM latents
        WHERE sae = ? AND state = 'alive' AND density > 0 AND latent IN (
            SELECT c.latent FROM contexts c JOIN sequences s USING (sequence)
            WHERE c.sae = ? AND c.kind = 'top' AND c.length = ? AND c.start + c.length <= len(s.tokens)
            GROUP BY c.latent HAVING count(DISTINCT s.tokens[c.start + 1 : c.start + c.length]) >= ?)
        ORDER BY latent
        """,
        [sae, sae, window, fewest],
    )


def of_latents(reader: Reader, table: str, sae: int, numbers: Sequence[int]) -> list[Row]:
    """The rows that some latents of an SAE have in one of the tables that are keyed by latent."""
    assert table in ("latents", "histograms", "logit_effects", "explanations", "scores")
    return reader.rows(
        f"SELECT * FROM {table} WHERE sae = ? AND latent IN (SELECT unnest(?::INTEGER[])) ORDER BY ALL",
        [sae, list(numbers)],
    )
