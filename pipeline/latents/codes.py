"""Encodes a corpus with one SAE: activations come in, the sparse matrix of latent activations goes out."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sae_lens.saes.topk_sae import TopK
from safetensors.numpy import load_file, save_file
from scipy import sparse
from torch import Tensor

from pipeline.activations import Activations
from pipeline.errors import LineupError
from pipeline.hardware import Compute
from pipeline.progress import Advance

BATCH = 1024
"""Tokens encoded at once: larger ones are slower on a CPU, their pre-activations leave the cache."""

PRE_ACTIVATIONS = 2**25
"""Most pre-activations held at once: an SAE with very many latents gets smaller batches."""

NONZERO = 2**29
"""Most activations kept of an SAE: 4 GiB of values and latents, and as much again while they are put together."""


def encode(
    sae: Any, activations: Activations, corpus_tokens: int, compute: Compute, advance: Advance
) -> sparse.csr_array:
    """The latents' activations on every token of the corpus, [corpus token, latent]; dropped tokens are empty rows.

    `sae` is a SAELens SAE on raw activations; the values are those of its own `encode`. Raises LineupError where so
    many latents are active that they would not fit into memory.
    """
    sae = sae.to(compute.device)
    if isinstance(sae.activation_fn, TopK):  # SAELens' own option: no dense matrix to fill and to search
        sae.activation_fn = TopK(sae.activation_fn.k, use_sparse_activations=True)
    counts = np.zeros(corpus_tokens, dtype=np.int64)
    columns, data, size = [], [], max(min(BATCH, PRE_ACTIVATIONS // sae.cfg.d_sae), 1)
    for start in range(0, len(activations.values), size):
        batch = activations.values[start : start + size].to(compute.device)
        with torch.inference_mode(), compute.autocast(), torch.sparse.check_sparse_tensor_invariants(enable=False):
            rows, latents, values = _nonzero(sae.encode(batch))
        where = activations.token[start : start + size].numpy()
        counts[where] = np.bincount(rows, minlength=len(where))
        columns.append(latents.astype(np.int32))
        data.append(values)
        _check_sparse(int(counts.sum()), start + len(batch), len(activations.values))
        advance(start + len(batch), len(activations.values))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    shape = (corpus_tokens, sae.cfg.d_sae)
    return sparse.csr_array((np.concatenate(data), np.concatenate(columns), indptr), shape=shape)


def _check_sparse(nonzero: int, tokens: int, all_tokens: int) -> None:
    if nonzero / tokens * all_tokens > NONZERO:
        raise LineupError(
            f"On average {nonzero / tokens:.0f} of the SAE's latents are active on a token, too many to keep for"
            f" {all_tokens} tokens: raise its penalty (l1_coefficient or l0_coefficient in sae.options), or take fewer"
            " latents or tokens."
        )


def _nonzero(acts: Float[Tensor, "token d_sae"]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows, ascending, latents and values of what is not zero, from a dense tensor or a sparse one."""
    if acts.is_sparse:
        (rows, latents), values = acts._indices(), acts._values()
        rows, latents, values = rows[values > 0], latents[values > 0], values[values > 0]
    else:
        rows, latents = torch.nonzero(acts, as_tuple=True)
        values = acts[rows, latents]
    return rows.cpu().numpy(), latents.cpu().numpy(), values.float().cpu().numpy()


def reconstruct(sae: Any, values: Float[Tensor, "token d_in"], picked: sparse.csr_array) -> Float[Tensor, "token d_in"]:
    """What the SAE makes of raw activations, from their rows of the sparse matrix, [token, latent].

    An SAE that normalises each token by itself undoes that with the token's own scale. On the CPU.
    """
    decoder, bias = (weights.detach().float().cpu() for weights in (sae.W_dec, sae.b_dec))
    sae.run_time_activation_norm_fn_in(values)  # which notes the scale
    made: Tensor = sae.run_time_activation_norm_fn_out(torch.from_numpy(picked @ decoder.numpy()) + bias)
    return made


def save(codes: sparse.csr_array, folder: Path) -> None:
    """Write the matrix to `folder/codes.safetensors`."""
    arrays = {"indptr": codes.indptr.astype(np.int64), "indices": codes.indices, "data": codes.data}
    save_file(arrays | {"shape": np.asarray(codes.shape)}, folder / "codes.safetensors")


def load(folder: Path) -> sparse.csr_array:
    """Read what `save` wrote."""
    arrays = load_file(folder / "codes.safetensors")
    return sparse.csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=tuple(arrays["shape"]))
