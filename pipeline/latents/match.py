"""Best matches between the latents of two SAEs: correlations of activations, cosines of decoders."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

ROWS = 512
"""Latents correlated at once: bounds the memory to this many rows of the correlation matrix."""


def correlations(
    one: sparse.csr_array, other: sparse.csr_array
) -> Float[NDArray[np.float32], "latent_one latent_other"]:
    """Pearson correlation of every pair of latents, token by token; 0 where one of them is constant, or overflows."""
    tokens = one.shape[0]
    mean_one, std_one = _moments(one)
    mean_other, std_other = _moments(other)
    transposed = one.T.tocsr()

    def block(start: int) -> NDArray[np.float32]:
        rows = slice(start, start + ROWS)
        products = np.asarray((transposed[rows] @ other).toarray()) / tokens
        with np.errstate(over="ignore", invalid="ignore"):
            covariance = products - np.outer(mean_one[rows], mean_other)
            scale = np.outer(std_one[rows], std_other)
            found = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
        return np.nan_to_num(np.asarray(found, dtype=np.float32), copy=False, nan=0, posinf=0, neginf=0)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(block, range(0, one.shape[1], ROWS))))


def _moments(codes: sparse.csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    columns = codes.tocsc()
    counts = np.diff(columns.indptr)
    owner = np.repeat(np.arange(codes.shape[1]), counts)
    values = columns.data.astype(np.float64)
    mean = np.bincount(owner, weights=values, minlength=codes.shape[1]) / codes.shape[0]
    square = np.bincount(owner, weights=values**2, minlength=codes.shape[1]) / codes.shape[0]
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def best_matches(correlation: Float[NDArray[np.float32], "latent_one latent_other"], keep: int) -> pa.Table:
    """The `keep` latents of the other SAE that correlate best with each latent, positive correlations only."""
    keep = min(keep, correlation.shape[1])
    picked = np.argpartition(-correlation, keep - 1, axis=1)[:, :keep]
    values = np.take_along_axis(correlation, picked, axis=1)
    order = np.lexsort((picked, -values), axis=1)
    picked, values = np.take_along_axis(picked, order, axis=1), np.take_along_axis(values, order, axis=1)
    latent = np.repeat(np.arange(len(values))[:, None], keep, axis=1)
    rank = np.repeat(np.arange(keep)[None], len(values), axis=0)
    good = values > 0
    return pa.table(
        {
            "latent": latent[good],
            "rank": rank[good],
            "other_latent": picked[good],
            "correlation": values[good].astype(np.float64),
        }
    )


def largest_cosines(decoder: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """For each decoder row its largest cosine to another row; their mean is the SAE's redundancy.

    A row of zeros has cosine 0 with every other. There must be two rows or more.
    """
    unit = functional.normalize(decoder.float(), dim=-1)
    found = []
    for start in range(0, len(unit), ROWS):
        cosines = unit[start : start + ROWS] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)
        found.append(cosines.amax(1))
    return torch.cat(found).clamp(-1, 1)


def seed_stability(
    decoder_one: Float[Tensor, "d_sae_one d_in"],
    alive_one: Bool[Tensor, " d_sae_one"],
    decoder_two: Float[Tensor, "d_sae_two d_in"],
    alive_two: Bool[Tensor, " d_sae_two"],
) -> float | None:
    """Mean |cosine| of decoder rows of two SAEs, matched one to one so as to make it largest; None where all are dead.

    Only alive latents are matched, as many pairs as the SAE with fewer of them has. The matching is exact (Hungarian
    algorithm, as in Paulo & Belrose 2025, arXiv 2501.16615).
    """
    one = functional.normalize(decoder_one[alive_one].float(), dim=-1)
    two = functional.normalize(decoder_two[alive_two].float(), dim=-1)
    if not len(one) or not len(two):
        return None
    cosines = (one @ two.T).abs().clamp(max=1).numpy()
    matched = cosines[linear_sum_assignment(cosines, maximize=True)]
    return float(matched.mean(dtype=np.float64))
