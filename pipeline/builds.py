"""What every stage writes: each function reads the folders that its stage needs, computes, and fills one folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sae_lens import SAE

from pipeline import activations, autointerp
from pipeline.artefacts import timing
from pipeline.autointerp import Tools
from pipeline.config import hook_name
from pipeline.hardware import Compute
from pipeline.latents import codes, collect, match
from pipeline.latents.logits import final_gain, logit_effects
from pipeline.manifest import file_sha256
from pipeline.measures import losses, reconstruction
from pipeline.measures.metrics import sae_metrics_table
from pipeline.models.load import LoadedModel, load_revision
from pipeline.progress import Advance
from pipeline.runs import ModelRun, SaePair, SaeRun, VariantRun
from pipeline.saes import architectures
from pipeline.saes.base import Further
from pipeline.text.corpus import Corpus, build_corpus
from pipeline.variants.make import VariantModel, make_variant, tensor_table

FAILURE = "failure.txt"
"""A file beside codes that tells why the SAE is none."""

NO_SAE = "sae_failed"
"""State of the scores of such an SAE's latents."""

UNANSWERED = "unanswered"
"""A file that tells that the language model did not answer some prompts."""


@dataclass
class Bench:
    """What the stages of one model are made with, in this process: the machine, the model, its text, and tools."""

    compute: Compute
    loaded: LoadedModel
    tools: Tools
    """What samples of latents are explained and scored with."""
    say: Callable[[str], None]
    corpus: Corpus = field(init=False)
    """Is put here when it is made."""
    _variant: tuple[VariantRun, VariantModel] | None = None

    @cached_property
    def flat(self) -> NDArray[np.int32]:
        """The corpus' token ids, flattened."""
        return np.asarray(self.corpus.tokens.flatten().numpy(), dtype=np.int32)

    def variant(self, run: VariantRun) -> VariantModel:
        """The variant's own model, made when it is first asked for and kept until another one is: one at a time."""
        if self._variant is None or self._variant[0] is not run:
            self._variant = None
            study, config = run.model.study, run.model.config
            made = make_variant(
                self.loaded, run.name, run.weights_seed, study.norms, lambda revision: load_revision(config, revision)
            )
            self._variant = run, made
        return self._variant[1]


class Work(NamedTuple):
    """What one folder is made from and with."""

    made: Mapping[str, Sequence[Path]]
    """Folders of the stages that this one needs, by their names, in the order of their runs."""
    bench: Bench
    folder: Path
    """What is to be filled."""
    advance: Advance

    def only(self, stage: str) -> Path:
        """The folder of a stage that there is one of."""
        (folder,) = self.made[stage]
        return folder

    def write(self, tables: Mapping[str, pa.Table]) -> None:
        """Parquet files by the tables' names."""
        for name, table in tables.items():
            pq.write_table(table, self.folder / f"{name}.parquet")


def write_corpus(model: ModelRun, work: Work) -> int:
    """The model's tokens."""
    corpus = build_corpus(model.study.corpus, work.bench.loaded.tokenizer, model.study.seed)
    corpus.save(work.folder)
    return corpus.tokens.numel()


def write_variant(variant: VariantRun, work: Work) -> None:
    """Table `tensors`: the hash of every tensor that is run."""
    work.write({"tensors": tensor_table(variant.name, work.bench.variant(variant).records)})


def write_activations(variant: VariantRun, work: Work) -> int:
    """Activations of all hook points, from one pass over the corpus."""
    study, bench = variant.model.study, work.bench
    drop, layers = study.corpus.drop_positions, variant.model.layers
    model, tokens = bench.variant(variant), bench.corpus.tokens
    return activations.run_variant(
        model, tokens, study.hooks, layers, drop, variant.seed, bench.compute, work.folder, work.advance
    )


def _activations(sae: SaeRun, work: Work) -> tuple[activations.Activations, torch.Tensor]:
    """Those of the SAE's hook point, and which of them are held out."""
    corpus = work.bench.corpus
    drop = sae.model.study.corpus.drop_positions
    loaded = activations.load(work.only("activations"), sae.layer, sae.hook, drop)
    return loaded, loaded.held_out(corpus.held_out, corpus.tokens.shape[1])


