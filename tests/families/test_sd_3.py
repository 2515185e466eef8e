"""Stable Diffusion 3: what the network is told is what diffusers' own pipeline tells it, and a run goes through."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deltaw
from deltaw import formats, inject
from deltaw.delta import Delta
from deltaw.families import bases, blueprint
from deltaw.training import run
from deltaw.verbs import base as verb
from deltaw.verbs.painter import Painter, Recipe
from tests.spoilt import assert_named, change

CPU = torch.device("cpu")
PROMPTS = ["a red apple", "", "a house by a lake, " * 40]


@pytest.fixture(scope="module")
def no_t5(tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same base as it is shared without T5, which is larger than all the rest."""
    folder = Path(shutil.copytree(tiny_sd3, tmp_path_factory.mktemp("no-t5") / "base"))
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    change(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    return folder


@pytest.fixture(params=["tiny_sd3", "no_t5"])
def either(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_it_is_known(tiny_sd3: Path) -> None:
    base = bases.open_base(tiny_sd3)
    assert (base.family, base.component, base.objective.name) == ("sd3", "transformer", "flow_prediction")
    assert base.text_shape == (77 + 256 + 1, 40)
    assert (base.resolution_px, base.bucket_step_px) == (64, 16)
    assert base.schedule.s[499] == pytest.approx(0.75)  # at half the time, shifted by 3
    assert base.count_tokens()("word " * 60)[0] == 301


@torch.no_grad()
def test_texts_are_encoded_as_the_pipeline_does(either: Path) -> None:
    base = bases.open_base(either)
    pipe = base.pipeline(CPU, base.text_dtype)
    tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS, None, None, device=CPU, do_classifier_free_guidance=False)
    ours = base.text_encoder(CPU)(PROMPTS)
    assert ours.shape == (len(PROMPTS), *base.text_shape)
    assert torch.equal(ours[:, :-1], tokens.float())
    assert torch.equal(ours[:, -1, :32], pooled.float())
    assert not ours[:, -1, 32:].any()
    assert torch.equal(base.embed(pipe, PROMPTS).float(), ours)


@torch.no_grad()
def test_the_network_is_told_what_the_pipeline_tells_it(either: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bases.open_base(either)
    pipe = base.pipeline(CPU, torch.float32)
    told: list[tuple[dict[str, Any], torch.Tensor]] = []
    forward = pipe.transformer.forward

    def watched(**asked: Any) -> Any:
        answer = forward(**asked)
        told.append((asked, answer[0]))
        return answer

    monkeypatch.setattr(pipe.transformer, "forward", watched)
    pipe("a red apple", num_inference_steps=1, guidance_scale=1.0, width=96, height=64, output_type="latent",
         generator=torch.Generator().manual_seed(0))  # fmt: skip
    monkeypatch.undo()
    [(asked, theirs)] = told
    assert float(asked["timestep"]) == pytest.approx(1000 * float(base.schedule.s[-1]))
    text = base.embed(pipe, ["a red apple"])
    ours = base.denoise(pipe.transformer, asked["hidden_states"], torch.tensor([base.schedule.n_times - 1]), text)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_blueprint_asks_and_encodes_as_the_base_does(tiny_sd3: Path) -> None:
    base = bases.open_base(tiny_sd3)
    made = blueprint.of(base.folder.configs)
    first, second, t5 = made.encode(made.text_encoders(), 3)
    assert first.text_embeds.shape[1] + second.text_embeds.shape[1] == 32
    assert made.n_tok + t5[0].shape[1] + 1 == base.text_shape[0]
    assert made.denoiser(torch.float32)(**made.questions(2, (96, 64), torch.float32))[0].shape == (2, 4, 8, 12)


def test_without_t5_texts_are_the_clips_alone(no_t5: Path, tiny_sd3: Path) -> None:
    report = verb.check(no_t5)
    assert report.problems == ()
    assert report.remarks == ("the base has no T5: texts are read by its two CLIPs alone, 77 tokens of them",)
    base, whole = bases.open_base(no_t5), bases.open_base(tiny_sd3)
    assert (base.family, base.text_shape) == ("sd3", whole.text_shape)
    ours, theirs = base.text_encoder(CPU)(["a cat"]), whole.text_encoder(CPU)(["a cat"])
    assert torch.equal(ours[:, :77], theirs[:, :77])
    assert not ours[:, 77:-1].any()
    assert torch.equal(ours[:, -1], theirs[:, -1])
    assert base.count_tokens()("word " * 100)[0] > 77
    assert base.count_tokens()("word " * 100)[1]  # what is cut off
    made = blueprint.of(base.folder.configs)
    assert len(made.encode(made.text_encoders(packed=True), 3)) == 2


def test_what_is_drawn_is_what_the_pipeline_draws(tiny_sd3: Path) -> None:
    painter = Painter(bases.open_base(tiny_sd3), "cpu", "float32")
    recipe = Recipe("a red apple", "blue", 7, 3, 5.0, 96, 64, (), "", "", "float32", "cpu")
    theirs = painter.pipe("a red apple", negative_prompt="blue", generator=torch.Generator().manual_seed(7), width=96, height=64,
                          num_inference_steps=3, guidance_scale=5.0, output_type="pil").images  # fmt: skip
    assert painter.draw([recipe])[0].tobytes() == theirs[0].tobytes()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_file_works_in_an_unmodified_pipeline(tiny_sd3: Path, tmp_path: Path, strength: float) -> None:
    pytest.importorskip("peft")
    base = bases.open_base(tiny_sd3)
    generator = torch.Generator().manual_seed(0)
    wrapped = inject.wrap(base.denoiser(CPU, torch.float32), base.targets, 4, 3.0, generator)
    assert len(wrapped.modules) == 8 + 4 + 7  # the last block's text leads nowhere
    with torch.no_grad():
        for module in wrapped.modules.values():
            module.up.normal_(0, 0.5, generator=generator)
    trained: Delta = inject.take(wrapped, base.family, base.component)
    file = tmp_path / "lora.safetensors"
    formats.save(trained, file, dialect="diffusers", shapes=formats.shapes_of(tiny_sd3))
    painter = Painter(base, "cpu", "float32")
    recipe = Recipe("a red apple", "", 7, 3, 4.0, 64, 64, (), "", "", "float32", "cpu")
    delta, match = formats.load(file, shapes=formats.shapes_of(tiny_sd3))
    assert not list(match.losses())
    ours, plain = painter.latents([recipe], [(delta, strength)]), painter.latents([recipe], [])
    painter.pipe.load_lora_weights(str(file), adapter_name="it")
    painter.pipe.set_adapters(["it"], [strength])
    theirs = painter.latents([recipe], [])
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - plain).abs().max() > 0.01, "the LoRA must matter for the comparison to mean something"


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
def test_a_run_goes_through_and_its_file_is_used(
    either: Path, pictures: Callable[..., Path], tmp_path: Path, dialect: str
) -> None:
    folder = pictures(10)
    settings = ["rank=2", "sample_steps=2", "snapshots=2", *([] if dialect == "diffusers" else [f"dialect={dialect}"])]
    report = run.train(folder, base=str(either), out=tmp_path / "run", steps=6, settings=settings)
    delta, match = formats.load(report.file, shapes=formats.shapes_of(either))
    assert set(match.dialects) == {dialect}
    assert delta.family == "sd3"
    assert len(delta.updates) == 19
    deltaw.compare([report.file], base=either, out=tmp_path / "compare", reference=folder, prompts=["a cat"], steps=2)
    assert (tmp_path / "compare" / "report.html").is_file()


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "another task": (lambda b: change(b / "model_index.json", _class_name="StableDiffusion3ControlNetPipeline"), "made for another task"),
    "vae": (lambda b: change(b / "vae/config.json", latent_channels=8), "makes latents of 8 channels and the transformer reads 4"),
    "t5": (lambda b: change(b / "text_encoder_3/config.json", d_model=32), "the text_encoder_3's vectors have 32 numbers"),
    "pooled": (lambda b: change(b / "text_encoder_2/config.json", projection_dim=8), "have 24 numbers and the transformer reads 32"),
    "encoder": (lambda b: shutil.rmtree(b / "text_encoder_3"), "names a text_encoder_3, and there is no such folder"),
    "tokenizer": (lambda b: shutil.rmtree(b / "tokenizer_3"), "the tokenizer_3 is missing"),
    "scheduler": (lambda b: change(b / "scheduler/scheduler_config.json", _class_name="DDIMScheduler"), "its scheduler is DDIM"),
    "kind": (lambda b: change(b / "transformer/config.json", _class_name="PixArtTransformer2DModel"), "(PixArtTransformer2DModel)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_wrong_with_a_base_is_named_with_advice(tiny_sd3: Path, tmp_path: Path, kind: str) -> None:
    other = Path(shutil.copytree(tiny_sd3, tmp_path / "other"))
    assert_named(other, *SPOILT[kind])


def test_a_turbo_base_is_told_to_be_distilled(tiny_sd3: Path, tmp_path: Path) -> None:
    [remark] = verb.check(Path(shutil.copytree(tiny_sd3, tmp_path / "sd35-turbo"))).remarks
    assert "distilled" in remark
