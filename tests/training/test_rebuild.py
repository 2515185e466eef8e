"""A LoRA is made again from its own header, bit for bit, or the difference is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import deltaw
from deltaw import tensorfile
from deltaw.errors import InputError
from deltaw.events import Event, Note, Warn
from deltaw.training.metadata import RECIPE
from deltaw.training.rebuild import rebuild
from deltaw.verbs import metadata, share

SETTINGS = ("sample_steps=1", "snapshots=1", 'prompts=["a house"]', "dtype=float32", "device=cpu")


@pytest.fixture
def trained(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> deltaw.Report:
    return deltaw.train(
        pictures(3), base=str(tiny_base), out=tmp_path / "out", settings=SETTINGS, steps=3, batch=2, rank=2, lr=1e-2,
        trigger="zxq",
    )  # fmt: skip


def test_a_file_is_rebuilt_bit_for_bit(trained: deltaw.Report, tiny_base: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    again = rebuild(trained.file, tmp_path / "blocks", out=tmp_path / "again", base=str(tiny_base), tell=heard.append)
    assert again.identical == "file"
    assert not again.differences
    assert again.file.read_bytes() == trained.file.read_bytes()
    assert any("bit-identical" in e.text for e in heard if isinstance(e, Note))


def test_another_name_or_header_leaves_the_tensors_identical(
    trained: deltaw.Report, tiny_base: Path, tmp_path: Path
) -> None:
    metadata.edit(trained.file, tmp_path / "edited.safetensors", put={"note": "hello"})
    again = rebuild(tmp_path / "edited.safetensors", tmp_path / "blocks", out=tmp_path / "again", base=str(tiny_base))
    assert (again.identical, again.deviation) == ("tensors", 0.0)


def test_other_pictures_or_captions_or_base_are_named(
    trained: deltaw.Report, paint: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "blocks"
    with pytest.raises(InputError, match="base unet: was"):
        rebuild(trained.file, folder, out=tmp_path / "again")
    (folder / "p00.txt").write_text("else")
    with pytest.raises(InputError, match="pictures or captions are others"):
        rebuild(trained.file, folder, out=tmp_path / "again", base=str(tiny_base))
    paint(folder / "p07.png", 7)
    with pytest.raises(InputError, match="3 then, 4 now"):
        rebuild(trained.file, folder, out=tmp_path / "again", base=str(tiny_base))
    assert not (tmp_path / "again").exists()


def test_another_version_is_said_and_tried(
    trained: deltaw.Report, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltaw.training.fingerprint.VERSION", "9.9.9")
    heard: list[Event] = []
    again = rebuild(trained.file, tmp_path / "blocks", out=tmp_path / "again", base=str(tiny_base), tell=heard.append)
    assert any("version of deltaw: was" in e.text for e in heard if isinstance(e, Warn))
    assert again.identical == "tensors"


def test_what_this_machine_lacks_can_be_replaced_and_is_said(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    shared = deltaw.train(
        pictures(3), base=str(tiny_base), out=tmp_path / "out", settings=(*SETTINGS, "processes=2"), steps=3, batch=2, rank=2,
        lr=1e-2,
    )  # fmt: skip
    heard: list[Event] = []
    again = rebuild(
        shared.file, tmp_path / "blocks", out=tmp_path / "again", base=str(tiny_base), settings=["processes=1"],
        tell=heard.append,
    )  # fmt: skip
    assert "not as it was: processes: was 2, is what you asked for" in [e.text for e in heard if isinstance(e, Warn)]
    assert again.differences == ("processes: was 2, is what you asked for",)
    assert again.deviation < 1e-2
    assert json.loads(tensorfile.read_header(again.file).metadata[RECIPE])["settings"]["processes"] == 1


@pytest.mark.parametrize(
    ("recipe", "said"),
    [(None, "holds no recipe"), ("{", "damaged"), ("[]", "damaged"), ('{"settings": {}, "base": {}, "versions": {}, "format": 9}', "format 9"),
     ("unknown", "settings unknown here: wings")],
)  # fmt: skip
def test_a_file_without_a_usable_recipe_is_refused(
    trained: deltaw.Report, tiny_base: Path, tmp_path: Path, recipe: str | None, said: str
) -> None:
    file = tmp_path / "other.safetensors"
    if recipe is None:
        metadata.edit(trained.file, file, drop=(RECIPE,))
    else:
        whole = json.loads(tensorfile.read_header(trained.file).metadata[RECIPE])
        whole["settings"]["wings"] = 2
        metadata.edit(trained.file, file, put={RECIPE: json.dumps(whole) if recipe == "unknown" else recipe})
    with pytest.raises(InputError, match=said):
        rebuild(file, tmp_path / "blocks", out=tmp_path / "again", base=str(tiny_base))


def test_the_recipe_is_nobodys_business_free(trained: deltaw.Report, tmp_path: Path) -> None:
    header = tensorfile.read_header(trained.file).metadata
    assert share.find(header) == []
    for private in (str(tmp_path), "a thing number", "a house", "p00"):
        assert private not in json.dumps(dict(header))
    shutil.rmtree(tmp_path / "blocks")
