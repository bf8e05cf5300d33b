"""Thirty raters of known ability answer through the real store: estimates and intervals hold the truth."""

import math
from collections.abc import Iterator
from itertools import count
from random import Random
from statistics import NormalDist

import pytest
from small_experiment import design, prepared

from app.blind.export import label_rows
from app.blind.outcomes import Results
from app.blind.results import rater_result, results
from app.blind.store import LabelStore

D_PRIME = 1.2
THRESHOLDS = (-1.0, -0.5, 0.0, 0.5, 1.0)
RATERS = 30
TRUE_ACCURACY = NormalDist().cdf(D_PRIME / 2)
HASTY, CARELESS = "hasty", "careless"


def answer(positive: bool, rng: Random) -> int:
    """Six levels of a normal observer without a leaning. Green & Swets 1966."""
    seen = rng.gauss(D_PRIME / 2 if positive else -D_PRIME / 2, 1)
    return 1 + sum(seen > threshold for threshold in THRESHOLDS)


def true_auroc() -> float:
    """Of the six levels: all pairs of a level of either class, ties half."""
    ends = (-math.inf, *THRESHOLDS, math.inf)
    trained, random = (
        [NormalDist(mean, 1).cdf(ends[at + 1]) - NormalDist(mean, 1).cdf(ends[at]) for at in range(6)]
        for mean in (D_PRIME / 2, -D_PRIME / 2)
    )
    return sum(
        p * q * (1.0 if i > j else 0.5 if i == j else 0.0) for i, p in enumerate(trained) for j, q in enumerate(random)
    )


def work(store: LabelStore, experiment: str, name: str, rng: Random, stop_after: int | None = None) -> None:
    """One rater's session: true to their ability on main trials and repeats, right on gold unless careless."""
    session = store.join(experiment, name, "program" if name == "program" else "person").session
    trials = [row for row in store.standing(experiment) if row.session == session]
    for row in trials[:stop_after]:
        now = store.current(session)
        assert now.trial is not None
        positive = row.truth in ("trained", "right")
        given = answer(positive, rng)
        if row.kind == "gold":
            given = 6 if positive != (name == CARELESS) else 1
        store.label(session, now.trial, now.revision, given, 0.2 if name == HASTY else rng.uniform(2, 5))
    if stop_after is not None:
        store.leave(session)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStore]:
    opened = LabelStore(tmp_path_factory.mktemp("labels") / "labels.sqlite")
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=["single", "pair"])
def experiment(request: pytest.FixtureRequest, store: LabelStore) -> str:
    """Thirty people, two more that are to be left out, and a program."""
    own = design(form=request.param, trials=20, practice=1, gold=0.15, repeats=0.1)
    made, _ = store.create_experiment(own, {"name": "small"}, prepared(own))
    seeds = count()
    with pytest.MonkeyPatch.context() as patch:
        # The sessions' own seeds: one interval in twenty misses the truth, and it shall not be another every time.
        patch.setattr("secrets.randbits", lambda _: next(seeds))
        for number in range(RATERS):
            work(store, made.experiment, f"rater {number}", Random(number), 16 if number == 7 else None)
        for name in (HASTY, CARELESS, "program"):
            work(store, made.experiment, name, Random(99))
    return made.experiment


def found(store: LabelStore, experiment: str) -> Results:
    return results(store.experiment(experiment), store.standing(experiment), store.items(experiment))


