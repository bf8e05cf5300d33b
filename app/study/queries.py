"""All SQL that is read from study files: of one latent, of one SAE, or of all SAEs of a variant at a layer.

Names of columns come from callers that have looked them up among the file's own; they are quoted all the same.
"""

import hashlib
from collections.abc import Iterable, Sequence

from app.study.files import Reader, Row
from app.study.records import OPERATORS, Metric, Order, Sae, Selection, Variant


def quoted(column: str) -> str:
    """A column's name in SQL."""
    return '"' + column.replace('"', '""') + '"'


def listed(values: Sequence[object]) -> str:
    """A place for each value of a list, for `IN`."""
    return f"({', '.join('?' * len(values)) or 'NULL'})"


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


def timings(reader: Reader, model: str | None, saes: Sequence[int]) -> list[Row]:
    """What each stage took, in the order of its first run: of some SAEs, and of what serves several at once."""
    return reader.rows(
        "SELECT t.stage, t.model, coalesce(t.variant, s.variant) AS variant, t.sae, s.layer, t.seconds, t.tokens,"
        f" t.hardware FROM timings t LEFT JOIN saes s USING (sae) WHERE t.sae IN {listed(saes)}"
        " OR (t.sae IS NULL AND coalesce(t.model, ?) IS NOT DISTINCT FROM ?)",
        [*saes, model, model],
    )


_TENSORS = (
    " FROM tensors t JOIN variants USING (variant) JOIN (SELECT DISTINCT model, variant, variant_seed FROM saes"
    " WHERE sae IN {}) USING (model, variant, variant_seed) "
)


def tensors(reader: Reader, saes: Sequence[int], kinds: bool = True) -> list[Row]:
    """How many tensors of each kind were randomised; or, without `kinds`, every tensor that SAEs saw, with its hash."""
    source = _TENSORS.format(listed(saes))
    if kinds:
        return reader.rows(
            "SELECT variant, kind, count(*) AS tensors, count(*) FILTER (randomised) AS randomised"
            f"{source} GROUP BY ALL ORDER BY any_value(position), kind",
            saes,
        )
    return reader.rows(
        f"SELECT variant, variant_seed, name, kind, randomised, shape, mean, std, sha256 {source}"
        " ORDER BY position, name LIMIT 5000",
        saes,
    )


def sae_metrics(reader: Reader, saes: Sequence[int]) -> list[Row]:
    """Every metric by variant and layer: of several SAEs the mean, the smallest and the largest; or why it has none."""
    return reader.rows(
        f"""
        SELECT variant, layer, metric, avg(value) AS value, CASE WHEN count(value) > 1 THEN min(value) END AS low,
               CASE WHEN count(value) > 1 THEN max(value) END AS high,
               coalesce(first(reason ORDER BY sae) FILTER (reason != ''), 'Not applicable.') AS reason
        FROM sae_metrics JOIN saes USING (sae) WHERE sae IN {listed(saes)} GROUP BY ALL
        """,
        saes,
    )


def differences(reader: Reader, model: str, hook: str, name: str) -> list[Row]:
    """Metrics of SAEs, random minus trained over the seeds, with the interval where there is one."""
    return reader.rows(
        "SELECT * FROM differences WHERE model = ? AND hook = ? AND name = ? ORDER BY ALL", [model, hook, name]
    )


def tells(reader: Reader, saes: Sequence[int]) -> list[Row]:
    """How well each statistic tells trained latents from those of some random SAEs, by variant and layer.

    Of one SAE the AUROC with its interval over latents; of several the mean, the smallest and the largest.
    """
    first = "first({} ORDER BY auroc IS NULL, random_sae)"
    several = "CASE WHEN count(auroc) > 1 THEN {} ELSE " + first + " END AS {}"
    columns = [several.format(f"{end}(auroc)", name, name) for end, name in (("min", "low"), ("max", "high"))]
    columns += [several.format(f"sum({name})::BIGINT", name, name) for name in ("trained", "random")]
    return reader.rows(
        f"SELECT variant, layer, statistic, matched, avg(auroc) AS auroc, {', '.join(columns)},"
        f" {first.format('reason')} AS reason FROM tells JOIN saes ON sae = random_sae JOIN variants USING (variant)"
        f" WHERE random_sae IN {listed(saes)} GROUP BY variant, position, layer, statistic, matched"
        " ORDER BY position, layer, statistic, matched",
        saes,
    )


