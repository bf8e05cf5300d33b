"""What one rater is told at the end: their trials in, what they got right, what they missed and a verdict out."""

from collections.abc import Sequence

from app.blind.outcomes import LatentLink, Missed, RaterResult, Share
from app.blind.records import Experiment, Item, Session, Standing
from app.blind.store import LabelStore
from app.blind.votes import gold_of, same_of, share_of, vote_of, votes_of
from app.blind.words import PRACTICE
from app.stats import binomial_test

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
        missed=tuple(_missed(experiment, row, latents) for row in rows if _is_missed(row)),
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


def _is_missed(row: Standing) -> bool:
    vote = vote_of(row)
    return vote is not None and not vote.correct


def _missed(experiment: Experiment, row: Standing, latents: dict[int, Item]) -> Missed:
    assert row.answer is not None
    shown = [latents[item] for item in (row.left, row.right) if item is not None]
    return Missed(row.position, row.truth, row.answer, tuple(_link(experiment, item) for item in shown))


def _link(experiment: Experiment, item: Item) -> LatentLink:
    trained = item.variant not in experiment.design.variants
    return LatentLink(experiment.design.study, item.variant, item.layer, item.latent, trained)


def verdict(share: Share, p_value: float) -> str:
    """One sentence: whether Wilson's 95% interval holds one half, and whether the exact test says the same."""
    low, high = share.wilson.low, share.wilson.high
    if not share.n:
        return "You labelled none of the trials that count, so there is nothing to say."
    if low <= 0.5 <= high:
        return (
            "You could not be told from a coin: the 95% interval holds one half, which does not show that you guessed."
        )
    if p_value > SIGNIFICANT:
        return "You are on the edge: the 95% interval does not hold one half, but the exact test does not reject it."
    if low > 0.5:
        return "You did better than a coin: the 95% interval does not hold one half and lies above it."
    return (
        "You did worse than a coin: the 95% interval does not hold one half and lies below it, so you saw a difference"
        " and took it the wrong way round."
    )
