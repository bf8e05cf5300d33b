"""What a tensor is follows from modules: kinds, blocks, branches, and what writes to the residual stream."""

import re

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from core.errors import UserError
from pipeline.models.anatomy import Anatomy, gain_offset, tensor_kinds
from tests.pipeline.made_variants import MODELS, Make
from tests.pipeline.toy import toy_gemma, toy_gpt2, toy_llama, toy_mamba, toy_neox, toy_rwkv

WRITE = {
    toy_llama: r"model\.layers\.\d\.(self_attn\.o_proj|mlp\.down_proj)\.weight",
    toy_gpt2: r"transformer\.h\.\d\.(attn|mlp)\.c_proj\.weight",
    toy_neox: r"gpt_neox\.layers\.\d\.(attention\.dense|mlp\.dense_4h_to_h)\.weight",
    toy_gemma: r"model\.layers\.\d\.(self_attn\.o_proj|mlp\.down_proj)\.weight",
    toy_mamba: r"backbone\.layers\.\d\.mixer\.out_proj\.weight",
    toy_rwkv: r"rwkv\.blocks\.\d\.(attention\.output|feed_forward\.value)\.weight",
}


def matching(model: PreTrainedModel, pattern: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if re.fullmatch(pattern, name)}


def test_kinds_of_a_llama() -> None:
    kinds = tensor_kinds(toy_llama(num_hidden_layers=1, tie_word_embeddings=False))
    layer = "model.layers.0"
    assert kinds == {
        "model.embed_tokens.weight": "embedding",
        "lm_head.weight": "embedding",
        "model.norm.weight": "norm",
        f"{layer}.input_layernorm.weight": "norm",
        f"{layer}.post_attention_layernorm.weight": "norm",
        **{f"{layer}.self_attn.{part}_proj.weight": "weight" for part in "qkvo"},
        **{f"{layer}.mlp.{part}_proj.weight": "weight" for part in ("gate", "up", "down")},
    }


def test_kinds_of_a_gpt2() -> None:
    kinds = tensor_kinds(toy_gpt2(n_layer=1))
    assert {name for name, kind in kinds.items() if kind == "embedding"} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    assert {name for name, kind in kinds.items() if kind == "norm"} == {
        f"transformer.{place}.{part}" for place in ("h.0.ln_1", "h.0.ln_2", "ln_f") for part in ("weight", "bias")
    }
    modules = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert {name for name, kind in kinds.items() if kind == "bias"} == {f"transformer.h.0.{m}.bias" for m in modules}


def test_kinds_of_a_gpt_neox() -> None:
    model = toy_neox(num_hidden_layers=1)
    kinds = tensor_kinds(model)
    ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert ends[0] is not ends[1]
    for name, parameter in model.named_parameters():
        assert (kinds[name] == "embedding") == any(parameter is end for end in ends), name
    assert sum(kind == "norm" for kind in kinds.values()) == 6  # two in the block and a final one, weight and bias each
    assert sum(kind == "bias" for kind in kinds.values()) == 4


def test_kinds_of_a_gemma_a_mamba_and_an_rwkv() -> None:
    def names(model: PreTrainedModel, kind: str) -> set[str]:
        return {name for name, found in tensor_kinds(model).items() if found == kind}

    gemma, mamba, rwkv = toy_gemma(), toy_mamba(), toy_rwkv()
    assert names(gemma, "embedding") == {"model.embed_tokens.weight"}
    assert len(names(gemma, "norm")) == 2 * 6 + 1  # before and after each branch, queries, keys; a final one
    assert names(mamba, "embedding") == {"backbone.embeddings.weight"}
    assert names(mamba, "norm") == matching(mamba, r"backbone\.layers\.\d\.norm\.weight") | {"backbone.norm_f.weight"}
    assert matching(mamba, r".*\.(A_log|D)") < names(mamba, "weight")
    assert names(rwkv, "embedding") == {"rwkv.embeddings.weight", "head.weight"}
    assert len(names(rwkv, "norm")) == 2 * (1 + 3 * 2 + 1)
    assert names(rwkv, "bias") == set()