_CURVES = (
    " JOIN saes ON sae = random_sae JOIN variants USING (variant)"
    " WHERE random_sae IN {} ORDER BY variants.position, layer"
)


def specifications(reader: Reader, saes: Sequence[int]) -> list[Row]:
    """Trained against some random SAEs' latents by their scores, under every protocol; the smallest AUROC first."""
    return reader.rows(
        "SELECT variant, layer, scorer, explain_from, score_on, split_by, examples, window_tokens, auroc, low, high,"
        f" status FROM specifications {_CURVES.format(listed(saes))}, auroc, scorer, explain_from, score_on,"
        " split_by, examples, window_tokens",
        saes,
    )


def specification_curves(reader: Reader, saes: Sequence[int]) -> list[Row]:
    """What all protocols together say of some random SAEs."""
    return reader.rows(
        f"SELECT variant, layer, latents, median, p_value FROM specification_curves {_CURVES.format(listed(saes))}",
        saes,
    )


# Text belongs to a model, and an SAE to one: what its token ids mean is looked up through it.
_LATENT = (
    "SELECT l.*, v.text AS top_text, e.text AS explanation FROM latents l JOIN saes USING (sae)"
    " LEFT JOIN vocabulary v ON v.model = saes.model AND v.token = l.top_token"
    " LEFT JOIN (SELECT sae, latent, first(text ORDER BY explainer, explain_from) AS text FROM explanations"
    " WHERE status = 'ok' AND sae = ? GROUP BY sae, latent) e ON e.latent = l.latent WHERE l.sae = ?"
)


def latent(reader: Reader, sae: int, number: int) -> Row | None:
    """A latent's statistics, with its top token and explanation as text."""
    return reader.row(f"{_LATENT} AND l.latent = ?", [sae, sae, number])


def _where(selection: Selection) -> tuple[str, list[object]]:
    parts, values = [], list[object]()
    for condition in selection.conditions:
        assert condition.operator in OPERATORS
        parts.append(f"AND {quoted(condition.column)} {condition.operator} ?")
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
        f"SELECT * {source} ORDER BY {quoted(order.column)} {direction} NULLS LAST, latent LIMIT ? OFFSET ?",
        [*parameters, limit, offset],
    )
    return page, total["total"] if total else 0


