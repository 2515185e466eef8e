"""Stable Diffusion XL: what the network is told is what diffusers' own pipeline tells it, and a run goes through."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deltaw
from deltaw import formats, inject
from deltaw.delta import Delta
from deltaw.families import bases
from deltaw.families.blueprint import Blueprint
from deltaw.families.sd_xl import StableDiffusionXL
from deltaw.training import run
from deltaw.verbs.painter import Painter, Recipe
from tests.spoilt import assert_named, change

CPU = torch.device("cpu")
PROMPTS = ["a red apple", "", "a house by a lake, " * 40]


@pytest.fixture
def other(tiny_xl: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(tiny_xl, tmp_path / "other"))


def test_it_is_told_from_its_elders(tiny_xl: Path, tiny_base: Path) -> None:
    base = bases.open_base(tiny_xl)
    assert isinstance(base, StableDiffusionXL)
    assert base.family == "sdxl"
    assert base.folder.parts == ("unet", "vae", "text_encoder", "text_encoder_2")
    assert base.text_shape == (78, 32)
    assert bases.open_base(tiny_base).folder.parts == ("unet", "vae", "text_encoder")


def test_texts_are_encoded_as_the_pipeline_does(tiny_xl: Path) -> None:
    base = bases.open_base(tiny_xl)
    pipe = base.pipeline(CPU, torch.float32)
    tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS, device=CPU, do_classifier_free_guidance=False)
    ours = base.text_encoder(CPU)(PROMPTS)
    assert ours.shape == (len(PROMPTS), *base.text_shape)
    assert torch.allclose(ours[:, :-1], tokens, atol=1e-6)
    assert torch.allclose(ours[:, -1, :16], pooled, atol=1e-6)
    assert not ours[:, -1, 16:].any()
    assert torch.allclose(base.embed(pipe, PROMPTS), ours, atol=1e-6)


def test_the_network_is_told_what_the_pipeline_tells_it(tiny_xl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One drawing step is watched and asked again, for a picture that is not square."""
    base = bases.open_base(tiny_xl)
    pipe = base.pipeline(CPU, torch.float32)
    told: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    forward = pipe.unet.forward

    def watched(x: torch.Tensor, t: torch.Tensor, **rest: object) -> object:
        answer = forward(x, t, **rest)
        told.append((x, t, answer[0]))
        return answer

    monkeypatch.setattr(pipe.unet, "forward", watched)
    pipe("a red apple", num_inference_steps=1, guidance_scale=1.0, width=96, height=64, output_type="latent",
         generator=torch.Generator().manual_seed(0))  # fmt: skip
    [(x, t, theirs)] = told
    monkeypatch.undo()
    text = base.text_encoder(CPU)(["a red apple"])
    with torch.no_grad():
        ours = base.denoise(pipe.unet, x, t[None], text)
        elsewhere = base.denoise(pipe.unet, x.transpose(2, 3).contiguous(), t[None], text)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(elsewhere.transpose(2, 3), theirs, atol=1e-3)


def test_the_blueprint_asks_and_encodes_as_the_base_does(tiny_xl: Path) -> None:
    base = bases.open_base(tiny_xl)
    made = Blueprint(base.folder.configs)
    encoders = made.text_encoders()
    assert len(encoders) == 2
    first, second = made.encode(encoders, 3)
    width = first.hidden_states[-2].shape[-1] + second.hidden_states[-2].shape[-1]
    assert (made.n_tok + 1, width) == base.text_shape
    arguments = made.questions(2, (96, 64), torch.float32)
    assert made.denoiser(torch.float32)(**arguments)[0].shape == (2, 4, 8, 12)


def test_what_is_drawn_without_a_negative_prompt_is_what_the_pipeline_draws(tiny_xl: Path) -> None:
    """Its pipeline puts zeros where no negative prompt is given, and the empty prompt's vectors where one is empty."""
    painter = Painter(bases.open_base(tiny_xl), "cpu", "float32")
    recipe = Recipe("a red apple", "", 7, 3, 5.0, 64, 64, (), "", "", "float32", "cpu")
    theirs = painter.pipe("a red apple", generator=torch.Generator().manual_seed(7), num_inference_steps=3, width=64,
                          height=64, output_type="latent").images  # fmt: skip
    assert torch.equal(painter.latents([recipe], []), theirs)


