"""The stages of a study, each leaving an artefact: what a stage depends on is its key, what it makes is a folder."""

import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sae_lens import SAE

from pipeline import activations, autointerp, codes, collect, losses, match, sae
from pipeline.artefacts import Artefacts, digest, file_sha256, timing
from pipeline.config import Study, hook_name
from pipeline.corpus import Corpus
from pipeline.hardware import Compute
from pipeline.logits import final_gain, logit_effects
from pipeline.metrics import (
    Losses,
    ReconstructionSums,
    ce_loss_recovered,
    densities,
    sae_metrics_table,
    token_identity_r2,
)
from pipeline.models import LoadedModel, bridge
from pipeline.progress import Progress
from pipeline.seeds import derive_seed, torch_generator
from pipeline.variants import VARIANTS, VariantModel, make_variant, tensor_table


@dataclass(frozen=True)
class Context:
    """What all stages share."""

    study: Study
    artefacts: Artefacts
    progress: Progress
    compute: Compute
    loaded: LoadedModel
    corpus: Corpus
    vocabulary: list[str]
    base: dict[str, Any]
    """Key of everything that all stages depend on: versions, precision, seed, weights, tokens."""

    @cached_property
    def flat(self) -> NDArray[np.int32]:
        """The corpus' token ids, flattened."""
        return np.asarray(self.corpus.tokens.flatten().numpy(), dtype=np.int32)


