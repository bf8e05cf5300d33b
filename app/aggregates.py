"""SQL that counts and sums up: over the latents of each SAE for the pages, over the SAEs of a place for the report."""

import hashlib
from collections.abc import Sequence

from app.db import Reader, Row
from app.queries import listed, quoted

OTHER_SCORES = ("balanced_accuracy", "f1", "auprc")
"""Columns of `scores` beside the AUROC."""

Place = tuple[str, int]
"""A variant and a layer."""


def summaries(reader: Reader, saes: Sequence[int], columns: Sequence[str]) -> dict[int, Row]:
    """By SAE: `latents`, `alive`, and for each column its `quartiles` and `count` of latents that have a value."""
    parts = [quartiles(column) for column in columns]
    selected = ", ".join(["sae", "count(*) AS latents", "count(*) FILTER (state = 'alive') AS alive", *parts])
    rows = reader.rows(f"SELECT {selected} FROM latents WHERE sae IN {listed(saes)} GROUP BY sae", saes)
    return {row["sae"]: row for row in rows}


def quartiles(column: str) -> str:
    """Two columns: the quartiles of the finite values, and how many values there are."""
    value = f"CAST({quoted(column)} AS DOUBLE)"
    middle = f"quantile_cont({value}, [0.25, 0.5, 0.75]) FILTER (isfinite({value}))"
    return f"{middle} AS {quoted('quartiles ' + column)}, count({value}) AS {quoted('count ' + column)}"


def score_states(reader: Reader, saes: Sequence[int]) -> list[Row]:
    """How many latents of some SAEs are in which state of scoring."""
    return reader.rows(
        f"SELECT sae, score_state, count(*) AS latents FROM latents WHERE sae IN {listed(saes)}"
        " GROUP BY ALL ORDER BY ALL",
        saes,
    )


_PROTOCOL = "sae, explainer, scorer, explain_from, score_on, split_by, examples"


def scores(reader: Reader, saes: Sequence[int]) -> list[Row]:
    """By SAE, explainer, scorer and protocol: latents asked about, those with an AUROC, its median, means of all four.

    `low` and `high` bound the median over latents with 95% confidence, whatever the distribution: the values of ranks
    (n ± 1.96 √n) / 2, rounded outwards (Conover 1999, Practical Nonparametric Statistics, section 3.2). `floor`,
    `floor_low` and `floor_high` are those of other latents' explanations on the same contexts, where there are any.
    """
    return reader.rows(
        f"""
        WITH found AS (
            SELECT {_PROTOCOL}, shuffled, count(*) AS asked, count(auroc) AS latents, median(auroc) AS median,
                   list(auroc ORDER BY auroc) FILTER (auroc IS NOT NULL) AS ranked, avg(auroc) AS auroc,
                   {", ".join(f"avg({name}) FILTER (isfinite({name})) AS {name}" for name in OTHER_SCORES)}
            FROM scores WHERE sae IN {listed(saes)} GROUP BY ALL),
        bounded AS (
            SELECT found.* EXCLUDE (ranked),
                   ranked[greatest(1, floor((latents - 1.96 * sqrt(latents)) / 2)::INTEGER)] AS low,
                   ranked[least(latents, ceil(1 + (latents + 1.96 * sqrt(latents)) / 2)::INTEGER)] AS high
            FROM found),
        floors AS (
            SELECT {_PROTOCOL}, median AS floor, low AS floor_low, high AS floor_high FROM bounded WHERE shuffled)
        SELECT bounded.* EXCLUDE (shuffled), floor, floor_low, floor_high
        FROM bounded LEFT JOIN floors USING ({_PROTOCOL}) JOIN saes USING (sae) JOIN variants USING (variant)
        WHERE NOT shuffled ORDER BY scorer, explainer, explain_from, score_on, layer, position
        """,
        saes,
    )


def bounds(reader: Reader, saes: Sequence[int], column: str, positive: bool = False) -> tuple[float, float] | None:
    """Smallest and largest finite value over all latents of some SAEs, of those above zero if `positive`."""
    name = f"CAST({quoted(column)} AS DOUBLE)"
    row = reader.row(
        f"SELECT min({name}) AS low, max({name}) AS high FROM latents WHERE sae IN {listed(saes)} AND isfinite({name})"
        + (f" AND {name} > 0" if positive else ""),
        saes,
    )
    return None if row is None or row["low"] is None else (row["low"], row["high"])