@pytest.fixture(scope="module")
def trained(tiny_xl: Path) -> Delta:
    """Random numbers, alpha ≠ rank, large enough to show; also in the second text encoder."""
    base = bases.open_base(tiny_xl)
    painter = Painter(base, "cpu", "float32")
    generator = torch.Generator().manual_seed(0)
    updates: dict[str, object] = {}
    for component, targets in (("unet", base.targets), ("text_encoder_2", r"self_attn\.(q|k|v|out)_proj$")):
        wrapped = inject.wrap(painter.networks()[component], targets, 4, 3.0, generator)
        with torch.no_grad():
            for module in wrapped.modules.values():
                module.up.normal_(0, 0.1, generator=generator)
        updates |= inject.take(wrapped, base.family, component).updates
    return Delta(base.family, updates)  # type: ignore[arg-type]


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_the_file_works_in_an_unmodified_pipeline(
    trained: Delta, tiny_xl: Path, tmp_path: Path, dialect: str, strength: float
) -> None:
    pytest.importorskip("peft")
    file = tmp_path / "lora.safetensors"
    formats.save(trained, file, dialect=dialect, shapes=formats.shapes_of(tiny_xl))
    painter = Painter(bases.open_base(tiny_xl), "cpu", "float32")
    recipe = Recipe("a red apple", "", 7, 3, 4.0, 64, 64, (), "", "", "float32", "cpu")
    delta, match = formats.load(file, shapes=formats.shapes_of(tiny_xl))
    assert not list(match.losses())
    ours, plain = painter.latents([recipe], [(delta, strength)]), painter.latents([recipe], [])
    painter.pipe.load_lora_weights(str(file), adapter_name="it")
    painter.pipe.set_adapters(["it"], [strength])
    theirs = painter.latents([recipe], [])
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - plain).abs().max() > 0.01, "the LoRA must matter for the comparison to mean something"


def test_a_run_goes_through_and_its_file_is_used(tiny_xl: Path, pictures: Callable[..., Path], tmp_path: Path) -> None:
    folder = pictures(10)
    report = run.train(
        folder, base=str(tiny_xl), out=tmp_path / "run", steps=6, settings=["rank=2", "sample_steps=2", "snapshots=2"]
    )
    [file] = sorted((tmp_path / "run").glob("*.safetensors"))
    assert report.file == file
    delta, _ = formats.load(file, shapes=formats.shapes_of(tiny_xl))
    assert delta.family == "sdxl"
    assert delta.metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    deltaw.compare([file], base=tiny_xl, out=tmp_path / "compare", reference=folder, prompts=["a cat"], steps=2)
    assert (tmp_path / "compare" / "report.html").is_file()


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "refiner": (
        lambda b: change(b / "unet/config.json", projection_class_embeddings_input_dim=5 * 8 + 16), "this is XL's refiner",
    ),
    "pooled": (lambda b: change(b / "text_encoder_2/config.json", projection_dim=20), "and the second text encoder gives 20"),
    "width": (lambda b: change(b / "text_encoder_2/config.json", hidden_size=32), "vectors have 48 numbers and the UNet reads 32"),
    "encoder": (lambda b: shutil.rmtree(b / "text_encoder_2"), "reads a second text encoder, and there is none"),
    "words": (lambda b: change(b / "text_encoder_2/config.json", vocab_size=4000), "knows 4096 tokens and the text encoder 4000"),
    "tokenizer": (lambda b: shutil.rmtree(b / "tokenizer_2"), "the tokenizer_2 is missing"),
    "noise": (lambda b: change(b / "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"), "a way of its own (EDM)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_wrong_with_a_base_is_named_with_advice(other: Path, kind: str) -> None:
    assert_named(other, *SPOILT[kind])
