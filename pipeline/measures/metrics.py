"""The table of metrics, and the formulas of those of an SAE."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, log, nan
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse, stats
from torch import Tensor


class Metric(NamedTuple):
    """One number: a row of the table `metrics`, from which the pages draw columns, axes and tooltips."""

    name: str
    level: Literal["sae", "latent"]
    label: str
    unit: str
    description: str
    higher_is_better: bool | None = None
    scale: Literal["linear", "log"] = "linear"
    lower: float | None = None
    upper: float | None = None
    scorer: str | None = None
    explain_from: str | None = None
    score_on: str | None = None


METRICS: tuple[Metric, ...] = (
    Metric("explained_variance", "sae", "Explained variance", "", "1 − Σ‖x−x̂‖² / Σ‖x−μ‖² over held-out tokens, μ the mean of x over all of them.", True, upper=1),
    Metric("fvu", "sae", "FVU", "", "Fraction of variance unexplained: Σ‖x−x̂‖² / Σ‖x−μ‖² over held-out tokens.", False, lower=0),
    Metric("cosine_similarity", "sae", "Cosine similarity", "", "Mean over held-out tokens of ⟨x,x̂⟩ / (‖x‖‖x̂‖).", True, upper=1),
    Metric("l0", "sae", "L0", "latents", "Mean number of active latents on a held-out token.", None, lower=0),
    Metric("l1", "sae", "L1", "", "Mean over held-out tokens of Σ|f|, decoder rows of norm 1, activations scaled so that their mean norm is √d_in: the same units for every hook point.", None, lower=0),
    Metric("l1_raw", "sae", "L1, raw", "", "Mean over held-out tokens of Σ|f|, decoder rows of norm 1, in the hook point's own units.", None, lower=0),
    Metric("relative_reconstruction_bias", "sae", "Relative reconstruction bias", "", "E‖x̂‖² / E⟨x,x̂⟩ over held-out tokens (γ of Rajamanoharan et al. 2024, arXiv 2404.16014): 1 is unbiased, below it the reconstruction is too small. Not applicable where x̂ has no part in the direction of x.", None),
    Metric("redundancy", "sae", "Redundancy", "", "Mean over all latents of the largest cosine of the decoder row to another one.", False, upper=1),
    Metric("seed_stability", "sae", "Seed stability", "", "Mean |cosine| of the decoder rows of two SAEs that differ in their seed alone, alive latents only, matched one to one so as to make it largest (Hungarian algorithm; Paulo & Belrose 2025, arXiv 2501.16615); the mean over the other seeds. Chance gives more than zero, the more so the more latents there are.", True, lower=0, upper=1),
    Metric("ce_loss_recovered", "sae", "CE loss recovered", "", "(CE zero − CE SAE) / (CE zero − CE clean). Not applicable where the model predicts the text no better than a uniform guess, as random models do, where zeroing the activations does not clearly raise the loss (Student's t-test over sequences, one-sided, at the level of three standard errors), or where the variant sees noise in place of the text.", True, upper=1),
    Metric("ce_clean", "sae", "CE clean", "nats", "Mean next-token cross-entropy of the variant on held-out text.", None),
    Metric("ce_sae", "sae", "CE SAE", "nats", "The same with the hook point's activations replaced by the SAE's reconstruction.", None),
    Metric("ce_zero", "sae", "CE zero", "nats", "The same with the hook point's activations replaced by zeros.", None),
    Metric("kl_recovered", "sae", "KL recovered", "", "(KL zero − KL SAE) / KL zero. It compares the variant's predictions with and without the SAE, whatever the text, and so holds for random models and for noise too. Not applicable where zeroing the activations does not clearly move the predictions (the same test of the mean KL zero).", True, upper=1),
    Metric("kl_sae", "sae", "KL SAE", "nats", "Mean KL(variant ‖ with the SAE) of the next-token distributions on held-out text, the hook point's activations replaced by the SAE's reconstruction.", False, lower=0),
    Metric("kl_zero", "sae", "KL zero", "nats", "The same with the hook point's activations replaced by zeros.", None, lower=0),
    Metric("dead", "sae", "Dead", "share", "Share of latents that are active on none of the collected tokens.", False, lower=0, upper=1),
    Metric("alive", "sae", "Alive", "share", "Share of latents that are active on at least one collected token.", True, lower=0, upper=1),
    Metric("dense_1", "sae", "Dense > 1%", "share", "Share of latents that are active on more than 1% of tokens.", None, lower=0, upper=1),
    Metric("dense_10", "sae", "Dense > 10%", "share", "Share of latents that are active on more than 10% of tokens.", None, lower=0, upper=1),
    Metric("token_identity_r2", "sae", "Token-identity R²", "", "Of the model, no SAE: 1 − Σ‖x−μ_token‖² / Σ‖x−μ‖² over held-out tokens, μ_token the mean activation of the same token id over training tokens (the overall mean for ids never seen there). How much of the activation is the current token.", None, upper=1),
    Metric("token_identity_floor", "sae", "Token-identity floor", "", "The same with the training tokens' ids shuffled: what chance gives.", None, upper=1),
    Metric("dropped", "sae", "Dropped tokens", "share", "Share of tokens left out of training and measuring: the first positions of each sequence and the outliers.", None, lower=0, upper=1),
    Metric("outliers", "sae", "Outlier tokens", "tokens", "Tokens, beyond the first positions, whose norm exceeds 10 times the hook point's median; left out, by the same rule for every variant.", None, lower=0),
    Metric("normalisation", "sae", "Normalisation", "", "Factor on the activations that makes their mean norm √d_in; folded into the weights of an SAE that is trained here.", None, "log"),
    Metric("density", "latent", "Firing density", "share of tokens", "Share of the collected tokens on which the latent is active.", None, "log", 0),
    Metric("max_activation", "latent", "Max activation", "", "Largest activation, in units where the hook point's mean norm is √d_in and decoder rows have norm 1 (a pre-trained SAE's own units).", None, "linear", 0),
    Metric("mean_activation", "latent", "Mean activation", "", "Mean activation over the tokens on which the latent is active, in the same units.", None, "linear", 0),
    Metric("token_entropy", "latent", "Token entropy", "nats", "−Σ p ln p, p the share of activation mass on a token id, over a fixed number of random activating tokens (as many for every latent; none where it has fewer).", None, "linear", 0),
    Metric("token_entropy_all", "latent", "Token entropy (all firings)", "nats", "The same over all activating tokens. It grows with their number: compare latents of like density only.", None, "linear", 0),
    Metric("top_token_share", "latent", "Top-1 token share", "share", "Share of the activation mass that lies on the latent's commonest token id.", None, "linear", 0, 1),
    Metric("decoder_norm", "latent", "Decoder norm", "", "Norm of the latent's decoder row as trained, before it is folded into the encoder.", None, "linear", 0),
    Metric("largest_cosine", "latent", "Largest cosine", "", "Largest cosine of the latent's decoder row to another latent's: near 1, another one does nearly the same.", None, "linear", None, 1),
    Metric("firings", "latent", "Firings", "tokens", "Collected tokens on which the latent is active.", None, "log", 0),
    Metric("best_match_correlation", "latent", "Best match", "Pearson r", "Largest correlation of the latent's activations, token by token, with any latent of another variant at the same layer: a maximum, which grows with the number of variants and of latents.", None, "linear", None, 1),
)  # fmt: skip


OF_MODELS = ("token_identity_r2", "token_identity_floor")
"""Metrics of a hook point that no SAE has a part in."""

OF_SAES = (
    "explained_variance", "fvu", "cosine_similarity", "l0", "l1", "l1_raw", "relative_reconstruction_bias",
    "dead", "alive", "dense_1", "dense_10",
)  # fmt: skip
"""Metrics of an SAE that its activations on the corpus give."""


def metrics_table(metrics: Sequence[Metric]) -> pa.Table:
    """Rows for the table `metrics`, in this order."""
    rows = [metric._asdict() | {"position": place} for place, metric in enumerate(metrics)]
    renamed = [{("metric" if key == "name" else key): value for key, value in row.items()} for row in rows]
    return pa.Table.from_pylist(renamed, schema=_METRICS_SCHEMA)


_METRICS_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("metric", "level", "label", "unit", "description", "scale", "scorer", "explain_from", "score_on")
    ]
    + [("position", pa.int32()), ("higher_is_better", pa.bool_()), ("lower", pa.float64()), ("upper", pa.float64())]
)


@dataclass
class ReconstructionSums:
    """Sums over tokens, in float64, from which the reconstruction's metrics follow however the tokens are batched.

    Sums of x are taken about the first token seen, so that a large common offset costs no digits.
    """

    tokens: int = 0
    squared_error: float = 0.0
    cosines: float = 0.0
    products: float = 0.0
    squares_hat: float = 0.0
    squares: float = 0.0
    total: Float[Tensor, " d_in"] | None = field(default=None, repr=False)
    origin: Float[Tensor, " d_in"] | None = field(default=None, repr=False)

    def add(self, x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> None:
        """Add a batch of activations and their reconstructions."""
        x, x_hat = x.double(), x_hat.double()
        if self.origin is None or self.total is None:
            self.origin, self.total = x[0].clone(), torch.zeros_like(x[0])
        moved = x - self.origin
        self.tokens += len(x)
        self.total = self.total + moved.sum(0)
        self.squares += float(moved.square().sum())
        self.squared_error += float((x - x_hat).square().sum())
        self.cosines += float(torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).sum())
        self.products += float((x * x_hat).sum())
        self.squares_hat += float(x_hat.square().sum())

    @property
    def variance(self) -> float:
        """Σ‖x−μ‖²."""
        return self.squares - float(self.total.square().sum()) / self.tokens if self.total is not None else 0.0

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained; nan where there is none."""
        return self.squared_error / self.variance if self.variance > 0 else nan

    @property
    def cosine_similarity(self) -> float:
        """Mean over tokens."""
        return self.cosines / self.tokens

    @property
    def relative_bias(self) -> float | None:
        """E‖x̂‖² / E⟨x,x̂⟩; None where x̂ has no part in the direction of x, over all tokens."""
        return self.squares_hat / self.products if self.products > 0 else None