def test_ends_say_what_an_embedding_is_for() -> None:
    assert Anatomy(toy_gpt2()).ends == {"transformer.wte.weight": "token", "transformer.wpe.weight": "position"}
    assert list(Anatomy(toy_neox()).ends.values()) == ["token", "unembedding"]


@pytest.mark.parametrize("make", MODELS)
def test_every_tensor_but_the_ends_and_the_last_norm_is_in_a_block(make: Make) -> None:
    model = make()
    anatomy = Anatomy(model)
    outside = set(dict(model.named_parameters())) - set(anatomy.block_of)
    assert {anatomy.kinds[name] for name in outside} == {"embedding", "norm"}
    assert set(anatomy.block_of.values()) == set(range(model.config.num_hidden_layers))
    assert all(f".{number}." in name for name, number in anatomy.block_of.items())


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    model = toy_llama()
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="LlamaForCausalLM has no list of 7 blocks"):
        _ = Anatomy(model).blocks


@pytest.mark.parametrize(
    ("make", "attention", "mlp"),
    [
        (toy_llama, r"model\.layers\.\d\.self_attn\..*", r"model\.layers\.\d\.mlp\..*"),
        (toy_gpt2, r"transformer\.h\.\d\.attn\..*", r"transformer\.h\.\d\.mlp\..*"),
        (toy_neox, r"gpt_neox\.layers\.\d\.attention\..*", r"gpt_neox\.layers\.\d\.mlp\..*"),
        (toy_gemma, r"model\.layers\.\d\.self_attn\..*", r"model\.layers\.\d\.mlp\..*"),
        (toy_rwkv, r"rwkv\.blocks\.\d\.attention\..*", r"rwkv\.blocks\.\d\.feed_forward\..*"),
    ],
)
def test_branches(make: Make, attention: str, mlp: str) -> None:
    model = make()
    assert Anatomy(model).branch("attention") == matching(model, attention)
    assert Anatomy(model).branch("MLP") == matching(model, mlp)


@pytest.mark.parametrize("make", MODELS)
def test_projections_end_the_branches(make: Make) -> None:
    model = make()
    assert Anatomy(model).projection_names == matching(model, WRITE[make])


def test_a_branch_whose_end_cannot_be_told_is_refused() -> None:
    model = toy_llama()
    for layer in model.model.layers:
        layer.mlp.down_proj = nn.Linear(64, 31)
    with pytest.raises(UserError, match="Cannot tell which weights of LlamaMLP write to the residual stream"):
        _ = Anatomy(model).projections


@pytest.mark.parametrize("make", MODELS)
def test_writers_are_projections_and_their_biases_or_the_norms_behind_them(make: Make) -> None:
    model = make()
    expected = dict.fromkeys(matching(model, WRITE[make].replace(".weight", ".(weight|bias)")), 0.0)
    if make is toy_gemma:
        pattern = r"model\.layers\.\d\.post_(attention|feedforward)_layernorm\.weight"
        expected = dict.fromkeys(matching(model, pattern), 1.0)
    assert Anatomy(model).writers == expected


def test_a_norms_offset_is_what_it_adds_to_its_weight() -> None:
    assert gain_offset(toy_gemma().model.norm) == 1
    assert gain_offset(toy_llama().model.norm) == 0
    assert gain_offset(toy_gpt2().transformer.ln_f) == 0


def test_matrices_say_where_their_rows_are() -> None:
    matrices = Anatomy(toy_gpt2(n_layer=1)).matrices
    assert matrices["transformer.wte.weight"] is False
    assert matrices["transformer.h.0.attn.c_attn.weight"] is True  # 32 inputs as rows, 96 outputs as columns
    assert not any(name.endswith("bias") or "ln_" in name for name in matrices)
    assert not any(re.search(r"A_log|conv1d|norm", name) for name in Anatomy(toy_mamba()).matrices)
    assert torch.Size([96]) == toy_gpt2().transformer.h[0].attn.c_attn.bias.shape
