"""What an SAE has to beat: activations come in, an SAE with nothing or little learnt goes out, in the same form."""

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import SaeConfig
from pipeline.errors import LineupError
from pipeline.saes.trained import CHUNK, Request, Trained, mean, topk_sae, without_options
from pipeline.saes.training import fit, folded, new_sae


def untrained(request: Request) -> Trained:
    """A TopK SAE as it is before the first step: random directions about the mean activation."""
    return folded(new_sae(request, "topk"), request, steps=0)


def frozen_decoder(request: Request) -> Trained:
    """A TopK SAE whose decoder keeps its random directions while encoder and biases learn.

    Source: Korznikov et al. 2026 (arXiv 2602.14111).
    """
    sae = new_sae(request, "topk")
    sae.W_dec.requires_grad_(False)
    return fit(sae, request)


def pca(request: Request) -> Trained:
    """Principal components of the training activations: 2·d_in latents, whatever `d_sae` says.

    Latents 2i and 2i + 1 are the two signs of component i, the largest variance first. TopK keeps the k largest
    projections, so the reconstruction is the best that k components give a token, and exact at k = d_in.
    Compared with SAEs in Cunningham et al. 2023 (arXiv 2309.08600). Raises LineupError for a k above d_in.
    """
    return _two_signs(principal_components(request), request, len(request.activations))


def neurons(request: Request) -> Trained:
    """The hook point's own basis: 2·d_in latents, whatever `d_sae` says.

    Latents 2i and 2i + 1 are coordinate i above and below its mean, of which TopK keeps the k largest. Compared
    with SAEs in Cunningham et al. 2023 (arXiv 2309.08600). Raises LineupError for a k above d_in.
    """
    return _two_signs(torch.eye(request.d_in), request, 0)


def principal_components(request: Request) -> Float[Tensor, "component d_in"]:
    """Unit vectors by falling variance, computed in float64, the largest entry of each made positive."""
    centre = mean(request.activations).double()
    covariance = torch.zeros(request.d_in, request.d_in, dtype=torch.float64)
    for number, chunk in enumerate(request.activations.split(CHUNK)):
        moved = chunk.double() - centre
        covariance += moved.T @ moved
        request.advance(number * CHUNK + len(chunk), len(request.activations))
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).float()


def check_two_signs(config: SaeConfig, d_in: int) -> None:
    """Raise LineupError for a k above d_in, and for options."""
    without_options(config)
    if config.k > d_in:
        raise LineupError(
            f"sae.k is {config.k}, but {config.architecture} has only {d_in} directions here: take a smaller k."
        )


def _two_signs(directions: Float[Tensor, "d_in d_in"], request: Request, tokens: int) -> Trained:
    check_two_signs(request.config, request.d_in)
    rows = torch.stack([directions, -directions], dim=1).flatten(0, 1)
    weights = {
        "W_enc": rows.T * request.scale,
        "b_enc": torch.zeros(len(rows)),
        "W_dec": rows / request.scale,
        "b_dec": mean(request.activations),
    }
    sae = topk_sae(weights, request.config.k, request.metadata)
    return Trained(sae, request.scale, torch.ones(len(rows)), 0, tokens)
