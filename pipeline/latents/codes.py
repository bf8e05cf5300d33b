"""Encodes a corpus with one SAE into a sparse matrix of latent activations."""

import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sae_lens.saes.gated_sae import GatedSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.topk_sae import TopK
from safetensors.numpy import load_file, save_file
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from core.errors import UserError
from pipeline.activations import Activations
from pipeline.hardware import Compute
from pipeline.progress import Advance

BATCH = 1024
"""Tokens encoded at once: larger ones are slower on a CPU, their pre-activations leave the cache."""

PRE_ACTIVATIONS = 2**25
"""Most pre-activations held at once: an SAE with very many latents gets smaller batches."""

NONZERO = 2**29
"""Most activations kept of an SAE: 4 GiB of values and latents, and as much again while they are put together."""

Picked: TypeAlias = tuple[Int[Tensor, " active"], Int[Tensor, " active"], Float[Tensor, " active"]]
"""Rows, ascending, latents and values of what is active in a batch."""


def encode(
    sae: Any, activations: Activations, corpus_tokens: int, compute: Compute, advance: Advance
) -> sparse.csr_array:
    """The latents' activations on every token of the corpus, [corpus token, latent]; dropped tokens are empty rows.

    `sae` is a SAELens SAE on raw activations; the values are those of its own `encode` in float32, whatever the
    precision. In bfloat16 only the choice of latents is less precise: those that are active by a hair, or among the
    last of the k, may be others, and what float32 finds inactive is left out. Raises UserError where so many latents
    are active that they would not fit into memory.
    """
    sae = sae.to(compute.device)
    encoder = sae.W_enc.detach().T.contiguous() if compute.bfloat16 else None
    if isinstance(sae.activation_fn, TopK):  # SAELens' own option: no dense matrix to fill and to search
        sae.activation_fn = TopK(sae.activation_fn.k, use_sparse_activations=True)
    counts = np.zeros(corpus_tokens, dtype=np.int64)
    columns, data, size = [], [], max(min(BATCH, PRE_ACTIVATIONS // sae.cfg.d_sae), 1)
    for start in range(0, len(activations.values), size):
        batch = activations.values[start : start + size].to(compute.device)
        with torch.inference_mode(), compute.autocast(), torch.sparse.check_sparse_tensor_invariants(enable=False):
            picked = _nonzero(sae.encode(batch))
        if encoder is not None:
            picked = _in_float32(sae, encoder, batch, picked)
        rows, latents, values = (each.cpu().numpy() for each in picked)
        where = activations.token[start : start + size].numpy()
        counts[where] = np.bincount(rows, minlength=len(where))
        columns.append(latents.astype(np.int32))
        data.append(values)
        _check_sparse(int(counts.sum()), start + len(batch), len(activations.values))
        advance(start + len(batch), len(activations.values))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    shape = (corpus_tokens, sae.cfg.d_sae)
    return sparse.csr_array((np.concatenate(data), np.concatenate(columns), indptr), shape=shape)


def encode_or_not(
    sae: Any, activations: Activations, flaw: str, corpus_tokens: int, compute: Compute, advance: Advance
) -> tuple[sparse.csr_array, str]:
    """The same and ''; or codes of which none is active, and why: the activations' `flaw`, or the SAE has diverged."""
    what = "weights"
    if not flaw and all(weights.isfinite().all() for weights in sae.parameters()):
        found = encode(sae, activations, corpus_tokens, compute, advance)
        if np.isfinite(found.data).all():
            return found, ""
        what = "activations"
    silent = sparse.csr_array((corpus_tokens, sae.cfg.d_sae), dtype=np.float32)
    return silent, flaw or f"the SAE has diverged in training: its {what} are no finite numbers"


def firing(codes: sparse.csr_array) -> Int[NDArray[np.int64], " d_sae"]:
    """On how many tokens each latent is active."""
    return np.bincount(codes.indices, minlength=codes.shape[1])


def _check_sparse(nonzero: int, tokens: int, all_tokens: int) -> None:
    if nonzero / tokens * all_tokens > NONZERO:
        raise UserError(
            f"On average {nonzero / tokens:.0f} of the SAE's latents are active on a token, too many to keep for"
            f" {all_tokens} tokens: raise its penalty (l1_coefficient or l0_coefficient in sae.options), or take fewer"
            " latents or tokens."
        )


def _nonzero(acts: Float[Tensor, "token d_sae"]) -> Picked:
    """What is not zero, from a dense tensor or a sparse one."""
    if acts.is_sparse:
        (rows, latents), values = acts._indices(), acts._values()
        return _active(rows, latents, values.float())
    rows, latents = torch.nonzero(acts, as_tuple=True)
    return rows, latents, acts[rows, latents].float()


def _active(rows: Tensor, latents: Tensor, values: Tensor) -> Picked:
    return rows[values > 0], latents[values > 0], values[values > 0]


@torch.inference_mode()
def _in_float32(
    sae: Any, encoder: Float[Tensor, "d_sae d_in"], batch: Float[Tensor, "token d_in"], picked: Picked
) -> Picked:
    """The same with values computed anew: two bfloat16 products a hair apart are often equal, as float32 ones are not.

    The picked latents alone are multiplied, d_in operations each, a small share of what picking them took.
    """
    rows, latents, values = picked
    starts = functional.pad(torch.bincount(rows, minlength=len(batch)).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        wanted = torch.sparse_csr_tensor(starts, latents, values, (len(batch), len(encoder)), check_invariants=False)
    products = torch.sparse.sampled_addmm(wanted, sae.process_sae_in(batch), encoder.T, beta=0).values()
    return _active(rows, latents, _activated(sae, products, latents))


def _activated(sae: Any, products: Float[Tensor, " active"], latents: Int[Tensor, " active"]) -> Tensor:
    """What the `encode` of SAELens' architectures makes of inputs' products with the encoders of latents."""
    pre: Tensor
    if isinstance(sae, GatedSAE):
        pre = products * sae.r_mag[latents].exp() + sae.b_mag[latents]
        return pre.relu().where(products + sae.b_gate[latents] > 0, 0)
    pre = products + sae.b_enc[latents]
    if isinstance(sae, JumpReLUSAE):
        return pre.relu().where(pre > sae.threshold[latents], 0)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        pre = pre * sae.W_dec.norm(dim=-1)[latents]
    return pre.relu()


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
