"""The saved file in an unmodified diffusers pipeline gives what `deltaw generate` gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deltaw
from deltaw import formats, inject
from deltaw.delta import Delta
from deltaw.families import bases
from deltaw.verbs.painter import Painter, Recipe
from deltaw.zoo import bundled_base

pytest.importorskip("peft")


@pytest.fixture(scope="module", params=["attention", "as the base recommends"])
def trained(request: pytest.FixtureRequest) -> Delta:
    """A change of the bundled base with random numbers, alpha ≠ rank: larger than training makes."""
    base = bases.open_base(bundled_base())
    targets = base.targets if request.param == "attention" else base.folder.recommended["train"]["targets"]
    unet = base.denoiser(torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(0)
    wrapped = inject.wrap(unet, targets, 4, 3.0, generator)
    with torch.no_grad():
        for module in wrapped.modules.values():
            module.up.normal_(0, 0.05, generator=generator)
    return inject.take(wrapped, base.family, "unet")


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_same_latents(trained: Delta, tmp_path: Path, dialect: str, strength: float) -> None:
    file = tmp_path / "lora.safetensors"
    trained.save(file, dialect=dialect)
    painter = Painter(device="cpu", dtype="float32")
    recipe = Recipe("a red apple", "", 7, 6, 4.0, 128, 128, (), "", "", "float32", "cpu")
    shapes = formats.shapes_of(bundled_base())
    ours = painter.latents([recipe], [(formats.load(file, shapes=shapes)[0], strength)])
    plain = painter.latents([recipe], [])
    pipe = painter.pipe
    pipe.load_lora_weights(str(file), adapter_name="it")
    pipe.set_adapters(["it"], [strength])
    theirs = pipe(
        recipe.prompt, generator=torch.Generator().manual_seed(7), num_inference_steps=6, guidance_scale=4.0, width=128,
        height=128, output_type="latent",
    ).images  # fmt: skip
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - plain).abs().max() > 0.1, "the LoRA must matter for the comparison to mean something"


def test_public_load_reads_what_save_wrote(trained: Delta, tmp_path: Path) -> None:
    trained.save(tmp_path / "x.safetensors")
    back = deltaw.load(tmp_path / "x.safetensors")
    assert back.family == "sd1"
    for path, update in trained.updates.items():
        assert all(torch.equal(update.tensors[k], back.updates[path].tensors[k]) for k in ("up", "down", "alpha"))
