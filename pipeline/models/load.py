"""Loads a model in float32 with its tokeniser, from a folder, the Hub or a package."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from core.errors import UserError
from pipeline import hardware, hub
from pipeline.artefacts import Artefacts
from pipeline.config import ModelConfig
from pipeline.models.gguf import converted, quiet
from pipeline.places import place_of


@dataclass(frozen=True)
class ModelInfo:
    """The facts that the study database keeps: one row of `models`."""

    model: str
    source: str
    architecture: str
    n_layers: int
    d_model: int
    vocab_size: int
    parameters: int
    note: str


@dataclass(frozen=True)
class LoadedModel:
    """A float32 model in evaluation mode, without gradients, and what belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo


def load_model(config: ModelConfig, cache: Path, say: Callable[[str], None] = lambda _: None) -> LoadedModel:
    """Load the model that `config.source` names; `cache` keeps converted weights between runs.

    `say` is told in a sentence when those are damaged, and so converted again.
    Raises UserError for an unknown source, a missing package or folder, an unreachable Hub, a stray revision.
    """
    prefix, _, place = config.source.partition(":")
    if prefix not in SOURCES or not place:
        known = ", ".join(f"{name}:{what}" for name, (what, _) in SOURCES.items())
        raise UserError(f"Unknown model.source '{config.source}'. Known: {known}.")
    if config.revision is not None and prefix != "hub":
        raise UserError(
            f"model.revision is '{config.revision}', but '{config.source}' has no revisions:"
            " only hub:NAME has; remove the key."
        )
    return SOURCES[prefix][1](place, config, Artefacts(cache, hardware.describe(), say))


def at_revision(config: ModelConfig, revision: str) -> ModelConfig:
    """The same model at another revision. Raises UserError when it is not from the Hub."""
    if not config.source.startswith("hub:"):
        raise UserError(
            f"'{config.source}' has no revision '{revision}': only hub:NAME has revisions; leave out the variants that"
            " need one, or use the model's name on the Hub."
        )
    return config.model_copy(update={"revision": revision})


def check_revision(config: ModelConfig, revision: str) -> None:
    """Raise UserError when the Hub does not have that revision of the model, of which it gives the configuration."""
    asked = at_revision(config, revision)
    with _explained(asked):
        AutoConfig.from_pretrained(asked.source.removeprefix("hub:"), **_options(asked, local_files_only=False))


def load_revision(config: ModelConfig, revision: str) -> PreTrainedModel:
    """The weights of another revision of the same model on the Hub, such as Pythia's `step0`.

    Raises UserError when the model is not from the Hub, or the Hub does not have that revision of it.
    """
    asked = at_revision(config, revision)
    with _explained(asked):
        return _model(asked.source.removeprefix("hub:"), asked)


def revision_commit(config: ModelConfig, revision: str) -> str | None:
    """The commit at which that revision is, where it can be known."""
    prefix, _, place = config.source.partition(":")
    return hub.commit(place, "model", revision) if prefix == "hub" else None


def _from_wheel(package: str, config: ModelConfig, cache: Artefacts) -> LoadedModel:
    folder, name, note = converted(package, cache)
    return _load(str(folder), config, name, note, local_files_only=True)


def _from_folder(place: str, config: ModelConfig, _cache: Artefacts) -> LoadedModel:
    folder = place_of(place, "model.source")
    if not folder.is_dir():
        raise UserError(f"The model folder '{place}' does not exist. Give model.source the path of a folder.")
    for what in ("config.json", "*.safetensors"):
        if not any(folder.glob(what)):
            raise UserError(
                f"The model folder '{place}' holds no {what}: it needs config.json, weights as"
                " safetensors and a tokeniser, as transformers' save_pretrained writes them."
            )
    return _load(str(folder), config, folder.resolve().name, local_files_only=True)


def _from_hub(place: str, config: ModelConfig, _cache: Artefacts) -> LoadedModel:
    name = place.rpartition("/")[2]
    return _load(place, config, name + (f"@{config.revision}" if config.revision else ""))


Source = Callable[[str, ModelConfig, Artefacts], LoadedModel]

SOURCES: dict[str, tuple[str, Source]] = {
    "wheel": ("PACKAGE", _from_wheel),
    "folder": ("PATH", _from_folder),
    "hub": ("NAME", _from_hub),
}
"""Prefix of `model.source`: what follows it, and who loads it."""


