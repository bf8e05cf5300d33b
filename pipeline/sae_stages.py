"""The stages of one SAE, from its training to its matches: each leaves an artefact, named by what it depends on."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sae_lens import SAE

from pipeline import activations, autointerp
from pipeline.artefacts import digest, timing
from pipeline.config import Hook, SaeConfig, hook_name
from pipeline.latents import codes, collect, match
from pipeline.latents.logits import final_gain, logit_effects
from pipeline.manifest import file_sha256
from pipeline.measures import losses
from pipeline.measures.metrics import (
    NO_VARIANCE,
    OF_MODELS,
    OF_SAES,
    ReconstructionSums,
    densities,
    sae_metrics_table,
    sparsity,
    token_identity_r2,
)
from pipeline.progress import Advance
from pipeline.saes import architectures
from pipeline.saes.base import Further
from pipeline.saes.pretrained import contents
from pipeline.seeds import derive_seed, torch_generator
from pipeline.stages import Context, VariantRun, named

FAILURE = "failure.txt"
"""A file that tells why an SAE is none."""

NO_SAE = "sae_failed"
"""State of the scores of such an SAE's latents."""

UNANSWERED = "unanswered"
"""A file that tells that the language model did not answer some prompts."""


class SaeRun:
    """The stages of one SAE."""

    def __init__(self, variant: VariantRun, hook: Hook, layer: int, config: SaeConfig, sae_seed: int) -> None:
        self.variant = variant
        self.context = variant.context
        self.hook = hook
        self.layer = layer
        self.config = config
        self.sae_seed = sae_seed
        self.label = " · ".join([variant.label, *self._axes()])
        self.seed = derive_seed(
            self.context.study.seed,
            *named("sae", variant.name, layer, hook=hook, draw=variant.draw, sae_seed=sae_seed),
        )
        point: dict[str, Any] = {
            "layer": layer,
            "hook": hook,
            "sae": config.model_dump(exclude={"name"}),
            "seed": self.seed,
        }
        if config.source:
            point["contents"] = contents(config.source, layer)
        self.sae_key = digest(variant.forward_key | point)

    def _axes(self) -> Iterator[str]:
        study = self.context.study
        yield f"layer {self.layer}"
        if len(study.hooks) > 1:
            yield self.hook
        if len(study.saes) > 1:
            yield self.config.label
        if architectures.seeds_of(study, self.config) > 1:
            yield f"seed {self.sae_seed + 1}"

    def beside(self, other: "SaeRun") -> bool:
        """Whether the other is the SAE of another variant in the same place: what pages show side by side."""
        places = [(run.context.info.model, run.hook, run.layer, run.config, run.sae_seed) for run in (self, other)]
        draws = [run.variant.draw for run in (self, other) if run.variant.variant.random]
        return places[0] == places[1] and self.variant.name != other.variant.name and len(set(draws)) <= 1

    def twin(self, other: "SaeRun") -> bool:
        """Whether the other differs in its SAE seed alone."""
        places = [(run.variant, run.hook, run.layer, run.config) for run in (self, other)]
        return places[0] == places[1] and self.sae_seed != other.sae_seed

    def _activations(self) -> activations.Activations:
        drop = self.context.study.corpus.drop_positions
        return activations.load(self.variant.forward(), self.layer, self.hook, drop)

    def _held_out(self, loaded: activations.Activations) -> torch.Tensor:
        corpus = self.context.corpus
        return corpus.held_out[torch.div(loaded.token, corpus.tokens.shape[1], rounding_mode="floor")]

    def train(self) -> Path:
        """The SAE, in SAELens' format, with its training facts in `facts.json`.

        From activations that are no use it is made all the same, without training, and `latents` says why.
        """

        def build(folder: Path) -> int:
            study = self.context.study
            loaded = self._activations()
            noted = {"outliers": loaded.outliers, "limit": loaded.limit, "dropped": loaded.dropped_share}
            values, further = self._training(loaded)
            del loaded  # which may be as much as all that comes now
            info = {
                "model_name": self.context.info.model,
                "hook_name": hook_name(self.layer, self.hook),
                "context_size": study.corpus.context_length,
                "prepend_bos": study.corpus.prepend_bos,
                "lineup_study": study.name,
                "lineup_variant": self.variant.name,
            }
            with self.context.progress.stage("train", f"{self.label} · training the SAE") as advance:
                trained = architectures.train(
                    values, self.config, info, self.seed, self.context.compute, advance, further
                )
            facts = trained.save(folder) | {"sha256": file_sha256(folder / "sae_weights.safetensors")}
            facts["forward"] = timing(self.variant.forward())  # whose own folder is deleted when the variant is done
            facts |= noted
            (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            return int(facts["training_tokens"])

        if not self.context.artefacts.has("sae", self.sae_key):
            self.variant.forward()  # a stage of its own, with a time of its own
        return self.context.artefacts.make("sae", self.sae_key, build)

    def _training(self, loaded: activations.Activations) -> tuple[torch.Tensor, Further | None]:
        """What the SAE trains on: the corpus less the held-out tokens, or, where there are any, the training tokens."""
        sequences, drop = self.context.corpus.training, self.context.study.corpus.drop_positions
        if self._unusable(loaded):
            return loaded.values[:0], None
        if not len(sequences):
            return loaded.values[~self._held_out(loaded)], None
        arguments = (self.layer, self.hook, drop, loaded.limit, self.variant.seed, self.context.compute)

        def pieces(skip: int) -> Iterator[torch.Tensor]:
            return activations.stream(self.variant.model, sequences, *arguments, skip)

        first, tokens = next(pieces(0)), len(sequences) * (sequences.shape[1] - drop)
        return first, Further(tokens - len(first), lambda: pieces(1))

    def facts(self) -> dict[str, Any]:
        """What training noted about itself."""
        facts: dict[str, Any] = json.loads((self.train() / "facts.json").read_text(encoding="utf-8"))
        return facts

    @property
    def _latents_key(self) -> dict[str, Any]:
        key = {"sae": self.sae_key, "collect": self.context.study.collect.model_dump()}
        return key | ({"values": "float32"} if self.context.compute.bfloat16 else {})  # they were bfloat16 ones once

    def latents(self) -> Path:
        """Sparse activations on the whole corpus, and all tables but explanations, scores and matches."""

        def build(folder: Path) -> int:
            trained = SAE.load_from_disk(self.train(), device=self.context.compute.device)
            loaded = self._activations()
            with self.context.progress.stage("encode", f"{self.label} · encoding the corpus") as advance:
                found, failure = self._encoded(trained, loaded, advance)
                codes.save(found, folder)
                cosines = match.largest_cosines(trained.W_dec.detach().cpu()).double()
                self._write_metrics(trained, loaded, found, cosines, failure, folder)
            self._write_latents(trained, len(loaded.values), found, cosines, folder)
            if failure:
                (folder / FAILURE).write_text(failure, encoding="utf-8")
                self.context.progress.note(f"{self.label}: {failure}; its latents and metrics have no values")
            return len(loaded.values)

        return self.context.artefacts.make("latents", self._latents_key, build, sources=[self.train()])

    @property
    def failure(self) -> str:
        """Why this SAE is none: it has diverged, or had nothing to learn from; '' for a good one."""
        file = self.latents() / FAILURE
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def _unusable(self, loaded: activations.Activations) -> str:
        """Why no SAE can be made from these activations; '' when one can."""
        held_out = self._held_out(loaded)
        if loaded.unusable or (held_out.any() and not held_out.all()):
            return loaded.unusable
        return "all training tokens or all held-out tokens are outliers of the norm"

    def _encoded(self, trained: Any, loaded: activations.Activations, advance: Advance) -> tuple[Any, str]:
        """The SAE's activations on the corpus, and why there are none."""
        tokens, failure = self.context.flat.size, self._unusable(loaded)
        if not failure and not all(weights.isfinite().all() for weights in trained.parameters()):
            failure = "the SAE has diverged in training: its weights are no finite numbers"
        if not failure:
            found = codes.encode(trained, loaded, tokens, self.context.compute, advance)
            if np.isfinite(found.data).all():
                return found, ""
            failure = "the SAE has diverged in training: its activations are no finite numbers"
        return codes.none(tokens, trained.cfg.d_sae), failure

    def _write_metrics(
        self,
        trained: Any,
        loaded: activations.Activations,
        found: Any,
        cosines: torch.Tensor,
        failure: str,
        folder: Path,
    ) -> None:
        facts = self.facts()
        held_out = self._held_out(loaded)
        values = {name: facts[name] for name in ("dropped", "outliers", "normalisation")}
        lacking = dict.fromkeys(OF_SAES, failure) if failure else {}
        if unusable := self._unusable(loaded):
            lacking |= dict.fromkeys((*OF_MODELS, "normalisation"), unusable)
        else:
            ids, generator = torch.from_numpy(self.context.flat)[loaded.token], torch_generator(self.seed, "floor")
            shuffled = ids[~held_out][torch.randperm(int((~held_out).sum()), generator=generator)]
            split = (loaded.values[~held_out], loaded.values[held_out], ids[held_out])
            values["token_identity_r2"] = token_identity_r2(split[0], ids[~held_out], *split[1:])
            values["token_identity_floor"] = token_identity_r2(split[0], shuffled, *split[1:])
        if not failure:
            reconstructed, lacking = _reconstruction(trained, loaded, found, held_out, facts["normalisation"])
            values |= reconstructed | densities(
                np.bincount(found.indices, minlength=found.shape[1]), len(loaded.values)
            )
            values["redundancy"] = float(cosines.mean())
        pq.write_table(sae_metrics_table(values, lacking), folder / "sae_metrics.parquet")

    def _write_latents(self, trained: Any, tokens: int, found: Any, cosines: torch.Tensor, folder: Path) -> None:
        study = self.context.study
        norms = np.array(self.facts()["decoder_norms"])
        decoder = trained.W_dec.detach().float().cpu()

        def work(fired: collect.Firings, first: int) -> dict[str, pa.Table]:
            seed = derive_seed(self.seed, first)
            where = collect.windows(fired, self.context.flat.size, study.collect.window)
            own = slice(first, first + len(fired.count))
            statistics = collect.latent_table(fired, self.context.flat, tokens, norms[own], study.collect, seed)
            tables = {
                "latents": statistics | {"largest_cosine": collect.nullable(cosines[own].numpy())},
                "contexts": collect.contexts(fired, where, study.collect, study.corpus.context_length, seed),
                "histograms": collect.histograms(fired, study.collect.histogram_bins),
            }
            return {name: pa.table(columns) for name, columns in tables.items()}

        with self.context.progress.stage("tables", f"{self.label} · statistics and contexts", "latents") as advance:
            tables = collect.by_parts(collect.firings(found), work, advance)
            for name, table in (tables | {"logit_effects": self._logit_effects(decoder)}).items():
                pq.write_table(table, folder / f"{name}.parquet")

    def _logit_effects(self, decoder: torch.Tensor) -> pa.Table:
        model = self.variant.model.model
        keep = self.context.study.collect.logit_tokens
        unembedding = model.get_output_embeddings().weight.detach()
        return pa.table(logit_effects(decoder, final_gain(model), unembedding, keep, self.context.compute))

    def scores(self) -> Path:
        """Tables `explanations` and `scores`."""
        study, context = self.context.study, self.context
        protocol = autointerp.Protocol.of(study.autointerp, study.collect, context.corpus.halves)

        def work(fired: collect.Firings, first: int) -> dict[str, pa.Table]:
            where = collect.windows(fired, context.flat.size, study.collect.window)
            seed = autointerp.part_seed(self.seed, first)
            explanations, scores = autointerp.explain_and_score(
                fired, where, context.flat, context.vocabulary, protocol, study.autointerp, seed
            )
            return {"explanations": explanations, "scores": scores}

        def build(folder: Path) -> None:
            with context.progress.stage("score", f"{self.label} · explaining and scoring", "latents") as advance:
                tables = collect.by_parts(collect.firings(codes.load(self.latents())), work, advance)
            if self.failure:
                place, rows = tables["explanations"].column_names.index("reason"), len(tables["explanations"])
                tables["explanations"] = tables["explanations"].set_column(place, "reason", pa.array([NO_SAE] * rows))
            for name, table in tables.items():
                pq.write_table(table, folder / f"{name}.parquet")

        asked = study.autointerp.model_dump(exclude={"llm", "latents", "explainers", "specifications"})
        key = self._latents_key | {"autointerp": asked}
        return context.artefacts.make("scores", key, build, sources=[self.latents()])

    def sampled_scores(self) -> Path:
        """More rows of both tables: those of a sample of the latents, which a model explains or scores."""
        study, context = self.context.study, self.context

        def build(folder: Path) -> None:
            fired = collect.firings(codes.load(self.latents()))
            explained = pq.read_table(self.scores() / "explanations.parquet")
            protocol = autointerp.Protocol.of(study.autointerp, study.collect, context.corpus.halves)
            config, window = study.autointerp, study.collect.window
            with context.progress.stage("ask", f"{self.label} · explaining and scoring a sample", "prompts") as advance:
                tables = autointerp.explain_and_score_sample(
                    fired, explained, context.flat, context.tools, window, protocol, config, self.seed, advance
                )
            for name, table in zip(("explanations", "scores"), tables, strict=True):
                pq.write_table(table, folder / f"{name}.parquet")
            if client and client.unanswered > before:
                (folder / UNANSWERED).touch()

        client = context.tools.client
        before = client.unanswered if client else 0
        return context.artefacts.make("sampled", self._sampled_key, build, sources=[self.latents(), self.scores()])

    @property
    def _sampled_key(self) -> dict[str, Any]:
        operation = {"concurrency", "requests_per_minute", "tokens_per_minute", "timeout_seconds", "attempts"}
        operation |= {"price_in", "price_out", "max_cost"}
        asked = self.context.study.autointerp.model_dump(exclude={"llm": operation, "specifications": True})
        client = self.context.tools.client
        return self._latents_key | {"autointerp": asked, "answers": client.identity if client else ""}

    def ask_again(self) -> None:
        """Forget the sample's rows if an earlier run got no answer to some prompts: the others' answers are kept."""
        artefacts = self.context.artefacts
        if (artefacts.path("sampled", self._sampled_key) / UNANSWERED).exists():
            artefacts.remove("sampled", self._sampled_key)

    def stability(self, other: "SaeRun") -> Path:
        """Seed stability with an SAE that differs in the seed alone: `stability.json`, null where one is all dead."""

        def build(folder: Path) -> None:
            with self.context.progress.stage("stability", f"{self.label} · stability against another seed", "latents"):
                value = match.seed_stability(*self._alive_decoder(), *other._alive_decoder())
            (folder / "stability.json").write_text(json.dumps(value), encoding="utf-8")

        sources = [run.latents() for run in (self, other)]
        return self.context.artefacts.make("stability", [self._latents_key, other._latents_key], build, sources=sources)

    def _alive_decoder(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoder [d_sae, d_in], and which latents are alive [d_sae]."""
        alive = np.bincount(codes.load(self.latents()).indices, minlength=self.facts()["d_sae"]) > 0
        return SAE.load_from_disk(self.train()).W_dec.detach().float(), torch.from_numpy(alive)

    def matches(self, other: "SaeRun") -> Path:
        """Table `matches` in both directions: `forward.parquet` from this SAE, `backward.parquet` from the other."""
        keep = self.context.study.collect.matches

        def build(folder: Path) -> None:
            with self.context.progress.stage("match", f"{self.label} · matching {other.variant.label}", "latents"):
                correlation = match.correlations(codes.load(self.latents()), codes.load(other.latents()))
                pq.write_table(match.best_matches(correlation, keep), folder / "forward.parquet")
                pq.write_table(match.best_matches(correlation.T, keep), folder / "backward.parquet")

        key = {"saes": [self._latents_key, other._latents_key], "keep": keep}
        return self.context.artefacts.make("matches", key, build, sources=[self.latents(), other.latents()])

    def specifications(self, trained: "SaeRun") -> Path:
        """Tables `specifications` and `specification_curves`: this random SAE against the trained one in its place."""
        study, context = self.context.study, self.context

        def build(folder: Path) -> None:
            ours, theirs = (collect.firings(codes.load(run.latents())) for run in (trained, self))
            label = f"{self.label} · scores under every protocol"
            with context.progress.stage("specifications", label, "latents") as advance:
                words = len(context.vocabulary)
                tables = autointerp.curve(
                    ours, theirs, context.flat, context.corpus.halves, words, study, self.seed, advance
                )
            for name, table in zip(("specifications", "specification_curves"), tables, strict=True):
                pq.write_table(table, folder / f"{name}.parquet")

        config = study.autointerp
        key = {
            "saes": [trained._latents_key, self._latents_key],
            "protocols": [study.curve_windows, study.curve_examples, config.specifications.model_dump()],
            "scorers": config.scorers,
            "shared": [config.min_contexts, config.mark_threshold, study.collect.quantiles, study.collect.window],
        }
        return context.artefacts.make("specifications", key, build, sources=[trained.latents(), self.latents()])


def saes_of(variant: VariantRun) -> Iterator["SaeRun"]:
    """The SAEs of a variant's hook points, in the order in which they are trained and numbered."""
    study = variant.context.study
    for config in study.saes:
        for seed in range(architectures.seeds_of(study, config)):
            for hook in study.hooks:
                yield from (SaeRun(variant, hook, layer, config, seed) for layer in variant.context.layers)


def _reconstruction(
    trained: Any, loaded: activations.Activations, found: Any, held_out: torch.Tensor, normalisation: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Reconstruction metrics on the held-out tokens, from the sparse activations; and why one has no value."""
    sums = ReconstructionSums()
    rows = torch.nonzero(held_out).flatten()
    for part in rows.split(4096):
        x = loaded.values[part]
        sums.add(x, codes.reconstruct(trained, x, found[loaded.token[part].numpy()]))
    norms = trained.W_dec.detach().float().cpu().norm(dim=-1).double().numpy()
    values = sparsity(found[loaded.token[rows].numpy()], norms, normalisation)
    values |= {"explained_variance": 1 - sums.fvu, "fvu": sums.fvu, "cosine_similarity": sums.cosine_similarity}
    lacking = {} if sums.variance > 0 else dict.fromkeys(("explained_variance", "fvu", *OF_MODELS), NO_VARIANCE)
    if sums.relative_bias is None:
        lacking["relative_reconstruction_bias"] = "the reconstruction has no part in the direction of x"
        return values, lacking
    return values | {"relative_reconstruction_bias": sums.relative_bias}, lacking


def measure_losses(saes: Sequence[SaeRun]) -> Path:
    """Losses through the SAEs of one variant: rows of `sae_metrics`, a file an SAE by its place among them."""
    variant = saes[0].variant
    context, study = variant.context, variant.context.study
    key = {"saes": [run.sae_key for run in saes], "tokens": study.evaluate_ce_tokens}

    def build(folder: Path) -> None:
        placed = [
            losses.Placed((run.layer, run.hook), SAE.load_from_disk(run.train()), run.facts()["limit"]) for run in saes
        ]
        with context.progress.stage("losses", f"{variant.label} · losses through the SAEs", "passes") as advance:
            measured = losses.measure(
                variant.model,
                _loss_sequences(context),
                placed,
                study.corpus.drop_positions,
                variant.seed,
                context.compute,
                advance,
            )
        for place, found in enumerate(measured):
            values, lacking = losses.loss_metrics(found, context.info.vocab_size, variant.variant.noise)
            if failure := saes[place].failure:
                lacking |= dict.fromkeys(losses.OF_SAES, failure)
            pq.write_table(sae_metrics_table(values, lacking), folder / f"{place}.parquet")

    return context.artefacts.make("losses", key, build, sources=[run.train() for run in saes])


def _loss_sequences(context: Context) -> torch.Tensor:
    held_out = context.corpus.tokens[context.corpus.held_out]
    return held_out[: -(-context.study.evaluate_ce_tokens // held_out.shape[1])]
