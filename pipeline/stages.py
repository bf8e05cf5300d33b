"""The table `STAGES`: every stage of a study, what it needs, is keyed by and writes; and the tasks that follow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pipeline import builds
from pipeline.autointerp import has_curve, needs_sample
from pipeline.builds import Work
from pipeline.runs import ModelRun, Run, SaePair, SaeRun, VariantRun

Scope = Literal["study", "model", "variant", "sae", "pair"]


@dataclass(frozen=True, eq=False)
class Stage:
    """A row of `STAGES`."""

    name: str
    """Everywhere: of its artefacts' folders, in the progress, the timings, the plan, on the pages."""
    label: str
    """What it does, for people."""
    unit: str
    """What its progress counts."""
    scope: Scope
    """What it is made once for."""
    needs: tuple[str, ...] = ()
    """Stages whose folders it reads: those of its run's own model or variant, or of all of its SAEs."""
    key: Callable[[Any], Any] = lambda _: None
    """All that decides what it writes, from its run: anything JSON can hold."""
    build: Callable[[Any, Work], int | None] | None = None
    """Fills its folder; may give the number of tokens. None: it leaves no artefact."""
    has: Callable[[Any], bool] = lambda _: True
    """Whether a run has this stage at all."""
    kept: bool = True
    """Whether its artefact stays; if not, it is made where something that needs it is missing, and deleted after."""
    keep_partial: bool = False
    """Whether what a killed run left of it is gone on with."""
    unfinished: str = ""
    """A file in its folder that tells that the next run should make it again."""


def _scores_key(sae: SaeRun) -> dict[str, Any]:
    asked = sae.model.study.autointerp.model_dump(exclude={"llm", "latents", "explainers", "specifications"})
    return sae.codes_key | {"autointerp": asked}


def _sampled_key(sae: SaeRun) -> dict[str, Any]:
    operation = {"concurrency", "requests_per_minute", "tokens_per_minute", "timeout_seconds", "attempts"}
    operation |= {"price_in", "price_out", "max_cost"}
    asked = sae.model.study.autointerp.model_dump(exclude={"llm": operation, "specifications": True})
    return sae.codes_key | {"autointerp": asked, "answers": sae.model.answers}


def _losses_key(variant: VariantRun) -> dict[str, Any]:
    return {"saes": [sae.key for sae in variant.saes], "tokens": variant.model.study.evaluate_ce_tokens}


def _matches_key(pair: SaePair) -> dict[str, Any]:
    return {"saes": [sae.codes_key for sae in pair], "keep": pair.model.study.collect.matches}


def _specifications_key(pair: SaePair) -> dict[str, Any]:
    study = pair.model.study
    config = study.autointerp
    return {
        "saes": [pair.earlier.codes_key, pair.sae.codes_key],
        "protocols": [study.curve_windows, study.curve_examples, config.specifications.model_dump()],
        "scorers": config.scorers,
        "shared": [config.min_contexts, config.mark_threshold, study.collect.quantiles, study.collect.window],
    }


def _is_matched(pair: SaePair) -> bool:
    return pair.are_counterparts if pair.model.study.collect.match == "all" else pair.is_of_trained


_ROWS = (
    Stage("model", "loading the model", "models", "model"),
    Stage("corpus", "tokenising the corpus", "tokens", "model", (), attrgetter("corpus_key"), builds.write_corpus),
    Stage("variant", "making the variant", "tensors", "variant", (), attrgetter("key"), builds.write_variant),
    Stage("activations", "running the model", "tokens", "variant", ("corpus", "variant"),
          attrgetter("activations_key"), builds.write_activations, kept=False, keep_partial=True),
    Stage("sae", "training the SAE", "tokens", "sae", ("activations",), attrgetter("key"), builds.write_sae),
    Stage("codes", "encoding the corpus", "tokens", "sae", ("activations", "sae"),
          attrgetter("codes_key"), builds.write_codes),
    Stage("latents", "statistics, contexts, logit effects", "latents", "sae", ("sae", "codes"),
          attrgetter("codes_key"), builds.write_latents),
    Stage("scores", "explaining and scoring", "latents", "sae", ("codes",), _scores_key, builds.write_scores),
    Stage("sampled", "explaining and scoring a sample", "prompts", "sae", ("codes", "scores"),
          _sampled_key, builds.write_sampled, lambda sae: needs_sample(sae.model.study.autointerp),
          unfinished=builds.UNANSWERED),
    Stage("losses", "losses through the SAEs", "passes", "variant", ("sae", "codes"),
          _losses_key, builds.write_losses),
    Stage("matches", "matching latents", "latents", "pair", ("codes",),
          _matches_key, builds.write_matches, _is_matched),
    Stage("specifications", "scores under every protocol", "latents", "pair", ("codes",),
          _specifications_key, builds.write_specifications,
          lambda pair: pair.is_of_trained and has_curve(pair.model.study.autointerp)),
    Stage("stability", "matching two seeds", "latents", "pair", ("sae", "codes"),
          lambda pair: [pair.earlier.codes_key, pair.sae.codes_key], builds.write_stability,
          attrgetter("differ_in_seed_only")),
    Stage("database", "writing the database", "statistics", "study"),
)  # fmt: skip

STAGES: dict[str, Stage] = {row.name: row for row in _ROWS}
"""All stages by their names, each after those that it needs. A new one is a function in `builds` and a row."""


@dataclass(frozen=True)
class Task:
    """A stage of one run: what an executor makes."""

    stage: Stage
    run: Any
    """A `Run` of the stage's scope."""

    @property
    def key(self) -> Any:
        """All that decides what it becomes."""
        return self.stage.key(self.run)

    @property
    def path(self) -> Path:
        """Where its artefact is, or will be."""
        path: Path = self.run.model.artefacts.path(self.stage.name, self.key)
        return path

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.run.label} · {self.stage.label}"

    @property
    def needs(self) -> list["Task"]:
        """What has to be there before."""
        stages = [STAGES[name] for name in self.stage.needs]
        return [Task(stage, run) for stage in stages for run in _around(self.run, stage.scope)]


def _around(run: Any, scope: Scope) -> Iterable[Run]:
    """The runs of a scope that a run belongs to, or that belong to it."""
    match scope:
        case "model":
            return [run.model]
        case "variant":
            return [run.variant]
        case _:
            return [*run.saes]


def _below(variant: VariantRun, scope: Scope) -> Iterable[Run]:
    match scope:
        case "variant":
            return [variant]
        case "sae":
            return variant.saes
        case _:
            return variant.pairs()


def tasks_of(model: ModelRun) -> list[Task]:
    """All that is to be made of a model, variant by variant and SAE by SAE, everything after what it needs."""
    tasks = [Task(STAGES["corpus"], model)]
    below = [stage for stage in STAGES.values() if stage.scope not in ("study", "model")]
    for variant in model.variants:
        for scope, group in groupby(below, lambda stage: stage.scope):
            stages = list(group)
            tasks += [Task(stage, run) for run in _below(variant, scope) for stage in stages if stage.has(run)]
    return tasks
