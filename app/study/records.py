"""Records of rows that have a name of their own: SAEs, variants, metrics, conditions and orders."""

from collections.abc import Sequence
from dataclasses import dataclass

OPERATORS = (">=", "<=", ">", "<", "=")

SCORE_STATES = {
    "pending": "not scored yet",
    "scored": "scored",
    "dead": "dead, so not scored",
    "too_few_contexts": "too few activating contexts to score",
    "too_few_non_activating_contexts": "silent in too few contexts to score it against",
    "failed": "the explainer failed",
    "sae_failed": "its SAE has diverged, or had nothing to learn from",
}
"""What a latent's state of scoring means, in words."""


POOLS = {"strongest": "strongest contexts", "quantiles": "all strengths", "random": "random contexts"}
"""Contexts that explanations are learnt from or scored on, in words."""

COLOURS = 8
"""Colours of variants; static/app.css has one class for each."""


@dataclass(frozen=True)
class Variant:
    """A row of `variants`."""

    variant: str
    position: int
    label: str
    description: str
    is_trained: bool
    seed: int

    @property
    def colour(self) -> str:
        """The class that carries the variant's colour, the same on every page."""
        return f"v{self.position % COLOURS}"

    @property
    def round(self) -> int:
        """How often the colours have come round before it: marks of the rounds 0, 1 and 2 differ."""
        return self.position // COLOURS % 3


@dataclass(frozen=True)
class Metric:
    """A row of `metrics`: what a number means."""

    metric: str
    level: str
    position: int
    label: str
    unit: str
    description: str
    higher_is_better: bool | None
    scale: str
    lower: float | None
    upper: float | None
    scorer: str | None = None
    explain_from: str | None = None
    score_on: str | None = None

    @property
    def is_score(self) -> bool:
        """Whether it says how well an explanation holds."""
        return self.scorer is not None

    @property
    def one_pool(self) -> bool:
        """Whether explanations were learnt and scored on contexts of one kind."""
        return self.is_score and self.explain_from == self.score_on


@dataclass(frozen=True)
class Sae:
    """A row of `saes`."""

    sae: int
    model: str
    hook: str
    name: str
    variant_seed: int
    sae_seed: int
    variant: str
    layer: int
    hook_name: str
    architecture: str
    d_in: int
    d_sae: int
    k: int | None
    seed: int
    training_steps: int
    training_tokens: int
    collected_tokens: int
    normalisation: float
    path: str
    sha256: str


@dataclass(frozen=True)
class Condition:
    """A filter: a column, an operator of `OPERATORS`, a number."""

    column: str
    operator: str
    value: float

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{self.value:g}"


@dataclass(frozen=True)
class Order:
    """A column and a direction."""

    column: str
    descending: bool


@dataclass(frozen=True)
class Selection:
    """Which latents of an SAE a list shows."""

    sae: int
    conditions: Sequence[Condition] = ()
    state: str | None = None
    score_state: str | None = None
    text: str = ""
