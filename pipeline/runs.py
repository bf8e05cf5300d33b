"""What a study consists of: models, draws of variants, SAEs and pairs of these; what each is called and keyed by."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

from pipeline.artefacts import Artefacts, digest
from pipeline.config import Hook, ModelConfig, SaeConfig, Study
from pipeline.models.load import ModelInfo, revision_commit
from pipeline.saes.architectures import seeds_of
from pipeline.saes.pretrained import contents
from pipeline.seeds import derive_seed
from pipeline.variants.table import find_variant


def _named(*parts: object, **indices: object) -> tuple[object, ...]:
    """The name of a generator. An index that is 0, as all were before there were several, adds nothing to it."""
    return (*parts, *(f"{name} {index}" for name, index in indices.items() if index not in (0, "resid_post")))


def draws(study: Study, variant: str) -> int:
    """How often the study draws a variant: one without randomness is there once."""
    return study.variant_seeds if find_variant(variant).random else 1


@dataclass(frozen=True, eq=False)
class ModelRun:
    """A model of the study."""

    study: Study
    config: ModelConfig
    artefacts: Artefacts
    info: ModelInfo
    layers: tuple[int, ...]
    vocabulary: list[str]
    answers: str
    """Which language model is asked about its latents; '' for none."""
    corpus_key: dict[str, Any]
    base: dict[str, Any]
    """What all other stages depend on: versions, precision, seed, weights, tokens."""

    @property
    def model(self) -> "ModelRun":
        """Itself, as a variant has one."""
        return self

    @property
    def label(self) -> str:
        """For people."""
        return self.info.model

    @cached_property
    def variants(self) -> list["VariantRun"]:
        """Its variants, each as often as it is drawn: the trained one, which others are compared with, before these."""
        study = self.study
        names = sorted(study.variants, key=lambda name: not find_variant(name).is_trained)
        return [VariantRun(self, name, draw) for name in names for draw in range(draws(study, name))]


class VariantRun:
    """One draw of a variant."""

    def __init__(self, model: ModelRun, name: str, draw: int = 0) -> None:
        self.model = model
        self.spec = find_variant(name)
        self.name = name
        self.draw = draw
        several = f" {draw + 1}" if draws(model.study, name) > 1 else ""
        self.label = self.spec.label.lower() + several
        seed = model.study.seed
        self.seed = derive_seed(seed, *_named("variant", name, draw=draw))
        self.weights_seed = derive_seed(seed, "draw", draw) if draw else seed
        self.key = model.base | {"variant": name, "draw": draw, "norms": model.study.norms}
        if self.spec.revision and (commit := revision_commit(model.config, self.spec.revision)):
            self.key["commit"] = commit

    @property
    def variant(self) -> "VariantRun":
        """Itself, as an SAE has one."""
        return self

    @property
    def activations_key(self) -> dict[str, Any]:
        """What the activations of its hook points depend on."""
        study = self.model.study
        asked = {"layers": self.model.layers, "hooks": study.hooks, "drop_positions": study.corpus.drop_positions}
        return self.key | asked

    @cached_property
    def saes(self) -> list["SaeRun"]:
        """The SAEs of its hook points, in the order in which they are trained and numbered."""
        study = self.model.study
        return [
            SaeRun(self, hook, layer, config, seed)
            for config in study.saes
            for seed in range(seeds_of(study, config))
            for hook in study.hooks
            for layer in self.model.layers
        ]

    def pairs(self) -> Iterator["SaePair"]:
        """Each of its SAEs with every one of the model that comes before it."""
        before = takewhile(lambda variant: variant is not self, self.model.variants)
        earlier = [sae for variant in before for sae in variant.saes]
        for sae in self.saes:
            yield from (SaePair(sae, other) for other in earlier)
            earlier.append(sae)


class SaeRun:
    """One SAE."""

    def __init__(self, variant: VariantRun, hook: Hook, layer: int, config: SaeConfig, sae_seed: int) -> None:
        self.variant = variant
        self.model = variant.model
        self.hook = hook
        self.layer = layer
        self.config = config
        self.sae_seed = sae_seed
        self.label = " · ".join([variant.label, *self._axes()])
        name = _named("sae", variant.name, layer, hook=hook, draw=variant.draw, sae_seed=sae_seed)
        self.seed = derive_seed(self.model.study.seed, *name)

    def _axes(self) -> Iterator[str]:
        study = self.model.study
        yield f"layer {self.layer}"
        if len(study.hooks) > 1:
            yield self.hook
        if len(study.saes) > 1:
            yield self.config.label
        if seeds_of(study, self.config) > 1:
            yield f"seed {self.sae_seed + 1}"

    @property
    def saes(self) -> tuple["SaeRun"]:
        """Itself, as a variant has several."""
        return (self,)

    @cached_property
    def key(self) -> str:
        """What its weights depend on."""
        point: dict[str, Any] = {"layer": self.layer, "hook": self.hook, "seed": self.seed}
        point["sae"] = self.config.model_dump(exclude={"name"})
        if self.config.source:
            point["contents"] = contents(self.config.source, self.layer)
        return digest(self.variant.activations_key | point)

    @property
    def codes_key(self) -> dict[str, Any]:
        """What its activations on the corpus, and all that follows from them, depend on."""
        key = {"sae": self.key, "collect": self.model.study.collect.model_dump()}
        in_float32 = self.model.base["precision"] == "float32"
        return key if in_float32 else key | {"values": "float32"}  # they were bfloat16 ones once


class SaePair(NamedTuple):
    """Two SAEs of a model, the later one first."""

    sae: SaeRun
    earlier: SaeRun

    @property
    def saes(self) -> tuple[SaeRun, SaeRun]:
        """Both, as a variant has several."""
        return self

    @property
    def model(self) -> ModelRun:
        """The model of both."""
        return self.sae.model

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.sae.label} and {self.earlier.label}"

    @property
    def are_counterparts(self) -> bool:
        """Whether they are SAEs of two variants in the same place: what pages show side by side."""
        places = [(sae.hook, sae.layer, sae.config, sae.sae_seed) for sae in self]
        drawn = {sae.variant.draw for sae in self if sae.variant.spec.random}
        return places[0] == places[1] and self.sae.variant.name != self.earlier.variant.name and len(drawn) <= 1

    @property
    def differ_in_seed_only(self) -> bool:
        """Whether they are two trainings of one SAE."""
        places = [(sae.variant, sae.hook, sae.layer, sae.config) for sae in self]
        return places[0] == places[1] and self.sae.sae_seed != self.earlier.sae_seed

    @property
    def is_of_trained(self) -> bool:
        """Whether a counterpart is the trained variant's."""
        return self.are_counterparts and self.earlier.variant.spec.is_trained


Run: TypeAlias = ModelRun | VariantRun | SaeRun | SaePair
