"""The design of an experiment, fixed before the first label, and the words in which raters are asked and told."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.study.study import Study

Form: TypeAlias = Literal["single", "pair"]
"""One latent, "trained or random?"; or two side by side, "which one is trained?"."""

Practice: TypeAlias = Literal["again", "known"]
"""Why a whole session is practice: its browser or program has had one here, or knows too many of the latents."""

FEWEST_GOLD = 3
"""Gold trials that a rater must have answered before the rule about them applies: fewer say too little."""

MOST_GOLD = 0.2
"""Gold trials as a share of the main ones, at most."""

NonEmpty: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]


class DesignError(ValueError):
    """An experiment that cannot be made: one sentence or two that say why and what to do."""


@dataclass(frozen=True)
class Counts:
    """Trials of one rater, by kind."""

    practice: int
    main: int
    repeats: int
    gold: int

    @property
    def total(self) -> int:
        """All trials of a rater."""
        return self.practice + self.main + self.repeats + self.gold


class Design(BaseModel):
    """The design of a blind experiment."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, str_strip_whitespace=True
    )

    title: Annotated[str, Field(min_length=1, max_length=120)]
    """What raters and the organiser see as the experiment's name; characters."""
    study: Annotated[str, Field(min_length=1, max_length=1000)]
    """Name of the study, as in its address: with `?model=…` and the like for another setting than its first."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=200)]
    """Layers whose latents are shown, as numbered in the study."""
    variants: Annotated[tuple[NonEmpty, ...], Field(min_length=1, max_length=50)]
    """Random variants that are set against the trained one."""
    form: Form
    """'single': one latent, trained or random? 'pair': two side by side, which one is trained?"""
    trials: Annotated[int, Field(ge=10, le=2000, multiple_of=2)] = 60
    """Main trials of a rater; half of them are trained (or have the trained one on the left)."""
    tier: Annotated[int, Field(ge=1, le=4)] = 1
    """Evidence shown: 1 contexts, 2 and a scaled histogram, 3 and logit tokens as texts, 4 everything."""
    feedback: Literal["end", "none"] = "end"
    """Whether raters see their own result when they have finished."""
    practice: Annotated[int, Field(ge=0, le=20)] = 6
    """Trials before the main ones, of latents of their own, each with the truth shown after the answer."""
    repeats: Annotated[float, Field(ge=0, le=0.2)] = 0.07
    """Main trials that are shown a second time, as a share of `trials`."""
    gold: Annotated[float, Field(ge=0, le=MOST_GOLD)] = 0.05
    """Trials with contexts shuffled token by token, as a share of `trials`; they come on top."""
    contexts: Annotated[int, Field(ge=3, le=20)] = 8
    """Contexts shown of a latent; latents with fewer distinct ones are not drawn."""
    pool: Annotated[int, Field(ge=1, le=20000)] | None = None
    """Distinct matched pairs that raters' trials are drawn from; None: twice what a rater needs, if there are."""
    margin: Annotated[float, Field(ge=0.01, le=0.3)] = 0.05
    """Margin of the equivalence test: distance of the accuracy from one half, as a share of trials."""
    min_answered: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the main trials that a rater must have labelled to be counted; one label is the least."""
    min_gold: Annotated[float, Field(ge=0, le=1)] | None = 0.6
    """Share of gold trials that a rater must get right to be counted; None counts everybody."""
    min_seconds: Annotated[float, Field(ge=0, le=60)] = 1.5
    """People whose median answer takes fewer seconds are not counted; programs may be fast."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the pool and the order of contexts; every rater's session has a seed of its own."""

    @field_validator("layers", "variants")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(map(str, value))} names one twice; name each once")
        return value

    @model_validator(mode="after")
    def _enough(self) -> "Design":
        if self.pool is not None and self.pool < self.rater_pairs:
            raise ValueError(
                f"pool is {self.pool}, but one rater needs {self.rater_pairs} pairs; ask for at least as many, or for"
                " fewer trials"
            )
        return self

    @property
    def counts(self) -> Counts:
        """Planned trials of a rater; a share above 0 gives at least one trial."""
        return Counts(self.practice, self.trials, _share(self.repeats, self.trials), _share(self.gold, self.trials))

    @property
    def least_labels(self) -> int:
        """Main trials that a rater must have labelled to be counted."""
        return max(1, math.ceil(self.min_answered * self.trials))

    @property
    def note(self) -> str:
        """What whoever makes the experiment should know: that the rule about gold trials cannot apply; or nothing."""
        return gold_note(self.trials, self.gold) if self.min_gold is not None else ""

    @property
    def rater_pairs(self) -> int:
        """Matched pairs that the main and gold trials of one rater use up."""
        return (self.trials if self.form == "pair" else self.trials // 2) + self.counts.gold

    @property
    def practice_pairs(self) -> int:
        """Matched pairs that practice uses up; the same ones for all raters."""
        return self.practice if self.form == "pair" else math.ceil(self.practice / 2)


@dataclass(frozen=True)
class Experiment:
    """A design as it is kept; `study` is `app.blind.evidence.identity` of the study when the experiment was made."""

    experiment: str
    title: str
    design: Design
    study: Mapping[str, Any]
    invite: str
    created_at: datetime
    frozen_at: datetime | None
    closed_at: datetime | None


def _share(share: float, trials: int) -> int:
    return max(1, round(share * trials)) if share else 0


def gold_note(trials: int, gold: float) -> str:
    """What it takes where so few gold trials leave nobody out; empty where the rule about them can apply."""
    there = _share(gold, trials)
    if there >= FEWEST_GOLD:
        return ""
    share = math.ceil(100 * FEWEST_GOLD / trials) / 100
    more = next((n for n in range(10, 2001, 2) if _share(gold, n) >= FEWEST_GOLD), None)
    ways = [f"a share of {share:g}"] * (share <= MOST_GOLD) + [f"{more} trials"] * (more is not None)
    return (
        f"The rule about gold trials can leave nobody out: it needs {FEWEST_GOLD} of them, and a rater has {there}."
        f" It takes {' or '.join(ways) or f'16 trials and a share of {MOST_GOLD:g}'}."
    )


def read_design(values: Mapping[str, Any]) -> Design:
    """Check values from a form or from JSON; raises DesignError that names the field, the value and what it may be."""
    try:
        return Design.model_validate(values)
    except ValidationError as error:
        raise DesignError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ").replace("Input should", "it should").rstrip(".")
    if first["type"] == "missing":
        return f"{name} is missing."
    if first["type"] == "extra_forbidden":
        return f"Unknown key '{name}'. Known: {', '.join(Design.model_fields)}."
    return f"{name} is {str(first['input'])[:80]!r}: {said}." if name else f"{said}."


Kind: TypeAlias = Literal["practice", "main", "repeat", "gold"]


Truth: TypeAlias = Literal["trained", "random", "left", "right"]


REASONS = (
    "I cannot read this language or script",
    "I know this latent from elsewhere",
    "I pressed by mistake",
    "other",
)
"""Why a trial is skipped."""

BREAK_AFTER = 50
"""Trials between two offers of a break."""


@dataclass(frozen=True)
class Question:
    """What a form asks; `answers` are those from 1 to 6."""

    text: str
    answers: tuple[str, str, str, str, str, str]
    low: str
    high: str


QUESTIONS: dict[Form, Question] = {
    "single": Question(
        "Was this latent found in a trained transformer, or in a randomised one?",
        ("surely random", "probably random", "perhaps random", "perhaps trained", "probably trained", "surely trained"),
        "random",
        "trained",
    ),
    "pair": Question(
        "One of these latents was found in a trained transformer, the other in a randomised one. Which is the trained"
        " one?",
        ("surely left", "probably left", "perhaps left", "perhaps right", "probably right", "surely right"),
        "left",
        "right",
    ),
}

TRUTHS: dict[Truth, str] = {
    "trained": "It is from the trained transformer.",
    "random": "It is from a randomised transformer.",
    "left": "The left one is from the trained transformer.",
    "right": "The right one is from the trained transformer.",
}

PRACTICE: dict[Practice, str] = {
    "again": "practice, and not counted: only the first session is, because whoever has been told the truth about"
    " latents remembers it.",
    "known": "practice, and not counted: you have met too many of its latents in another experiment, and whoever has"
    " been told the truth about latents remembers it.",
}
"""What a session is that does not count, and why, to whoever is in it."""

RUBRIC = (
    "A latent is one direction that a sparse autoencoder found in a transformer's activations. You see the texts on"
    " which it was most active. The stronger a token's colour, the more active the latent was on it, on its own scale.",
    "A latent of a trained transformer may follow a meaning, a grammatical role, a style, a place in the text, or one"
    " word. A latent of a randomised transformer can only follow what survives random weights.",
    "Ask: is there one thing that all coloured tokens share? Does it need the words around them to be seen? Would a"
    " transformer that never learnt anything have it too?",
    "In a few trials the text is shuffled word by word, so that nothing can be read: that counts as random.",
    "Answer with your first considered impression. There is no penalty for doubt: say how sure you are.",
)
"""Written instructions, in paragraphs. They say what can be told apart, not how the study's latents do differ."""


def right(form: Form, truth: Truth, answer: int) -> bool:
    """Whether an answer from 1 to 6 is on the side of the truth."""
    question = QUESTIONS[form]
    return (question.high if answer >= 4 else question.low) == truth


QUICK_TRIALS = 40
"""What the form begins with: one person is through in some four minutes."""


Values = dict[str, Any]


def standard(study: Study) -> Values:
    """What an experiment is when nothing else is said: all layers, the first random variant, one latent at a time."""
    random = [variant.variant for variant in study.variants if not variant.is_trained]
    return {"title": "Trained or random?", "form": "single", "layers": study.layers, "variants": random[:1]}
