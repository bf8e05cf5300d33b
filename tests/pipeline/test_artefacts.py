"""What stages leave on disk, and what a newer program makes of what an older one left."""

from pathlib import Path

import pytest

from pipeline import artefacts
from pipeline.artefacts import Artefacts, digest


def test_a_stage_whose_files_have_changed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def build(folder: Path) -> None:
        made.append(folder.name)

    kept = Artefacts(tmp_path, "here")
    for formats in ({}, {}, {"losses": 2}, {"losses": 2}, {"losses": 3}):
        monkeypatch.setattr(artefacts, "FORMATS", formats)
        kept.make("losses", {"tokens": 1}, build)
        kept.make("latents", {"tokens": 1}, build)
    assert [name.partition("-")[0] for name in made] == ["losses", "latents", "losses", "losses"]
    assert len(set(made)) == 4


def test_losses_by_hook_point_are_not_taken_for_losses_by_sae(tmp_path: Path) -> None:
    """As they were before all SAEs of a variant were measured in one go, with the same key."""
    kept, inputs = Artefacts(tmp_path, "here"), {"saes": ["a"], "tokens": 1024}
    assert kept.path("losses", inputs) != tmp_path / f"losses-{digest(inputs)}"
    assert kept.path("latents", inputs) == tmp_path / f"latents-{digest(inputs)}"


def test_what_is_removed_is_made_again_and_what_is_not_there_may_be_removed(tmp_path: Path) -> None:
    kept, made = Artefacts(tmp_path, "here"), []
    for _ in range(2):
        kept.remove("sae", 1)
        kept.make("sae", 1, lambda folder: made.append(folder))
    assert len(made) == 2
