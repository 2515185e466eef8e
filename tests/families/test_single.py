"""Single files as bases: every weight arrives, what is missing is named, and nothing half done is left."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from deltaw import device as devices
from deltaw import digests, families
from deltaw.data import image
from deltaw.errors import DeltawError, InputError
from deltaw.events import Event, Note, Phase, Table, Warn
from deltaw.families import bases, clip_words, listing, networks, predicts, single, skeleton
from deltaw.verbs import base as verb
from deltaw.verbs import doctor
from deltaw.zoo import bundled_base
from tests.families.ldm import single_file

KINDS = {"sd1": "text_encoder", "sd2": "text_encoder", "sdxl": "text_encoder_2"}
"""Variant to the part whose names are of most kinds."""
UNET = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 4, "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
}
VAE = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4,
}  # fmt: skip
TOLD = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
TINY = {
    "sd1": {"unet": (UNet2DConditionModel, {**UNET, "cross_attention_dim": 16}), "text_encoder": (CLIPTextModel, CLIP)},
    "sd2": {
        "unet": (UNet2DConditionModel, {**UNET, "cross_attention_dim": 16, "use_linear_projection": True}),
        "text_encoder": (CLIPTextModel, CLIP),
    },
    "sdxl": {
        "unet": (UNet2DConditionModel, {**UNET, **TOLD, "cross_attention_dim": 32, "use_linear_projection": True}),
        "text_encoder": (CLIPTextModel, CLIP), "text_encoder_2": (CLIPTextModelWithProjection, CLIP),
    },
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Folders of random weights of the published bases' layouts, which are narrow in this test."""
    known = listing.modules
    for variant, parts in TINY.items():
        monkeypatch.setitem(networks.VARIANTS, variant, parts)
        made = skeleton.PUBLISHED[variant]
        monkeypatch.setitem(skeleton.PUBLISHED, variant, skeleton.Published(made.pipeline, VAE, made.padding))  # type: ignore[arg-type]
    narrow = {variant: networks.listing(variant) for variant in TINY}
    monkeypatch.setattr(listing, "modules", lambda variant: narrow.get(variant) or known(variant))

    def make(variant: str) -> Path:
        folder = tmp_path / f"{variant}-folder"
        torch.manual_seed(0)
        parts = skeleton.parts(variant)
        skeleton.write(variant, parts, folder)
        for name, network in parts.items():
            state = {k: torch.randn(v.shape, dtype=torch.float16) for k, v in network.state_dict().items()}
            clip = type(network).__name__.startswith("CLIP")
            named = {listing.canonical("", k, clip)[1:]: v for k, v in state.items()}
            file = "model.safetensors" if clip else "diffusion_pytorch_model.safetensors"
            save_file(named, folder / name / file, {"format": "pt"})
        return folder

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{f.parent.name}/{k}": v for f in folder.rglob("*.safetensors") for k, v in load_file(f).items()}


def assert_same(folder: Path, other: Path) -> None:
    ours, theirs = weights(folder), weights(other)
    assert set(ours) == set(theirs)
    assert [k for k, v in ours.items() if v.dtype != theirs[k].dtype or not v.equal(theirs[k])] == []


def test_the_bundled_base_as_a_file_is_the_bundled_base(tmp_path: Path) -> None:
    file = tmp_path / "emoji one.safetensors"
    single_file(bundled_base(), file)
    events: list[Event] = []
    base = bases.open_base(file, events.append)
    assert base.folder.path.name == "emoji one"
    assert_same(base.folder.path, bundled_base())
    assert base.folder.configs == bases.open_base(bundled_base()).folder.configs
    assert base.folder.recommended == bases.open_base(bundled_base()).folder.recommended
    assert any(isinstance(e, Phase) and e.name == "unpack emoji one.safetensors" for e in events)
    assert any(isinstance(e, Note) and str(base.folder.path) in e.text for e in events)
    again: list[Event] = []
    assert bases.open_base(file, again.append).folder.path == base.folder.path
    assert again == []  # it was there
    shutil.rmtree(base.folder.path)
    assert_same(bases.open_base(file).folder.path, bundled_base())


@pytest.mark.parametrize("variant", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # random weights of float16
def test_every_weight_of_a_published_layout_arrives(tiny: Callable[[str], Path], tmp_path: Path, variant: str) -> None:
    folder, file = tiny(variant), tmp_path / "file.safetensors"
    single_file(folder, file)
    events: list[Event] = []
    base = bases.open_base(file, events.append)
    assert base.family == variant
    assert_same(base.folder.path, folder)
    assert base.objective.name == "epsilon"
    assert any(isinstance(e, Warn) and "cannot be told whether the base predicts" in e.text for e in events)
    pipe = base.pipeline(torch.device("cpu"), torch.float32)
    assert pipe.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]
    padding = {"sd1": 49407, "sd2": 0, "sdxl": 49407}[variant]
    assert base.tokenizer()("a", padding="max_length").input_ids[3:] == [padding] * 74
    if variant == "sdxl":
        assert base.tokenizer("tokenizer_2")("a", padding="max_length").input_ids[3:] == [0] * 74


