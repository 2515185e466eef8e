"""Broken, foreign and hostile LoRA files: each gets a sentence with its name in it, and nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltaw import formats, tensorfile
from deltaw.delta import Delta, Update
from deltaw.errors import DeltawError, InputError, ManyErrors
from deltaw.verbs.bake import bake
from deltaw.verbs.check import check
from deltaw.verbs.convert import convert
from deltaw.verbs.inspect import inspect
from deltaw.verbs.merge import merge
from tests.formats import made

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def good(path: Path) -> Path:
    formats.save(made.delta("sd1", "emoji"), path)
    return path


def header(listing: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def pair(rank: int = 4, width: int = 192, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{KEY}.lora_up.weight": torch.ones(width, rank), f"{KEY}.lora_down.weight": torch.ones(rank, width),
            **{f"{KEY}.{name}": tensor for name, tensor in more.items()}}  # fmt: skip


class _Bomb:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Bomb(path.parent / "canary"), protocol=4))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Bomb(path.parent / "canary"), protocol=2))


def half(path: Path) -> None:
    whole = good(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def header_only(path: Path) -> None:
    path.write_bytes(good(path).read_bytes()[: tensorfile.read_header(path).data_start])


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "seven bytes": (lambda p: p.write_bytes(b"1234567"), "this is text .'1234567'"),
    "header only": (header_only, "incomplete"),
    "half": (half, "incomplete: .* of .* are there"),
    "web page": (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Sign in</html>" * 9), "web page"),
    "git-lfs pointer": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "git-lfs"),
    "pickle": (pickled, "pickle"),
    "zip": (zipped, "pickle"),
    "terabyte header": (lambda p: p.write_bytes(header(b"{" * 64, length=10**12)), "cut off|no safetensors"),
    "overlap": (lambda p: p.write_bytes(header({"a": F32, "b": F32}, bytes(8))), "begins at byte 0, 8 was expected"),
    "gap": (lambda p: p.write_bytes(header({"a": {**F32, "data_offsets": [4, 12]}}, bytes(12))), "begins at byte 4"),
    "huge shape": (lambda p: p.write_bytes(header({"a": {**F32, "shape": [2**31, 2**31]}}, bytes(8))), "contradict"),
    "negative shape": (lambda p: p.write_bytes(header({"a": {**F32, "shape": [-1, -2]}}, bytes(8))), "contradict"),
    "unknown dtype": (lambda p: p.write_bytes(header({"a": {**F32, "dtype": "F3"}}, bytes(8))), "unknown dtype"),
    "duplicate key": (lambda p: p.write_bytes(header(b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}", bytes(8))), "duplicate key"),
    "deep JSON": (lambda p: p.write_bytes(header(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")), "not valid JSON|not described"),
    "not UTF-8": (lambda p: p.write_bytes(header(b'{"\xff\xfe": 1}')), "not valid JSON"),
    "GGUF": (lambda p: p.write_bytes(b"GGUF\3\0\0\0" + bytes(99)), "GGUF file, whose numbers are quantised"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08\0" + bytes(99)), "gzip archive"),
    "7-Zip": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(99)), "7-Zip archive"),
    "picture": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "a picture"),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "nothing but zeros"),
    "a server's answer": (lambda p: p.write_bytes(b'{"error":"Access to this model is restricted","code":401}'), "this is text .*restricted"),
    "two words": (lambda p: p.write_bytes(b"Not Found"), "this is text .'Not Found'"),
    "a page in UTF-16": (lambda p: p.write_bytes("<html><body>login".encode("utf-16")), "this is text .*login"),
    "dtype that is a list": (lambda p: p.write_bytes(header({"a": {**F32, "dtype": ["F32"]}}, bytes(8))), "unknown dtype"),
    "shape that is a string": (lambda p: p.write_bytes(header({"a": {**F32, "shape": "2"}}, bytes(8))), "not described properly"),
    "shape of fractions": (lambda p: p.write_bytes(header({"a": {**F32, "shape": [2.0]}}, bytes(8))), "not described properly"),
    "shape of many numbers": (lambda p: p.write_bytes(header({"a": {**F32, "shape": [2**62] * 200_000}}, bytes(8))), "not described properly"),
    "late duplicate": (lambda p: p.write_bytes(header(b"{" + b",".join(b'"%d":%d' % (i, i) for i in range(200_000)) + b',"199999":1}')), "duplicate key '199999'"),
    "no object": (lambda p: p.write_bytes(header(b"[1, 2, 3]")), "not a tensor file"),
    "no tensors": (lambda p: p.write_bytes(header({})), "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FILES)
@pytest.mark.parametrize("verb", [formats.load, inspect], ids=["load", "inspect"])
def test_what_is_no_lora_file_is_named(verb, name: str, tmp_path: Path) -> None:
    make, words = NOT_FILES[name]
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(InputError, match=words) as caught:
        verb(path)
    assert "x.safetensors" in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_a_missing_file_and_a_folder_without_a_lora(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        formats.load(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match="no LoRA is in this folder"):
        formats.load(tmp_path)


def test_a_pickle_under_any_name_is_not_executed(tmp_path: Path) -> None:
    for name in ("x.pt", "x.ckpt", "x.bin"):
        pickled(tmp_path / name)
        with pytest.raises(InputError, match="nothing was executed"):
            formats.load(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_trailing_bytes_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = good(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes() + b"\0" * 13)
    (note,) = inspect(path).match.notes
    assert "13 bytes after the last tensor" in note
    assert "deltaw convert" in note
    convert(path, tmp_path / "mended.safetensors", to="kohya")
    assert inspect(tmp_path / "mended.safetensors").match.notes == ()
    assert made.same(formats.load(path)[0], formats.load(tmp_path / "mended.safetensors")[0]) == ""


def test_names_in_a_file_do_not_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;x\x07\r\nforged line\u202e"
    formats.save(made.delta("sd1", "emoji"), tmp_path / "x.safetensors")
    tensorfile.write(tmp_path / "x.safetensors", {**tensorfile.read(tmp_path / "x.safetensors"), evil: torch.ones(2)})
    (line,) = formats.load(tmp_path / "x.safetensors")[1].losses()
    assert line.isprintable()
    tensorfile.write(tmp_path / "x.safetensors", {evil: torch.ones(2)})
    with pytest.raises(InputError) as caught:
        formats.load(tmp_path / "x.safetensors")
    assert not set("\x1b\x07\r\u202e") & set(str(caught.value))


PARTS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "up without down": ({f"{KEY}.lora_up.weight": torch.ones(192, 4)}, "down missing beside up"),
    "down without up": ({f"{KEY}.lora_down.weight": torch.ones(4, 192)}, "up missing beside down"),
    "transposed": ({f"{KEY}.lora_up.weight": torch.ones(4, 192), f"{KEY}.lora_down.weight": torch.ones(192, 4)}, "none has its shape"),
    "ranks differ": ({f"{KEY}.lora_up.weight": torch.ones(192, 4), f"{KEY}.lora_down.weight": torch.ones(5, 192)}, "do not share a rank"),
    "half of LoHa": ({f"{KEY}.hada_w1_a": torch.ones(192, 4), f"{KEY}.hada_w1_b": torch.ones(4, 192)}, "w2_a and w2_b missing"),
    "two algorithms": (pair(hada_w1_a=torch.ones(192, 4)), "loha.lora is not supported|lora.loha is not supported"),
    "int8": ({k: t.to(torch.int8) for k, t in pair().items()}, "needs a scale"),
    "ControlNet-LLLite": ({"lllite_unet_x.down.0.weight": torch.ones(2, 2)}, "ControlNet-LLLite"),
    "a whole base": ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}, "a whole checkpoint"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": torch.ones(4, 4)}, "a ControlNet, not a LoRA"),
    "VAE": ({"decoder.conv_in.weight": torch.ones(4, 4)}, "a VAE, not a LoRA"),
    "IP-Adapter": ({"ip_adapter.1.to_k_ip.weight": torch.ones(4, 4)}, "an IP-Adapter, not a LoRA"),
    "a language model's": ({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 4)}, "a language model's adapter"),
    "a nameless key": ({"": torch.ones(1, 768)}, "no key names a module"),
    "alpha alone": ({f"{KEY}.alpha": torch.tensor(4.0)}, "alpha without the change"),
    "many alphas": (pair(alpha=torch.ones(4)), "alpha has 4 numbers instead of one"),
    "scaled fp8": ({k: t.to(torch.float8_e4m3fn) for k, t in pair().items()} | {f"{KEY}.lora_up.scale_weight": torch.tensor(0.01), f"{KEY}.lora_down.scale_weight": torch.tensor(0.5)},
                   "F8_E4M3 and to be multiplied by"),
    "marked fp8": ({k: t.to(torch.float8_e5m2) for k, t in pair().items()} | {"scaled_fp8": torch.ones(2)}, "multiplied by scaled_fp8"),
    "int8 with a scale": ({k: t.to(torch.int8) for k, t in pair().items()} | {f"{k}_scale": torch.tensor(0.1) for k in pair()}, "I8 and to be multiplied by"),
    "unknown base": ({"lora_unet_blocks_0_self_attn_q_proj.lora_up.weight": torch.ones(4, 2)}, "no key names a module|can be used"),
    "wrong width": (pair(width=100), "none has its shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_what_cannot_be_applied_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    tensors, words = PARTS[name]
    path = tmp_path / "x.safetensors"
    tensorfile.write(path, tensors)
    with pytest.raises(InputError, match=words) as caught:
        formats.load(path)
    assert "x.safetensors" in str(caught.value)
    assert not check(path).fits


@pytest.mark.parametrize("name", PARTS)
def test_beside_good_modules_it_is_left_out_by_name_and_strict_refuses(name: str, tmp_path: Path) -> None:
    tensors, _ = PARTS[name]
    delta = made.delta("sd1", "emoji", among=[p for p in made.paths("emoji") if "mid_block" not in p])
    formats.save(delta, tmp_path / "good.safetensors")
    tensorfile.write(tmp_path / "x.safetensors", {**tensorfile.read(tmp_path / "good.safetensors"), **tensors})
    back, match = formats.load(tmp_path / "x.safetensors")
    assert made.same(delta, back) == ""
    assert match.partial
    assert match.losses()
    with pytest.raises(InputError, match="not everything in it is used"):
        formats.load(tmp_path / "x.safetensors", strict=True)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_float_is_read_and_computed_in_float32_or_more(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {key: (tensor * 0.5).to(dtype) for key, tensor in pair().items()}
    tensorfile.write(tmp_path / "x.safetensors", tensors)
    merge([(tmp_path / "x.safetensors", 1.0)], tmp_path / "y.safetensors")
    update = next(iter(formats.load(tmp_path / "y.safetensors")[0].updates.values()))
    up, down = update.tensors["up"], update.tensors["down"]
    assert up.dtype == torch.float32
    assert torch.equal(up @ down, torch.ones(192, 192))


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [(None, 1.0), (torch.tensor(0.0), 0.0), (torch.tensor(-2.0), -0.5), (torch.tensor(64.0), 16.0), (torch.tensor(2), 0.5),
     (torch.tensor([2.0]), 0.5), (torch.tensor(2.0).half(), 0.5)],
    ids=str,
)  # fmt: skip
def test_alpha_is_kept_as_it_is(alpha: torch.Tensor | None, scale: float, tmp_path: Path) -> None:
    from deltaw.adapters import lora

    tensorfile.write(tmp_path / "x.safetensors", pair(**({"alpha": alpha} if alpha is not None else {})))
    delta, match = formats.load(tmp_path / "x.safetensors")
    assert lora.scale(next(iter(delta.updates.values())).tensors) == scale
    assert any("alpha is 0" in note for note in match.notes) == (scale == 0)


def test_alphas_that_are_no_number_are_refused(tmp_path: Path) -> None:
    for alpha in (torch.tensor(float("nan")), torch.ones(3)):
        tensorfile.write(tmp_path / "x.safetensors", pair(alpha=alpha))
        with pytest.raises(InputError, match="alpha"):
            formats.load(tmp_path / "x.safetensors")


def test_rank_zero_is_a_note_and_no_crash(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "x.safetensors", pair(rank=0, alpha=torch.tensor(4.0)))
    _, match = formats.load(tmp_path / "x.safetensors")
    assert any("rank 0" in note for note in match.notes)
    with pytest.raises(InputError, match="nothing is left"):
        merge([(tmp_path / "x.safetensors", 1.0)], tmp_path / "y.safetensors")


def test_mixed_dialects_are_counted_and_all_used(tmp_path: Path) -> None:
    paths = made.paths("sd1")
    tensors: dict[str, torch.Tensor] = {}
    for i, dialect in enumerate(("kohya", "diffusers", "comfy")):
        part = made.delta("sd1", "sd1", among=paths[i::3], alpha=None)
        formats.save(part, tmp_path / dialect, dialect)
        tensors |= tensorfile.read(tmp_path / dialect)
    tensorfile.write(tmp_path / "x.safetensors", tensors)
    delta, match = formats.load(tmp_path / "x.safetensors", strict=True)
    assert set(match.dialects) == {"kohya", "diffusers", "comfy"}
    assert set(delta.updates) == set(paths)


def test_one_module_under_two_names_is_used_once_and_said(tmp_path: Path) -> None:
    delta = made.delta("sdxl", "sdxl", among=made.paths("sdxl")[:3])
    for dialect in ("kohya", "kohya-diffusers"):
        formats.save(delta, tmp_path / dialect, dialect)
    both = {**tensorfile.read(tmp_path / "kohya"), **tensorfile.read(tmp_path / "kohya-diffusers")}
    tensorfile.write(tmp_path / "x.safetensors", both)
    _, match = formats.load(tmp_path / "x.safetensors")
    assert all("the same module as" in why for why in match.ignored.values())
    assert match.ignored


def test_strange_metadata_does_no_harm(tmp_path: Path) -> None:
    path = good(tmp_path / "x.safetensors")
    start = tensorfile.read_header(path).data_start
    listing = json.loads(path.read_bytes()[8:start])
    listing["__metadata__"] = {
        "n": 5,
        "list": [1],
        "<script>": "\x1b[31m\x00",
        "lora_adapter_metadata": "{}",
        "deltaw.alpha_dtypes": "[]",
    }
    path.write_bytes(header(listing, path.read_bytes()[start:]))
    delta, _ = formats.load(path)
    assert all(isinstance(value, str) for value in delta.metadata.values())
    listing["__metadata__"] = ["no object"]
    path.write_bytes(header(listing))
    with pytest.raises(InputError, match="__metadata__"):
        formats.load(path)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(" * 50, "x{1000000}"])
def test_a_configuration_cannot_make_the_search_hang(pattern: str, tmp_path: Path) -> None:
    formats.save(made.delta("sd1", "emoji"), tmp_path / "p", "peft")
    config = next(tmp_path.rglob("adapter_config.json"))
    described = json.loads(config.read_text())
    config.write_text(json.dumps({**described, "alpha_pattern": {pattern: 3}}))
    with pytest.raises(InputError, match="not one that is searched for"):
        formats.load(tmp_path / "p")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"peft_type": "IA3"}', '{"lora_alpha": "eight"}', '{"lora_alpha": true}']
)
def test_a_broken_configuration_is_named(text: str, tmp_path: Path) -> None:
    formats.save(made.delta("sd1", "emoji"), tmp_path / "p", "peft")
    config = next(tmp_path.rglob("adapter_config.json"))
    config.write_text(text)
    with pytest.raises(InputError):
        formats.load(tmp_path / "p")


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = good(tmp_path / "x.safetensors")
    before = path.read_bytes()

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DeltawError, match="No space left"):
        formats.save(made.delta("sd1", "emoji", seed=9), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_change_that_a_dialect_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    delta = Delta("sd1", {"unet.conv_norm_out": Update("full", {"diff": torch.ones(128)})})
    with pytest.raises((InputError, ManyErrors), match=r"diffusers cannot hold unet\.conv_norm_out"):
        formats.save(delta, tmp_path / "x.safetensors", "diffusers")
    assert list(tmp_path.iterdir()) == []


def test_extremes_of_weights(tmp_path: Path) -> None:
    path = good(tmp_path / "x.safetensors")
    assert merge([(path, 1e9), (path, -1.0)], tmp_path / "y.safetensors").error <= 1e-6
    with pytest.raises(InputError, match="too large"):
        bake([(path, 1e9)], Path(formats.__file__).parents[1] / "zoo" / "emoji", tmp_path / "baked")
