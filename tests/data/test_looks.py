"""The perceptual hash: the bits that ImageHash 4.3.2 finds, and alike for pictures that look alike. Looks are remembered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltaw.data import image, looks
from deltaw.data.folder import scan
from deltaw.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "examples" / "streamline"


@pytest.mark.parametrize(("name", "found"), [("airplane", 0xFBC3B40FC5909662), ("alien", 0xBB3B91B0DAC2CAC2)])
def test_it_is_imagehashs(name: str, found: int) -> None:
    assert looks.looks(Image.open(EXAMPLES / f"{name}.png").convert("RGB")).hash == found


def test_smaller_and_darker_pictures_look_alike_and_others_do_not() -> None:
    picture, other = (Image.open(EXAMPLES / f"{name}.png").convert("RGB") for name in ("airplane", "alien"))
    changed = picture.resize((96, 96)).point(lambda level: level * 0.8)
    first, second, third = (looks.looks(one).hash for one in (picture, changed, other))
    assert (first ^ second).bit_count() <= 6
    assert (first ^ third).bit_count() >= 20


@pytest.fixture
def read_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the pictures that are read for their looks; with a cache of the test's own."""
    seen: list[str] = []

    def noting(path: Path, *, digest: str = "") -> Image.Image:
        seen.append(Path(path).name)
        return image.read(path, digest=digest)

    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(looks, "read", noting)
    return seen


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate(("a", "b", "c")):
        levels = np.random.default_rng(i).integers(0, 255, (40, 56, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{name}.png")
    return folder


def test_looks_are_remembered_to_the_last_bit(shown: Path, read_ones: list[str]) -> None:
    first = list(looks.look_at(scan(shown)))
    assert first == [looks.looks(image.load(shown / f"{name}.png")) for name in "abc"]
    read_ones.clear()
    assert list(looks.look_at(scan(shown))) == first
    assert read_ones == []
    Image.new("RGB", (40, 40), "red").save(shown / "b.png")
    changed = list(looks.look_at(scan(shown)))
    assert read_ones == ["b.png"]
    assert [a == b for a, b in zip(changed, first, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    "entry",
    [None, 3, [], [1, 2, 3, 4], ["x", 0, 0, 0, ""], [0, 0, 0, 0, "AAAA"], [0, 0, -1, 0, "A" * 768], [0, 0, 1 << 64, 0, "A" * 768],
     [0, 0, 0, 0, "ä"], [[], 0, 0, 0, ""]],
)  # fmt: skip
def test_damaged_looks_are_found_anew(entry: object, shown: Path, read_ones: list[str], tmp_path: Path) -> None:
    first = list(looks.look_at(scan(shown)))
    (memory,) = (tmp_path / "cache" / looks.KIND).iterdir()
    kept = json.loads(memory.read_text())
    memory.write_text(json.dumps({**kept, "known": dict.fromkeys(kept["known"], entry)}))
    read_ones.clear()
    assert list(looks.look_at(scan(shown))) == first
    assert sorted(read_ones) == ["a.png", "b.png", "c.png"]


def test_a_picture_that_changed_since_the_scan_is_named(shown: Path, read_ones: list[str]) -> None:
    dataset = scan(shown)
    Image.new("RGB", (40, 40), "red").save(shown / "b.png")
    with pytest.raises(InputError, match="changed since it was scanned") as caught:
        list(looks.look_at(dataset))
    assert "b.png" in caught.value.where
