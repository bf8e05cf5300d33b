"""What a rater sees of a latent: always as much of it, nothing that gives the variant away, and no raw number."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_study import SCRIPT, VOCABULARY, WINDOW, write_small_study

from app.blind import evidence
from app.blind.design import Design, DesignError
from app.blind.evidence import BINS, TOP_LEVEL, Evidence, build, candidates, level, prepare, shuffle_tokens
from app.study.files import Reader
from app.study.study import Studies, Study

RANDOM = ("rerandomized_incl_embeddings", "control")


def own_design(**changes: Any) -> Design:
    values: dict[str, Any] = {"title": "T", "study": "small", "layers": (0, 3), "variants": RANDOM, "form": "single"}
    return Design(**values | {"trials": 20, "contexts": 8} | changes)


def built(reader: Reader, sae: int, latent: int, own: Design, rng: Random) -> Evidence:
    """The evidence of one latent."""
    return build(reader, sae, [latent], own, rng)[latent]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("blind")
    write_small_study(made / "small.duckdb", top_contexts=12)
    return made


@contextmanager
def opened(folder: Path) -> Iterator[Study]:
    studies = Studies((folder,), 10.0)
    try:
        with studies.open("small") as study:
            yield study
    finally:
        studies.database.close()


@pytest.fixture
def study(folder: Path) -> Iterator[Study]:
    with opened(folder) as found:
        yield found


def changed(folder: Path, into: Path, *statements: str) -> Path:
    """A copy of the study with some SQL run on it."""
    (into / "small.duckdb").write_bytes((folder / "small.duckdb").read_bytes())
    with duckdb.connect(str(into / "small.duckdb")) as connection:
        for statement in statements:
            connection.execute(statement)
    return into


def numbers(value: Any) -> list[float]:
    """Every number anywhere in JSON-able data."""
    if isinstance(value, dict):
        return [n for part in value.values() for n in numbers(part)]
    if isinstance(value, list | tuple):
        return [n for part in value for n in numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def shape(value: Any) -> Any:
    """Data without its texts and numbers."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [shape(part) for part in value]
    return type(value).__name__


def test_candidates_follow_one_rule_that_a_plain_count_confirms(folder: Path, study: Study) -> None:
    # By hand, without the query under test: alive, and 10 different token windows among the top contexts.
    with duckdb.connect(str(folder / "small.duckdb"), read_only=True) as connection:
        texts = dict(connection.execute("SELECT sequence, tokens FROM sequences").fetchall())
        windows: dict[tuple[int, int], set[tuple[int, ...]]] = {}
        top = "SELECT sae, latent, sequence, start, length FROM contexts WHERE kind = 'top'"
        for sae, number, sequence, start, length in connection.execute(top).fetchall():
            windows.setdefault((sae, number), set()).add(tuple(texts[sequence][start : start + length]))
        alive = set(connection.execute("SELECT sae, latent FROM latents WHERE state = 'alive'").fetchall())
    wanted = {key for key, found in windows.items() if len(found) >= 10 and key in alive and key[0] % 10 in (0, 3)}
    found = candidates(study, own_design(contexts=10))
    assert {candidate.key for candidate in found} == wanted
    assert {(candidate.variant, candidate.layer) for candidate in found} == {
        (variant, layer) for variant in ("trained", *RANDOM) for layer in (0, 3)
    }
    assert len(wanted) < len([key for key in alive if key[0] % 10 in (0, 3)])
    assert all(candidate.density > 0 for candidate in found)


def test_candidates_have_every_statistic_and_none_where_there_is_no_value(study: Study) -> None:
    found = {candidate.key: candidate for candidate in candidates(study, own_design(contexts=3))}
    own = {metric.metric for metric in study.statistics} - {"best_match_correlation"}  # a maximum over variants
    assert set(found[0, 0].statistics) == own
    assert found[0, 0].statistics["density"] == found[0, 0].density
    assert found[0, 8].statistics["detection_auroc"] is None
    assert isinstance(found[0, 0].statistics["detection_auroc"], float)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variants": ("step99",)}, ["step99", "rerandomized_incl_embeddings, control"]),
        ({"variants": ("trained",)}, ["trained", "rerandomized_incl_embeddings, control"]),
        ({"layers": (0, 2)}, ["no SAE at layer 2", "0, 1, 3"]),
    ],
)
def test_a_design_that_asks_for_what_is_not_there(study: Study, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DesignError) as caught:
        candidates(study, own_design(**change))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_dead_latents_and_those_with_too_few_different_contexts_are_no_candidates(folder: Path, tmp_path: Path) -> None:
    few = "UPDATE contexts SET sequence = 0, start = 0 WHERE latent < 40"
    with opened(changed(folder, tmp_path, few, "UPDATE latents SET state = 'dead' WHERE latent < 50")) as study:
        assert {candidate.latent for candidate in candidates(study, own_design())} == set(range(50, 59))


def test_windows_that_are_not_whole_do_not_count(folder: Path, tmp_path: Path) -> None:
    with opened(changed(folder, tmp_path, "UPDATE contexts SET length = 31 WHERE latent < 50")) as study:
        assert {candidate.latent for candidate in candidates(study, own_design())} == set(range(50, 59))