def write_sae(sae: SaeRun, work: Work) -> int:
    """The SAE, in SAELens' format, with its training facts in `facts.json`.

    From activations that are no use it is made all the same, without training, and `write_codes` says why.
    """
    study = sae.model.study
    loaded, held_out = _activations(sae, work)
    noted = {"outliers": loaded.outliers, "limit": loaded.limit, "dropped": loaded.dropped_share}
    values, further = _training(sae, work.bench, loaded, held_out)
    del loaded  # which may be as much as all that comes now
    info = {
        "model_name": sae.model.info.model,
        "hook_name": hook_name(sae.layer, sae.hook),
        "context_size": study.corpus.context_length,
        "prepend_bos": study.corpus.prepend_bos,
        "lineup_study": study.name,
        "lineup_variant": sae.variant.name,
    }
    trained = architectures.train(values, sae.config, info, sae.seed, work.bench.compute, work.advance, further)
    facts = trained.save(work.folder) | {"sha256": file_sha256(work.folder / "sae_weights.safetensors")} | noted
    (work.folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return int(facts["training_tokens"])


def _training(
    sae: SaeRun, bench: Bench, loaded: activations.Activations, held_out: torch.Tensor
) -> tuple[torch.Tensor, Further | None]:
    """What the SAE trains on: the corpus less the held-out tokens, or, where there are any, the training tokens."""
    sequences, drop = bench.corpus.training, sae.model.study.corpus.drop_positions
    if loaded.flaw(held_out):
        return loaded.values[:0], None
    if not len(sequences):
        return loaded.values[~held_out], None
    model = bench.variant(sae.variant)
    arguments = (sae.layer, sae.hook, drop, loaded.limit, sae.variant.seed, bench.compute)

    def pieces(skip: int) -> Iterator[torch.Tensor]:
        return activations.stream(model, sequences, *arguments, skip)

    first, tokens = next(pieces(0)), len(sequences) * (sequences.shape[1] - drop)
    return first, Further(tokens - len(first), lambda: pieces(1))


def read_facts(folder: Path) -> dict[str, Any]:
    """What a folder of the stages `sae` and `codes` notes about its making."""
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return facts


def write_codes(sae: SaeRun, work: Work) -> int:
    """Sparse activations on the whole corpus, and rows of `sae_metrics` that the dense ones are needed for."""
    bench, flat, facts = work.bench, work.bench.flat, read_facts(work.only("sae"))
    trained = SAE.load_from_disk(work.only("sae"), device=bench.compute.device)
    loaded, held_out = _activations(sae, work)
    flaw = loaded.flaw(held_out)
    found, failure = codes.encode_or_not(trained, loaded, flaw, flat.size, bench.compute, work.advance)
    codes.save(found, work.folder)
    ids = torch.from_numpy(flat)
    scale = facts["normalisation"]
    measured = reconstruction.measure(trained, loaded, found, ids, held_out, scale, failure, sae.seed)
    work.write({"sae_metrics": measured})
    # The time of the activations is noted here because their own folder is deleted when no SAE needs it any more.
    noted = {"tokens": len(loaded.values), "activations": timing(work.only("activations"))}
    (work.folder / "facts.json").write_text(json.dumps(noted), encoding="utf-8")
    if failure:
        (work.folder / FAILURE).write_text(failure, encoding="utf-8")
        bench.say(f"{sae.label}: {failure}; its latents and metrics have no values")
    return len(loaded.values)


def _failure(folder: Path) -> str:
    """Why the SAE of these codes is none: it has diverged, or had nothing to learn from; '' for a good one."""
    file = folder / FAILURE
    return file.read_text(encoding="utf-8") if file.exists() else ""


def write_latents(sae: SaeRun, work: Work) -> None:
    """All tables of latents but explanations, scores and matches, and the SAE's redundancy."""
    study, bench = sae.model.study, work.bench
    picked, tokens = codes.load(work.only("codes")), read_facts(work.only("codes"))["tokens"]
    decoder = SAE.load_from_disk(work.only("sae")).W_dec.detach().float()
    norms, cosines = np.array(read_facts(work.only("sae"))["decoder_norms"]), match.largest_cosines(decoder).double()
    length, seed = study.corpus.context_length, sae.seed
    tables = collect.describe(
        picked, bench.flat, tokens, norms, cosines.numpy(), study.collect, length, seed, work.advance
    )
    model = bench.variant(sae.variant).model
    unembedding = model.get_output_embeddings().weight.detach()
    effects = logit_effects(decoder, final_gain(model), unembedding, study.collect.logit_tokens, bench.compute)
    failure = _failure(work.only("codes"))
    redundancy = sae_metrics_table(
        {} if failure else {"redundancy": float(cosines.mean())}, {"redundancy": failure} if failure else {}
    )
    work.write(tables | {"logit_effects": pa.table(effects), "sae_metrics": redundancy})


def write_scores(sae: SaeRun, work: Work) -> None:
    """Tables `explanations` and `scores`."""
    study, bench = sae.model.study, work.bench
    protocol = autointerp.Protocol.of(study.autointerp, study.collect, bench.corpus.halves)

    def part(fired: collect.Firings, first: int) -> dict[str, pa.Table]:
        where = collect.windows(fired, bench.flat.size, study.collect.window)
        seed = autointerp.part_seed(sae.seed, first)
        explanations, scores = autointerp.explain_and_score(
            fired, where, bench.flat, bench.tools.vocabulary, protocol, study.autointerp, seed
        )
        return {"explanations": explanations, "scores": scores}

    tables = collect.by_parts(collect.firings(codes.load(work.only("codes"))), part, work.advance)
    if _failure(work.only("codes")):
        place, rows = tables["explanations"].column_names.index("reason"), len(tables["explanations"])
        tables["explanations"] = tables["explanations"].set_column(place, "reason", pa.array([NO_SAE] * rows))
    work.write(tables)


def write_sampled(sae: SaeRun, work: Work) -> None:
    """More rows of both tables: those of a sample of the latents, which a model explains or scores."""
    study, bench = sae.model.study, work.bench
    client = bench.tools.client
    before = client.unanswered if client else 0
    fired = collect.firings(codes.load(work.only("codes")))
    explained = pq.read_table(work.only("scores") / "explanations.parquet")
    protocol = autointerp.Protocol.of(study.autointerp, study.collect, bench.corpus.halves)
    config, window = study.autointerp, study.collect.window
    explanations, scores = autointerp.explain_and_score_sample(
        fired, explained, bench.flat, bench.tools, window, protocol, config, sae.seed, work.advance
    )
    work.write({"explanations": explanations, "scores": scores})
    if client and client.unanswered > before:
        (work.folder / UNANSWERED).touch()


def write_losses(variant: VariantRun, work: Work) -> None:
    """Rows of `sae_metrics`: losses through the SAEs of a variant, a file an SAE by its place among them."""
    study, bench = variant.model.study, work.bench
    placed = [
        losses.Placed((sae.layer, sae.hook), SAE.load_from_disk(folder), read_facts(folder)["limit"])
        for sae, folder in zip(variant.saes, work.made["sae"], strict=True)
    ]
    held_out = bench.corpus.tokens[bench.corpus.held_out]
    sequences = held_out[: -(-study.evaluate_ce_tokens // held_out.shape[1])]
    model, drop = bench.variant(variant), study.corpus.drop_positions
    measured = losses.measure(model, sequences, placed, drop, variant.seed, bench.compute, work.advance)
    size, noise = variant.model.info.vocab_size, variant.spec.noise
    for place, (found, folder) in enumerate(zip(measured, work.made["codes"], strict=True)):
        work.write({str(place): losses.losses_table(found, size, noise, _failure(folder))})


def write_matches(pair: SaePair, work: Work) -> None:
    """Table `matches` in both directions: `forward.parquet` from the later SAE, `backward.parquet` from the other."""
    keep = pair.model.study.collect.matches
    correlation = match.correlations(*map(codes.load, work.made["codes"]))
    forward, backward = match.best_matches(correlation, keep), match.best_matches(correlation.T, keep)
    work.write({"forward": forward, "backward": backward})


def write_specifications(pair: SaePair, work: Work) -> None:
    """Tables `specifications` and `specification_curves`: a random SAE against the trained one in its place."""
    random, trained = (collect.firings(codes.load(folder)) for folder in work.made["codes"])
    bench, words = work.bench, len(pair.model.vocabulary)
    points, curve = autointerp.curve(
        trained, random, bench.flat, bench.corpus.halves, words, pair.model.study, pair.sae.seed, work.advance
    )
    work.write({"specifications": points, "specification_curves": curve})


def write_stability(_pair: SaePair, work: Work) -> None:
    """Seed stability of two SAEs that differ in the seed alone: `stability.json`, null where one is all dead."""
    decoders = [SAE.load_from_disk(folder).W_dec.detach().float() for folder in work.made["sae"]]
    alive = [torch.from_numpy(codes.firing(codes.load(folder)) > 0) for folder in work.made["codes"]]
    value = match.seed_stability(decoders[1], alive[1], decoders[0], alive[0])  # the earlier one first
    (work.folder / "stability.json").write_text(json.dumps(value), encoding="utf-8")