def place(reader: Reader, sae: int, number: int | None, order: Order) -> Row:
    """Where a latent stands among the alive ones that have a value: `rank` from 1, `total`, and its neighbours.

    `rank`, `previous` and `next` are None for a latent outside the order; `alive` counts those without a value too.
    """
    column, direction = quoted(order.column), "DESC" if order.descending else "ASC"
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
        FROM contexts c JOIN saes USING (sae) JOIN sequences s ON s.model = saes.model AND s.sequence = c.sequence
        LEFT JOIN articles a ON a.model = s.model AND a.article = s.article
        WHERE c.sae = ? AND c.latent IN {listed(numbers)} AND c.kind IN {listed(kinds)} AND c.rank < ?
        ORDER BY c.latent, c.kind, c.stratum DESC, c.rank
        """,
        [sae, *numbers, *kinds, most],
    )


def token_texts(reader: Reader, sae: int, tokens: Iterable[int]) -> dict[int, str]:
    """The text of tokens of the model that an SAE belongs to, by id."""
    rows = reader.rows(
        "SELECT token, text FROM vocabulary WHERE model = (SELECT model FROM saes WHERE sae = ?)"
        " AND token IN (SELECT unnest(?::INTEGER[]))",
        [sae, sorted(set(tokens))],
    )
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
        "SELECT explainer, explain_from, text, rules, status, reason FROM explanations WHERE sae = ? AND latent = ?"
        " ORDER BY explainer, explain_from",
        [sae, number],
    )


def latent_scores(reader: Reader, sae: int, number: int) -> list[Row]:
    """The scores of a latent's explanations, or why there is none; `floor` is another's on the same contexts."""
    return reader.rows(
        "WITH own AS (SELECT * FROM scores WHERE sae = ? AND latent = ?),"
        " floors AS (SELECT explainer, explain_from, scorer, score_on, auroc AS floor FROM own WHERE shuffled)"
        " SELECT explainer, explain_from, scorer, score_on, auroc, balanced_accuracy, positives, negatives, status,"
        " reason, floor FROM own LEFT JOIN floors USING (explainer, explain_from, scorer, score_on) WHERE NOT shuffled"
        " ORDER BY explainer, explain_from, scorer, score_on",
        [sae, number],
    )


def matches(reader: Reader, sae: int, number: int, others: Sequence[int], most: int = 100) -> list[Row]:
    """A latent's best matches in some other SAEs, by correlation on the same tokens."""
    return reader.rows(
        f"""
        SELECT s.variant, s.layer, m.other_sae, m.rank, m.other_latent, m.correlation, l.density, v.text AS top_text,
               (SELECT first(text ORDER BY explainer, explain_from) FROM explanations e WHERE e.sae = m.other_sae
                AND e.latent = m.other_latent AND status = 'ok') AS explanation
        FROM matches m JOIN saes s ON s.sae = m.other_sae JOIN variants USING (variant)
        JOIN latents l ON l.sae = m.other_sae AND l.latent = m.other_latent
        LEFT JOIN vocabulary v ON v.model = s.model AND v.token = l.top_token
        WHERE m.sae = ? AND m.latent = ? AND m.other_sae IN {listed(others)} AND m.rank < ?
        ORDER BY variants.position, s.layer, m.rank
        """,
        [sae, number, *others, most],
    )


def window_length(reader: Reader) -> int:
    """Tokens of a whole context window; 0 where the study has no contexts."""
    row = reader.row("SELECT max(length) AS length FROM contexts WHERE kind = 'top'")
    return int(row["length"] or 0) if row else 0


