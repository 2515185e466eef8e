"""What is said of a base before it is loaded: everything that is wrong, at once, each with advice."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltaw.errors import DeltawError, InputError
from deltaw.events import Event, Table, Warn
from deltaw.families import base_folder, bases
from deltaw.verbs import base as verb
from deltaw.zoo import bundled_base
from tests.spoilt import change

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def other(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(tiny_base, tmp_path / "other"))


def shards(base: Path) -> None:
    """The UNet in two shards, the second of which is lost."""
    tensors = load_file(base / "unet" / WEIGHTS)
    (base / "unet" / WEIGHTS).unlink()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file(dict(list(tensors.items())[:5]), base / "unet" / names[0])
    index = {"weight_map": {k: names[i > 4] for i, k in enumerate(tensors)}}
    (base / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def in_type(base: Path, part: str, file: str, dtype: torch.dtype) -> None:
    """A part's weights in another type."""
    path = base / part / file
    save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "inpainting": (lambda b: change(b / "unet/config.json", in_channels=9), "an inpainting base: 9 input channels"),
    "editing": (lambda b: change(b / "unet/config.json", in_channels=8), "an editing base: 8 input channels"),
    "sdxl": (
        lambda b: change(b / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "calls it Stable Diffusion XL, and its UNet is not told",
    ),
    "prediction": (lambda b: change(b / "scheduler/scheduler_config.json", prediction_type="sample"), "predicts 'sample'"),
    "shard": (shards, "shards are missing: diffusion_pytorch_model-00002-of-00002.safetensors"),
    "index": (
        lambda b: change(b / "model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        "model_index.json calls the vae a AutoencoderTiny, its own config a AutoencoderKL",
    ),
    "part": (
        lambda b: change(b / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
        "model_index.json names a text_encoder_2, and there is no such folder",
    ),
    "list": (lambda b: (b / "model_index.json").write_text("[]"), "model_index.json cannot be read (no JSON object)"),
    "vae": (lambda b: change(b / "vae/config.json", latent_channels=16), "latents of 16 channels and the UNet reads 4"),
    "text": (lambda b: change(b / "text_encoder/config.json", hidden_size=32), "vectors have 32 numbers and the UNet reads 16"),
    "words": (lambda b: change(b / "text_encoder/config.json", vocab_size=4000), "knows 4096 tokens and the text encoder 4000"),
    "length": (lambda b: change(b / "tokenizer/tokenizer_config.json", model_max_length=256), "gives 256 tokens"),
    "tokenizer": (lambda b: shutil.rmtree(b / "tokenizer"), "the tokenizer is missing"),
    "bitsandbytes": (
        lambda b: change(b / "unet/config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "the unet is quantised (bitsandbytes)",
    ),
    "fp8": (lambda b: in_type(b, "unet", WEIGHTS, torch.float8_e4m3fn), "the unet's weights are stored as fp8"),
    "gguf": (lambda b: (b / "unet/model-Q4_K.gguf").write_bytes(b"GGUF"), "GGUF weights (model-Q4_K.gguf)"),
    "weights": (lambda b: change(b / "unet/config.json", block_out_channels=[32, 64]), "config and weights are of two bases"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_wrong_with_a_base_is_named_with_advice(other: Path, kind: str) -> None:
    spoil, said = SPOILT[kind]
    assert not verb.check(other).problems
    spoil(other)
    report = verb.check(other)
    assert any(said in problem.what for problem in report.problems), [p.what for p in report.problems]
    assert all(problem.advice and problem.where for problem in report.problems)
    with pytest.raises(DeltawError, match=re.escape(said)):
        bases.open_base(other)


def test_everything_is_said_at_once(other: Path) -> None:
    for kind in ("inpainting", "prediction", "shard", "words", "gguf", "part"):
        SPOILT[kind][0](other)
    events: list[Event] = []
    report = verb.check(other, tell=events.append)
    assert len(report.problems) >= 6
    warned = "\n".join(e.text for e in events if isinstance(e, Warn))
    for kind in ("inpainting", "prediction", "shard", "words", "gguf", "part"):
        assert SPOILT[kind][1] in warned


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda b: change(b / "unet/config.json", time_cond_proj_dim=256), "distilled (its UNet takes guidance as an input)"),
        (lambda b: change(b / "scheduler/scheduler_config.json", _class_name="LCMScheduler"), "its scheduler is LCMScheduler"),
        (lambda b: change(b / "unet/config.json", _name_or_path="x/sd-turbo"), "it is called turbo"),
        (lambda b: (b / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x"), "diffusion_pytorch_model.bin lies beside"),
        (lambda b: shutil.copy(b / "vae" / WEIGHTS, b / "vae" / "model.fp16.safetensors"), "is read"),
        (lambda b: change(b / "vae/config.json", scaling_factor=0.13025), "scales as Stable Diffusion XL's does"),
    ],
)  # fmt: skip
def test_what_is_remarkable_is_said_and_can_be_trained(other: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(other)
    report = verb.check(other)
    assert not report.problems
    assert any(said in remark for remark in report.remarks), report.remarks


@pytest.mark.parametrize("name", ["turbocharged-cats", "hyperion", "alchemy", "schnellzug", "lcmodel"])
def test_a_name_that_only_resembles_is_no_reason(tiny_base: Path, tmp_path: Path, name: str) -> None:
    assert not verb.check(shutil.copytree(tiny_base, tmp_path / name)).remarks


def test_the_bundled_base_is_sound() -> None:
    events: list[Event] = []
    report = verb.check(bundled_base(), tell=events.append)
    assert report == verb.BaseReport((), ())
    rows = dict(next(e.rows for e in events if isinstance(e, Table)))
    assert rows["predicts"] == "v_prediction"
    assert "F16" in rows["unet"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GGUF\x03", "quantised (GGUF)"),
        (b"PK\x03\x04", "a pickle"),
        (b"\x80\x02}q\x00(X\x00", "a pickle"),
        (b"\x08" + bytes(7) + b"{}      ", "no base of a known family"),
    ],
)
def test_a_file_that_is_no_base_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(DeltawError, match=re.escape(said)) as told:
        bases.open_base(file)
    assert told.value.advice


def test_a_folder_of_pictures_is_no_base(pictures: Callable[..., Path], tiny_base: Path) -> None:
    assert not verb.is_base(pictures(2))
    assert verb.is_base(tiny_base)


def test_a_base_behind_a_licence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> str:
        raise GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="accepted its licence") as caught:
        base_folder.find("owner/name")
    assert "hf auth login" in caught.value.advice