def test_diffusers_reads_the_same_file_as_the_same_vae(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    single_file(bundled_base(), file)
    folder = bases.open_base(file).folder.path
    theirs = AutoencoderKL.from_single_file(
        str(file), config=str(bundled_base()), subfolder="vae", local_files_only=True, torch_dtype=torch.float16
    )
    ours = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.equal(ours[key]) for key, tensor in theirs.state_dict().items())


def test_a_key_tells_that_v_is_predicted_and_where_the_noise_ends(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "noob.safetensors"
    single_file(tiny("sdxl"), file, more={"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
    events: list[Event] = []
    base = bases.open_base(file, events.append)
    assert base.objective.name == "v_prediction"
    assert float(base.schedule.a[-1]) == 0.0
    assert not any(isinstance(e, Phase) and "predicts" in e.name for e in events)


def test_what_a_base_predicts_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    base = bases.open_base(bundled_base())
    device = torch.device("cpu")
    assert predicts.tried(base, device) == "v_prediction"
    network, times, plain = base.denoiser(device, devices.compute_dtype(device)[0]), base.schedule, base.denoise

    def noise(network: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The same knowledge as a prediction of noise: e = a·v + s·x."""
        return times.a[t].view(-1, 1, 1, 1) * plain(network, x, t, text) + times.s[t].view(-1, 1, 1, 1) * x

    monkeypatch.setattr(base, "denoiser", lambda *_: network)
    monkeypatch.setattr(base, "denoise", noise)
    assert predicts.tried(base, device) == "epsilon"
    monkeypatch.setattr(base, "denoise", lambda _, x, t, text: torch.randn_like(x))
    assert predicts.tried(base, device) is None


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
def test_networks_trained_either_way_are_told_apart(objective: str) -> None:
    """A small network learns the examples' latents from nothing; the noise's share in its answer goes to 1, or to a."""
    base, device = bases.open_base(bundled_base()), torch.device("cpu")
    encode = base.image_encoder(device)
    files = sorted((Path(__file__).parents[2] / "examples").glob("*/*.png"))
    latents = torch.cat([encode(image.fit(image.load(file), (128, 128))[None]) for file in files])
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=8, layers_per_block=1, block_out_channels=(64, 96, 128), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=256,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(400):
        x0 = latents[torch.randint(len(latents), (16,))]
        times, noise = torch.randint(base.schedule.n_times, (16,)), torch.randn_like(x0)
        a, s = base.schedule.at(times)
        target = noise if objective == "epsilon" else a * noise - s * x0
        answer = network(a * x0 + s * noise, times, encoder_hidden_states=torch.randn(16, 77, 256)).sample
        loss = (answer - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = predicts.shares(base, network.eval(), device, torch.float32, (1, 8, 16, 16))
    print(f"{objective}: {shares[0]:.2f} under most noise, {shares[1]:.2f} under least")
    assert predicts.kind(*shares) == objective


def test_what_was_tried_is_written_down(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "file.safetensors"
    single_file(tiny("sd2"), file)
    monkeypatch.setattr(predicts, "tried", lambda *_: "v_prediction")
    events: list[Event] = []
    base = bases.open_base(file, events.append)
    assert base.objective.name == "v_prediction"
    assert base.config["sample_size"] == 96  # the base of Stable Diffusion 2 that predicts v is the larger one
    assert any(isinstance(e, Note) and e.text == "tried: the base predicts v" for e in events)


def without(file: Path, start: str, keep: int = 0) -> None:
    tensors = load_file(file)
    gone = sorted(k for k in tensors if k.startswith(start))[keep:]
    save_file({k: v for k, v in tensors.items() if k not in gone}, file)


def changed(file: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(file)
    save_file({**tensors, key: change(tensors[key]).contiguous()}, file)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vae": (lambda f: without(f, "first_stage_model."), "it holds no vae"),
    "no text encoder": (lambda f: without(f, "cond_stage_model."), "it holds no text_encoder"),
    "half a vae": (lambda f: without(f, "first_stage_model.decoder.", 60), "tensors of its vae are missing, e.g. decoder."),
    "inpainting": (
        lambda f: changed(f, "model.diffusion_model.input_blocks.0.0.weight", lambda w: torch.cat([w, w, w[:, :1]], 1)),
        "this is an inpainting base: 17 input channels",
    ),
    "no first layer": (lambda f: without(f, "model.diffusion_model.input_blocks.0.0."), "2 of 440 tensors of its unet are missing, e.g. conv_in"),
    "a number": (
        lambda f: changed(f, "model.diffusion_model.input_blocks.0.0.bias", lambda _: torch.tensor(1.0)),
        "1 of 440 tensors of its unet are missing, e.g. conv_in.bias",
    ),
    "fp8": (
        lambda f: changed(f, "model.diffusion_model.out.2.weight", lambda w: w.to(torch.float8_e4m3fn)),
        "its weights are stored as fp8",
    ),
    "shape": (
        lambda f: changed(f, "first_stage_model.quant_conv.weight", lambda w: w[:-1]),
        "first_stage_model.quant_conv.weight is [15, 16, 1, 1]",
    ),
    "shorter": (lambda f: f.write_bytes(f.read_bytes()[:-1000]), "the download is incomplete"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "whole.safetensors"
    single_file(bundled_base(), file)
    return file


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_wrong_with_a_file_is_named_and_nothing_is_left(whole: Path, tmp_path: Path, kind: str) -> None:
    file = Path(shutil.copy(whole, tmp_path / f"{kind}.safetensors"))
    spoil, said = SPOILT[kind]
    spoil(file)
    with pytest.raises(InputError) as caught:
        bases.open_base(file)
    assert said in caught.value.what
    assert caught.value.advice
    assert caught.value.where == str(file)
    assert not list((digests.default_root() / "bases" / digests.of_file(file)[:16]).glob("*"))


def test_other_files_are_told_what_they_are(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)}, lora)
    with pytest.raises(InputError, match="no base of a known family") as caught:
        bases.open_base(lora)
    assert "not a LoRA" in caught.value.advice
    assert not verb.is_base(lora)


@pytest.mark.parametrize("variant", ["flux1", "sd35-medium"])
def test_a_file_that_lacks_parts_by_custom_is_named(tmp_path: Path, variant: str) -> None:
    family = next(family for family in families.ALL if variant in family.variants)
    listed = {
        p.removeprefix("transformer."): s for p, s in listing.modules(variant).items() if p.startswith("transformer.")
    }
    described, end = {}, 0
    for entry in family.original(listed):
        shape = [sum(listed[part][0] for part in entry.parts), *listed[entry.parts[0]][1:]]
        begin, end = end, end + 2 * math.prod(shape)
        key = f"model.diffusion_model.{entry.name}.weight"
        described[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(described).encode()
    file = tmp_path / "model.safetensors"
    with file.open("wb") as out:  # with a hole for the gigabytes of weights
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + end)
    with pytest.raises(InputError, match="which may lack text encoders and VAE") as caught:
        bases.open_base(file)
    assert family.title in caught.value.what
    assert "the folder that it was published as" in caught.value.advice


def test_a_header_whose_length_begins_as_a_pickle_does_is_read(whole: Path, tmp_path: Path) -> None:
    tensors = load_file(whole)
    file = tmp_path / "file.safetensors"
    for n in range(64):  # the header is filled up to eights, and its length is the file's first number
        save_file(tensors, file, {"filled": "x" * 8 * n})
        if file.read_bytes()[:1] == b"\x80":
            break
    else:
        pytest.fail("no header of such a length came about")
    assert bases.open_base(file).family == "sd1"


def test_a_file_that_may_not_be_read_is_said_so(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        bases.open_base(whole)


def test_no_room_is_said_before_anything_is_written(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(DeltawError, match=r"needs 0\.3 GB and 0\.0 GB are free"):
        bases.open_base(whole)
    assert not (digests.default_root() / "bases").exists()


def test_an_interrupted_unpacking_leaves_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))

    def stop(event: Event) -> None:
        if getattr(event, "done", 0) == 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bases.open_base(whole, stop)
    assert not [path for path in (digests.default_root() / "bases").rglob("*") if path.is_file()]
    assert_same(bases.open_base(whole).folder.path, bundled_base())


def test_what_a_killed_unpacking_left_is_not_taken_for_a_base(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    place = single.place(whole)
    begun = place.parent / ".begun"
    skeleton.write("emoji", {}, begun)
    assert single.place(whole) == place
    assert_same(bases.open_base(whole).folder.path, bundled_base())
    heard: list[Event] = []
    doctor.examine(heard.append)
    (row,) = [row for e in heard if isinstance(e, Table) for row in e.rows if row[0].startswith("cache")]
    assert row[1].endswith("bases/ holds 0.1 GB of unpacked files: .begun, whole")


def test_a_file_is_checked_as_a_base(whole: Path) -> None:
    assert verb.is_base(whole)
    assert verb.check(whole) == verb.BaseReport((), ())


def test_the_tokenizer_is_clips(tmp_path: Path) -> None:
    """Numbers of openai/clip-vit-large-patch14, as its own documentation gives them."""
    clip_words.write(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(json.loads((tmp_path / "vocab.json").read_text("utf-8"))) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("a photo of a dog").input_ids == [49406, 320, 1125, 539, 320, 1929, 49407]
    assert tokenizer("A Photo of a CAT").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
