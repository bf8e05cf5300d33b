"""The results of a blind experiment, for its organiser and, at the end, for each rater."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from app.blind.analysis import (
    Vote,
    first_told,
    gold_of,
    knowing,
    logistic_outcome,
    metric_outcomes,
    overall_of,
    rater_outcome,
    same_of,
    share_of,
    shown_latents,
    vote_of,
    votes_of,
)
from app.blind.design import PRACTICE, Experiment, Form
from app.blind.outcomes import (
    Breakdown,
    LatentLink,
    Missed,
    Part,
    Property,
    RaterOutcome,
    RaterResult,
    Results,
    Share,
    Skips,
    Tally,
    Who,
)
from app.blind.sessions import Session
from app.blind.store import Item, LabelStore, Standing
from core.resampling import Agreement, Level, krippendorff_alpha
from core.stats import binomial_test

FEW_RATERS = 8
"""Below this many raters the crossed bootstrap is too narrow: see `agreement.bootstrap_raters_and_items`."""
NO_REASON = "no reason given"
"""What a skip without a reason counts under."""
LIVE = (
    "The experiment is open: the intervals and p-values that hold at any moment are shown, those of a fixed number of"
    " labels are not valid yet, and the parts are exploratory."
)
CLOSED = (
    "Wilson's interval and the exact tests hold if the experiment was not closed because of what its labels showed;"
    " those that hold at any moment hold in any case."
)
CLUSTERED = (
    "Intervals and tests of counts take labels as independent. Several raters saw the same latents, which can make them"
    " too sure; the bootstrap over raters and pairs allows for it, and is about 1.7 times too wide where neither"
    " matters: at chance its 95% interval holds one half in 99 to 100%."
)
FEW = f"With fewer than {FEW_RATERS} raters the bootstrap over raters and pairs is too narrow where raters differ."
PROGRAMS = "No person has labelled a main trial, so everything but the list of raters is about programs."
PARTS = "The parts are several comparisons without a correction: some will differ by chance."


def results(experiment: Experiment, standing: Sequence[Standing], items: Sequence[Item], seed: int = 0) -> Results:
    """Everything there is to say about an experiment now; pieces that cannot be had are None, with the reason.

    Labels of main trials by counted raters are analysed: people, or programs where no person has labelled. `standing`
    and `items` are the store's; `seed` decides bootstraps and folds.
    """
    design, final = experiment.design, experiment.closed_at is not None
    sessions, told = by_session(standing), first_told(standing, design)
    raters = {session: rater_outcome(rows, design, final) for session, rows in sessions.items()}
    labelled = {rater.kind for rater in raters.values() if rater.labelled and rater.state != "practice"}
    who: Who = "programs" if labelled == {"program"} else "people"
    raters = {session: _settled(rater, who, knowing(sessions[session], told)) for session, rater in raters.items()}
    kept = {session for session, rater in raters.items() if rater.state == "counted"}
    rows = [row for row in standing if row.session in kept]
    votes = votes_of(rows)
    latents = shown_latents(votes, items, design)
    return Results(
        form=design.form,
        final=final,
        pool=max(0, len({item.pair for item in items}) - design.practice_pairs),
        pairs=len({vote.pair for vote in votes}),
        overall=overall_of(votes, who, design, final, seed),
        raters=tuple(raters.values()),
        breakdowns=breakdowns(votes, final),
        same=_together([raters[session].same for session in kept]),
        alpha_nominal=alpha(votes, design.form, "nominal"),
        alpha_ordinal=alpha(votes, design.form, "ordinal"),
        skips=_skips(rows),
        metrics=metric_outcomes(latents, seed),
        logistic=logistic_outcome(latents, seed),
        notes=_notes(votes, who, final),
    )


def by_session(standing: Iterable[Standing]) -> dict[str, list[Standing]]:
    """The rows of each session."""
    sessions: dict[str, list[Standing]] = {}
    for row in standing:
        sessions.setdefault(row.session, []).append(row)
    return sessions


def _settled(rater: RaterOutcome, who: Who, note: str) -> RaterOutcome:
    """The rater among the others: a program that keeps the rules stands beside people, where there are any."""
    beside = rater.kind == "program" and who == "people" and rater.state == "counted"
    notes = (*rater.notes, note) if note and rater.state != "practice" else rater.notes
    if beside:
        return replace(rater, state="program", why="keeps the rules; in no number about people", notes=notes)
    return replace(rater, notes=notes)


def _together(tallies: Sequence[Tally]) -> Tally:
    count, n = sum(tally.count for tally in tallies), sum(tally.n for tally in tallies)
    return Tally(count, n, count / n if n else None)


def breakdowns(votes: Sequence[Vote], final: bool) -> tuple[Breakdown, ...]:
    """By layer, random variant and tercile of density; the tier is the same for all of an experiment."""
    places = _terciles(votes)
    by: dict[Property, Callable[[Vote], str | int]] = {
        "layer": lambda vote: vote.layer,
        "variant": lambda vote: vote.variant,
        "density": lambda vote: places[vote.density],
    }
    return tuple(Breakdown(name, _parts(votes, name, key, final), not final) for name, key in by.items())


def _parts(votes: Sequence[Vote], name: Property, key: Callable[[Vote], str | int], final: bool) -> tuple[Part, ...]:
    groups: dict[str | int, list[Vote]] = {}
    for vote in votes:
        groups.setdefault(key(vote), []).append(vote)
    return tuple(
        Part(_range(own) if name == "density" else str(value), share_of((vote.correct for vote in own), final))
        for value, own in sorted(groups.items())
    )


def _terciles(votes: Sequence[Vote]) -> dict[float, int]:
    """The third in which each density lies; equal densities are never parted."""
    densities = np.array([vote.density for vote in votes])
    if not len(densities):
        return {}
    thirds = np.searchsorted(np.quantile(densities, [1 / 3, 2 / 3]), densities, side="left")
    return dict(zip(densities.tolist(), thirds.tolist(), strict=True))


def _range(votes: Sequence[Vote]) -> str:
    low, high = (f"{100 * end(vote.density for vote in votes):.3g}%" for end in (min, max))
    return f"{low} of tokens" if low == high else f"{low} to {high} of tokens"


def alpha(votes: Sequence[Vote], form: Form, level: Level) -> Agreement:
    """Krippendorff's alpha of raters on latents: of the side if nominal, of the six answers if ordinal.

    Of two latents either may be called the first, so each pair counts both ways round; otherwise raters who are all
    right would have nothing to agree on, and the value would hang on the order.
    """
    ratings: dict[str, dict[str, float]] = {}
    for vote in votes:
        codes = ratings.setdefault(vote.rater, {})
        towards_trained = vote.answer if vote.positive or form == "single" else 7 - vote.answer
        codes[str(vote.left if form == "single" else vote.pair)] = _code(towards_trained, level)
        if form == "pair":
            codes[f"{vote.pair} the other way round"] = _code(7 - towards_trained, level)
    return krippendorff_alpha(ratings, level)


def _code(answer: int, level: Level) -> float:
    return float(answer >= 4) if level == "nominal" else float(answer)


def _skips(rows: Iterable[Standing]) -> tuple[Skips, ...]:
    reasons = Counter(
        (row.reason or "").strip() or NO_REASON for row in rows if row.kind == "main" and row.event == "skip"
    )
    return tuple(Skips(*entry) for entry in sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0])))


def _notes(votes: Sequence[Vote], who: Who, final: bool) -> tuple[str, ...]:
    raters = len({vote.rater for vote in votes})
    said = {
        CLOSED if final else LIVE: True,
        PROGRAMS: who == "programs",
        CLUSTERED: raters > 1,
        FEW: 1 < raters < FEW_RATERS,
        PARTS: bool(votes),
    }
    return tuple(note for note, holds in said.items() if holds)


SIGNIFICANT = 0.05


def rater_result(experiment: Experiment, standing_of_session: Sequence[Standing], items: Sequence[Item]) -> RaterResult:
    """The result of one session; a rater knows nothing of it before the end, so Wilson's interval is the valid one."""
    rows = standing_of_session
    share = share_of((vote.correct for vote in votes_of(rows)), final=True)
    p_value = binomial_test(share.correct, share.n)
    latents = {item.item: item for item in items}
    return RaterResult(
        pseudonym=rows[0].pseudonym if rows else "",
        share=share,
        p_value=p_value,
        skipped=sum(row.kind == "main" and row.event == "skip" for row in rows),
        missed=tuple(
            _missed(experiment, row, latents) for row in rows if (vote := vote_of(row)) is not None and not vote.correct
        ),
        gold=gold_of(rows),
        same=same_of(rows),
        verdict=verdict(share, p_value),
        practice=f"This session is {PRACTICE[rows[0].practice]}" if rows and rows[0].practice else "",
    )


