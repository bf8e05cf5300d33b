"""Precision is what is asked for, else what the hardware multiplies; a study in bfloat16 is the same, less precise."""

from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import UserError
from pipeline import hardware
from pipeline.config import Study
from pipeline.hardware import Compute, enough_memory, settled
from pipeline.study import run_study
from tests.pipeline.studies_for_tests import query


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((2**40, 2**20), np.dtype("float64")),  # type: ignore[attr-defined]
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 128 TB"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB. GPU 0 has a total capacity of 80 GiB"),
    ],
)
def test_too_little_memory_is_a_sentence(error: Exception) -> None:
    with pytest.raises(UserError, match=r"not enough memory \(.*\)\. .* `lineup plan`") as told, enough_memory():
        raise error
    assert "\n" not in str(told.value)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), enough_memory():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The flags of the only processor there is, for a test to fill; LINEUP_PRECISION is not set."""
    flags: set[str] = set()
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: flags)
    monkeypatch.delenv("LINEUP_PRECISION", raising=False)
    return flags


@pytest.mark.parametrize(
    ("flags", "bfloat16"),
    [({"avx2"}, False), ({"avx512f"}, False), ({"avx512_bf16"}, True), ({"amx_bf16", "amx_tile"}, True)],
)
def test_auto_is_bfloat16_only_where_the_processor_has_it(
    flags: set[str], bfloat16: bool, processor: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor |= flags
    assert hardware.detect("auto") == Compute("cpu", bfloat16)
    for named in ("float32", "bfloat16"):
        assert hardware.detect(named) == Compute("cpu", named == "bfloat16")  # type: ignore[arg-type]
    for named, other in (("float32", "bfloat16"), ("bfloat16", "float32")):
        monkeypatch.setenv("LINEUP_PRECISION", named)
        assert hardware.detect("auto") == Compute("cpu", named == "bfloat16")
        assert settled("auto") == named
        assert hardware.detect(other) == Compute("cpu", other == "bfloat16")  # type: ignore[arg-type]


def test_an_empty_variable_leaves_the_choice_and_a_wrong_one_is_said(
    processor: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor.add("amx_bf16")
    monkeypatch.setenv("LINEUP_PRECISION", "")
    assert hardware.detect() == Compute("cpu", bfloat16=True)
    monkeypatch.setenv("LINEUP_PRECISION", "float16")
    with pytest.raises(UserError, match=r"LINEUP_PRECISION is 'float16', .* Known: float32, bfloat16; without it"):
        hardware.detect()


def test_products_have_the_precision_that_was_asked_for() -> None:
    third = torch.full((1, 1), 1 / 3)
    for precision, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with Compute("cpu", precision == "bfloat16").autocast():
            assert (third @ third).dtype == expected


def test_a_wrong_variable_is_said_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEUP_PRECISION", "half")
    with pytest.raises(UserError, match="LINEUP_PRECISION is 'half'"):
        run_study(Study(name="mine"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_study_in_bfloat16_runs_and_comes_close(in_both_precisions: dict[str, Path]) -> None:
    fvu = """SELECT variant, layer, value FROM sae_metrics JOIN saes USING (sae) WHERE metric = 'fvu' ORDER BY sae"""
    for precision, database in in_both_precisions.items():
        noted = query(database, "SELECT value FROM provenance WHERE key = 'precision'")
        assert noted == [("bfloat16 autocast" if precision == "bfloat16" else "float32",)]
        ((complete, config),) = query(database, "SELECT complete, config FROM study")
        assert complete
        assert f"precision: {precision}\n" in config
    rough, exact = (query(in_both_precisions[each], fvu) for each in ("bfloat16", "float32"))
    for (*where, one), (*there, other) in zip(rough, exact, strict=True):
        assert where == there
        assert one == pytest.approx(other, rel=0.15)
        assert one != other