@pytest.mark.parametrize("tier", [1, 2, 3, 4])
def test_every_latent_has_as_much_to_show(study: Study, tier: int) -> None:
    own = own_design(tier=tier)
    found, shapes = candidates(study, own), set()
    for sae in {candidate.sae for candidate in found}:
        latents = [candidate.latent for candidate in found if candidate.sae == sae]
        for shown in build(study.reader, sae, latents, own, Random(0)).values():
            assert [len(texts) for texts in shown.contexts] == [WINDOW] * 8
            assert len(set(shown.contexts)) == 8
            levels = {level for texts in shown.contexts for _, level in texts}
            assert levels <= set(range(TOP_LEVEL + 1))
            assert max(levels) == TOP_LEVEL
            data = shown.model_dump()
            # At tier 4 there may be an explanation or not, with its scores.
            shapes.add(json.dumps(shape({key: data[key] for key in data if key not in ("explanation", "scores")})))
    assert len(shapes) == 1


@pytest.mark.parametrize(("tier", "most"), [(1, 9), (2, 100), (3, 100)])
def test_below_tier_4_no_number_is_raw(study: Study, tier: int, most: int) -> None:
    own = own_design(tier=tier)
    for sae in (0, 13, 20):
        data = json.loads(built(study.reader, sae, 5, own, Random(0)).model_dump_json())
        assert all(type(number) is int and 0 <= number <= most for number in numbers(data))
        assert numbers(data["contexts"])
        assert all(data[key] is None for key in ("density", "max_activation", "explanation", "scores"))


def test_the_activation_scale_cannot_be_seen(folder: Path, tmp_path: Path) -> None:
    scale = "UPDATE contexts SET activations = list_transform(activations, lambda a: a * 1024)"
    own = own_design(tier=3)
    with opened(changed(folder, tmp_path, scale, "UPDATE histograms SET upper = upper * 1024")) as scaled:
        after = built(scaled.reader, 13, 5, own, Random(0))
    with opened(folder) as study:
        assert built(study.reader, 13, 5, own, Random(0)) == after


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(-20, 20))
def test_a_level_is_a_share_of_the_largest(activation: float, other: float, power: int) -> None:
    low, largest = sorted((activation, other))
    assert level(low * 2.0**power, largest * 2.0**power) == level(low, largest)
    assert level(largest, largest) == TOP_LEVEL
    assert (level(low, largest) - 1) / TOP_LEVEL <= low / largest + 1e-12
    assert low / largest <= level(low, largest) / TOP_LEVEL + 1e-12
    assert level(0.0, largest) == level(-low, largest) == 0


def test_contexts_are_the_strongest_different_ones_on_a_scale_of_their_own(folder: Path, study: Study) -> None:
    # By hand: the first eight different windows by rank; the first two of this study are the same text.
    with duckdb.connect(str(folder / "small.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "SELECT s.tokens[c.start + 1 : c.start + c.length], c.positions, c.activations FROM contexts c"
            " JOIN sequences s USING (sequence) WHERE sae = 3 AND latent = 7 AND kind = 'top' ORDER BY rank"
        ).fetchall()
    different = {tuple(tokens): (positions, values) for tokens, positions, values in reversed(rows)}
    chosen = list(dict.fromkeys(tuple(tokens) for tokens, _, _ in rows))[:8]
    largest = max(max(different[tokens][1]) for tokens in chosen)
    wanted = set()
    for tokens in chosen:
        active = dict(zip(*different[tokens], strict=True))
        levels = [math.ceil(9 * active[at] / largest) if at in active else 0 for at in range(WINDOW)]
        wanted.add(tuple(zip((VOCABULARY[token] for token in tokens), levels, strict=True)))
    shown = built(study.reader, 3, 7, own_design(), Random(0))
    assert set(shown.contexts) == wanted


def test_the_order_of_contexts_is_the_generators(study: Study) -> None:
    own = own_design()
    orders = {built(study.reader, 3, 7, own, Random(seed)).contexts for seed in range(10)}
    assert len(orders) == 10
    assert len({frozenset(order) for order in orders}) == 1


def test_hostile_text_passes_as_data(study: Study) -> None:
    own = own_design(tier=3)
    shown = [built(study.reader, 0, number, own, Random(0)) for number in (0, 1, 2, 4)]
    texts = {text for one in shown for context in one.contexts for text, _ in context}
    assert {SCRIPT, "\u202egnirts", "\t", ""} <= texts <= set(VOCABULARY)
    assert [Evidence.model_validate_json(one.model_dump_json()) for one in shown] == shown


def test_tier_4_shows_rounded_numbers_and_no_failure_as_a_text(study: Study) -> None:
    own = own_design(tier=4, contexts=3)
    shown = built(study.reader, 0, 5, own, Random(0))
    row = study.reader.row("SELECT density, max_activation, detection_auroc FROM latents WHERE sae = 0 AND latent = 5")
    assert row is not None
    assert shown.density == float(f"{row['density']:.3g}") != row["density"]
    assert shown.max_activation == float(f"{row['max_activation']:.3g}")
    assert shown.scores is not None
    assert dict(shown.scores)["detection"] == float(f"{row['detection_auroc']:.3g}")
    assert shown.explanation is not None
    assert shown.explanation.startswith("the tokens")
    failed = built(study.reader, 0, 13, own, Random(0))
    assert (failed.explanation, failed.scores) == (None, ())


def test_tier_4_shows_no_score_of_another_latents_explanation(folder: Path, tmp_path: Path) -> None:
    floor = "INSERT INTO scores SELECT * REPLACE (true AS shuffled, 0.5 AS auroc) FROM scores"
    own = own_design(tier=4, contexts=3)
    with opened(folder) as before, opened(changed(folder, tmp_path, floor)) as after:
        assert built(after.reader, 0, 5, own, Random(0)) == built(before.reader, 0, 5, own, Random(0))


def test_logit_tokens_are_texts_in_their_order(study: Study) -> None:
    shown = built(study.reader, 0, 5, own_design(tier=3), Random(0))
    row = study.reader.row("SELECT tokens FROM logit_effects WHERE sae = 0 AND latent = 5 AND sign = 1")
    assert row is not None
    assert shown.promoted == tuple(VOCABULARY[token] for token in row["tokens"])
    assert shown.suppressed is not None
    assert len(shown.suppressed) == 5


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=70))
def test_a_histogram_has_twenty_bins_of_square_roots(counts: list[int]) -> None:
    merged = list(evidence._rebinned(counts))
    assert len(merged) == BINS
    assert sum(merged) == pytest.approx(sum(counts))
    heights = evidence._heights(counts)
    assert len(heights) == BINS
    assert max(heights) == (100 if any(counts) else 0)
    for height, count in zip(heights, merged, strict=True):
        assert height == round(100 * math.sqrt(count / max(max(merged), 1e-300)))


