"""PEFT's other adapters, against unmodified peft: what it saved means the same here, and what we write means the same to it."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import torch

from deltaw import adapters, formats, tensorfile
from deltaw.delta import Delta, Update
from deltaw.errors import DeltawError, InputError
from tests.formats import made
from tests.formats.test_read_by_diffusers import BASE

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own

TARGETS = ["attn1.to_q", "attn2.to_k", "proj_in", "conv1", "time_emb_proj"]
"""Linear, 1×1 and 3×3 convolutions, with and without bias, square and not."""

CASES = {
    "loha": ("LoHaConfig", {"r": 3, "alpha": 2}),
    "loha, patterns": ("LoHaConfig", {"r": 3, "alpha": 2, "rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {"conv1": 7, "down_blocks.*to_k": 5}}),
    "loha, tucker": ("LoHaConfig", {"r": 3, "alpha": 2, "use_effective_conv2d": True}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 3}),
    "lokr, both": ("LoKrConfig", {"r": 2, "alpha": 3, "decompose_both": True, "decompose_factor": 4}),
    "lokr, whole": ("LoKrConfig", {"r": 500, "alpha": 500}),
    "lokr, whole and scaled": ("LoKrConfig", {"r": 500, "alpha": 333}),
    "lokr, factor": ("LoKrConfig", {"r": 4, "alpha": 4, "decompose_factor": 8, "rank_pattern": {"to_q": 64}}),
    "lokr, tucker": ("LoKrConfig", {"r": 2, "alpha": 3, "use_effective_conv2d": True}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 8, "use_cayley_neumann": False}),
    "oft, series": ("OFTConfig", {"r": 0, "oft_block_size": 8}),
    "oft, four terms": ("OFTConfig", {"r": 0, "oft_block_size": 4, "num_cayley_neumann_terms": 4}),
    "oft, three terms": ("OFTConfig", {"r": 0, "oft_block_size": 4, "num_cayley_neumann_terms": 3}),
    "oft, shared": ("OFTConfig", {"r": 0, "oft_block_size": 16, "block_share": True, "use_cayley_neumann": False}),
    "oft, limited": ("OFTConfig", {"r": 0, "oft_block_size": 8, "coft": True, "eps": 0.5, "use_cayley_neumann": False}),
    "ia3": ("IA3Config", {"feedforward_modules": ["attn2.to_k", "proj_in"]}),
    "lora, bias of its own": ("LoraConfig", {"r": 2, "lora_alpha": 3, "lora_bias": True, "target_modules": ["conv1", "time_emb_proj", "proj_in"]}),
    "lora, rank-stabilised": ("LoraConfig", {"r": 2, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"conv1": 5}}),
    "dora": ("LoraConfig", {"r": 2, "lora_alpha": 3, "use_dora": True}),
}  # fmt: skip


@functools.cache
def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(BASE, subfolder="unet", local_files_only=True)


def network():
    return copy.deepcopy(unet())


def saved(name: str, folder: Path):
    """The network before, as peft merges it, and the folder it saved."""
    kind, options = CASES[name]
    start = {"IA3Config": "init_ia3_weights", "LoraConfig": "init_lora_weights"}.get(kind, "init_weights")
    torch.manual_seed(0)
    before = network().state_dict()
    model = peft.get_peft_model(network(), getattr(peft, kind)(**{"target_modules": TARGETS, start: False, **options}))
    g = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=g) * 0.1
            parameter.data = parameter.data * 1.1 if "magnitude" in key else noise + ("ia3" in key)
    model.save_pretrained(folder)
    return before, model.merge_and_unload().state_dict()


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_that_peft_saved_means_the_same(name: str, tmp_path: Path) -> None:
    before, merged = saved(name, tmp_path / "p")
    delta, match = formats.load(tmp_path / "p")
    assert match.dialects.keys() == {"peft"}
    assert not match.mismatched
    assert not match.unmatched
    assert all("bias" in why for why in match.ignored.values())
    assert bool(match.ignored) == (name == "ia3")
    changed = {
        k.removesuffix(".weight"): merged[k] - before[k]
        for k in before
        if k.endswith(".weight") and not merged[k].equal(before[k])
    }
    assert {path.removeprefix("unet.") for path in delta.updates} == set(changed)
    for path, update in delta.updates.items():
        own = path.removeprefix("unet.")
        weight = before[f"{own}.weight"]
        change = adapters.dense(update.algorithm, update.tensors, tuple(weight.shape), weight)
        assert (change - changed[own]).abs().max() <= 2e-5 * max(1.0, float(changed[own].abs().max())), path
        if "bias" in update.tensors:
            assert (update.tensors["bias"] - (merged[f"{own}.bias"] - before[f"{own}.bias"])).abs().max() <= 1e-6


@pytest.mark.parametrize("name", [name for name in CASES if name != "lora, bias of its own"])
def test_what_we_write_peft_reads_as_the_same(name: str, tmp_path: Path) -> None:
    before, merged = saved(name, tmp_path / "p")
    delta, _ = formats.load(tmp_path / "p")
    formats.save(delta, tmp_path / "q", "peft")
    assert made.same(delta, formats.load(tmp_path / "q")[0]) == ""
    model = peft.PeftModel.from_pretrained(network(), tmp_path / "q")
    again = model.merge_and_unload().state_dict()
    for key in before:
        if key.endswith(".weight"):
            assert (again[key] - merged[key]).abs().max() <= 2e-5 * max(1.0, float(merged[key].abs().max())), key


def update(algorithm: str, shape: tuple[int, ...], rank: int = 2, **more: torch.Tensor) -> Update:
    return Update(
        algorithm, {**adapters.named(algorithm).init(shape, rank, 2.0, torch.Generator().manual_seed(0)), **more}
    )


Q, K = (f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{kind}" for kind in "qk")
S = (192, 192)
REFUSED = {
    "two kinds": ({Q: update("lora", S), K: update("loha", S)}, "one kind, and unet has loha and lora"),
    "two block sizes": ({Q: update("oft-input", S, 4), K: update("oft-input", S, 8)}, "one kind of block size"),
    "two series": ({Q: update("oft-input", S, 4), K: update("oft-input", S, 4, terms=torch.tensor(5))}, "one kind of Neumann series"),
    "other halves": ({Q: Update("lokr", {"w1": torch.ones(2, 96), "w2": torch.ones(96, 2)})}, "halves of these modules in other shapes"),
    "an alpha without effect": ({Q: Update("lokr", {"w1": torch.ones(12, 12), "w2": torch.ones(16, 16), "alpha": torch.tensor(2.0)})}, "without effect"),
    "LyCORIS' OFT": ({Q: update("oft", S)}, "no keys for oft"),
    "a bias": ({Q: update("lora", S, bias=torch.ones(192))}, r"no key for lora\.bias"),
    "norms of a LoHa": ({Q: update("loha", S, magnitude=torch.ones(192, 1))}, r"no key for loha\.magnitude"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_cannot_hold_is_refused_by_name(name: str, tmp_path: Path) -> None:
    updates, words = REFUSED[name]
    with pytest.raises(DeltawError, match=words):
        formats.save(Delta("sd1", updates), tmp_path / "p", "peft")
    assert not (tmp_path / "p").exists()


UNREADABLE = {
    "another kind": ({"peft_type": "BOFT"}, "PEFT's BOFT is not supported"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "begun with pissa_niter_4, which also changes the base"),
    "olora": ({"init_lora_weights": "OLoRA"}, "also changes the base"),
    "alphas": ({"lora_alpha": "eight"}, "not a number"),
    "patterns": ({"alpha_pattern": [1]}, "no object"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_understood_is_refused_by_name(name: str, tmp_path: Path) -> None:
    fields, words = UNREADABLE[name]
    formats.save(Delta("sd1", {Q: update("lora", S)}), tmp_path / "p", "peft")
    config = tmp_path / "p" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    with pytest.raises(InputError, match=words) as caught:
        formats.load(tmp_path / "p")
    assert caught.value.advice


def test_what_peft_saves_beside_the_adapter_is_named(tmp_path: Path) -> None:
    formats.save(Delta("sd1", {Q: update("lora", S)}), tmp_path / "p", "peft")
    path = tmp_path / "p" / "adapter_model.safetensors"
    more = {
        "base_model.model.conv_in.weight": torch.ones(2, 2),
        "base_model.model.x.bias": torch.ones(2),
        "base_model.model.y.lora_embedding_A": torch.ones(2, 2),
    }
    tensorfile.write(path, {**tensorfile.read(path), **more}, {"format": "pt"})
    _, match = formats.load(tmp_path / "p")
    assert {key: why.split()[0] for key, why in match.unmatched.items()} == dict(
        zip(more, ("the", "the", "PEFT's"), strict=True)
    )
    with pytest.raises(InputError, match="not everything in it is used"):
        formats.load(tmp_path / "p", strict=True)
