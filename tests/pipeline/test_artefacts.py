"""What stages leave on disk, what becomes of it when it is damaged, and what a newer program makes of older ones."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from core.errors import UserError
from pipeline import artefacts, manifest
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
    assert kept.path("sae", inputs) == tmp_path / f"sae-{digest(inputs)}"


def test_what_is_removed_is_made_again_and_what_is_not_there_may_be_removed(tmp_path: Path) -> None:
    kept, made = Artefacts(tmp_path, "here"), []
    for _ in range(2):
        kept.remove("sae", 1)
        kept.make("sae", 1, lambda folder: made.append(folder))
    assert len(made) == 2


# Damage.


def write(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "facts.json").write_text('{"k": 4}')


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit": ("weights.safetensors", lambda folder: flip(folder / "weights.safetensors", 8_001)),
    "half a file": ("weights.safetensors", lambda folder: os.truncate(folder / "weights.safetensors", 1024)),
    "an empty file": ("facts.json", lambda folder: os.truncate(folder / "facts.json", 0)),
    "no file": ("facts.json", lambda folder: (folder / "facts.json").unlink()),
    "a file too many": ("more.parquet", lambda folder: (folder / "more.parquet").touch()),
    "a folder in its place": ("more.parquet", lambda folder: (folder / "more.parquet").mkdir()),
    "a note of its time": ("timing.json", lambda folder: flip(folder / "timing.json", 100)),
    "no manifest": ("manifest.txt", lambda folder: (folder / "manifest.txt").unlink()),
    "half a manifest": ("weights.safetensors", lambda folder: os.truncate(folder / "manifest.txt", 150)),
    "an empty manifest": ("weights.safetensors", lambda folder: os.truncate(folder / "manifest.txt", 0)),
    "a manifest in the dark": ("facts.json", lambda folder: (folder / "manifest.txt").write_bytes(bytes(2000))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_again_and_said(damage: str, tmp_path: Path) -> None:
    named, do = DAMAGE[damage]
    folder = Artefacts(tmp_path, "here").make("sae", 1, write)
    do(folder)
    said: list[str] = []
    again = Artefacts(tmp_path, "here", said.append)
    assert again.make("sae", 1, write) == folder
    assert again.made == ["sae"]
    assert (folder / "weights.safetensors").read_bytes() == bytes(range(256)) * 8
    assert sorted(path.name for path in folder.iterdir()) == [
        "facts.json", "manifest.txt", "timing.json", "weights.safetensors"
    ]  # fmt: skip
    (sentence,) = said
    assert sentence.startswith(f"{folder.name} is damaged")
    assert sentence.endswith("it is made again.")
    assert named in sentence
    assert "disk" not in sentence
    assert Artefacts(tmp_path, "here", said.append).has("sae", 1)
    assert len(said) == 1


def test_any_flipped_bit_of_a_manifest_is_seen(tmp_path: Path) -> None:
    folder = Artefacts(tmp_path, "here").make("sae", 1, write)
    size = (folder / "manifest.txt").stat().st_size
    for bit in range(0, 8 * (size - 1), 59):
        flip(folder / "manifest.txt", bit)
        again = Artefacts(tmp_path, "here")
        again.make("sae", 1, write)
        assert again.made == ["sae"], bit


def test_many_damaged_files_are_counted_and_their_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    folder = Artefacts(tmp_path, "here").make("sae", 1, write)
    for number in range(20):
        (folder / f"\x1b[2J {number}").touch()
    said: list[str] = []
    assert not Artefacts(tmp_path, "here", said.append).has("sae", 1)
    assert "and 17 more" in said[0]
    assert said[0].isprintable()


def test_what_systems_hide_in_folders_is_no_damage(tmp_path: Path) -> None:
    folder = Artefacts(tmp_path, "here").make("sae", 1, write)
    (folder / ".DS_Store").touch()
    assert Artefacts(tmp_path, "here").has("sae", 1)


def test_an_artefact_is_looked_at_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Artefacts(tmp_path, "here").make("sae", 1, write)
    kept, looked = Artefacts(tmp_path, "here"), []
    monkeypatch.setattr(manifest, "damage", lambda folder, _sources: looked.append(folder.name) or "")
    for _ in range(3):
        kept.make("sae", 1, write)
    kept.make("sae", 2, write)
    kept.make("sae", 2, write)
    assert looked == [kept.path("sae", 1).name]


def test_what_was_made_from_another_source_is_made_again_and_what_was_not_stays(tmp_path: Path) -> None:
    def chain(weights: bytes, say: Callable[[str], None]) -> list[str]:
        kept = Artefacts(tmp_path, "here", say)
        sae = kept.make("sae", 1, lambda folder: (folder / "a.safetensors").write_bytes(weights))
        latents = kept.make("latents", 1, lambda folder: (folder / "b.parquet").write_bytes(weights[:1]), sources=[sae])
        kept.make("scores", 1, lambda folder: (folder / "c.parquet").write_bytes(b"c"), sources=[latents])
        return kept.made

    said: list[str] = []
    assert chain(b"one", said.append) == ["sae", "latents", "scores"]
    assert chain(b"two", said.append) == []
    sae = Artefacts(tmp_path, "here").path("sae", 1)
    flip(sae / "a.safetensors", 0)
    assert chain(b"one", said.append) == ["sae"]  # which is the same again, only its time is another
    flip(sae / "a.safetensors", 0)
    assert chain(b"two", said.append) == ["sae", "latents", "scores"]
    assert [sentence.partition(" was made from another ")[2] for sentence in said] == [
        "", "", f"{sae.name} than there is now: it is made again.",
        f"{Artefacts(tmp_path, '').path('latents', 1).name} than there is now: it is made again.",
    ]  # fmt: skip


# Work that goes on where it was interrupted.


def test_of_what_an_interrupted_run_left_the_whole_files_are_kept(tmp_path: Path) -> None:
    started: list[list[str]] = []

    def build(folder: Path) -> None:
        started.append(sorted(path.name for path in folder.glob("*.safetensors*")))
        for number in range(4):
            path = folder / f"{number}.safetensors"
            if not path.exists():
                path.write_bytes(b"%d" % number)
                manifest.note(path)
        if len(started) < 3:
            (folder / "4.safetensors.partial").touch()
            raise KeyboardInterrupt

    said: list[str] = []
    kept = Artefacts(tmp_path, "here", said.append)
    with pytest.raises(KeyboardInterrupt):
        kept.make("activations", 1, build, keep_partial=True)
    with pytest.raises(KeyboardInterrupt):
        kept.make("activations", 1, build, keep_partial=True)
    assert said == []
    (partial,) = tmp_path.iterdir()
    flip(partial / "1.safetensors", 3)
    (partial / "3.safetensors").unlink()
    (partial / "9.safetensors").write_bytes(b"another's")
    folder = kept.make("activations", 1, build, keep_partial=True)
    whole = [f"{number}.safetensors" for number in range(4)]
    assert started == [[], whole, ["0.safetensors", "2.safetensors"]]
    assert said == [f"{partial.name} is damaged: what does not fit is made again."]
    assert [(folder / name).read_bytes() for name in whole] == [b"0", b"1", b"2", b"3"]
    assert Artefacts(tmp_path, "here").has("activations", 1)


# What keeps an artefact from being made.


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("File too large (os error 27)"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_one_sentence_and_nothing_half_stays(error: Exception, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        write(folder)
        raise error

    with pytest.raises(UserError, match=r"^Cannot write '.*sae-\w+\.partial': [A-Z][a-z ]+\. What.* make room, then"):
        Artefacts(tmp_path, "here").make("sae", 1, build)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (SafetensorError("Error while deserializing header: header too small"), "header too small"),
    ],
)
def test_another_error_of_the_disks_says_nothing_of_room(error: Exception, says: str, tmp_path: Path) -> None:
    def build(_: Path) -> None:
        raise error

    with pytest.raises(UserError, match=says) as raised:
        Artefacts(tmp_path, "here").make("sae", 1, build)
    assert "room" not in str(raised.value)


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Artefacts(tmp_path, "here").make("sae", 1, lambda _: 1 // 0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_its_name_only_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files first, then the folder's own list of them, then the list with the new name."""
    flushed: list[Path] = []
    monkeypatch.setattr(manifest, "flush", flushed.append)
    kept = Artefacts(tmp_path, "here")
    partial = tmp_path / (kept.path("sae", 1).name + ".partial")
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda old, new: flushed.append(rename(old, new)))
    folder = kept.make("sae", 1, write)
    names = ["facts.json", "timing.json", "weights.safetensors", "manifest.txt"]
    assert flushed == [*(partial / name for name in names), partial, folder, tmp_path]
