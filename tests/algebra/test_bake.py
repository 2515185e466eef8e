"""`merge --into`: bit for bit at weight 0, undone by the negative weight, W + ΔW to half an ulp otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from deltaw import formats, tensorfile
from deltaw.errors import InputError, UsageError
from deltaw.families import checkpoint, listing
from deltaw.families import named as family_named
from deltaw.families.checkpoint import open_checkpoint
from deltaw.verbs.bake import bake
from tests.algebra.dense import dense
from tests.formats import made

EMOJI = Path(formats.__file__).parents[1] / "zoo" / "emoji"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_checkpoint(folder)
    with opened.reader() as reader:
        return {path: reader.weight(path) for path in opened.held}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    delta = made.delta("sd1", "emoji")
    formats.save(delta, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def as_float32(folder: Path) -> Path:
    """The bundled base in float32."""
    shutil.copytree(EMOJI, folder)
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        file = folder / f"{name}.safetensors"
        tensorfile.write(file, {k: t.float() for k, t in tensorfile.read(file).items()}, {"format": "pt"})
    return folder


def test_weight_zero_returns_the_base_bit_for_bit(lora: Path, tmp_path: Path) -> None:
    report = bake([(lora, 0.0)], EMOJI, tmp_path / "out")
    assert (report.n_changed, report.norm, report.lost) == (0, 0.0, 0.0)
    for file in (p for p in EMOJI.rglob("*") if p.is_file()):
        assert (tmp_path / "out" / file.relative_to(EMOJI)).read_bytes() == file.read_bytes(), file


def test_there_and_back_is_within_two_ulp(lora: Path, tmp_path: Path) -> None:
    base = as_float32(tmp_path / "base")
    bake([(lora, 0.37)], base, tmp_path / "there")
    bake([(lora, -0.37)], tmp_path / "there", tmp_path / "back")
    there, back = weights(tmp_path / "there"), weights(tmp_path / "back")
    for path, weight in weights(base).items():
        largest = torch.maximum(weight.abs(), there[path].abs())
        ulp = torch.nextafter(largest, torch.tensor(torch.inf)) - largest
        assert ((back[path] - weight).abs() <= 2 * ulp).all()


def test_half_precision_weights_are_rounded_once_and_the_loss_is_said(lora: Path, tmp_path: Path) -> None:
    report = bake([(lora, 0.05)], EMOJI, tmp_path / "out")
    delta, _ = formats.load(lora)
    before, after, change = weights(EMOJI), weights(tmp_path / "out"), dense(delta)
    lost = 0.0
    for path, weight in before.items():
        wanted = weight.double() + 0.05 * change.get(path, torch.zeros(1, dtype=torch.float64)).reshape(
            weight.shape if path in change else (1,) * weight.ndim
        )
        off = (after[path].double() - wanted).abs()
        assert (off <= 0.5001 * 2.0**-10 * wanted.abs() + 2.0**-25).all(), path
        lost += float((after[path].double() - wanted).square().sum()) if path in change else 0.0
    assert report.lost == pytest.approx(lost**0.5, rel=1e-3)
    assert report.norm == pytest.approx(0.05 * sum(float(c.square().sum()) for c in change.values()) ** 0.5, rel=1e-5)


def test_blocks_of_rows_make_the_same_file(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bake([(lora, 0.5)], EMOJI, tmp_path / "whole")
    monkeypatch.setattr("deltaw.verbs.bake.BLOCK", 5000)
    bake([(lora, 0.5)], EMOJI, tmp_path / "blocks")
    whole, blocks = weights(tmp_path / "whole"), weights(tmp_path / "blocks")
    changed = [path for path, weight in weights(EMOJI).items() if not weight.equal(whole[path])]
    assert max(whole[path].numel() for path in changed) > 3 * 5000
    for path, weight in whole.items():
        assert torch.allclose(weight.float(), blocks[path].float(), rtol=2e-3, atol=1e-6), path
        assert (weight != blocks[path]).float().mean() < 1e-3, (
            path
        )  # sums in another order round otherwise now and then


def single_file(family: str, variant: str, path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """A single-file checkpoint of random weights, narrow where the true ones are wide, under original names."""
    listed = listing.modules(variant)
    denoiser = family_named(family).denoiser
    own = [p.removeprefix(f"{denoiser}.") for p in listed if p.startswith(f"{denoiser}.")]
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for entry in family_named(family).original(own):
        shapes = [listed[f"{denoiser}.{part}"] for part in entry.parts]
        tensors[f"{prefix}{entry.name}.weight"] = torch.randn(
            sum(s[0] for s in shapes), *shapes[0][1:], generator=generator
        )
    tensorfile.write(path, tensors, {"kept": "yes"})
    return tensors


def test_a_single_file_is_baked_under_its_original_names(lora: Path, tmp_path: Path) -> None:
    tensors = single_file("sd1", "emoji", tmp_path / "base.safetensors", "model.diffusion_model.")
    delta, _ = formats.load(lora)
    report = bake([(lora, 1.0)], tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    after = tensorfile.read(tmp_path / "out.safetensors")
    changes = {p: c for p, c in dense(delta).items() if p.startswith("unet.")}
    names = {f"unet.{e.parts[0]}": f"model.diffusion_model.{e.name}.weight" for e in family_named("sd1").original(
        [p.removeprefix("unet.") for p in listing.modules("emoji") if p.startswith("unet.")])}  # fmt: skip
    touched = {names[path]: change for path, change in changes.items()}
    assert report.n_changed == len(touched)
    assert tensorfile.read_header(tmp_path / "out.safetensors").metadata == {"kept": "yes"}
    for key, before in tensors.items():
        assert torch.allclose(after[key].double(), before.double() + touched.get(key, 0.0), atol=1e-5)


def test_fused_rows_are_found_in_a_flux_file() -> None:
    held = checkpoint._rows(21504, ("a.attn.to_q", "a.attn.to_k", "a.attn.to_v", "a.proj_mlp"), {})
    assert held == [3072, 3072, 3072, 12288]


def test_what_cannot_be_baked_is_refused(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the output is an input"):
        bake([(lora, 1.0)], EMOJI, EMOJI)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists"):
        bake([(lora, 1.0)], EMOJI, tmp_path / "there")
    formats.save(made.delta("sdxl", "sdxl"), tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match=r"none has its shape|no key names"):
        bake([(tmp_path / "xl.safetensors", 1.0)], EMOJI, tmp_path / "out")
    with pytest.raises(InputError, match="no base of a known family"):
        bake([(lora, 1.0)], lora, tmp_path / "out")
    assert json.loads((EMOJI / "model_index.json").read_text())
