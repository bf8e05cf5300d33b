"""Precision is chosen from what the hardware multiplies, and a study in bfloat16 is the same study, less precise."""

import io
from pathlib import Path

import duckdb
import pytest

from pipeline import hardware
from pipeline.hardware import Compute
from pipeline.study import run_study
from pipeline.study_file import load_study
from tests.pipeline.studies_for_tests import toy_study


@pytest.mark.parametrize(
    ("flags", "bfloat16"),
    [({"avx2"}, False), ({"avx512f"}, False), ({"avx512_bf16"}, True), ({"amx_bf16", "amx_tile"}, True)],
)
def test_bfloat16_only_where_the_processor_has_it(
    flags: set[str], bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: flags)
    assert hardware.detect() == Compute("cpu", bfloat16)


def fvus(database: Path) -> list[tuple[str, int, float]]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(
            "SELECT variant, layer, value FROM sae_metrics JOIN saes USING (sae) WHERE metric = 'fvu' ORDER BY sae"
        ).fetchall()


def test_a_study_in_bfloat16_runs_and_comes_close(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: Compute("cpu", bfloat16=True))
    database = run_study(load_study(toy_study(tmp_path)), tmp_path / "runs", io.StringIO())
    with duckdb.connect(str(database), read_only=True) as connection:
        assert connection.execute("SELECT complete FROM study").fetchone() == (True,)
        precision = connection.execute("SELECT value FROM provenance WHERE key = 'precision'").fetchone()
    assert precision == ("bfloat16 autocast",)
    for rough, exact in zip(fvus(database), fvus(finished), strict=True):
        assert rough[:2] == exact[:2]
        assert rough[2] == pytest.approx(exact[2], rel=0.15)
        assert rough[2] != exact[2]