def sparsity(
    codes: sparse.csr_array, decoder_norms: Float[NDArray[np.float64], " d_sae"], normalisation: float
) -> dict[str, float]:
    """`l0`, `l1` and `l1_raw` over the rows of a sparse activation matrix, [token, latent].

    Every activation counts with the norm of its decoder row (raw units), so that SAEs in any units compare.
    """
    masses = np.bincount(codes.indices, weights=np.abs(codes.data, dtype=np.float64), minlength=codes.shape[1])
    raw = float(masses @ decoder_norms) / codes.shape[0]
    return {"l0": codes.nnz / codes.shape[0], "l1": raw * normalisation, "l1_raw": raw}


class Losses(NamedTuple):
    """In nats, token by token: the variant's next-token cross-entropies as it is, through the SAE, and with zeros; and
    how far the next-token distributions of the latter two lie from its own, as KL(own ‖ changed)."""

    clean: Float[Tensor, "sequence position"]
    sae: Float[Tensor, "sequence position"]
    zero: Float[Tensor, "sequence position"]
    kl_sae: Float[Tensor, "sequence position"]
    kl_zero: Float[Tensor, "sequence position"]


KL_ROUNDING = 1e-6
"""A mean KL divergence below this, in nats, is what float32 makes of none."""

CLEAR = 0.99865
"""How sure it has to be that zeroing does harm: what three standard errors of a normal mean are, on one side."""


