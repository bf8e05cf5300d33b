"""All SQL of the dashboard: a reader and plain values in, rows out.

Names of columns come from callers that have looked them up among the file's own; they are quoted all the same.
"""

from collections.abc import Iterable, Sequence

from app.db import Reader, Row
from app.records import OPERATORS, Metric, Order, Sae, Selection, Variant


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
    """Every metric of some SAEs, with the reason where it has no value."""
    return reader.rows(
        f"SELECT sae, metric, value, status, reason FROM sae_metrics WHERE sae IN {listed(saes)} ORDER BY sae, metric",
        saes,
    )


def differences(reader: Reader, model: str, hook: str, name: str) -> list[Row]:
    """Metrics of SAEs, random minus trained over the seeds, with the interval where there is one."""
    return reader.rows(
        "SELECT * FROM differences WHERE model = ? AND hook = ? AND name = ? ORDER BY ALL", [model, hook, name]
    )


def tells(reader: Reader, saes: Sequence[int]) -> list[Row]:
    """How well each statistic tells the trained SAE's latents from those of some random SAEs."""
    return reader.rows(
        "SELECT random_sae, variant, layer, statistic, matched, auroc, low, high, trained, random, reason"
        " FROM tells JOIN saes ON sae = random_sae JOIN variants USING (variant)"
        f" WHERE random_sae IN {listed(saes)} ORDER BY variants.position, layer, random_sae",
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


def scores(reader: Reader, sae: int, number: int) -> list[Row]:
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
