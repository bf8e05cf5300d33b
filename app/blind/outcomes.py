"""What blind labels come to, as plain records: pages, the JSON API and the method paragraph all read these."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.blind.design import Form, Truth
from app.blind.sessions import Rater
from core.resampling import Agreement
from core.stats import Equivalence, Estimate, Interval

Who: TypeAlias = Literal["people", "programs"]
Property: TypeAlias = Literal["layer", "variant", "density"]
Valid: TypeAlias = Literal["fixed", "anytime"]
"""Which intervals and tests may be read now: those of a number of labels fixed beforehand, or those of any moment."""
State: TypeAlias = Literal["not started", "under way", "counted", "practice", "program", "excluded"]
"""Where a rater stands: only what 'counted' ones labelled is analysed. A 'program' keeps the rules, beside people."""


@dataclass(frozen=True)
class Share:
    """Right answers of `n`; both 95% intervals, and the one of them that is valid now. `value` is None without any."""

    correct: int
    n: int
    value: float | None
    wilson: Interval
    anytime: Interval
    interval: Interval


@dataclass(frozen=True)
class Tally:
    """How many of `n`; `value` is the share, None of none."""

    count: int
    n: int
    value: float | None


@dataclass(frozen=True)
class Estimated:
    """A value with its 95% interval, or None and the reason."""

    estimate: Estimate | None
    reason: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """d′ and, in the form 'single', the criterion (below 0 favours "trained"), in standard deviations; or why not."""

    d_prime: float | None
    criterion: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class RaterOutcome:
    """One rater: `done` and `total` count all trials, `labelled` and `skipped` main ones, `same` repeats alike.

    `median_seconds` is of main labels, from first paint, less the time with the tab hidden. `why` says in words what
    the state comes from, where that is not plain; `notes` what else a reader should know.
    """

    pseudonym: str
    kind: Rater
    done: int
    total: int
    labelled: int
    skipped: int
    left_early: bool
    share: Share
    median_seconds: float | None
    gold: Tally
    same: Tally
    state: State
    why: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RocPoint:
    """A point of the ROC: shares of random ones called trained and of trained ones called trained."""

    false_alarms: float
    hits: float


@dataclass(frozen=True)
class Answers:
    """How often each of the answers 1 to 6 was given to trials of this truth."""

    truth: Truth
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Overall:
    """All analysed labels together.

    `p_value` and `equivalence` are exact tests, valid like Wilson's interval; `anytime_p` is valid like the anytime
    one. All of them take labels as independent; `crossed`, from the bootstrap over raters and pairs, does not.
    """

    who: Who
    raters: int
    share: Share
    p_value: float
    equivalence: Equivalence
    anytime_p: float
    valid: Valid
    crossed: Estimated
    sensitivity: Sensitivity
    auroc: Estimated
    roc: tuple[RocPoint, ...]
    answers: tuple[Answers, Answers]


@dataclass(frozen=True)
class Part:
    """The analysed labels of one layer, variant or range of densities."""

    label: str
    share: Share


@dataclass(frozen=True)
class Breakdown:
    """The analysed labels in parts by one property."""

    by: Property
    parts: tuple[Part, ...]
    exploratory: bool


@dataclass(frozen=True)
class Skips:
    """How many main trials were skipped for a reason."""

    reason: str
    n: int


@dataclass(frozen=True)
class MetricOutcome:
    """How well one statistic tells the analysed latents apart; an AUROC below one half: random ones have larger values.

    `distance` is from one half; `trained` and `random` count latents that have a value; None comes with a reason.
    """

    name: str
    auroc: Estimate | None
    distance: float | None
    trained: int
    random: int
    reason: str = ""


@dataclass(frozen=True)
class Results:
    """The results of an experiment, `final` once it is closed; all but `raters` is about counted ones.

    `pool` counts the matched pairs that trials were drawn from, `pairs` those among the analysed labels.
    """

    form: Form
    final: bool
    pool: int
    pairs: int
    overall: Overall
    raters: tuple[RaterOutcome, ...]
    breakdowns: tuple[Breakdown, ...]
    same: Tally
    alpha_nominal: Agreement
    alpha_ordinal: Agreement
    skips: tuple[Skips, ...]
    metrics: tuple[MetricOutcome, ...]
    logistic: MetricOutcome
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LatentLink:
    """Where a latent is to be found in the browser, and whether it is trained."""

    study: str
    variant: str
    layer: int
    latent: int
    trained: bool


@dataclass(frozen=True)
class Missed:
    """A trial that was answered wrongly; `latents` has the left one first, `position` counts from 0."""

    position: int
    truth: Truth
    answer: int
    latents: tuple[LatentLink, ...]


@dataclass(frozen=True)
class RaterResult:
    """What one rater is told at the end, about their main trials; `p_value` is of the exact test against one half.

    `practice` is empty for a session that counts, and says otherwise why it does not.
    """

    pseudonym: str
    share: Share
    p_value: float
    skipped: int
    missed: tuple[Missed, ...]
    gold: Tally
    same: Tally
    verdict: str
    practice: str
