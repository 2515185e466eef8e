"""Files that other programs wrote, read by us: PEFT's own with every kind of scale, diffusers' own, bare names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaw import adapters, formats, tensorfile
from tests.algebra.dense import dense, relative_error
from tests.formats import made
from tests.formats.test_read_by_diffusers import pipeline

CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 4},
    "alpha": {"r": 4, "lora_alpha": 1.5},
    "patterns": {"r": 4, "lora_alpha": 2, "rank_pattern": {"attn1.to_q": 2, "^conv_in": 3},
                 "alpha_pattern": {"attn2.to_k": 8, "down_blocks.*to_q": 5, "^mid_block.attentions.0.proj_in$": 0.5}},
    "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True, "rank_pattern": {"to_k": 9}},
    "dora": {"r": 4, "lora_alpha": 2, "use_dora": True},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_that_peft_saved(name: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    before = {k: v.clone() for k, v in pipeline().unet.state_dict().items()}
    config = LoraConfig(target_modules=["to_q", "to_k", "proj_in", "conv_in"], init_lora_weights=False, **CONFIGS[name])
    model = get_peft_model(pipeline().unet, config)
    for key, parameter in model.named_parameters():
        if "magnitude" in key:
            parameter.data *= 1.1
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload().state_dict()
    delta, match = formats.load(tmp_path, strict=True)
    assert match.dialects.keys() == {"peft"}
    changed = {
        key.removesuffix(".weight"): merged[key] - before[key] for key in before if not merged[key].equal(before[key])
    }
    assert {path.removeprefix("unet.") for path in delta.updates} == set(changed)
    for path, update in delta.updates.items():
        own = path.removeprefix("unet.")
        weight = before[f"{own}.weight"].float()
        change = adapters.dense(update.algorithm, update.tensors, tuple(weight.shape), weight)
        assert (change - changed[own]).abs().max() <= 1e-5 * max(1.0, float(changed[own].abs().max())), path


@pytest.mark.filterwarnings("ignore")  # peft's and diffusers' own
def test_a_file_that_diffusers_saved(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    pipe = pipeline()
    networks = {"unet": (pipe.unet, ["to_q", "to_out.0"]), "text_encoder": (pipe.text_encoder, ["q_proj", "fc1"])}
    layers = {}
    for name, (network, targets) in networks.items():
        network.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=targets, init_lora_weights=False))
        layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers)
    delta, match = formats.load(tmp_path, strict=True)
    assert match.variant == "emoji"
    assert {path.partition(".")[0] for path in delta.updates} == {"unet", "text_encoder"}
    for path, update in delta.updates.items():
        network = networks[path.partition(".")[0]][0]
        own = path.partition(".")[2] if path.startswith("unet") else path.removeprefix("text_encoder.text_model.")
        layer = network.get_submodule(own)
        wanted = layer.get_delta_weight("default")
        assert (adapters.dense("lora", update.tensors, tuple(wanted.shape)) - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_original_names_with_and_without_a_prefix(prefix: str, tmp_path: Path) -> None:
    among = [p for p in made.paths("sd3-medium") if p.startswith("transformer.transformer_blocks")]
    delta = made.delta("sd3", "sd3-medium", among=among, alpha=None)
    formats.save(delta, tmp_path / "c.safetensors", "comfy")
    tensors = {
        key.replace("diffusion_model.", prefix): t for key, t in tensorfile.read(tmp_path / "c.safetensors").items()
    }
    tensorfile.write(tmp_path / "x.safetensors", tensors)
    back, _ = formats.load(tmp_path / "x.safetensors", strict=True)
    assert made.same(delta, back) == ""


@pytest.mark.parametrize("algorithm", ["locon", "loha", "lokr"])
@pytest.mark.filterwarnings("ignore")  # LyCORIS' own
def test_a_network_that_lycoris_saved(algorithm: str, tmp_path: Path) -> None:
    lycoris = pytest.importorskip("lycoris", exc_type=ImportError)
    torch.manual_seed(0)
    unet = pipeline().unet
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    lycoris.LycorisNetwork.apply_preset({"target_name": [".*to_q", ".*conv1"], "lora_prefix": "lora_unet"})
    network = lycoris.create_lycoris(
        unet, 1.0, linear_dim=4, linear_alpha=2, conv_dim=4, conv_alpha=2, algo=algorithm, factor=4
    )
    network.apply_to()
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    network.save_weights(str(tmp_path / "x.safetensors"), torch.float32, {})
    delta, _ = formats.load(tmp_path / "x.safetensors", strict=True)
    assert delta.updates
    for path, change in dense(delta).items():
        own = path.removeprefix("unet.")
        layer = next(m for m in network.loras if m.lora_name.removeprefix("lora_unet_") == own.replace(".", "_"))
        with torch.no_grad():
            wanted = (
                layer.get_weight(before[f"{own}.weight"].shape) if algorithm != "locon" else layer.get_diff_weight()[0]
            )
        assert relative_error({"x": change}, {"x": wanted.double().reshape(change.shape)}) <= 1e-5, path
