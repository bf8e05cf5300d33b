"""All stages of a study, in order: a study file comes in, one DuckDB file goes out and grows while this runs.

Every stage leaves an artefact under the hash of what it depends on, so a run that was killed anywhere goes on from
there, and a finished one is only looked at.
"""

import fcntl
import hashlib
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from pipeline import hardware
from pipeline.artefacts import Artefacts, digest
from pipeline.config import Study
from pipeline.corpus import Corpus, build_corpus
from pipeline.errors import LineupError
from pipeline.models import LoadedModel, check_layers, load_model, vocabulary
from pipeline.progress import Progress
from pipeline.publish import Finished, publish
from pipeline.stages import Context, VariantRun
from pipeline.variants import find_variant

PACKAGES = ("latent-lineup", "duckdb", "numpy", "sae-lens", "scipy", "torch", "transformer-lens", "transformers")
"""Packages whose version may change a number."""


def run_study(study: Study, runs: Path, terminal: TextIO | None = None) -> Path:
    """Run what is missing of a study and give its database, `runs/<name>.duckdb`.

    Raises LineupError for whatever the user can mend; what is finished is kept.
    """
    for name in study.variants:
        find_variant(name)
    folder, database = runs / study.name, runs / f"{study.name}.duckdb"
    with _alone(folder):
        planned = len(study.variants) * len(study.layers)
        progress = Progress(folder / "progress.json", study.name, study.title, planned, terminal or sys.stderr)
        try:
            with _ended_by_sigterm(progress):
                context = _prepare(study, folder, progress)
                _run(context, database)
        except LineupError as error:
            progress.failed(str(error))
            raise
        except KeyboardInterrupt:
            progress.stopped()
            raise
        progress.done()
    return database


@contextmanager
def _ended_by_sigterm(progress: Progress) -> Iterator[None]:
    """SIGTERM ends the process on the spot: artefacts stand any kill, while an orderly end would wait for threads."""

    def end(*_: object) -> None:
        progress.stopped()
        os._exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(context: Context, database: Path) -> None:
    """The architecture on one screen."""
    study = context.study
    finished = Finished(context)
    earlier: list[VariantRun] = []
    for name in study.variants:
        variant = VariantRun(context, name)
        finished.tensors.append(variant.tensors())
        for number in study.layers:
            layer = variant.layer(number)
            layer.train()
            layer.latents()
            layer.scores()
            finished.layers.append(layer)
            publish(finished, database)
        finished.losses[name] = variant.losses()
        finished.matches += [
            (variant.layer(number), other.layer(number)) for other in earlier for number in study.layers
        ]
        for layer, other in finished.matches:
            layer.matches(other)
        variant.forget()
        earlier.append(variant)
    publish(finished, database, complete=True)


def _prepare(study: Study, folder: Path, progress: Progress) -> Context:
    compute = hardware.detect()
    artefacts = Artefacts(folder, hardware.describe())
    versions = {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    with progress.stage("model", f"loading {study.model.source}", "models"):
        loaded = load_model(study.model, folder.parent / "models")
    check_layers(loaded.info, study.layers)
    with progress.stage("corpus", f"reading and tokenising {study.corpus.source}"):
        corpus = _corpus(study, loaded, artefacts, versions)
        words = vocabulary(loaded.tokenizer, loaded.info.vocab_size)
    base = {
        "versions": versions,
        "precision": compute.precision,
        "device": compute.device,
        "seed": study.seed,
        "weights": _sha256(loaded),
        "tokens": corpus.sha256,
    }
    return Context(study, artefacts, progress, compute, loaded, corpus, words, base)


def _corpus(study: Study, loaded: LoadedModel, artefacts: Artefacts, versions: dict[str, str]) -> Corpus:
    def build(folder: Path) -> int:
        corpus = build_corpus(study.corpus, loaded.tokenizer, study.seed)
        corpus.save(folder)
        return corpus.tokens.numel()

    key: dict[str, Any] = {
        "corpus": study.corpus.model_dump(),
        "model": study.model.model_dump(),
        "seed": study.seed,
        "versions": digest(versions),
    }
    return Corpus.load(artefacts.make("corpus", key, build))


def _sha256(loaded: LoadedModel) -> str:
    """Hash of all weights and their names."""
    found = hashlib.sha256()
    for name, parameter in loaded.model.named_parameters():
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the study's lock, so that two runs do not write the same artefacts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w", encoding="utf-8")
    except OSError as error:
        raise LineupError(f"Cannot write to '{folder}': {error.strerror}. Choose a folder with --runs.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LineupError(f"The study in '{folder}' is being run by another process: wait for it.") from error
        yield
