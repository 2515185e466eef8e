"""`extract(W, W + ΔW)` returns ΔW at its rank; what it cannot hold, and pairs that make no sense, are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from deltaw import formats, tensorfile
from deltaw.delta import Delta
from deltaw.errors import InputError
from deltaw.families import listing
from deltaw.verbs.bake import bake
from deltaw.verbs.extract import extract
from tests.algebra.dense import dense, relative_error
from tests.algebra.test_bake import EMOJI, as_float32, single_file
from tests.families.ldm import single_file as whole_single_file
from tests.formats import made

UNET = "unet/diffusion_pytorch_model.safetensors"


def known(rank: int) -> Delta:
    """A change of rank `rank` in modules of every size that the bundled base has."""
    shapes = listing.modules("emoji")
    kinds = {shapes[path]: path for path in shapes if len(shapes[path]) > 1 and "embedding" not in path}
    among = [path for shape, path in kinds.items() if min(shape[:2]) > 3 * rank]
    return made.delta("sd1", "emoji", rank=rank, alpha=None, dtype=torch.float32, among=among)


def tuned(base: Path, delta: Delta, folder: Path, weight: float = 0.05) -> Path:
    formats.save(delta, folder / "known.safetensors")
    bake([(folder / "known.safetensors", weight)], base, folder / "tuned")
    return folder / "tuned"


def test_a_known_change_comes_back_at_its_rank(tmp_path: Path) -> None:
    delta = known(4)
    base = as_float32(tmp_path / "base")
    report = extract(tuned(base, delta, tmp_path), base, tmp_path / "x.safetensors", energy=1.0, dtype="float32")
    got, _ = formats.load(tmp_path / "x.safetensors")
    assert set(got.updates) == set(delta.updates)
    assert {update.tensors["down"].shape[0] for update in got.updates.values()} == {4}
    assert relative_error(dense(got), {path: 0.05 * change for path, change in dense(delta).items()}) <= 1e-5
    assert report.energy == pytest.approx(1.0, abs=1e-6)
    assert report.uncaptured == {}
    assert report.cosine > 0.5


@pytest.mark.parametrize("budget", [{"energy": 0.9}, {"size": "60kB"}, {"rank": 2}], ids=str)
def test_budgets_are_kept_and_the_residual_is_measured(budget: dict, tmp_path: Path) -> None:
    delta = known(8)
    base = as_float32(tmp_path / "base")
    report = extract(tuned(base, delta, tmp_path), base, tmp_path / "x.safetensors", dtype="float32", **budget)
    wanted = {path: 0.05 * change for path, change in dense(delta).items()}
    error = relative_error(dense(formats.load(tmp_path / "x.safetensors")[0]), wanted)
    assert 1 - report.energy == pytest.approx(error**2, rel=1e-3)
    if "energy" in budget:
        assert report.energy >= 0.9
    if "size" in budget:
        assert report.n_bytes <= 60_000


def test_half_precision_pairs_give_the_change_and_not_the_rounding(tmp_path: Path) -> None:
    delta = known(4)
    report = extract(tuned(EMOJI, delta, tmp_path), EMOJI, tmp_path / "x.safetensors", energy=1.0)
    got, _ = formats.load(tmp_path / "x.safetensors")
    assert {update.tensors["down"].shape[0] for update in got.updates.values()} == {4}
    assert relative_error(dense(got), {path: 0.05 * change for path, change in dense(delta).items()}) <= 0.01
    assert report.energy > 0.999


def test_norms_biases_and_the_vae_are_named_or_kept(tmp_path: Path) -> None:
    base = as_float32(tmp_path / "base")
    changed = tuned(base, known(2), tmp_path)
    tensors = tensorfile.read(changed / UNET)
    tensors["conv_norm_out.weight"] += 0.5
    tensors["conv_in.bias"] += 0.25
    tensorfile.write(changed / UNET, tensors)
    vae = changed / "vae/diffusion_pytorch_model.safetensors"
    tensorfile.write(vae, {key: tensor + 1 for key, tensor in tensorfile.read(vae).items()})
    report = extract(changed, base, tmp_path / "x.safetensors")
    assert {"unet.conv_norm_out.diff", "unet.conv_in.bias"} < set(report.uncaptured)
    assert any(what.startswith("vae") for what in report.uncaptured)
    report = extract(changed, base, tmp_path / "y.safetensors", full_norms=True)
    got, _ = formats.load(tmp_path / "y.safetensors", strict=True)
    assert torch.allclose(got.updates["unet.conv_norm_out"].tensors["diff"], torch.tensor(0.5), atol=1e-6)
    assert "unet.conv_norm_out.diff" not in report.uncaptured


def test_pairs_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    base = as_float32(tmp_path / "base")
    with pytest.raises(InputError, match="no weight differs"):
        extract(EMOJI, EMOJI, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no weight differs"):
        extract(base, EMOJI, tmp_path / "x.safetensors")  # float32 made of float16 loses nothing
    whole_single_file(EMOJI, tmp_path / "one.safetensors")
    with pytest.raises(
        InputError, match=r"differs from the base; beside them, cond_stage_model: not in the base \(1 tensor\)"
    ):
        extract(tmp_path / "one.safetensors", EMOJI, tmp_path / "x.safetensors")
    shutil.copytree(base, tmp_path / "other")
    generator = torch.Generator().manual_seed(0)
    tensors = {k: torch.randn(t.shape, generator=generator) for k, t in tensorfile.read(base / UNET).items()}
    tensorfile.write(tmp_path / "other" / UNET, tensors)
    with pytest.raises(InputError, match="not related"):
        extract(tmp_path / "other", base, tmp_path / "x.safetensors")
    fine = {
        k: t * (1 + 1e-3 * torch.randn(t.shape, generator=generator)) for k, t in tensorfile.read(base / UNET).items()
    }
    tensorfile.write(base / UNET, fine)
    tensorfile.write(tmp_path / "other" / UNET, {k: t.half() for k, t in fine.items()})
    with pytest.raises(InputError, match="rounding of their types only"):
        extract(tmp_path / "other", base, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_ema_copies_are_not_taken_for_weights_and_are_named(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    tensors = single_file("sd1", "emoji", base, "model.diffusion_model.")
    delta = made.delta("sd1", "emoji", among=[p for p in made.paths("emoji") if p.startswith("unet.")][:5], alpha=None)
    formats.save(delta, tmp_path / "known.safetensors")
    bake([(tmp_path / "known.safetensors", 0.5)], base, tmp_path / "tuned.safetensors")
    after = tensorfile.read(tmp_path / "tuned.safetensors")
    ema = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": tensor + 1 for key, tensor in tensors.items()}
    tensorfile.write(tmp_path / "tuned.safetensors", {**after, **ema})
    report = extract(tmp_path / "tuned.safetensors", base, tmp_path / "x.safetensors", energy=0.9999)
    assert report.uncaptured == {"model_ema: not in the base": f"{len(ema)} tensors"}
    assert set(formats.load(tmp_path / "x.safetensors")[0].updates) == set(delta.updates)