def ce_loss_recovered(losses: Losses, vocab_size: int) -> tuple[float | None, str]:
    """(CE zero − CE SAE) / (CE zero − CE clean), or None with the reason why the ratio means nothing.

    A model that is worse than a uniform guess knows nothing of the text. Whether zeroing makes it worse still, is
    chance, though the same chance on every text: another wrong token is what it predicts then.
    """
    clean, uniform = float(losses.clean.double().mean()), log(vocab_size)
    if clean >= uniform:
        return None, (
            f"the model's own loss is {clean:.3g} nats, no better than a uniform guess among its {vocab_size:,} tokens"
            f" ({uniform:.3g} nats): there is no loss to recover"
        )
    harm = losses.zero - losses.clean
    clear, found = _clear(harm)
    if not clear:
        return None, f"zeroing the activations raises the loss by {found}: there is no loss to recover"
    return float((losses.zero - losses.sae).double().mean() / harm.double().mean()), ""


def kl_recovered(losses: Losses) -> tuple[float | None, str]:
    """(KL zero − KL SAE) / KL zero, or None with the reason why the ratio means nothing."""
    mean = float(losses.kl_zero.double().mean())
    clear, found = _clear(losses.kl_zero)
    if mean <= KL_ROUNDING or not clear:
        return None, f"zeroing the activations moves the predictions by {found}: there is nothing to recover"
    return float(1 - losses.kl_sae.double().mean() / mean), ""


