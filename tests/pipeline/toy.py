"""Small models, a tokeniser and documents made in code, so that tests of the pipeline need neither network nor time."""

import copy
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RwkvConfig,
    RwkvForCausalLM,
)

from pipeline.config import ModelConfig
from pipeline.models.gguf import quiet
from pipeline.models.load import LoadedModel, load_model

END = "<|endoftext|>"

WORDS = {
    "who": "the fox, a heron, an old dog, seven geese, the miller, a child, two sailors, the queen, nobody, a beetle",
    "does": "watches, follows, remembers, counts, paints, avoids, carries, questions, repairs, sings to",
    "what": "the river, a lamp, the harbour, his shadow, red apples, an argument, the clock, cold stones, a map, rain",
    "when": "at dawn, in winter, after the war, on Sundays, before supper, in 1907, every evening, without warning",
}
SHAPES = (
    "{who} {does} {what} {when}.",
    "{when}, {who} {does} {what}.",
    "{who}, {who} and {who}: {what}!",
    'Why does {who} think that {who} {does} {what}? "{when}", says {who}.',
    "Of {number} kilometres, {who} {does} {number}.",
)


def toy_documents(n: int = 40, sentences: int = 60) -> list[tuple[str, str]]:
    """Titles and texts: sentences of a few shapes over a skewed vocabulary; every document has a subject of its own."""
    draw = random.Random(0)
    lists = {key: words.split(", ") for key, words in WORDS.items()}
    documents = []
    for number in range(n):
        subject = draw.choice(lists["who"])
        made = [_sentence(draw, lists, subject) for _ in range(sentences + number % 7 * 5)]
        documents.append((f"Document {number}", " ".join(made)))
    return documents


def _sentence(draw: random.Random, lists: dict[str, list[str]], subject: str) -> str:
    text = draw.choice(SHAPES)
    while "{" in text:
        key = text[text.index("{") + 1 : text.index("}")]
        text = text.replace("{" + key + "}", _word(draw, lists, subject, key), 1)
    return text[0].upper() + text[1:]


def _word(draw: random.Random, lists: dict[str, list[str]], subject: str, key: str) -> str:
    if key == "number":
        return str(draw.randint(2, 400))
    if key == "who" and draw.random() < 0.4:
        return subject
    return lists[key][int(len(lists[key]) * draw.random() ** 2)]  # the first words are the commonest


def write_toy_corpus(path: Path, n: int = 40, sentences: int = 60) -> Path:
    """The documents as a jsonl file."""
    lines = [json.dumps({"title": title, "text": text}) for title, text in toy_documents(n, sentences)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@cache
def _backend() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in toy_documents()), trainer)
    return str(tokenizer.to_str())


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens, which can spell any text."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_backend()), bos_token=END, eos_token=END)


LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
NEOX: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
GEMMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 256,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "pad_token_id": None,
}
MAMBA: dict[str, Any] = {
    "hidden_size": 32,
    "state_size": 4,
    "num_hidden_layers": 2,
    "use_associative_scan": False,
    "pad_token_id": None,
}
RWKV: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "context_length": 256}


def toy_llama(**changes: Any) -> PreTrainedModel:
    """Three layers of 32 dimensions with RMS norms and tied embeddings."""
    return _made(LlamaForCausalLM, LlamaConfig, LLAMA | changes)


def toy_gpt2(**changes: Any) -> PreTrainedModel:
    """Two layers of 32 dimensions with biases, layer norms, learned positions and tied embeddings."""
    return _made(GPT2LMHeadModel, GPT2Config, GPT2 | changes)


def toy_neox(**changes: Any) -> PreTrainedModel:
    """Two layers of 32 dimensions with biases, parallel branches and an unembedding of its own."""
    return _made(GPTNeoXForCausalLM, GPTNeoXConfig, NEOX | changes)


def toy_gemma(**changes: Any) -> PreTrainedModel:
    """Two layers of 32 dimensions, one with a sliding window: embeddings scaled inside their module, heads wider than
    the model, norms before and after each branch."""
    return _made(Gemma3ForCausalLM, Gemma3TextConfig, GEMMA | changes)


def toy_mamba(**changes: Any) -> PreTrainedModel:
    """Two layers of 32 dimensions, each one mixer: neither attention nor MLP."""
    return _made(MambaForCausalLM, MambaConfig, MAMBA | changes)


def toy_rwkv(**changes: Any) -> PreTrainedModel:
    """Three layers of 32 dimensions with time mixing in place of attention, and an unembedding of its own."""
    return _made(RwkvForCausalLM, RwkvConfig, RWKV | changes)


def _made(model_class: Any, config_class: Any, shape: dict[str, Any]) -> PreTrainedModel:
    """A model in which no tensor is constant: fresh biases and norms are, and would hide a mistake."""
    config = config_class(
        vocab_size=len(toy_tokenizer()), bos_token_id=0, eos_token_id=0, initializer_range=0.2, **shape
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = model_class(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().requires_grad_(False)
    made: PreTrainedModel = model
    return made


def save_toy_model(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """Write a folder as transformers does: config.json, safetensors, tokeniser."""
    (model or toy_llama()).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """A Llama as llama.cpp's converter writes it, with Q8_0 matrices: enough for transformers to read it back."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("toy")
    writer.add_block_count(LLAMA["num_hidden_layers"])
    writer.add_context_length(LLAMA["max_position_embeddings"])
    writer.add_embedding_length(LLAMA["hidden_size"])
    writer.add_feed_forward_length(LLAMA["intermediate_size"])
    writer.add_head_count(LLAMA["num_attention_heads"])
    writer.add_head_count_kv(LLAMA["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokenizer))
    vocab = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocab)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LLAMA["num_hidden_layers"])
    for name, parameter in model.named_parameters():
        values = parameter.numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        written = names.get_name(name.removesuffix(".weight")) + ".weight"
        writer.add_tensor(written, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_toy_package(site: Path) -> str:
    """A package in a folder for `sys.path` that holds a quantised toy model and cannot be imported; gives its name."""
    folder, info = site / "toy_gguf", site / "toy_gguf-1.2.dist-info"
    folder.mkdir(parents=True)
    info.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('no llama.cpp here')", encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-gguf\nVersion: 1.2\n", encoding="utf-8")
    write_gguf(folder / "Toy-Llama.Q8_0.gguf", toy_llama(), toy_tokenizer())
    return "toy-gguf"


def bridge(loaded: LoadedModel) -> Any:
    """TransformerLens' view of the model, against which hook points are checked; it wraps the modules in place."""
    from transformer_lens.model_bridge import TransformerBridge  # takes seconds to import

    tokenizer = copy.deepcopy(loaded.tokenizer)  # TransformerLens gives it the special tokens that it lacks
    with quiet():
        return TransformerBridge.boot_transformers(tokenizer.name_or_path, hf_model=loaded.model, tokenizer=tokenizer)


def toy_loaded(folder: Path, model: PreTrainedModel | None = None) -> LoadedModel:
    """A toy model, written to the folder and loaded from it as the pipeline does."""
    return load_model(ModelConfig(source=f"folder:{save_toy_model(folder, model)}"), folder)
