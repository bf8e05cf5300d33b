"""Runs a variant once over the corpus and keeps the activations of every hook point in files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.files import replacing
from pipeline.config import Hook
from pipeline.hardware import Compute
from pipeline.manifest import note
from pipeline.models.hooks import hook_module, value_of
from pipeline.progress import Advance
from pipeline.seeds import torch_generator
from pipeline.variants.make import VariantModel

SEQUENCES_IN_FILE = 64
SEQUENCES_IN_BATCH = 8
PIECE_TOKENS = 2**19
"""Training tokens whose activations are held at once: 1 GB at 512 dimensions."""
OUTLIER = 10.0
"""A token is dropped when its norm exceeds this many times the median norm of its hook point."""


@dataclass(frozen=True)
class Activations:
    """What one hook point gives the SAE: the tokens that are kept, by one rule for every variant."""

    values: Float[Tensor, "token d_in"]
    token: Int[Tensor, " token"]
    """Where each row stands in the flattened corpus, ascending."""
    dropped_share: float
    """Share of the corpus' tokens that is dropped: first positions, and outliers of the norm."""
    outliers: int
    """Tokens, beyond the first positions, whose norm exceeds `OUTLIER` times the median."""
    limit: float
    """The norm from which a token is an outlier."""

    @property
    def unusable(self) -> str:
        """Why nothing can be learnt from them, in which case no token is kept; '' when something can."""
        if self.limit == torch.inf:
            return "the variant's activations are beyond what float32 holds on most tokens"
        return "" if self.limit else "the variant's activations are zero, or nearly, on most tokens"

    def held_out(self, sequences: Bool[Tensor, " sequence"], length: int) -> Bool[Tensor, " token"]:
        """Which rows are of held-out sequences, each of so many tokens."""
        return sequences[torch.div(self.token, length, rounding_mode="floor")]

    def flaw(self, held_out: Bool[Tensor, " token"]) -> str:
        """Why no SAE can be made from them; '' when one can."""
        if self.unusable or (held_out.any() and not held_out.all()):
            return self.unusable
        return "all training tokens or all held-out tokens are outliers of the norm"


class _Stop(Exception):  # noqa: N818 (no error: the last hook point has been reached)
    pass


def run_variant(
    variant: VariantModel,
    sequences: Int[Tensor, "sequence position"],
    hooks: Sequence[Hook],
    layers: Sequence[int],
    drop_positions: int,
    seed: int,
    compute: Compute,
    folder: Path,
    advance: Advance,
) -> int:
    """Write the activations of all hooks of all layers to `folder`, in one pass that stops after the last of them.

    A file holds `SEQUENCES_IN_FILE` sequences and depends on nothing but its number, so files that an interrupted run
    left, and noted in the folder's manifest, are kept. Returns the number of tokens. The Hugging Face model runs as it
    is: TransformerLens' bridge computes the same, with an attention that can be hooked everywhere and takes a third
    longer. Raises UserError when the model lacks a hook point.
    """
    variant.model.to(compute.device)
    modules = {_key(layer, hook): hook_module(variant.model, layer, hook) for layer in layers for hook in hooks}
    files = list(sequences.split(SEQUENCES_IN_FILE))
    for number, part in enumerate(files):
        path = folder / f"{number:06d}.safetensors"
        if not path.exists():
            generator = torch_generator(seed, "noise", number)
            save_whole(_run(variant, part, modules, drop_positions, generator, compute), path)
            note(path)
        advance(min((number + 1) * SEQUENCES_IN_FILE, len(sequences)) * sequences.shape[1], sequences.numel())
    return sequences.numel()


def stream(
    variant: VariantModel,
    sequences: Int[Tensor, "sequence position"],
    layer: int,
    hook: Hook,
    drop_positions: int,
    limit: float,
    seed: int,
    compute: Compute,
    skip: int = 0,
) -> Iterator[Float[Tensor, "token d_in"]]:
    """One hook point's activations in pieces of `PIECE_TOKENS`, each made when it is asked for, without a file.

    `limit` is the norm from which a token is an outlier, which is left out. Noise is fresh in every piece, and another
    than the corpus has. The first `skip` pieces are not made.
    """
    variant.model.to(compute.device)
    key, modules = _key(layer, hook), {_key(layer, hook): hook_module(variant.model, layer, hook)}
    parts = list(enumerate(sequences.split(max(1, PIECE_TOKENS // sequences.shape[1]))))
    for number, part in parts[skip:]:
        generator = torch_generator(seed, "noise", "training", number)
        values = _run(variant, part, modules, drop_positions, generator, compute)[key].flatten(0, 1)
        yield values[values.norm(dim=-1) <= limit]


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file so that it exists only when it is complete."""
    with replacing(path) as partial:
        save_file(tensors, partial)


def _run(
    variant: VariantModel,
    sequences: Tensor,
    modules: dict[str, nn.Module],
    drop_positions: int,
    generator: torch.Generator,
    compute: Compute,
) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {key: [] for key in modules}

    def keep(key: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            # A copy, because some models add to the output of a module in place.
            found[key].append(value_of(output)[:, drop_positions:].to("cpu", torch.float32, copy=True))
            if len({len(parts) for parts in found.values()}) == 1:
                raise _Stop

        return hook

    noise = variant.noise.active(generator) if variant.noise else nullcontext()
    with ExitStack() as hooks, torch.inference_mode(), compute.autocast(), noise:
        for key, module in modules.items():
            hooks.callback(module.register_forward_hook(keep(key)).remove)
        for batch in sequences.split(SEQUENCES_IN_BATCH):
            with suppress(_Stop):
                variant.model(batch.to(compute.device), use_cache=False)
    return {key: torch.cat(parts) for key, parts in found.items()}


def _key(layer: int, hook: Hook) -> str:
    return f"{layer}.{hook}"


def load(folder: Path, layer: int, hook: Hook, drop_positions: int) -> Activations:
    """Read one hook point's activations and drop the outliers of the norm, and all of them where most are no numbers
    or zero.
    """
    values = torch.cat(list(_parts(folder, _key(layer, hook))))
    sequence, position, d_in = values.shape
    values = values.reshape(-1, d_in)
    norms = torch.cat([part.norm(dim=-1) for part in values.split(16_384)]).nan_to_num(nan=torch.inf, posinf=torch.inf)
    limit = OUTLIER * float(norms.median())
    kept: Bool[Tensor, " token"] = (norms <= limit) & (0 < limit < torch.inf)
    place = torch.arange(sequence * (position + drop_positions)).view(sequence, -1)[:, drop_positions:].reshape(-1)
    outliers = int((~kept).sum())
    return Activations(
        values=values if outliers == 0 else values[kept],
        token=place[kept],
        dropped_share=1 - int(kept.sum()) / (sequence * (position + drop_positions)),
        outliers=outliers,
        limit=limit,
    )


def _parts(folder: Path, key: str) -> Iterator[Tensor]:
    for path in sorted(folder.glob("[0-9]*.safetensors")):
        with safe_open(path, framework="pt") as file:
            yield file.get_tensor(key)
