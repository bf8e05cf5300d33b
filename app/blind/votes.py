"""From rows of the store to votes and tallies: which trials are analysed, which answers are right."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from app.blind.design import FEWEST_GOLD, Design
from app.blind.draw import Truth
from app.blind.outcomes import RaterOutcome, Share, State, Tally
from app.blind.records import Practice, Standing
from app.blind.words import right
from app.sequential import confidence_sequence
from app.stats import wilson

UNTIMED = "No times: this browser ran no scripts, so the rule about haste cannot be applied."
WHY_PRACTICE: dict[Practice, str] = {
    "again": "a later session of the same browser or program, which has been told the truth",
    "known": "too few of the latents were new to this browser or program",
}
"""Why a session is practice, to the organiser."""


@dataclass(frozen=True)
class Vote:
    """A label that is analysed; `positive` is whether the truth is 'trained' or 'right', `answer` the score for it."""

    rater: str
    pair: int
    left: int
    right: int | None
    layer: int
    variant: str
    density: float
    positive: bool
    answer: int
    correct: bool


def is_positive(truth: Truth) -> bool:
    """Whether the upper three answers are right."""
    return truth in ("trained", "right")


def share_of(right: Iterable[bool], final: bool) -> Share:
    """Right answers and both intervals; the valid one is Wilson's when `final`, else the anytime one."""
    answers = list(right)
    correct, n = sum(answers), len(answers)
    fixed, anytime = wilson(correct, n), confidence_sequence(correct, n)
    return Share(correct, n, correct / n if n else None, fixed, anytime, fixed if final else anytime)


def tally(outcomes: Iterable[bool]) -> Tally:
    """How many are true."""
    values = list(outcomes)
    return Tally(sum(values), len(values), sum(values) / len(values) if values else None)


def vote_of(row: Standing) -> Vote | None:
    """The vote that a row is: a label of a main trial; None for everything else."""
    if row.kind != "main" or row.answer is None:
        return None
    return Vote(
        rater=row.session,
        pair=row.pair,
        left=row.left,
        right=row.right,
        layer=row.layer,
        variant=row.variant,
        density=row.density,
        positive=is_positive(row.truth),
        answer=row.answer,
        correct=right(row.form, row.truth, row.answer),
    )


def votes_of(rows: Iterable[Standing]) -> list[Vote]:
    """All votes among the rows."""
    return [vote for vote in map(vote_of, rows) if vote is not None]


def gold_of(rows: Iterable[Standing]) -> Tally:
    """Gold trials that were labelled, and how many of them rightly."""
    return tally(
        right(row.form, row.truth, row.answer) for row in rows if row.kind == "gold" and row.answer is not None
    )


def same_of(rows: Sequence[Standing]) -> Tally:
    """Repeats labelled on the same side as the first time; two latents are shown with their sides swapped."""
    first = {row.position: row.answer for row in rows}
    outcomes = []
    for row in rows:
        before = None if row.repeats is None else first.get(row.repeats)
        if row.answer is not None and before is not None:
            again = row.answer if row.form == "single" else 7 - row.answer
            outcomes.append((again >= 4) == (before >= 4))
    return tally(outcomes)


def rater_outcome(rows: Sequence[Standing], design: Design, final: bool) -> RaterOutcome:
    """One rater's row, from all trials of the session."""
    first, main = rows[0], [row for row in rows if row.kind == "main"]
    votes, gold, seconds = votes_of(rows), gold_of(rows), _median_seconds(main)
    done = sum(row.event is not None for row in rows)
    broken = _broken_rules(design, len(votes), gold, seconds if first.rater == "person" else None)
    state, why = _state(first, done, final, design.least_labels - len(votes), "; ".join(broken))
    return RaterOutcome(
        pseudonym=first.pseudonym,
        kind=first.rater,
        done=done,
        total=len(rows),
        labelled=len(votes),
        skipped=sum(row.event == "skip" for row in main),
        left_early=first.left_early,
        share=share_of((vote.correct for vote in votes), final),
        median_seconds=seconds,
        gold=gold,
        same=same_of(rows),
        state=state,
        why=why,
        notes=tuple(_notes(first, votes, seconds, done, len(rows))),
    )


def _state(first: Standing, done: int, final: bool, missing: int, broken: str) -> tuple[State, str]:
    """Where a rater stands and why; `missing` labels are needed still, `broken` says which rules are not kept."""
    if first.practice:
        return "practice", WHY_PRACTICE[first.practice]
    if not done:
        return "not started", ""
    if missing > 0 and first.finished_at is None and not final:
        return "under way", f"counted from {missing} more {'label' if missing == 1 else 'labels'} on"
    return ("excluded", broken) if broken else ("counted", "")


def _notes(first: Standing, votes: Sequence[Vote], seconds: float | None, done: int, total: int) -> Iterator[str]:
    if first.left_early:
        yield f"Left early, after {done} of {total} trials; what was given is kept."
    if first.rater == "person" and votes and seconds is None:
        yield UNTIMED


def _median_seconds(rows: Iterable[Standing]) -> float | None:
    taken = [
        max(0.0, row.seconds - (row.hidden_seconds or 0.0))
        for row in rows
        if row.event == "label" and row.seconds is not None
    ]
    return median(taken) if taken else None


def _broken_rules(design: Design, labelled: int, gold: Tally, seconds: float | None) -> list[str]:
    """Which of the rules fixed beforehand leave the rater out; `seconds` is None for programs, which may be fast."""
    reasons = []
    if labelled < design.least_labels:
        reasons.append(f"{labelled} of {design.trials} main trials labelled, fewer than {design.least_labels}")
    if design.min_gold is not None and gold.n >= FEWEST_GOLD and gold.count / gold.n < design.min_gold:
        reasons.append(f"{gold.count} of {gold.n} gold trials right, fewer than {design.min_gold:.0%}")
    if seconds is not None and seconds < design.min_seconds:
        reasons.append(f"median answer after {seconds:.3g} s, sooner than {design.min_seconds:g} s")
    return reasons