def latents_with_contexts(reader: Reader, sae: int, columns: Sequence[str], window: int, fewest: int) -> list[Row]:
    """Statistics of the alive latents that have at least `fewest` different top contexts of `window` tokens."""
    selected = "".join(f", CAST({quoted(column)} AS DOUBLE) AS {quoted(column)}" for column in columns)
    return reader.rows(
        f"""
        SELECT latent, density AS share{selected} FROM latents
        WHERE sae = ? AND state = 'alive' AND density > 0 AND latent IN (
            SELECT c.latent FROM contexts c JOIN saes USING (sae)
            JOIN sequences s ON s.model = saes.model AND s.sequence = c.sequence
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


OTHER_SCORES = ("balanced_accuracy", "f1", "auprc")
"""Columns of `scores` beside the AUROC."""

Place = tuple[str, int]
"""A variant and a layer."""


def summaries(reader: Reader, saes: Sequence[int], columns: Sequence[str]) -> dict[Place, Row]:
    """`latents`, `alive`, and for each column its `quartiles` and `count` of latents that have a value."""
    parts = []
    for column in columns:
        value = f"CAST({quoted(column)} AS DOUBLE)"
        middle = f"quantile_cont({value}, [0.25, 0.5, 0.75]) FILTER (isfinite({value}))"
        parts.append(f", {middle} AS {quoted('quartiles ' + column)}, count({value}) AS {quoted('count ' + column)}")
    rows = reader.rows(
        f"SELECT variant, layer, count(*) AS latents, count(*) FILTER (state = 'alive') AS alive{''.join(parts)}"
        f" FROM latents JOIN saes USING (sae) WHERE sae IN {listed(saes)} GROUP BY variant, layer",
        saes,
    )
    return {(row["variant"], row["layer"]): row for row in rows}


def score_states(reader: Reader, saes: Sequence[int]) -> dict[Place, dict[str, int]]:
    """How many latents are in which state of scoring."""
    found: dict[Place, dict[str, int]] = {}
    for row in reader.rows(
        "SELECT variant, layer, score_state, count(*) AS latents FROM latents JOIN saes USING (sae)"
        f" WHERE sae IN {listed(saes)} GROUP BY ALL ORDER BY ALL",
        saes,
    ):
        found.setdefault((row["variant"], row["layer"]), {})[row["score_state"]] = row["latents"]
    return found


_PROTOCOL = "variant, layer, explainer, scorer, explain_from, score_on, split_by, examples"


def scores(reader: Reader, saes: Sequence[int]) -> list[Row]:
    """By place, explainer, scorer and protocol: latents asked about and with an AUROC, its median, means of all four.

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
            FROM scores JOIN saes USING (sae) WHERE sae IN {listed(saes)} GROUP BY ALL),
        bounded AS (
            SELECT found.* EXCLUDE (ranked),
                   ranked[greatest(1, floor((latents - 1.96 * sqrt(latents)) / 2)::INTEGER)] AS low,
                   ranked[least(latents, ceil(1 + (latents + 1.96 * sqrt(latents)) / 2)::INTEGER)] AS high
            FROM found),
        floors AS (
            SELECT {_PROTOCOL}, median AS floor, low AS floor_low, high AS floor_high FROM bounded WHERE shuffled)
        SELECT bounded.* EXCLUDE (shuffled), floor, floor_low, floor_high
        FROM bounded LEFT JOIN floors USING ({_PROTOCOL}) JOIN variants USING (variant)
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
    """Latents in each of `bins` equal-width bins of a statistic (of its logarithm if `log`) between `ends`."""
    name = f"CAST({quoted(column)} AS DOUBLE)"
    value, given = (f"log10({name})", "log10(?), log10(?)") if log else (name, "?::DOUBLE, ?::DOUBLE")
    return reader.rows(
        f"""
        WITH ends(low, high) AS (SELECT {given}),
        binned AS (SELECT variant, layer,
                   least(?, greatest(0, floor(({value} - low) / nullif(high - low, 0) * ?)))::INTEGER AS bin
                   FROM ends, latents JOIN saes USING (sae)
                   WHERE sae IN {listed(saes)} AND isfinite({name}) {f"AND {name} > 0" if log else ""})
        SELECT variant, layer, coalesce(bin, 0) AS bin, count(*) AS latents FROM binned GROUP BY ALL ORDER BY ALL
        """,
        [*ends, bins - 1, bins, *saes],
    )


def sample(reader: Reader, saes: Sequence[int], columns: tuple[str, str], most: int) -> list[Row]:
    """Up to `most` latents of each place that have both statistics, chosen by a hash: always the same ones."""
    x, y = (f"CAST({quoted(column)} AS DOUBLE)" for column in columns)
    return reader.rows(
        f"SELECT variant, layer, latent, {x} AS x, {y} AS y FROM latents JOIN saes USING (sae)"
        f" WHERE sae IN {listed(saes)} AND isfinite({x}) AND isfinite({y})"
        " QUALIFY row_number() OVER (PARTITION BY variant, layer ORDER BY hash(latent), latent, sae) <= ?"
        " ORDER BY variant, layer, latent, sae",
        [*saes, most],
    )


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


def stage_totals(reader: Reader) -> list[Row]:
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
