"""The table `ARCHITECTURES`: every kind of SAE and baseline, and what makes it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from pipeline.config import SaeConfig, Study
from pipeline.hardware import Compute
from pipeline.progress import Advance
from pipeline.saes.base import Further, Make, Request, Trained
from pipeline.saes.pretrained import check_source, pretrained
from pipeline.saes.training import (
    check_batch,
    check_two_signs,
    frozen_decoder,
    neurons,
    pca,
    settings_of,
    train_saelens,
    untrained,
)


class Architecture(NamedTuple):
    """One kind of SAE: a row of `ARCHITECTURES`."""

    name: str
    label: str
    description: str
    """What it is and where it comes from, for people."""
    make: Make
    check: Callable[[SaeConfig, int], object] = settings_of
    """Raises UserError for settings that it cannot have at a hook point of so many dimensions."""
    seeded: bool = True
    """Whether chance plays a part: without, all trainings give the same SAE, and there is one."""


_ROWS = (
    Architecture(
        "topk",
        "TopK",
        "The k largest pre-activations of each token (Gao et al. 2024, arXiv 2406.04093).",
        train_saelens,
    ),
    Architecture(
        "batchtopk",
        "BatchTopK",
        "The k largest pre-activations a token, on average over a batch; afterwards a threshold, the running mean of"
        " the smallest one kept (Bussmann et al. 2024, arXiv 2412.06410).",
        train_saelens,
    ),
    Architecture(
        "jumprelu",
        "JumpReLU",
        "A learnt threshold for each latent, with a penalty on L0 (Rajamanoharan et al. 2024, arXiv 2407.14435). Its"
        " option is l0_coefficient.",
        train_saelens,
    ),
    Architecture(
        "standard",
        "Standard",
        "ReLU with a penalty on L1 (Bricken et al. 2023; Cunningham et al. 2023, arXiv 2309.08600). Its option is"
        " l1_coefficient.",
        train_saelens,
    ),
    Architecture(
        "gated",
        "Gated",
        "One path decides which latents are active, another how strongly, with a penalty on the L1 of the first"
        " (Rajamanoharan et al. 2024, arXiv 2404.16014). Its option is l1_coefficient.",
        train_saelens,
    ),
    Architecture(
        "matryoshka_batchtopk",
        "Matryoshka BatchTopK",
        "BatchTopK in nested levels, each of which must reconstruct without the next (Bussmann et al. 2025, arXiv"
        " 2503.17547). Its option is matryoshka_widths: 1/32, 3/32, 7/32, 15/32 and all of the latents by default.",
        train_saelens,
    ),
    Architecture(
        "untrained",
        "Untrained TopK",
        "A baseline: the TopK SAE before its first step, random directions about the mean activation.",
        untrained,
        partial(settings_of, architecture="topk"),
    ),
    Architecture(
        "frozen_decoder",
        "Frozen decoder",
        "A baseline: a TopK SAE whose decoder keeps its random directions while encoder and biases learn (Korznikov et"
        " al. 2026, arXiv 2602.14111).",
        frozen_decoder,
        partial(settings_of, architecture="topk"),
    ),
    Architecture(
        "pca",
        "PCA",
        "A baseline: the activations' principal components, each with both signs (2·d_in latents), of which the k"
        " largest projections of a token count (compared with SAEs in Cunningham et al. 2023, arXiv 2309.08600).",
        pca,
        check_two_signs,
        seeded=False,
    ),
    Architecture(
        "neurons",
        "Neurons",
        "A baseline: the hook point's own coordinates about their mean, each with both signs (2·d_in latents), of which"
        " the k largest of a token count (compared with SAEs in Cunningham et al. 2023, arXiv 2309.08600).",
        neurons,
        check_two_signs,
        seeded=False,
    ),
    Architecture(
        "pretrained",
        "Pre-trained",
        "An SAE that somebody trained, from sae.source, as it is and in its own units. On a random variant it is the"
        " SAE of the trained model, as a baseline.",
        pretrained,
        check_source,
        seeded=False,
    ),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}
"""All kinds of SAE by the name that the study file has for them."""


def seeds_of(study: Study, config: SaeConfig) -> int:
    """How often the study trains such an SAE: one without chance is there once."""
    return study.sae_seeds if ARCHITECTURES[config.architecture].seeded else 1


def check_tokens(config: SaeConfig, tokens: int) -> None:
    """Raise UserError where an SAE is trained in batches and there are fewer tokens than one."""
    if ARCHITECTURES[config.architecture].make in (train_saelens, frozen_decoder):
        check_batch(config, tokens)


def train(
    activations: Float[Tensor, "token d_in"],
    config: SaeConfig,
    metadata: dict[str, Any],
    seed: int,
    compute: Compute,
    advance: Advance = lambda *_: None,
    further: Further | None = None,
) -> Trained:
    """Make the SAE that the configuration asks for, on raw activations; `further` are those that come later.

    The activations are scaled by sqrt(d_in) / mean norm, the same rule for every variant. The factor and the decoder's
    norms are folded into the weights at the end: the SAE takes raw activations, and a latent's activation is the
    length of what it adds to the scaled reconstruction. (A pre-trained SAE keeps its own units.) Raises UserError
    for fewer tokens than one batch, for options that the architecture has not, and for a source that cannot be read.
    """
    metadata = metadata | {"lineup_architecture": config.architecture}
    made_from = Request(activations, config, metadata, seed, compute, advance, further)
    return ARCHITECTURES[config.architecture].make(made_from)