class VariantRun:
    """The stages of one variant. The model is made and run only if an artefact that needs it is missing."""

    def __init__(self, context: Context, name: str) -> None:
        self.context = context
        self.name = name
        self.label = VARIANTS[name].label.lower()
        self.seed = derive_seed(context.study.seed, "variant", name)
        self._base = context.base | {"variant": name, "norms": context.study.norms}

    @cached_property
    def _model(self) -> VariantModel:
        return make_variant(self.context.loaded, self.name, self.context.study.seed, self.context.study.norms)

    def _bridge(self) -> tuple[Any, VariantModel]:
        """The variant for TransformerLens, whose bridge changes the model that it wraps: a later use makes it anew."""
        variant, loaded = self._model, self.context.loaded
        del self._model
        return bridge(LoadedModel(variant.model, loaded.tokenizer, loaded.info)), variant

    def tensors(self) -> Path:
        """Table `tensors`: the hash of every tensor that is run."""

        def build(folder: Path) -> None:
            with self.context.progress.stage("variant", f"{self.label} · making the variant", "tensors"):
                pq.write_table(tensor_table(self.name, self._model.records), folder / "tensors.parquet")

        return self.context.artefacts.make("variant", self._base, build)

    @property
    def _forward_key(self) -> dict[str, Any]:
        study = self.context.study
        return self._base | {"layers": study.layers, "drop_positions": study.corpus.drop_positions}

    def forward(self) -> Path:
        """Activations of all layers, from one pass over the corpus."""
        study, context = self.context.study, self.context

        def build(folder: Path) -> int:
            with context.progress.stage("forward", f"{self.label} · running the model") as advance:
                return activations.run_variant(
                    self._model,
                    context.corpus.tokens,
                    study.layers,
                    study.corpus.drop_positions,
                    self.seed,
                    context.compute,
                    folder,
                    advance,
                )

        return context.artefacts.make("activations", self._forward_key, build, keep_partial=True)

    def forget(self) -> None:
        """Free the memory of the model, and the disk space of the one artefact that is large and of no further use."""
        self.__dict__.pop("_model", None)
        shutil.rmtree(self.context.artefacts.path("activations", self._forward_key), ignore_errors=True)

    def layer(self, layer: int) -> "LayerRun":
        """The stages of one of the variant's layers."""
        return LayerRun(self, layer)

    def losses(self) -> Path:
        """Rows of `sae_metrics` for the variant's SAEs: cross-entropies through each, `<layer>.parquet`."""
        context, study = self.context, self.context.study
        layers = [self.layer(layer) for layer in study.layers]
        key = {"saes": [layer.sae_key for layer in layers], "tokens": study.evaluate_ce_tokens}

        def build(folder: Path) -> None:
            saes = {run.number: (SAE.load_from_disk(run.train()), run.facts()["limit"]) for run in layers}
            with context.progress.stage("losses", f"{self.label} · cross-entropy through the SAEs", "runs") as advance:
                wrapped, variant = self._bridge()
                measured = losses.measure(
                    wrapped,
                    lambda: self._noise(variant),
                    self._loss_sequences(),
                    saes,
                    study.corpus.drop_positions,
                    context.compute,
                    advance,
                )
            for layer, found in measured.items():
                pq.write_table(_loss_metrics(found, VARIANTS[self.name].noise), folder / f"{layer}.parquet")

        return context.artefacts.make("losses", key, build)

    def _noise(self, variant: VariantModel) -> AbstractContextManager[None]:
        generator = torch_generator(self.seed, "noise", "losses")
        return variant.noise.active(generator) if variant.noise else nullcontext()

    def _loss_sequences(self) -> torch.Tensor:
        corpus = self.context.corpus
        held_out = corpus.tokens[corpus.held_out]
        return held_out[: -(-self.context.study.evaluate_ce_tokens // held_out.shape[1])]


def _loss_metrics(found: Losses, sees_noise: bool) -> pa.Table:
    values = {f"ce_{name}": float(losses.double().mean()) for name, losses in found._asdict().items()}
    recovered, reason = ce_loss_recovered(found)
    if sees_noise:
        recovered, reason = None, "the variant sees noise in place of the text: its loss on the text means nothing"
    if recovered is None:
        return sae_metrics_table(values, {"ce_loss_recovered": reason})
    return sae_metrics_table(values | {"ce_loss_recovered": recovered}, {})


class LayerRun:
    """The stages of one layer of a variant."""

    def __init__(self, variant: VariantRun, layer: int) -> None:
        self.variant = variant
        self.context = variant.context
        self.number = layer
        self.label = f"{variant.label} · layer {layer}"
        self.seed = derive_seed(self.context.study.seed, "sae", variant.name, layer)
        self.sae_key = digest(
            variant._forward_key | {"layer": layer, "sae": self.context.study.sae.model_dump(), "seed": self.seed}
        )

    def _activations(self) -> activations.Activations:
        return activations.load(self.variant.forward(), self.number, self.context.study.corpus.drop_positions)

    def _held_out(self, loaded: activations.Activations) -> torch.Tensor:
        corpus = self.context.corpus
        return corpus.held_out[torch.div(loaded.token, corpus.tokens.shape[1], rounding_mode="floor")]

    def train(self) -> Path:
        """The SAE, in SAELens' format, with its training facts in `facts.json`."""

        def build(folder: Path) -> int:
            study = self.context.study
            loaded = self._activations()
            values = loaded.values[~self._held_out(loaded)]
            info = {
                "model_name": self.context.loaded.info.model,
                "hook_name": hook_name(self.number),
                "context_size": study.corpus.context_length,
                "prepend_bos": study.corpus.prepend_bos,
                "lineup_study": study.name,
                "lineup_variant": self.variant.name,
            }
            with self.context.progress.stage("train", f"{self.label} · training the SAE") as advance:
                trained = sae.train(values, study.sae, info, self.seed, self.context.compute, advance)
            facts = trained.save(folder) | {"sha256": file_sha256(folder / "sae_weights.safetensors")}
            facts["forward"] = timing(self.variant.forward())  # whose own folder is deleted when the variant is done
            facts |= {"outliers": loaded.outliers, "limit": loaded.limit, "dropped": loaded.dropped_share}
            (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            return int(facts["training_tokens"])

        if not self.context.artefacts.path("sae", self.sae_key).exists():
            self.variant.forward()  # a stage of its own, with a time of its own
        return self.context.artefacts.make("sae", self.sae_key, build)

    def facts(self) -> dict[str, Any]:
        """What training noted about itself."""
        facts: dict[str, Any] = json.loads((self.train() / "facts.json").read_text(encoding="utf-8"))
        return facts

    @property
    def _latents_key(self) -> dict[str, Any]:
        return {"sae": self.sae_key, "collect": self.context.study.collect.model_dump()}

    def latents(self) -> Path:
        """Sparse activations on the whole corpus, and all tables but explanations, scores and matches."""

        def build(folder: Path) -> int:
            trained = SAE.load_from_disk(self.train(), device=self.context.compute.device)
            loaded = self._activations()
            with self.context.progress.stage("encode", f"{self.label} · encoding the corpus") as advance:
                found = codes.encode(trained, loaded, self.context.flat.size, self.context.compute, advance)
                codes.save(found, folder)
                self._write_metrics(trained, loaded, found, folder)
            self._write_latents(trained, len(loaded.values), found, folder)
            return len(loaded.values)

        return self.context.artefacts.make("latents", self._latents_key, build)

    def _write_metrics(self, trained: Any, loaded: activations.Activations, found: Any, folder: Path) -> None:
        facts = self.facts()
        held_out = self._held_out(loaded)
        values = _reconstruction(trained, loaded, found, held_out)
        ids = torch.from_numpy(self.context.flat)[loaded.token]
        shuffled = ids[~held_out][torch.randperm(int((~held_out).sum()), generator=torch_generator(self.seed, "floor"))]
        split = (loaded.values[~held_out], loaded.values[held_out], ids[held_out])
        values["token_identity_r2"] = token_identity_r2(split[0], ids[~held_out], *split[1:])
        values["token_identity_floor"] = token_identity_r2(split[0], shuffled, *split[1:])
        values |= densities(np.bincount(found.indices, minlength=found.shape[1]), len(loaded.values))
        values |= {name: facts[name] for name in ("dropped", "outliers", "normalisation")}
        pq.write_table(sae_metrics_table(values, {}), folder / "sae_metrics.parquet")

    def _write_latents(self, trained: Any, tokens: int, found: Any, folder: Path) -> None:
        study = self.context.study
        norms = np.array(self.facts()["decoder_norms"])
        model = self.variant._model.model

        def work(fired: collect.Firings, first: int) -> dict[str, pa.Table]:
            seed = derive_seed(self.seed, first)
            where = collect.windows(fired, self.context.flat.size, study.collect.window)
            own = norms[first : first + len(fired.count)]
            tables = {
                "latents": collect.latent_table(fired, self.context.flat, tokens, own, study.collect, seed),
                "contexts": collect.contexts(fired, where, study.collect, study.corpus.context_length, seed),
                "histograms": collect.histograms(fired, study.collect.histogram_bins),
            }
            return {name: pa.table(columns) for name, columns in tables.items()}

        with self.context.progress.stage("tables", f"{self.label} · statistics and contexts", "latents") as advance:
            tables = collect.by_parts(collect.firings(found), work, advance)
            effects = logit_effects(
                trained.W_dec.detach().float().cpu(),
                final_gain(model),
                model.get_output_embeddings().weight.detach(),
                study.collect.logit_tokens,
                self.context.compute,
            )
            for name, table in (tables | {"logit_effects": pa.table(effects)}).items():
                pq.write_table(table, folder / f"{name}.parquet")

    def scores(self) -> Path:
        """Tables `explanations` and `scores`."""
        study, context = self.context.study, self.context

        def work(fired: collect.Firings, first: int) -> dict[str, pa.Table]:
            where = collect.windows(fired, context.flat.size, study.collect.window)
            seed = derive_seed(self.seed, "autointerp", first)
            explanations, scores = autointerp.explain_and_score(
                fired, where, context.flat, context.vocabulary, study.collect, study.autointerp, seed
            )
            return {"explanations": explanations, "scores": scores}

        def build(folder: Path) -> None:
            with context.progress.stage("score", f"{self.label} · explaining and scoring", "latents") as advance:
                tables = collect.by_parts(collect.firings(codes.load(self.latents())), work, advance)
            for name, table in tables.items():
                pq.write_table(table, folder / f"{name}.parquet")

        key = self._latents_key | {"autointerp": study.autointerp.model_dump(), "scorers": list(autointerp.SCORERS)}
        return context.artefacts.make("scores", key, build)

    def matches(self, other: "LayerRun") -> Path:
        """Table `matches` in both directions: `forward.parquet` from this SAE, `backward.parquet` from the other."""
        keep = self.context.study.collect.matches

        def build(folder: Path) -> None:
            with self.context.progress.stage("match", f"{self.label} · matching {other.variant.label}", "latents"):
                correlation = match.correlations(codes.load(self.latents()), codes.load(other.latents()))
                pq.write_table(match.best_matches(correlation, keep), folder / "forward.parquet")
                pq.write_table(match.best_matches(correlation.T, keep), folder / "backward.parquet")

        key = {"saes": [self._latents_key, other._latents_key], "keep": keep}
        return self.context.artefacts.make("matches", key, build)


def _reconstruction(
    trained: Any, loaded: activations.Activations, found: Any, held_out: torch.Tensor
) -> dict[str, float]:
    """Reconstruction metrics on the held-out tokens, from the sparse activations."""
    decoder = trained.W_dec.detach().float().cpu().numpy()
    bias = trained.b_dec.detach().float().cpu()
    sums = ReconstructionSums()
    rows = torch.nonzero(held_out).flatten()
    for part in rows.split(4096):
        picked = found[loaded.token[part].numpy()]
        sums.add(loaded.values[part], torch.from_numpy(picked @ decoder) + bias)
    chosen = found[loaded.token[rows].numpy()]
    return {
        "explained_variance": 1 - sums.fvu,
        "fvu": sums.fvu,
        "cosine_similarity": sums.cosine_similarity,
        "l0": chosen.nnz / len(rows),
        "l1": float(np.abs(chosen.data, dtype=np.float64).sum()) / len(rows),
    }
