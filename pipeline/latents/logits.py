"""Logit effects: the tokens that a latent's decoder vector promotes and suppresses most."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.hardware import Compute
from pipeline.models.anatomy import is_norm

EFFECTS = 25_000_000
"""Effects computed at once, latents times tokens of the vocabulary: 100 MB."""


def logit_effects(
    decoder: Float[Tensor, "d_sae d_model"],
    gain: Float[Tensor, " d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
    keep: int,
    compute: Compute,
) -> dict[str, Any]:
    """Columns of `logit_effects`: each decoder row of unit norm, times the final norm's gain, on the unembedding.

    A latent has no row where an effect is no finite number.
    """
    rows = torch.nn.functional.normalize(decoder, dim=-1) * gain
    unembedding = unembedding.to(compute.device)
    ends: dict[int, list[tuple[Tensor, Tensor]]] = {1: [], -1: []}
    for part in rows.split(max(1, EFFECTS // len(unembedding))):
        with torch.inference_mode(), compute.autocast():
            effects = part.to(compute.device) @ unembedding.T
        for sign, found in ends.items():
            values, tokens = torch.topk(effects.float(), keep, largest=sign > 0)
            found.append((tokens.cpu(), values.cpu()))
    joined = [tuple(map(torch.cat, zip(*found, strict=True))) for found in ends.values()]
    finite = torch.stack([values.isfinite().all(1) for _, values in joined]).all(0)
    columns = [_columns(tokens[finite], values[finite]) for tokens, values in joined]
    latents = np.flatnonzero(finite.numpy())
    return {
        "latent": np.concatenate([latents] * 2),
        "sign": np.repeat([1, -1], len(latents)),
        "tokens": pa.concat_arrays([tokens for tokens, _ in columns]),
        "effects": pa.concat_arrays([effects for _, effects in columns]),
    }


def _columns(
    tokens: Int[Tensor, "latent kept"], effects: Float[Tensor, "latent kept"]
) -> tuple[pa.ListArray, pa.ListArray]:
    offsets = np.arange(len(tokens) + 1, dtype=np.int32) * tokens.shape[1]
    lists = (pa.ListArray.from_arrays(offsets, part.flatten().numpy()) for part in (tokens.int(), effects))
    return next(lists), next(lists)


def final_gain(model: PreTrainedModel) -> Float[Tensor, " d_model"]:
    """What the norm before the unembedding multiplies each dimension by, its scale and bias left out.

    Read off the norm's answer to a vector of mean 0 and variance 1 and to its negative, so that it holds for layer
    norm, RMS norm and Gemma's (1 + weight) alike. That norm is the last one among the base model's own children.
    """
    norms = [child for child in model.base_model.children() if is_norm(child)]
    width = model.get_input_embeddings().weight.shape[1]
    if not norms:
        return torch.ones(width)
    signs = torch.ones(width, device=model.device)
    signs[::2] = -1
    with torch.inference_mode():
        gain: Tensor = (norms[-1](signs) - norms[-1](-signs)) / 2 * signs
    return gain.float().cpu()
