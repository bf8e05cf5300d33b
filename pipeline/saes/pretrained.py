"""Reads an SAE that somebody else trained, in SAELens' or sparsify's format."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.errors import UserError
from pipeline import hub
from pipeline.config import SaeConfig
from pipeline.manifest import file_sha256
from pipeline.places import place_of
from pipeline.saes.base import Request, Trained, topk_sae, without_options

READABLE = ("standard", "topk", "jumprelu", "gated")
"""SAELens' inference architectures that give sparse, non-negative activations of the same point they reconstruct."""

SPARSIFY_FILES = ("cfg.json", "sae.safetensors")


def pretrained(request: Request) -> Trained:
    """The SAE that `sae.source` names, as it is: its latents' activations keep their own units.

    It sees raw activations and applies its own normalisation, if it has one; `expected_average_only_in` means scaling
    the activations at hand to a mean norm of sqrt(d_in), which is folded into the weights. The fact `normalisation` is
    that factor, of which an SAE without such a normalisation knows nothing. A random variant gets the same SAE,
    trained on the trained model: a baseline. Raises UserError for a source that cannot be read, for what is no SAE,
    and for one of other dimensions.
    """
    check_source(request.config)
    source = (request.config.source or "").replace("{layer}", _layer(request))
    sae = _checked(_load(source), source, request)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(request.scale)
    norms = sae.get_W_dec_norm().clone()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # the same SAE, in the form that others have
        sae.fold_W_dec_norm()
        sae.cfg.rescale_acts_by_decoder_norm = False
    for name, value in request.metadata.items():
        sae.cfg.metadata[name if name.startswith("lineup_") else f"lineup_{name}"] = value
    sae.cfg.metadata["lineup_source"] = source
    return Trained(sae.requires_grad_(False), request.scale, norms, 0, 0)


def check_source(config: SaeConfig, _d_in: int = 0) -> None:
    """Raise UserError for a source of no known kind, and for options."""
    without_options(config)
    source = config.source or ""
    prefix, place = _parted(source)
    if prefix is None or not place:
        known = ", ".join(f"{name}:{what}" for name, (what, _) in SOURCES.items())
        raise UserError(f"Unknown sae.source '{source}'. Known: {known}.")


def contents(source: str, layer: int) -> list[str]:
    """Hashes of the files that `sae.source` names, or the commit of a hub's: another SAE may be put in its place.

    Nothing where loading it will tell what is wrong.
    """
    prefix, place = _parted(source.replace("{layer}", str(layer)))
    if prefix in ("hub", "sparsify:hub"):
        commit = hub.commit(_repository(prefix, place), "model", None)
        return [commit] if commit else []
    folder = place_of(place, "sae.source")
    if prefix not in ("folder", "sparsify:folder") or not folder.is_dir():
        return []
    return [file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()]


def _repository(prefix: str, place: str) -> str:
    """The repository of `RELEASE/ID` or `OWNER/NAME/FOLDER`."""
    release = get_pretrained_saes_directory().get(place.partition("/")[0]) if prefix == "hub" else None
    return str(release.repo_id) if release else "/".join(place.split("/")[:2])


def _layer(request: Request) -> str:
    """The layer's number in TransformerLens' name of the hook point."""
    found = re.match(r"blocks\.(\d+)\.", str(request.metadata.get("hook_name", "")))
    return found[1] if found else "{layer}"


def _parted(source: str) -> tuple[str | None, str]:
    """The row of `SOURCES` and what follows it; None for an unknown one."""
    prefix = next((prefix for prefix in SOURCES if source.startswith(prefix + ":")), None)
    return prefix, source.removeprefix(f"{prefix}:")


def _load(source: str) -> Any:
    prefix, place = _parted(source)
    assert prefix is not None
    try:
        return SOURCES[prefix][1](place)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"Cannot read the SAE '{source}': {reason or type(error).__name__}. Check the name, and the connection"
            " where it is a hub's."
        ) from error


