"""The stages of models and variants: what a stage depends on is its artefact's key, what it makes is a folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import activations
from pipeline.artefacts import Artefacts
from pipeline.autointerp import Tools
from pipeline.config import ModelConfig, Study
from pipeline.hardware import Compute
from pipeline.models.load import LoadedModel, ModelInfo, load_revision, revision_commit
from pipeline.progress import Progress
from pipeline.seeds import derive_seed
from pipeline.text.corpus import Corpus
from pipeline.variants.make import VariantModel, make_variant, tensor_table
from pipeline.variants.table import find_variant


@dataclass
class Context:
    """What all stages of one model share."""

    study: Study
    config: ModelConfig
    artefacts: Artefacts
    progress: Progress
    compute: Compute
    info: ModelInfo
    layers: tuple[int, ...]
    corpus: Corpus
    vocabulary: list[str]
    tools: Tools
    """What samples of latents are explained and scored with."""
    base: dict[str, Any]
    """Key of everything that all stages depend on: versions, precision, seed, weights, tokens."""
    _loaded: LoadedModel | None

    @cached_property
    def flat(self) -> NDArray[np.int32]:
        """The corpus' token ids, flattened."""
        return np.asarray(self.corpus.tokens.flatten().numpy(), dtype=np.int32)

    @property
    def loaded(self) -> LoadedModel:
        """The trained model, until it is forgotten."""
        assert self._loaded is not None
        return self._loaded

    def forget(self) -> None:
        """Free the model's memory, when nothing of it is left to run."""
        self._loaded = None


def named(*parts: object, **indices: object) -> tuple[object, ...]:
    """The name of a generator. An index that is 0, as all were before there were several, adds nothing to it."""
    return (*parts, *(f"{name} {index}" for name, index in indices.items() if index not in (0, "resid_post")))


def draws(study: Study, variant: str) -> int:
    """How often the study draws a variant: one without randomness is there once."""
    return study.variant_seeds if find_variant(variant).random else 1


class VariantRun:
    """The stages of one draw of a variant. The model is made and run only if an artefact that needs it is missing."""

    def __init__(self, context: Context, name: str, draw: int = 0) -> None:
        self.context = context
        self.variant = find_variant(name)
        self.name = name
        self.draw = draw
        several = f" {draw + 1}" if draws(context.study, name) > 1 else ""
        self.label = self.variant.label.lower() + several
        seed = context.study.seed
        self.seed = derive_seed(seed, *named("variant", name, draw=draw))
        self._weights_seed = derive_seed(seed, "draw", draw) if draw else seed
        self._base = context.base | {"variant": name, "draw": draw, "norms": context.study.norms}
        if self.variant.revision and (commit := revision_commit(context.config, self.variant.revision)):
            self._base["commit"] = commit

    @cached_property
    def model(self) -> VariantModel:
        """The variant's own model, until it is forgotten."""
        context = self.context
        return make_variant(
            context.loaded,
            self.name,
            self._weights_seed,
            context.study.norms,
            load=lambda revision: load_revision(context.config, revision),
        )

    def tensors(self) -> Path:
        """Table `tensors`: the hash of every tensor that is run."""

        def build(folder: Path) -> None:
            with self.context.progress.stage("variant", f"{self.label} · making the variant", "tensors"):
                pq.write_table(tensor_table(self.name, self.model.records), folder / "tensors.parquet")

        return self.context.artefacts.make("variant", self._base, build)

    @property
    def forward_key(self) -> dict[str, Any]:
        """What the activations depend on."""
        study = self.context.study
        asked = {"layers": self.context.layers, "hooks": study.hooks, "drop_positions": study.corpus.drop_positions}
        return self._base | asked

    def forward(self) -> Path:
        """Activations of all hook points, from one pass over the corpus."""
        study, context = self.context.study, self.context

        def build(folder: Path) -> int:
            with context.progress.stage("forward", f"{self.label} · running the model") as advance:
                return activations.run_variant(
                    self.model,
                    context.corpus.tokens,
                    study.hooks,
                    context.layers,
                    study.corpus.drop_positions,
                    self.seed,
                    context.compute,
                    folder,
                    advance,
                )

        return context.artefacts.make("activations", self.forward_key, build, keep_partial=True)

    def forget(self) -> None:
        """Free the memory of the model, and the disk space of the one artefact that is large and of no further use."""
        self.__dict__.pop("model", None)
        self.context.artefacts.remove("activations", self.forward_key)