def distribution(
    reader: Reader, saes: Sequence[int], column: str, ends: tuple[float, float], bins: int, log: bool
) -> list[Row]:
    """Latents in each of `bins` equal-width bins of a statistic (of its logarithm if `log`) between `ends`, by SAE."""
    name = f"CAST({quoted(column)} AS DOUBLE)"
    value, given = (f"log10({name})", "log10(?), log10(?)") if log else (name, "?::DOUBLE, ?::DOUBLE")
    return reader.rows(
        f"""
        WITH ends(low, high) AS (SELECT {given}),
        binned AS (SELECT sae, least(?, greatest(0, floor(({value} - low) / nullif(high - low, 0) * ?)))::INTEGER AS bin
                   FROM latents, ends
                   WHERE sae IN {listed(saes)} AND isfinite({name}) {f"AND {name} > 0" if log else ""})
        SELECT sae, coalesce(bin, 0) AS bin, count(*) AS latents FROM binned GROUP BY ALL ORDER BY ALL
        """,
        [*ends, bins - 1, bins, *saes],
    )


def sample(reader: Reader, saes: Sequence[int], columns: tuple[str, str], most: int) -> list[Row]:
    """Up to `most` latents of each SAE that have both statistics, spread by a hash so that the choice never changes."""
    x, y = (f"CAST({quoted(column)} AS DOUBLE)" for column in columns)
    return reader.rows(
        f"SELECT sae, latent, {x} AS x, {y} AS y FROM latents WHERE sae IN {listed(saes)}"
        f" AND isfinite({x}) AND isfinite({y})"
        " QUALIFY row_number() OVER (PARTITION BY sae ORDER BY hash(latent), latent) <= ? ORDER BY sae, latent",
        [*saes, most],
    )


def pooled_summaries(reader: Reader, saes: Sequence[int], columns: Sequence[str]) -> dict[Place, Row]:
    """By variant and layer: latents, alive ones, and each column's quartiles and count of values."""
    parts = [quartiles(column) for column in columns]
    selected = ", ".join(["count(*) AS latents", "count(*) FILTER (state = 'alive') AS alive", *parts])
    rows = reader.rows(
        f"SELECT variant, layer, {selected} FROM latents JOIN saes USING (sae)"
        f" WHERE sae IN {listed(saes)} GROUP BY variant, layer",
        saes,
    )
    return {(row["variant"], row["layer"]): row for row in rows}


def pooled_states(reader: Reader, saes: Sequence[int]) -> dict[Place, dict[str, int]]:
    """By variant and layer, how many latents are in which state of scoring."""
    found: dict[Place, dict[str, int]] = {}
    for row in reader.rows(
        "SELECT variant, layer, score_state, count(*) AS latents FROM latents JOIN saes USING (sae)"
        f" WHERE sae IN {listed(saes)} GROUP BY ALL ORDER BY ALL",
        saes,
    ):
        found.setdefault((row["variant"], row["layer"]), {})[row["score_state"]] = row["latents"]
    return found


def outcomes(reader: Reader) -> list[Row]:
    """By variant, and by explainer or scorer: how many there are, how many failed, and of what."""
    parts = []
    scorer = "scorer || CASE WHEN shuffled THEN ', floor' ELSE '' END"
    for table, kind, what in (("explanations", "explainer", "explainer"), ("scores", "scorer", scorer)):
        parts.append(
            f"SELECT variant, {what} AS what, '{kind}' AS kind, status, CASE status WHEN 'failed' THEN reason END AS"
            f" reason FROM {table} JOIN saes USING (sae)"
        )
    return reader.rows(
        "WITH found AS (SELECT variant, kind, what, reason, count(*) AS n,"
        " count(*) FILTER (status = 'failed') AS failed"
        f" FROM ({' UNION ALL '.join(parts)}) GROUP BY ALL)"
        " SELECT variant, kind, what, sum(n)::BIGINT AS n, sum(failed)::BIGINT AS failed,"
        " coalesce(list({'reason': reason, 'n': failed} ORDER BY failed DESC, reason) FILTER (failed > 0), []) AS"
        " reasons FROM found JOIN variants USING (variant) GROUP BY variant, position, kind, what"
        " ORDER BY kind, what, position"
    )


def timings(reader: Reader) -> list[Row]:
    """What each stage took in all."""
    return reader.rows(
        "SELECT stage, hardware, count(*) AS runs, sum(seconds) AS seconds, sum(tokens)::BIGINT AS tokens FROM timings"
        " GROUP BY ALL ORDER BY seconds DESC"
    )


def weights(reader: Reader) -> list[Row]:
    """For every draw of every variant: tensors, those randomised, and one hash over the hashes of all by name."""
    rows = reader.rows(
        "SELECT model, variant, variant_seed, count(*) AS tensors, count(*) FILTER (randomised) AS randomised,"
        " string_agg(name || ' ' || sha256, chr(10) ORDER BY name) AS hashes FROM tensors JOIN variants USING (variant)"
        " GROUP BY model, variant, variant_seed, position ORDER BY model, position, variant_seed"
    )
    return [row | {"sha256": hashlib.sha256(row["hashes"].encode()).hexdigest()} for row in rows]
