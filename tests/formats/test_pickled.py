"""Pickled files: every form that torch saves is read as the same tensors, without torch's unpickler or any other."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from deltaw import families, formats, tensorfile
from deltaw.delta import Delta
from deltaw.errors import InputError
from deltaw.families import listing
from deltaw.formats import cloneofsimo
from deltaw.verbs.inspect import inspect
from deltaw.verbs.merge import merge
from tests.formats import made

FORMS = {"zip": True, "before 1.6": False}


def save(value: object, path: Path, form: str = "zip", protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=FORMS[form], pickle_protocol=protocol)
    return path


def state(dialect: str, tmp_path: Path, delta: Delta) -> dict[str, torch.Tensor]:
    formats.save(delta, tmp_path / "s.safetensors", dialect)
    return tensorfile.read(tmp_path / "s.safetensors")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "comfy"])
def test_a_state_dict_is_read_as_from_safetensors(dialect: str, form: str, protocol: int, tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji", alpha=1.5 if dialect != "diffusers" else None)
    tensors = state(dialect, tmp_path, delta)
    for name, value in (
        ("x.pt", tensors),
        ("x.ckpt", OrderedDict(tensors)),
        ("x.bin", {"state_dict": tensors, "epoch": 3}),
    ):
        back, match = formats.load(save(value, tmp_path / name, form, protocol), strict=True)
        assert made.same(delta, back) == ""
        assert match.dialects.keys() == {dialect}


@pytest.mark.parametrize("form", FORMS)
def test_every_layout_and_type_of_a_tensor(form: str, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    wide = torch.rand(8, 192, generator=g)
    kinds: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
        "transposed": (torch.rand(4, 192, generator=g).mT, torch.rand(192, 4, generator=g).mT),
        "columns of more": (torch.rand(192, 9, generator=g)[:, 2:6], wide[1:5]),
        "every second": (torch.rand(192, 8, generator=g)[:, ::2], wide[::2]),
        "one number for all": (torch.full((1, 1), 0.5).expand(192, 1), torch.rand(1, 192, generator=g)),
        "parameters": (
            torch.nn.Parameter(torch.rand(192, 4)),
            torch.nn.Parameter(torch.rand(4, 192), requires_grad=False),
        ),
        "bfloat16": (torch.rand(192, 4).bfloat16(), torch.rand(4, 192).bfloat16()),
        "float8": (torch.rand(192, 4).to(torch.float8_e4m3fn), torch.rand(4, 192).to(torch.float8_e5m2)),
        "float64": (torch.rand(192, 4).double(), torch.rand(4, 192).double()),
    }
    for kind, (up, down) in kinds.items():
        path = save({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, tmp_path / "x.pt", form)
        if kind == "one number for all":  # 192 numbers out of one: a bomb has the same form
            with pytest.raises(InputError, match="beyond its storage"):
                formats.load(path)
            continue
        back = formats.load(path, strict=True)[0]
        found = next(iter(back.updates.values())).tensors
        assert (found["up"].dtype, found["down"].dtype) == (up.dtype, down.dtype)
        assert found["up"].float().equal(up.detach().float()), kind
        assert found["down"].float().equal(down.detach().float()), kind
        assert not inspect(path).broken


def counted(component: str, variant: str = "sd1") -> tuple[Delta, list[torch.Tensor]]:
    """A change and its list as cloneofsimo saves it, up before down, in the order of counting."""
    places = cloneofsimo.places(families.named("sd1"), listing.modules(variant), {})
    paths = [place.paths[0] for stem, place in places.items() if stem.startswith(f"{component}:")]
    delta = made.delta("sd1", variant, among=paths, alpha=None)
    ordered = [t for path in paths for t in (delta.updates[path].tensors["up"], delta.updates[path].tensors["down"])]
    return delta, ordered


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "component"), [("lora.pt", "unet"), ("lora.text_encoder.pt", "text_encoder")])
def test_the_lists_of_cloneofsimo(name: str, component: str, form: str, tmp_path: Path) -> None:
    delta, tensors = counted(component)
    back, match = formats.load(save(tensors, tmp_path / name, form), strict=True)
    assert made.same(delta, back) == ""
    assert match.dialects == {"cloneofsimo": len(tensors)}


def test_the_files_of_one_training_are_named_and_merge_into_one(tmp_path: Path) -> None:
    both = {name: counted(part) for name, part in (("lora.pt", "unet"), ("lora.text_encoder.pt", "text_encoder"))}
    for name, (_, tensors) in both.items():
        save(tensors, tmp_path / name)
    (note,) = formats.load(tmp_path / "lora.pt")[1].notes
    assert note.startswith("lora.text_encoder.pt beside it is of the same training")
    merge([(tmp_path / name, 1.0) for name in both], tmp_path / "whole.safetensors")
    whole, _ = formats.load(tmp_path / "whole.safetensors")
    assert set(whole.updates) == {path for delta, _ in both.values() for path in delta.updates}


VECTORS = {
    "A1111": (lambda v: {"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "my-cat", "step": 500,
                         "sd_checkpoint": None, "sd_checkpoint_name": None}, "my-cat"),
    "the original textual inversion": (lambda v: {"string_to_token": {"*": torch.tensor(265)},
                                                  "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(v)})}, "tok"),
    "two tokens": (lambda v: {"string_to_token": {}, "string_to_param": {"my-cat": v, "dog": v + 1}}, "my-cat"),
    "diffusers": (lambda v: {"<cat>": v[0]}, "<cat>"),
    "cloneofsimo": (lambda v: {"<s1>": v, "<s2>": v + 1}, "<s1>"),
    "kohya": (lambda v: {"emb_params": v}, "tok"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_tokens(name: str, form: str, tmp_path: Path) -> None:
    make, token = VECTORS[name]
    vectors = torch.rand(2, 768, generator=torch.Generator().manual_seed(1))
    delta, match = formats.load(save(make(vectors), tmp_path / "tok.pt", form), strict=True)
    wanted = vectors[:1] if name == "diffusers" else vectors
    assert delta.family == "sd1"
    assert delta.embeddings[token]["text_encoder"].equal(wanted)
    assert len(delta.embeddings) == (2 if name in ("two tokens", "cloneofsimo") else 1)
    assert match.dialects.keys() == {"embedding"}


def test_vectors_of_sdxl(tmp_path: Path) -> None:
    both = {"clip_l": torch.rand(2, 768), "clip_g": torch.rand(2, 1280)}
    delta, _ = formats.load(save(both, tmp_path / "tok.pt"), strict=True)
    assert delta.family == "sdxl"
    assert delta.embeddings["tok"]["text_encoder_2"].equal(both["clip_g"])


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_folders_that_hold_bin_files(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from tests.formats.test_read_by_diffusers import pipeline

    model = get_peft_model(
        pipeline().unet, LoraConfig(r=2, lora_alpha=1, target_modules=["to_q"], init_lora_weights=False)
    )
    for name, safe in (("safe", True), ("bin", False)):
        model.save_pretrained(tmp_path / name, safe_serialization=safe)
    assert not list((tmp_path / "bin").glob("*.safetensors"))
    one, other = (formats.load(tmp_path / name, strict=True)[0] for name in ("safe", "bin"))
    assert one.updates
    assert made.same(one, other) == ""
    delta = made.delta("sd1", "emoji", alpha=None)
    (tmp_path / "d").mkdir()
    save(state("diffusers", tmp_path, delta), tmp_path / "d" / "pytorch_lora_weights.bin")
    assert made.same(delta, formats.load(tmp_path / "d", strict=True)[0]) == ""


def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    """640 = 0x280: such a file begins as a pickle of protocol 2."""
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{stem}.lora_up.weight": torch.ones(192, 2), f"{stem}.lora_down.weight": torch.ones(2, 192)}
    tensorfile.write(tmp_path / "x.safetensors", tensors, {"note": ""})
    length = tensorfile.read_header(tmp_path / "x.safetensors").data_start - 8
    tensorfile.write(tmp_path / "x.safetensors", tensors, {"note": "x" * (640 - length)})
    assert (tmp_path / "x.safetensors").read_bytes()[:2] == b"\x80\x02"
    assert formats.load(tmp_path / "x.safetensors", strict=True)[0].updates


NO_LORAS = {
    "a number": (5, "no tensors by name"),
    "a dict of dicts": ({"unet": {"a": torch.ones(2)}}, "is no tensor"),
    "alphas as numbers": ({"lora_unet_x.lora_up.weight": torch.ones(2, 2), "lora_unet_x.alpha": 4.0}, "is no tensor"),
    "a hypernetwork": ({768: [{"a": torch.ones(2)}], 320: [{"a": torch.ones(2)}]}, "hypernetwork"),
    "an odd list": ([torch.ones(2, 2)] * 3, "no list of up and down"),
    "nothing": ({}, "no tensors"),
    "vectors that are none": ({"string_to_param": {"*": 5}}, "holds no vectors"),
}


@pytest.mark.parametrize("name", NO_LORAS)
def test_what_is_no_lora_is_named(name: str, tmp_path: Path) -> None:
    value, words = NO_LORAS[name]
    with pytest.raises(InputError, match=words) as caught:
        formats.load(save(value, tmp_path / "x.pt"))
    assert "x.pt" in str(caught.value)
    assert caught.value.advice


def test_reading_the_description_needs_neither_torch_nor_an_unpickler(tmp_path: Path) -> None:
    save({"<cat>": torch.ones(768)}, tmp_path / "x.pt")
    code = (
        "import pickle, sys\n"
        "def never(*a, **k): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = never\n"
        "from deltaw import formats\n"
        "source, reading = formats.understand(sys.argv[1])\n"
        "assert reading.family.name == 'sd1' and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.pt")], check=True)