def _checked(sae: Any, source: str, request: Request) -> Any:
    config = sae.cfg
    if config.architecture() not in READABLE:
        raise UserError(
            f"'{source}' is of the architecture '{config.architecture()}', which is not an SAE that can be shown"
            f" here. Known: {', '.join(READABLE)}."
        )
    if config.d_in != request.d_in:
        raise UserError(
            f"The SAE '{source}' takes {config.d_in} dimensions, but the hook point"
            f" '{request.metadata.get('hook_name')}' has {request.d_in}: take the SAE of this model and hook point."
        )
    if config.reshape_activations != "none" or config.normalize_activations == "covariance_whitening":
        raise UserError(
            f"The SAE '{source}' wants its activations prepared (reshape_activations {config.reshape_activations},"
            f" normalize_activations {config.normalize_activations}), and they come as the hook point has them:"
            " take another SAE."
        )
    return sae


def _from_folder(place: str) -> Any:
    folder = place_of(place, "sae.source")
    if not folder.is_dir():
        raise UserError(f"The SAE folder '{place}' does not exist. Give sae.source the path of a folder.")
    return SAE.load_from_disk(folder, dtype="float32")


def _from_hub(place: str) -> Any:
    """`RELEASE/ID` with a release of SAELens' list, or `OWNER/NAME/FOLDER` of the Hub."""
    release, _, name = place.partition("/")
    if release not in get_pretrained_saes_directory():
        owner, (repository, _, name) = release, name.partition("/")
        release = f"{owner}/{repository}"
    return SAE.from_pretrained(release, name, dtype="float32")


def _sparsify_from_folder(place: str) -> Any:
    return read_sparsify(place_of(place, "sae.source"))


def _sparsify_from_hub(place: str) -> Any:
    owner, _, rest = place.partition("/")
    name, _, folder = rest.partition("/")
    paths = [Path(hf_hub_download(f"{owner}/{name}", f"{folder}/{file}")) for file in SPARSIFY_FILES]
    return read_sparsify(paths[0].parent)


def read_sparsify(folder: Path) -> Any:
    """SAELens' TopK SAE of one that EleutherAI's sparsify wrote: `cfg.json` and `sae.safetensors`.

    Both subtract `b_dec` first and take the k largest rectified pre-activations; sparsify stores the encoder as
    [d_sae, d_in] and the decoder as [d_sae, d_in]. (SAELens' own loader transposes that decoder, and subtracts no
    `b_dec` where the decoder was kept at norm 1.) Raises UserError for a transcoder and for other activations.
    """
    config, found = (folder / file for file in SPARSIFY_FILES)
    settings, weights = json.loads(config.read_text(encoding="utf-8")), load_file(found)
    if settings.get("transcode") or settings.get("skip_connection") or "W_skip" in weights:
        raise UserError(f"'{folder}' is not an SAE but a transcoder, which predicts another hook point: take an SAE.")
    kind = "signed" if settings.get("signed") else settings.get("activation", "topk")
    if kind != "topk":
        raise UserError(f"The SAE '{folder}' has the activation '{kind}', which SAELens has not. Known: topk.")
    d_in = settings["d_in"]
    d_sae = settings["num_latents"] or d_in * settings["expansion_factor"]
    return topk_sae(_renamed(weights, d_in, d_sae, folder), settings["k"], {})


def _renamed(weights: dict[str, Tensor], d_in: int, d_sae: int, folder: Path) -> dict[str, Tensor]:
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes_found = {name: tuple(value.shape) for name, value in weights.items()}
    if shapes_found != shapes:
        raise UserError(f"The weights of '{folder}' are {shapes_found}; sparsify's SAE has {shapes}: take another SAE.")
    return {
        "W_enc": weights["encoder.weight"].T,
        "b_enc": weights["encoder.bias"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }


SOURCES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "folder": ("PATH", _from_folder),
    "hub": ("RELEASE/ID", _from_hub),
    "sparsify:folder": ("PATH", _sparsify_from_folder),
    "sparsify:hub": ("OWNER/NAME/FOLDER", _sparsify_from_hub),
}
"""Prefix of `sae.source`: what follows it, and who loads it."""
