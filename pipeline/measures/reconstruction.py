"""Measures an SAE on held-out tokens: reconstruction, sparsity, and how much of them is the tokens' identity."""

from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Int
from scipy import sparse
from torch import Tensor

from pipeline.activations import Activations
from pipeline.latents import codes
from pipeline.measures.metrics import (
    NO_VARIANCE,
    OF_MODELS,
    OF_SAES,
    ReconstructionSums,
    densities,
    sae_metrics_table,
    sparsity,
    token_identity_r2,
)
from pipeline.seeds import torch_generator


def measure(
    sae: Any,
    activations: Activations,
    picked: sparse.csr_array,
    corpus: Int[Tensor, " token"],
    held_out: Bool[Tensor, " row"],
    normalisation: float,
    failure: str,
    seed: int,
) -> pa.Table:
    """Rows of `sae_metrics`, without losses and what is measured of the decoder alone.

    `picked` are the SAE's codes of the whole corpus and `held_out` says which activations are to be measured on.
    `failure` tells why the SAE is none, '' for a good one.
    """
    values: dict[str, float] = {"dropped": activations.dropped_share, "outliers": activations.outliers}
    lacking = dict.fromkeys(OF_SAES, failure) if failure else {}
    if flaw := activations.flaw(held_out):
        lacking |= dict.fromkeys((*OF_MODELS, "normalisation"), flaw)
    else:
        values |= {"normalisation": normalisation} | _token_identity(activations, corpus, held_out, seed)
    if not failure:
        made, lacking = _reconstruction(sae, activations, picked, held_out, normalisation)
        values |= made | densities(codes.firing(picked), len(activations.values))
    return sae_metrics_table(values, lacking)


def _token_identity(
    activations: Activations, corpus: Int[Tensor, " token"], held_out: Bool[Tensor, " row"], seed: int
) -> dict[str, float]:
    ids = corpus[activations.token]
    train, train_ids = activations.values[~held_out], ids[~held_out]
    shuffled = train_ids[torch.randperm(len(train_ids), generator=torch_generator(seed, "floor"))]
    measured = activations.values[held_out], ids[held_out]
    return {
        "token_identity_r2": token_identity_r2(train, train_ids, *measured),
        "token_identity_floor": token_identity_r2(train, shuffled, *measured),
    }


def _reconstruction(
    sae: Any, activations: Activations, picked: sparse.csr_array, held_out: Bool[Tensor, " row"], normalisation: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Values, and reasons where there is none."""
    sums = ReconstructionSums()
    rows = torch.nonzero(held_out).flatten()
    for part in rows.split(4096):
        x = activations.values[part]
        sums.add(x, codes.reconstruct(sae, x, picked[activations.token[part].numpy()]))
    norms = sae.W_dec.detach().float().cpu().norm(dim=-1).double().numpy()
    values = sparsity(picked[activations.token[rows].numpy()], norms, normalisation)
    values |= {"explained_variance": 1 - sums.fvu, "fvu": sums.fvu, "cosine_similarity": sums.cosine_similarity}
    lacking = {} if sums.variance > 0 else dict.fromkeys(("explained_variance", "fvu", *OF_MODELS), NO_VARIANCE)
    if sums.relative_bias is None:
        lacking["relative_reconstruction_bias"] = "the reconstruction has no part in the direction of x"
        return values, lacking
    return values | {"relative_reconstruction_bias": sums.relative_bias}, lacking