def _clear(harm: Float[Tensor, "sequence position"]) -> tuple[bool, str]:
    """Whether the mean is above zero beyond doubt by Student's t-test, and what was found.

    Each sequence counts as one observation: the tokens of one text are not independent.
    """
    each = harm.double().mean(1)
    if len(each) < 2:
        return False, f"{float(each.mean()):.3g} nats, in one sequence, which cannot show whether that is chance"
    mean, error = float(each.mean()), float(each.std() / len(each) ** 0.5)
    found = f"{mean:.3g} ± {error:.2g} nats (standard error over {len(each)} sequences)"
    return mean > error * float(stats.t.ppf(CLEAR, len(each) - 1)), found


def token_identity_r2(
    train: Float[Tensor, "token d_in"],
    train_ids: Int[Tensor, " token"],
    held_out: Float[Tensor, "token d_in"],
    held_out_ids: Int[Tensor, " token"],
) -> float:
    """1 − Σ‖x−μ_token‖² / Σ‖x−μ‖² over the held-out tokens, with μ_token from the training tokens."""
    ids, inverse = torch.unique(train_ids, return_inverse=True)
    counts = torch.bincount(inverse, minlength=len(ids)).float()[:, None]
    overall = train.double().mean(0).float()
    means = torch.zeros(len(ids), train.shape[1]).index_add_(0, inverse, train - overall) / counts
    place = torch.searchsorted(ids, held_out_ids).clamp(max=len(ids) - 1)
    known = (ids[place] == held_out_ids)[:, None]
    sums = ReconstructionSums()
    sums.add(held_out, overall + torch.where(known, means[place], torch.zeros(())))
    return 1 - sums.fvu


def densities(firings: NDArray[np.int64], tokens: int) -> dict[str, float]:
    """Shares of latents by firing density: dead, alive, dense."""
    density = firings / tokens
    shares = {"dead": density == 0, "alive": density > 0, "dense_1": density > 0.01, "dense_10": density > 0.1}
    return {name: float(where.mean()) for name, where in shares.items()}


NOT_FINITE = "the number is beyond what a float holds: the variant or the SAE has overflowed"
NO_VARIANCE = "the activations of all held-out tokens are the same: there is no variance to explain"


def sae_metrics_table(values: dict[str, float], not_applicable: dict[str, str]) -> pa.Table:
    """Rows of `sae_metrics` for one SAE: values, and reasons where there is none or it is not finite."""
    reasons = {name: NOT_FINITE for name, value in values.items() if not isfinite(value)} | not_applicable
    names = [metric.name for metric in METRICS if metric.name in values or metric.name in reasons]
    return pa.table(
        {
            "metric": names,
            "value": pa.array([None if name in reasons else values[name] for name in names], pa.float64()),
            "status": ["not_applicable" if name in reasons else "ok" for name in names],
            "reason": [reasons.get(name, "") for name in names],
        }
    )
