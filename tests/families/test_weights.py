"""The network that is read in pieces is the one that diffusers loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from deltaw.families import base_folder, bases, weights

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def read(base: Path, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module | None:
    folder = base_folder.read(base)
    config = dict(folder.configs["unet"])
    return weights.load(lambda: UNet2DConditionModel.from_config(config), folder.weights("unet"), CPU, dtype)


def rewrite(base: Path, change) -> None:
    tensors = load_file(base / "unet" / FILE)
    save_file(change(tensors), base / "unet" / FILE)


def test_is_what_diffusers_loads(base: Path) -> None:
    network = read(base)
    assert network is not None
    theirs = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.bfloat16)
    expected = theirs.state_dict()
    found = network.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_shards_are_one_network(base: Path) -> None:
    whole = UNet2DConditionModel.from_pretrained(base / "unet")
    shutil.rmtree(base / "unet")
    whole.save_pretrained(base / "unet", max_shard_size="50KB")
    assert len(list((base / "unet").glob("*.safetensors"))) > 1
    network = read(base, torch.float32)
    assert network is not None
    assert all(torch.equal(t, whole.state_dict()[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {n: x for n, x in t.items() if n != "conv_in.weight"},
        lambda t: t | {"something.else": torch.zeros(2)},
        lambda t: t | {"conv_in.bias": torch.zeros(3)},
    ],
    ids=["missing", "more", "shape"],
)
def test_other_contents_are_for_diffusers(base: Path, change) -> None:
    rewrite(base, change)
    assert read(base) is None


def test_the_denoiser_falls_back_to_diffusers(base: Path) -> None:
    rewrite(base, lambda t: t | {"something.else": torch.zeros(2)})
    unet = bases.open_base(base).denoiser(CPU, torch.float32)
    expected = load_file(base / "unet" / FILE)
    assert torch.equal(unet.state_dict()["conv_in.weight"], expected["conv_in.weight"])
