"""Original names against an independent oracle: diffusers' own converters of single-file checkpoints and kohya LoRAs.

Every weight gets rows with numbers of their own, is put under our original name, and must come out of diffusers'
converter under the canonical name with the same rows: so a wrong name, a wrong order of q, k, v and a missed swap show.
"""

from __future__ import annotations

import types

import pytest
import torch

from deltaw import families, formats
from deltaw.families import autoencoder, listing, networks, openclip, skeleton
from tests.algebra.dense import dense
from tests.formats import made

single = pytest.importorskip("diffusers.loaders.single_file_utils")
conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")


def tagged(variant: str, component: str) -> dict[str, torch.Tensor]:
    """Canonical path to rows `(out, 1)` of numbers that occur nowhere else."""
    found: dict[str, torch.Tensor] = {}
    at = 0
    for path, shape in listing.modules(variant).items():
        if path.startswith(f"{component}."):
            found[path.removeprefix(f"{component}.")] = torch.arange(at, at + shape[0]).reshape(-1, 1)
            at += shape[0]
    return found


def original(family: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as the original code stacks them."""
    stacked: dict[str, torch.Tensor] = {}
    for entry in families.named(family).original(weights):
        rows = torch.cat([weights[part] for part in entry.parts])
        stacked[f"{entry.name}.weight"] = torch.cat(rows.chunk(2)[::-1]) if entry.swapped else rows
    return stacked


def agree(variant: str, component: str, converted: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
    ours = {f"{path}.weight": rows for path, rows in weights.items()}
    assert set(ours) <= set(converted), sorted(set(ours) - set(converted))[:5]
    wrong = [key for key, rows in ours.items() if not converted[key].reshape(-1).equal(rows.reshape(-1))]
    assert wrong == []


@pytest.mark.parametrize("variant", ["flux1", "sd3-medium", "sd35-medium", "sd35-large"])
def test_transformers(variant: str) -> None:
    family = "flux1" if variant == "flux1" else "sd3"
    convert = (
        single.convert_flux_transformer_checkpoint_to_diffusers if family == "flux1"
        else single.convert_sd3_transformer_checkpoint_to_diffusers
    )  # fmt: skip
    weights = tagged(variant, "transformer")
    stacked = {key.replace("_norm.weight", "_norm.scale"): rows for key, rows in original(family, weights).items()}
    # the converters rename all that the original has, biases and tables included
    biases = {key.replace(".weight", ".bias"): rows[:, 0] for key, rows in stacked.items() if key.endswith(".weight")}
    converted = convert({**biases, **stacked, "pos_embed": torch.zeros(1)})
    agree(variant, "transformer", converted, weights)


@pytest.mark.parametrize("variant", ["sd1", "sd2", "sdxl"])
def test_unets(variant: str) -> None:
    weights = tagged(variant, "unet")
    stacked = {f"model.diffusion_model.{key}": rows for key, rows in original(variant, weights).items()}
    biases = {key.replace(".weight", ".bias"): rows[:, 0] for key, rows in stacked.items()}
    _, config = networks.VARIANTS[variant]["unet"]
    unet = networks.build(variant)["unet"]
    converted = single.convert_ldm_unet_checkpoint({**stacked, **biases}, dict(unet.config))
    assert config
    agree(variant, "unet", converted, weights)


@pytest.mark.parametrize(
    ("variant", "component", "width"), [("sd2", "text_encoder", 1024), ("sdxl", "text_encoder_2", 1280)]
)
def test_openclip(variant: str, component: str, width: int) -> None:
    weights = {
        path: rows
        for path, rows in tagged(variant, component).items()
        if "position" not in path and "projection" not in path
    }
    stacked: dict[str, torch.Tensor] = {}
    for entry in openclip.original(weights):
        key = f"x.{entry.name}weight" if entry.name.endswith("_") else f"x.{entry.name}.weight"
        stacked[key] = torch.cat([weights[part] for part in entry.parts])
    model = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=width))
    converted = single.convert_open_clip_checkpoint(model, stacked, prefix="x.")
    agree(variant, component, converted, weights)


def test_what_openclip_keeps_outside_its_modules() -> None:
    table, projection = torch.arange(77 * 1280).reshape(77, 1280), torch.arange(1280 * 1280).reshape(1280, 1280)
    model = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=1280))
    converted = single.convert_open_clip_checkpoint(
        model, {"x.positional_embedding": table, "x.text_projection": projection}, prefix="x."
    )
    for path, (name, turned) in openclip.BARE.items():
        original = {"positional_embedding": table, "text_projection": projection}[name]
        assert converted[path].equal(original.t() if turned else original)


def test_autoencoder() -> None:
    vae = skeleton.parts("sdxl")["vae"]
    state = {k: torch.arange(v.numel()).reshape(v.shape) + i for i, (k, v) in enumerate(vae.state_dict().items())}
    stacked = {}
    for entry in autoencoder.original({key.rpartition(".")[0]: None for key in state}):
        for leaf in ("weight", "bias"):
            tensor = state[f"{entry.parts[0]}.{leaf}"]
            is_attention = ".attn_1." in entry.name and tensor.dim() == 2
            stacked[f"{autoencoder.PREFIX}{entry.name}.{leaf}"] = tensor[..., None, None] if is_attention else tensor
    converted = single.convert_ldm_vae_checkpoint(stacked, dict(vae.config))
    assert set(converted) == set(state)
    assert [key for key, tensor in state.items() if not converted[key].equal(tensor)] == []


def test_flux_files_of_kohya_mean_the_same_to_diffusers(tmp_path) -> None:
    """Fused q, k, v and the first layer of the single blocks' MLP, with scales, through diffusers' own converter."""
    among = [p for p in listing.modules("flux1") if p.startswith(("transformer.transformer_blocks.4.", "transformer.single_transformer_blocks.7."))
             and p.endswith((".to_q", ".to_k", ".to_v", ".add_q_proj", ".add_k_proj", ".add_v_proj", ".proj_mlp", ".to_out.0"))]  # fmt: skip
    one = made.delta("flux1", "flux1", rank=2, alpha=0.5, among=among)
    formats.save(one, tmp_path / "own.safetensors", "kohya")  # factors of their own: block-diagonal
    from safetensors.torch import load_file

    converted = conversion._convert_kohya_flux_lora_to_diffusers(load_file(tmp_path / "own.safetensors"))
    wanted = dense(one)
    for path, change in wanted.items():
        up, down = (converted[f"{path}.lora_{name}.weight"].double() for name in "BA")
        assert torch.allclose(up @ down, change, atol=2e-3 * float(change.abs().max())), path
    assert {key.split(".lora_")[0] for key in converted} == set(wanted)
