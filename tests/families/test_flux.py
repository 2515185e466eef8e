"""FLUX.1: what the network is told is what diffusers' own pipeline tells it, and a run goes through."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deltaw
from deltaw import formats, inject
from deltaw.delta import Delta
from deltaw.errors import UsageError
from deltaw.families import bases, blueprint, flow, flux
from deltaw.families.networks import VARIANTS
from deltaw.training import run
from deltaw.training.tracing import trace
from deltaw.verbs import base as verb
from deltaw.verbs.painter import Painter, Recipe
from tests.spoilt import assert_named, change

CPU = torch.device("cpu")
PROMPTS = ["a red apple", "", "a house by a lake, " * 40]


@pytest.fixture
def other(tiny_flux: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(tiny_flux, tmp_path / "other"))


def test_it_is_known(tiny_flux: Path) -> None:
    base = bases.open_base(tiny_flux)
    assert (base.family, base.component, base.objective.name) == ("flux1", "transformer", "flow_prediction")
    assert set(base.folder.parts) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert base.text_shape == (513, 24)
    assert (base.resolution_px, base.bucket_step_px) == (64, 16)
    count = base.count_tokens()
    assert count("a red apple") == (13, "")
    n_tok, cut = count("word " * 200)
    assert n_tok == 1001
    assert cut.replace(" ", "").endswith("wordword")


@torch.no_grad()
def test_texts_are_encoded_as_the_pipeline_does(tiny_flux: Path) -> None:
    base = bases.open_base(tiny_flux)
    pipe = base.pipeline(CPU, base.text_dtype)
    tokens, pooled, _ = pipe.encode_prompt(PROMPTS, device=CPU)
    ours = base.text_encoder(CPU)(PROMPTS)
    assert ours.shape == (len(PROMPTS), *base.text_shape)
    assert torch.equal(ours[:, :-1], tokens.float())
    assert torch.equal(ours[:, -1, :16], pooled.float())
    assert not ours[:, -1, 16:].any()
    assert torch.equal(base.embed(pipe, PROMPTS).float(), ours)


@torch.no_grad()
def test_the_network_is_told_what_the_pipeline_tells_it(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drawing steps are watched and asked again, for a picture that is not square."""
    base = bases.open_base(tiny_flux)
    pipe = base.pipeline(CPU, torch.float32)
    told: list[tuple[dict[str, Any], torch.Tensor]] = []
    forward = pipe.transformer.forward

    def watched(**asked: Any) -> Any:
        answer = forward(**asked)
        told.append((asked, answer[0]))
        return answer

    monkeypatch.setattr(pipe.transformer, "forward", watched)
    pipe("a red apple", num_inference_steps=2, guidance_scale=flux.TRAINED_GUIDANCE, width=96, height=64, output_type="latent",
         generator=torch.Generator().manual_seed(0))  # fmt: skip
    monkeypatch.undo()
    text = base.embed(pipe, ["a red apple"])
    assert len(told) == 2
    for asked, theirs in told:
        x = flux.patched(asked["hidden_states"], (8, 12))
        time = (base.schedule.s - asked["timestep"]).abs().argmin()
        monkeypatch.setitem(base.schedule.__dict__, "s", base.schedule.s.clone())
        base.schedule.s[time] = asked["timestep"]  # the table is finer than a thousandth, drawing need not fall on it
        ours = base.denoise(pipe.transformer, x, time[None], text)
        assert torch.allclose(ours, flux.patched(theirs, (8, 12)), atol=1e-5)


def test_patches_are_put_together_as_they_were_taken_apart() -> None:
    x = torch.randn(2, 4, 6, 10)
    asked = flux.arguments({}, x, torch.zeros(2), torch.zeros(2, 7, 3), torch.zeros(2, 3))
    assert asked["hidden_states"].shape == (2, 15, 16)
    assert torch.equal(flux.patched(asked["hidden_states"], (6, 10)), x)
    assert asked["img_ids"][6].tolist() == [0, 1, 1]
    assert asked["guidance"] is None


def test_the_noise_is_that_of_drawing(tiny_flux: Path) -> None:
    """At its own resolution the pipeline shifts the noise so; the published base's largest shift is kohya's 3.1582."""
    scheduler = bases.open_base(tiny_flux).folder.configs["scheduler"]
    assert flow.shift(scheduler, 4096) == pytest.approx(math.exp(1.15))
    assert flow.shift(scheduler, 256) == pytest.approx(math.exp(0.5))
    assert flow.shift({"use_dynamic_shifting": False, "shift": 1.0}, 4096) == 1.0