def _load(place: str, config: ModelConfig, name: str, note: str = "", local_files_only: bool = False) -> LoadedModel:
    with _explained(config):
        model = _model(place, config, local_files_only)
        tokenizer = AutoTokenizer.from_pretrained(place, **_options(config, local_files_only))
    return LoadedModel(model, tokenizer, info_of(model, config, name, note))


def _model(place: str, config: ModelConfig, local_files_only: bool = False) -> PreTrainedModel:
    options = _options(config, local_files_only)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, use_safetensors=True, **options)
    if getattr(model.config, "rescale_every", 0):
        # RWKV halves its stream every few layers and, at the first run, its weights in place to match: a guard for
        # float16 that would make the weights differ from those whose hash is stored.
        model.config.rescale_every = 0
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def _options(config: ModelConfig, local_files_only: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if local_files_only:
        return options | {"local_files_only": True}
    return options | {"revision": config.revision}


@contextmanager
def _explained(config: ModelConfig) -> Iterator[None]:
    """Say in one quiet sentence what transformers says in many loud ones."""
    try:
        with quiet():
            yield
    except (OSError, ValueError) as error:
        at = f" at revision '{config.revision}'" if config.revision else ""
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"Cannot load the model '{config.source}'{at}: {reason}. Check the name and the connection,"
            " or download it and use folder:PATH."
        ) from error


def info_of(model: PreTrainedModel, config: ModelConfig, name: str, note: str) -> ModelInfo:
    """The facts of a model, which may be one without memory (on the device meta)."""
    shape = model.config.get_text_config()
    return ModelInfo(
        model=name,
        source=config.source + (f"@{config.revision}" if config.revision else ""),
        architecture=type(model).__name__,
        n_layers=shape.num_hidden_layers,
        d_model=shape.hidden_size,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        parameters=model.num_parameters(),
        note=note,
    )


# What the other stages ask of a model, loaded or without memory.


def check_layers(info: ModelInfo, layers: Sequence[int]) -> None:
    """Raise UserError when the model has no such layer, or when none is asked for, as by `every 7` of three."""
    if not layers:
        raise UserError(
            f"layers: {info.model} has {info.n_layers} layers, and none of them is asked for; allowed: a list of"
            f" 0 to {info.n_layers - 1}, `all`, or `every N` with N at most {info.n_layers}."
        )
    for layer in layers:
        if not 0 <= layer < info.n_layers:
            raise UserError(f"layers: {info.model} has no layer {layer}; allowed: 0 to {info.n_layers - 1}.")


def check_context(model: PreTrainedModel, length: int) -> None:
    """Raise UserError for sequences longer than those that the model was made for.

    A learned table of positions ends there. Rotary positions go on, but what they give is no longer that model.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise UserError(
            f"corpus.context_length is {length}, but this {type(model).__name__} was made for sequences of up to {most}"
            " tokens (max_position_embeddings of its configuration): ask for shorter ones."
        )


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides about the tokens of a text, wherever the tokeniser lies."""
    about = (type(tokenizer).__name__, tokenizer.bos_token_id, metadata.version("tokenizers"))
    found = hashlib.sha256(repr(about).encode())
    if tokenizer.is_fast:
        found.update(tokenizer.backend_tokenizer.to_str().encode())
        return found.hexdigest()
    found.update(repr(sorted(tokenizer.get_added_vocab().items())).encode())
    found.update(Path(inspect.getfile(type(tokenizer))).read_bytes())
    with TemporaryDirectory() as folder:
        for path in sorted(tokenizer.save_vocabulary(folder)):
            found.update(Path(path).read_bytes())
    return found.hexdigest()


def behaviour_sha256(model: PreTrainedModel) -> str:
    """Hash of what decides about a model's numbers beside its parameters: configuration, buffers, code of its own."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in VOLATILE}
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in stored:
            found.update(name.encode())
            found.update(buffer.detach().cpu().contiguous().numpy().data)
    if type(model).__module__.startswith("transformers_modules."):
        for path in sorted(Path(inspect.getfile(type(model))).parent.glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


VOLATILE = ("_name_or_path", "transformers_version")
"""Keys of a configuration that say where it lay and who wrote it."""


def vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """Every token as text on its own, leading space kept; bytes that are no UTF-8 become U+FFFD.

    Decoded after an ordinary token, because some tokenisers drop the space in front of a text's first token. Rows of
    the embedding beyond the tokeniser's last token are named by their number.
    """
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    known = min(vocab_size, len(tokenizer))
    decode = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    start = len(decode(anchor))
    texts = [decode([*anchor, token])[start:] for token in range(known)]
    return texts + [f"[unused {token}]" for token in range(known, vocab_size)]