def own_result(store: LabelStore, session: Session) -> RaterResult:
    """The result of a session out of the store."""
    experiment = store.experiment(session.experiment)
    own = [row for row in store.standing(session.experiment) if row.session == session.session]
    return rater_result(experiment, own, store.items(session.experiment))


def _missed(experiment: Experiment, row: Standing, latents: dict[int, Item]) -> Missed:
    assert row.answer is not None
    shown = [latents[item] for item in (row.left, row.right) if item is not None]
    study, random = experiment.design.study, experiment.design.variants
    links = (LatentLink(study, item.variant, item.layer, item.latent, item.variant not in random) for item in shown)
    return Missed(row.position, row.truth, row.answer, tuple(links))


def verdict(share: Share, p_value: float) -> str:
    """One sentence: whether Wilson's 95% interval holds one half, and whether the exact test says the same."""
    low, high = share.wilson.low, share.wilson.high
    if not share.n:
        return "You labelled none of the trials that count, so there is nothing to say."
    if low <= 0.5 <= high:
        return (
            "Your answers are consistent with guessing: the 95% interval holds one half, which does not show that you"
            " guessed."
        )
    if p_value > SIGNIFICANT:
        return "You are on the edge: the 95% interval does not hold one half, but the exact test does not reject it."
    if low > 0.5:
        return "You did better than a coin: the 95% interval does not hold one half and lies above it."
    return (
        "You did worse than a coin: the 95% interval does not hold one half and lies below it, so you saw a difference"
        " and took it the wrong way round."
    )
