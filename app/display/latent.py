"""A latent with everything a page shows of it, gathered from the tables."""

from dataclasses import dataclass
from typing import Any

from app.display.charts import Figure, activation_histogram, heights
from app.display.contexts import Context, token_ids
from app.errors import PageError, Way
from app.study import queries
from app.study.files import Row
from app.study.records import Sae, Variant
from app.study.study import Study


@dataclass(frozen=True)
class LatentView:
    """A latent: its row of statistics, and what hangs on it."""

    sae: Sae
    variant: Variant
    row: Row
    context_rows: list[Row]
    histogram: Row | None
    explanations: list[Row]
    scores: list[Row]

    @property
    def number(self) -> int:
        """Its index in the SAE."""
        return int(self.row["latent"])

    @property
    def largest(self) -> float:
        """Its largest activation, 0 if it never fires."""
        return float(self.row["max_activation"] or 0.0)

    @property
    def histogram_ends(self) -> tuple[float, float]:
        """The ends of the axes that its histogram needs."""
        return (self.histogram["upper"], max(heights(self.histogram), default=0.0)) if self.histogram else (0.0, 0.0)


def load_latent(study: Study, sae: Sae, number: int, kinds: tuple[str, ...]) -> LatentView:
    """Gather a latent with its contexts of some kinds; raises a 404."""
    reader = study.reader
    row = queries.latent(reader, sae.sae, number)
    if row is None:
        raise _no_latent(study, sae, number)
    return LatentView(
        sae=sae,
        variant=study.variant(sae.variant),
        row=row,
        context_rows=queries.contexts(reader, sae.sae, [number], kinds),
        histogram=queries.histogram(reader, sae.sae, number),
        explanations=queries.explanations(reader, sae.sae, number),
        scores=queries.latent_scores(reader, sae.sae, number),
    )


def _no_latent(study: Study, sae: Sae, number: int) -> PageError:
    label = study.variant(sae.variant).label
    return PageError(
        404,
        "No such latent",
        f"The SAE of “{label}” at layer {sae.layer} has no latent {number}.",
        f"Its latents are 0 to {sae.d_sae - 1:,}.",
        [Way("All studies", "/")],
    )


def texts_for(study: Study, *views: LatentView, more: set[int] | None = None) -> dict[int, str]:
    """The texts of all tokens that some latents' contexts need, and of `more`; the latents are of one model."""
    ids = set(more or ())
    for view in views:
        ids |= token_ids(view.context_rows)
    return queries.token_texts(study.reader, views[0].sae.sae, ids) if views else {}


def histogram_figure(view: LatentView, ends: tuple[float, float] | None = None) -> Figure | None:
    """A latent's histogram, on its own axes or on given ones."""
    if view.histogram is None:
        return None
    x_end, y_end = ends or view.histogram_ends
    return activation_histogram(view.histogram, view.variant.colour, x_end or 1.0, y_end or 1.0)


def groups_of(contexts: list[Context]) -> list[dict[str, Any]]:
    """Contexts by stratum, the strongest first."""
    strata: dict[int, list[Context]] = {}
    for context in contexts:
        strata.setdefault(context.stratum, []).append(context)
    return [{"stratum": stratum, "contexts": strata[stratum]} for stratum in sorted(strata, reverse=True)]