def test_estimates_and_intervals_hold_the_truth(store: LabelStore, experiment: str) -> None:
    live = found(store, experiment)
    store.close_experiment(experiment)
    final = found(store, experiment)
    assert (live.final, final.final) == (False, True)
    for interval in (live.overall.share.interval, final.overall.share.interval, final.overall.crossed.estimate):
        assert interval is not None
        assert interval.low < TRUE_ACCURACY < interval.high
        assert interval.high - interval.low < 0.2
    area, sensitivity = final.overall.auroc.estimate, final.overall.sensitivity
    assert area is not None
    assert area.low < true_auroc() < area.high
    # z(accuracy) is d′ / 2 in both forms; of two latents, d′ is √2 z(accuracy).
    truth = D_PRIME if final.form == "single" else math.sqrt(2) * D_PRIME / 2
    assert sensitivity.d_prime == pytest.approx(truth, abs=0.25)
    assert final.overall.p_value < 0.001
    assert not final.overall.equivalence.equivalent
    # Independent answers: chance agreement aside, what two share is the truth, (2p - 1)² of it.
    assert final.alpha_nominal.alpha == pytest.approx((2 * TRUE_ACCURACY - 1) ** 2, abs=0.1)


def test_only_kept_people_count(store: LabelStore, experiment: str) -> None:
    outcome = found(store, experiment)
    by_name = {rater.pseudonym: rater for rater in outcome.raters}
    assert {name for name, rater in by_name.items() if rater.state == "excluded"} == {HASTY, CARELESS}
    assert by_name[CARELESS].why == "0 of 3 gold trials right, fewer than 60%"
    assert by_name["rater 7"].notes[0].startswith("Left early, after 16 of 26 trials")
    people = [rater for rater in outcome.raters if rater.state == "counted"]
    assert len(people) == RATERS
    assert outcome.overall.share.n == sum(rater.labelled for rater in people) > 29 * 20
    assert outcome.overall.share.correct == sum(rater.share.correct for rater in people)
    assert (by_name["program"].share.n, by_name["program"].state) == (20, "program")


def test_each_intervals_share_of_raters_holds_the_truth(store: LabelStore, experiment: str) -> None:
    raters = [rater for rater in found(store, experiment).raters if rater.pseudonym.startswith("rater")]
    held = [rater.share.wilson.low <= TRUE_ACCURACY <= rater.share.wilson.high for rater in raters]
    assert sum(held) >= 26  # 95% of 30; fewer than 26 in 2 of 100 experiments
    always = [rater.share.anytime.low <= TRUE_ACCURACY <= rater.share.anytime.high for rater in raters]
    assert sum(always) >= sum(held)


def test_self_agreement_is_that_of_independent_answers(store: LabelStore, experiment: str) -> None:
    same = found(store, experiment).same
    # two repeats a rater (the one who left may have had none): p² + (1 - p)² = .60, whichever side it is shown on
    assert same.n >= 2 * (RATERS - 1)
    assert same.value == pytest.approx(TRUE_ACCURACY**2 + (1 - TRUE_ACCURACY) ** 2, abs=0.2)


def test_a_rater_is_told_what_the_organiser_sees(store: LabelStore, experiment: str) -> None:
    rows = [row for row in store.standing(experiment) if row.pseudonym == "rater 3"]
    told = rater_result(store.experiment(experiment), rows, store.items(experiment))
    seen = next(rater for rater in found(store, experiment).raters if rater.pseudonym == "rater 3")
    assert (told.share.correct, told.share.n, told.gold, told.same) == (
        seen.share.correct,
        seen.share.n,
        seen.gold,
        seen.same,
    )
    assert len(told.missed) == told.share.n - told.share.correct
    for missed in told.missed:
        trained = [latent.trained for latent in missed.latents]
        assert (
            trained
            == {"trained": [True], "random": [False], "left": [True, False], "right": [False, True]}[missed.truth]
        )


def test_the_log_says_what_the_results_say(store: LabelStore, experiment: str) -> None:
    rows = label_rows(store.experiment(experiment), store.all_events(experiment), store.items(experiment))
    kept = {rater.pseudonym for rater in found(store, experiment).raters if rater.state == "counted"}
    counted = [row for row in rows if row["kind"] == "main" and row["stands"] and row["pseudonym"] in kept]
    share = found(store, experiment).overall.share
    assert (sum(row["correct"] for row in counted), len(counted)) == (share.correct, share.n)