def test_the_blueprint_asks_and_encodes_as_the_base_does(tiny_flux: Path) -> None:
    base = bases.open_base(tiny_flux)
    made = blueprint.of(base.folder.configs)
    clip, t5 = made.encode(made.text_encoders(), 3)
    assert clip.pooler_output.shape == (3, 16)
    assert t5[0].shape[1:] == (base.text_shape[0] - 1, base.text_shape[1])
    assert t5[0].dtype is base.text_dtype
    asked = made.questions(2, (96, 64), torch.float32)
    assert made.denoiser(torch.float32)(**asked)[0].shape == (2, 24, 16)


def test_the_published_base_is_traced_without_its_weights() -> None:
    network = VARIANTS["flux1"]
    made = blueprint.of({
        "transformer": {"in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768, **network["transformer"][1]},
        "vae": {"block_out_channels": (1, 2, 3, 4), "latent_channels": 16},
        "text_encoder": network["text_encoder"][1], "text_encoder_2": network["text_encoder_2"][1],
    })  # fmt: skip
    plain = made.denoiser(torch.bfloat16)
    assert 23.7e9 < sum(p.nbytes for p in plain.parameters()) < 23.9e9
    assert 9.6e9 < sum(p.nbytes for p in made.text_encoders().parameters()) < 9.9e9
    with torch.no_grad():
        found = trace(lambda: plain(**made.questions(1, (512, 512), torch.bfloat16)), plain.parameters())
    assert 2.1e13 < found.flops < 2.2e13  # 19.8e12 of its layers, 1.7e12 of attention


def test_what_is_drawn_is_what_the_pipeline_draws(tiny_flux: Path) -> None:
    painter = Painter(bases.open_base(tiny_flux), "cpu", "float32")
    recipe = Recipe("a red apple", "", 7, 3, 3.5, 96, 64, (), "", "", "float32", "cpu")
    theirs = painter.pipe("a red apple", generator=torch.Generator().manual_seed(7), num_inference_steps=3, width=96,
                          height=64, guidance_scale=3.5, output_type="pil").images  # fmt: skip
    assert painter.draw([recipe])[0].tobytes() == theirs[0].tobytes()


def test_a_negative_prompt_and_a_size_between_patches_are_refused(tiny_flux: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reads no negative prompt"):
        deltaw.generate("a cat", base=tiny_flux, negative="dog", out=tmp_path / "x.png")
    with pytest.raises(UsageError, match="multiples of 16"):
        deltaw.generate("a cat", base=tiny_flux, size="72", steps=1, out=tmp_path / "x.png")


@pytest.fixture(scope="module")
def trained(tiny_flux: Path) -> Delta:
    """Random numbers, alpha ≠ rank, large enough to show."""
    base = bases.open_base(tiny_flux)
    generator = torch.Generator().manual_seed(0)
    wrapped = inject.wrap(base.denoiser(CPU, torch.float32), base.targets, 4, 3.0, generator)
    assert len(wrapped.modules) == 2 * 8 + 2 * 3
    with torch.no_grad():
        for module in wrapped.modules.values():
            module.up.normal_(0, 0.5, generator=generator)
    return inject.take(wrapped, base.family, base.component)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_file_works_in_an_unmodified_pipeline(
    trained: Delta, tiny_flux: Path, tmp_path: Path, strength: float
) -> None:  # kohya's dialect is read by diffusers for the published base's widths alone
    pytest.importorskip("peft")
    file = tmp_path / "lora.safetensors"
    formats.save(trained, file, dialect="diffusers", shapes=formats.shapes_of(tiny_flux))
    painter = Painter(bases.open_base(tiny_flux), "cpu", "float32")
    recipe = Recipe("a red apple", "", 7, 3, 4.0, 64, 64, (), "", "", "float32", "cpu")
    delta, match = formats.load(file, shapes=formats.shapes_of(tiny_flux))
    assert not list(match.losses())
    ours, plain = painter.latents([recipe], [(delta, strength)]), painter.latents([recipe], [])
    painter.pipe.load_lora_weights(str(file), adapter_name="it")
    painter.pipe.set_adapters(["it"], [strength])
    theirs = painter.latents([recipe], [])
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - plain).abs().max() > 0.01, "the LoRA must matter for the comparison to mean something"


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
def test_a_run_goes_through_and_its_file_is_used(
    tiny_flux: Path, pictures: Callable[..., Path], tmp_path: Path, dialect: str
) -> None:
    folder = pictures(10)
    settings = ["rank=2", "sample_steps=2", "snapshots=2", *([] if dialect == "diffusers" else [f"dialect={dialect}"])]
    report = run.train(folder, base=str(tiny_flux), out=tmp_path / "run", steps=6, settings=settings)
    delta, match = formats.load(report.file, shapes=formats.shapes_of(tiny_flux))
    assert set(match.dialects) == {dialect}
    assert delta.family == "flux1"
    assert len(delta.updates) == 22
    assert delta.metadata["ss_base_model_version"] == "flux1"
    assert "modelspec.prediction_type" not in delta.metadata
    deltaw.compare(
        [report.file], base=tiny_flux, out=tmp_path / "compare", reference=folder, prompts=["a cat"], steps=2
    )
    assert (tmp_path / "compare" / "report.html").is_file()


def test_checkpointing_gives_the_same_weights(tiny_flux: Path, pictures: Callable[..., Path], tmp_path: Path) -> None:
    folder, found = pictures(10), []
    for on in ("true", "false"):
        settings = ["rank=2", "sample_steps=2", "snapshots=1", f"checkpointing={on}"]
        report = run.train(folder, base=str(tiny_flux), out=tmp_path / on, steps=3, settings=settings)
        found.append(formats.load(report.file, shapes=formats.shapes_of(tiny_flux))[0])
    for path, update in found[0].updates.items():
        assert all(torch.allclose(t, found[1].updates[path].tensors[n], atol=1e-6) for n, t in update.tensors.items())


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "another task": (lambda b: change(b / "model_index.json", _class_name="FluxFillPipeline"), "FLUX.1 made for another task"),
    "channels": (lambda b: change(b / "transformer/config.json", in_channels=96, out_channels=16), "reads 96 numbers a patch"),
    "vae": (lambda b: change(b / "vae/config.json", latent_channels=8), "makes patches of 32 numbers and the transformer reads 16"),
    "t5": (lambda b: change(b / "text_encoder_2/config.json", d_model=32), "the text_encoder_2's vectors have 32 numbers"),
    "clip": (lambda b: change(b / "text_encoder/config.json", hidden_size=32), "the text_encoder's vectors have 32 numbers"),
    "words": (lambda b: change(b / "text_encoder_2/config.json", vocab_size=9), "and the text encoder 9"),
    "encoder": (lambda b: shutil.rmtree(b / "text_encoder_2"), "names a text_encoder_2, and there is no such folder"),
    "tokenizer": (lambda b: shutil.rmtree(b / "tokenizer_2"), "the tokenizer_2 is missing"),
    "scheduler": (lambda b: change(b / "scheduler/scheduler_config.json", _class_name="DDIMScheduler"), "its scheduler is DDIM"),
    "kind": (lambda b: change(b / "transformer/config.json", _class_name="PixArtTransformer2DModel"), "(PixArtTransformer2DModel)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_wrong_with_a_base_is_named_with_advice(other: Path, kind: str) -> None:
    assert_named(other, *SPOILT[kind])


def test_a_base_without_guidance_is_told_to_be_distilled(other: Path) -> None:
    change(other / "transformer/config.json", guidance_embeds=False)
    [remark] = verb.check(other).remarks
    assert "schnell" in remark
    assert bases.open_base(other).drawn_in_steps == flux.FEW_STEPS


@pytest.mark.parametrize("kind", ["tiny_flux", "tiny_sd3"])
def test_a_flow_is_learnt(
    kind: str, request: pytest.FixtureRequest, pictures: Callable[..., Path], tmp_path: Path
) -> None:
    """Even random networks learn from an adapter what pictures have in common: the loss of one that was kept out falls."""
    settings = ["rank=8", "sample_steps=1", "snapshots=1", 'prompts=["a"]']
    base = str(request.getfixturevalue(kind))
    report = run.train(pictures(10), base=base, out=tmp_path / "run", steps=30, lr=1e-2, settings=settings)
    assert report.scores[-1].change.mean < -0.1