def test_a_histogram_by_hand() -> None:
    # 40 bins, two by two: 1 + 3 = 4 beside 16 and 0; sqrt(4/16) = .5
    assert evidence._heights([1, 3, 16, 0] + [0] * 36)[:3] == (50, 100, 0)
    # 10 bins, each cut in two halves
    assert evidence._heights([8, 2] + [0] * 8)[:4] == (100, 100, 50, 50)


@pytest.mark.parametrize(
    ("statement", "tier", "words"),
    [
        ("DELETE FROM histograms WHERE latent = 5", 2, "histograms"),
        ("DELETE FROM logit_effects WHERE latent = 5 AND sign = -1", 3, "logit effects"),
        ("DELETE FROM contexts WHERE latent = 5 AND rank > 3", 1, "contexts"),
    ],
)
def test_what_is_missing_is_an_error_not_a_gap(
    folder: Path, tmp_path: Path, statement: str, tier: int, words: str
) -> None:
    with opened(changed(folder, tmp_path, statement)) as study:
        assert built(study.reader, 0, 4, own_design(tier=tier), Random(0))
        with pytest.raises(DesignError, match=f"Latent 5 of SAE 0 lacks .*{words}"):
            built(study.reader, 0, 5, own_design(tier=tier), Random(0))


def test_gold_keeps_what_there_is_and_loses_its_order(study: Study) -> None:
    shown = built(study.reader, 0, 5, own_design(tier=4, contexts=3), Random(0))
    gold = shuffle_tokens(shown, Random(1))
    assert Counter(cell for texts in gold.contexts for cell in texts) == Counter(c for t in shown.contexts for c in t)
    assert [len(texts) for texts in gold.contexts] == [len(texts) for texts in shown.contexts]
    assert all(set(texts) != set(before) for texts, before in zip(gold.contexts, shown.contexts, strict=True))
    assert gold.model_dump(exclude={"contexts"}) == shown.model_dump(exclude={"contexts"})
    assert shuffle_tokens(shown, Random(1)) == gold != shuffle_tokens(shown, Random(2))


def test_a_prepared_experiment_is_the_same_again_and_has_gold_for_random_latents(study: Study) -> None:
    own = own_design(trials=20, gold=0.1, seed=3)
    prepared = prepare(study, own)
    assert prepared == prepare(study, own)
    assert prepared != prepare(study, own.model_copy(update={"seed": 4}))
    for pair in prepared:
        assert (pair.gold is not None) == (pair.pair.role == "main")
    assert {pair.pair.role for pair in prepared} == {"main", "practice"}
    assert all(pair.gold is None for pair in prepare(study, own.model_copy(update={"gold": 0.0})))
    one = prepared[0].pair.random
    again = built(study.reader, one.sae, one.latent, own, Random(9))
    assert set(prepared[0].random.contexts) == set(again.contexts)


def test_an_identity_names_what_was_used(study: Study) -> None:
    said = evidence.identity(study)
    assert (said["name"], said["seed"], said["provenance"]["duckdb"]) == ("small", 0, "1.4")
    assert len(said["config_sha256"]) == 64
    assert set(said["saes"]) == {f"{variant} {layer}" for variant in ("trained", *RANDOM) for layer in (0, 1, 3)}
    assert json.loads(json.dumps(said)) == said
