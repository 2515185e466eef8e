"""What is encoded again, and what is not: entries depend on all that they were made of and on nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deltaw.data import feed
from deltaw.data.cache import Cache
from deltaw.data.folder import scan
from deltaw.errors import DeltawError
from deltaw.events import Event, Phase
from deltaw.families import bases
from deltaw.zoo import bundled_base

CPU = torch.device("cpu")
Encoded = dict[str, int]


def fill(
    base: Path, folder: Path, cache: Path, size_px: tuple[int, int] = (64, 64), dtype: torch.dtype = torch.float32
) -> tuple[feed.Feed, Encoded]:
    """The feed, and how many pictures and captions had to be encoded for it."""
    heard: list[Event] = []
    pictures = scan(folder).pictures
    data = feed.fill(
        bases.open_base(base), pictures, [size_px] * len(pictures), [p.caption for p in pictures], CPU, Cache(cache), heard.append,
        dtype=dtype,
    )  # fmt: skip
    return data, {e.unit: e.total or 0 for e in heard if isinstance(e, Phase)}


@pytest.fixture
def folder(pictures: Callable[..., Path]) -> Path:
    return pictures(4)


def test_the_second_time_nothing_is_encoded(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    before = sorted(p.name for p in folder.iterdir())
    first, encoded = fill(tiny_base, folder, tmp_path / "cache")
    assert encoded == {"pictures": 4, "captions": 5}, "the empty caption is always there"
    again, encoded = fill(tiny_base, folder, tmp_path / "cache")
    assert encoded == {}
    assert all(torch.equal(a, b) for a, b in zip(first.latents, again.latents, strict=True))
    assert all(torch.equal(first.texts[t], again.texts[t]) for t in first.texts)
    assert sorted(p.name for p in folder.iterdir()) == before, "nothing is written beside the pictures"


def test_editing_one_caption_encodes_exactly_one(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    fill(tiny_base, folder, tmp_path / "cache")
    (folder / "p02.txt").write_text("something else")
    assert fill(tiny_base, folder, tmp_path / "cache")[1] == {"captions": 1}


def test_a_renamed_or_copied_picture_is_known(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    fill(tiny_base, folder, tmp_path / "cache")
    (folder / "p02.png").rename(folder / "z.png")
    (folder / "p02.txt").rename(folder / "z.txt")
    shutil.copy(folder / "p01.png", folder / "copy.png")
    shutil.copy(folder / "p01.txt", folder / "copy.txt")
    assert fill(tiny_base, folder, tmp_path / "cache")[1] == {}


def test_a_changed_picture_or_transform_is_encoded_again(
    folder: Path, paint: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    fill(tiny_base, folder, tmp_path / "cache")
    paint(folder / "p02.png", 99)
    assert fill(tiny_base, folder, tmp_path / "cache")[1] == {"pictures": 1}
    assert fill(tiny_base, folder, tmp_path / "cache", (64, 32))[1] == {"pictures": 4}


@pytest.mark.parametrize(
    ("file", "encoded"),
    [
        ("vae/config.json", {"pictures": 4}),
        ("vae/diffusion_pytorch_model.safetensors", {"pictures": 4}),
        ("text_encoder/model.safetensors", {"captions": 5}),
        ("tokenizer/tokenizer_config.json", {"captions": 5}),
        ("unet/diffusion_pytorch_model.safetensors", {}),
    ],
)
def test_another_encoder_encodes_again_and_another_unet_does_not(
    folder: Path, tiny_base: Path, tmp_path: Path, file: str, encoded: Encoded
) -> None:
    fill(tiny_base, folder, tmp_path / "cache")
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    path = other / file
    if file == "vae/config.json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.5}))
    elif path.suffix == ".json":
        path.write_bytes(path.read_bytes() + b"\n")
    else:
        raw = bytearray(path.read_bytes())
        raw[-2] ^= 1
        path.write_bytes(raw)
    assert fill(other, folder, tmp_path / "cache")[1] == encoded


def test_another_precision_is_another_entry(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    fill(tiny_base, folder, tmp_path / "cache")
    assert fill(tiny_base, folder, tmp_path / "cache", dtype=torch.float16)[1] == {}, "the VAE never runs in float16"
    assert fill(tiny_base, folder, tmp_path / "cache", dtype=torch.bfloat16)[1] == {"pictures": 4}


def test_latents_made_in_bfloat16_decode_to_the_same_picture() -> None:
    """The difference is below that of rounding a picture to 8 bits, which is 59 dB."""
    from diffusers import AutoencoderKL

    base = bases.open_base(bundled_base())
    y, x = np.mgrid[:128, :128]
    pictures = np.stack([np.where(np.hypot(x - 64, y - 64)[..., None] < r, (200, 40, r), 255) for r in (20, 50)])
    exact, quick = (base.image_encoder(CPU, d)(pictures.astype(np.uint8)) for d in (torch.float32, torch.bfloat16))
    assert not torch.equal(exact, quick)
    vae = AutoencoderKL.from_pretrained(bundled_base() / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        off = (vae.decode(exact).sample.clamp(-1, 1) - vae.decode(quick).sample.clamp(-1, 1)) / 2
    assert -10 * off.square().mean().log10() > 55


def test_a_half_written_entry_is_made_again(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    first, _ = fill(tiny_base, folder, tmp_path / "cache")
    entry = max((p for p in (tmp_path / "cache").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    entry.write_bytes(entry.read_bytes()[:100])
    again, encoded = fill(tiny_base, folder, tmp_path / "cache")
    assert sum(encoded.values()) == 1
    assert all(torch.equal(a, b) for a, b in zip(first.latents, again.latents, strict=True))


def test_what_does_not_fit_in_memory_is_read_again(
    folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = fill(tiny_base, folder, tmp_path / "cache")
    monkeypatch.setattr(feed, "HELD_BYTES", whole.latents[0].nbytes * 2)
    data, encoded = fill(tiny_base, folder, tmp_path / "cache")
    assert encoded == {}
    assert all(torch.equal(a, b) for a, b in zip(data.latents, whole.latents, strict=True))
    assert torch.equal(data.latents[-1], whole.latents[3])
    assert all(torch.equal(data.texts[t], whole.texts[t]) for t in whole.texts)
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(data.latents[0], whole.latents[0]), "held"
    with pytest.raises(DeltawError, match="removed or is damaged"):
        _ = data.latents[3]


def test_beyond_memory_a_torn_entry_is_made_again_and_a_damaged_one_at_the_next_start(
    folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = fill(tiny_base, folder, tmp_path / "cache")
    monkeypatch.setattr(feed, "HELD_BYTES", 0)
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.parent.name != "digests"]
    latents = [p for p in files if b"latent" in p.read_bytes()]
    latents[0].write_bytes(latents[0].read_bytes()[:-1])
    latents[1].write_bytes(b"")
    data, encoded = fill(tiny_base, folder, tmp_path / "cache")
    assert encoded == {"pictures": 2}
    raw = latents[2].read_bytes()
    latents[2].write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(DeltawError, match="is damaged"):
        _ = [data.latents[i] for i in range(4)]
    again, encoded = fill(tiny_base, folder, tmp_path / "cache")
    assert encoded == {"pictures": 1}
    assert all(torch.equal(a, b) for a, b in zip(again.latents, whole.latents, strict=True))
