"""What is wrong or remarkable with a folder of Stable Diffusion 1.x, 2.x or XL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw.errors import InputError
from deltaw.families.faults import WORDS, Configs, Wanted, looks_distilled, tokenizer

PARTS = ("unet", "vae", "text_encoder")
"""Parts of every Stable Diffusion folder that hold weights."""
SECOND = "text_encoder_2"
"""The part that XL has beside them."""
DISTILLED_NAMES = re.compile(
    r"(?<![a-z])(turbo|lightning|lcm|hyper-?sd|schnell|distilled|instaflow|dmd2?)(?![a-z])", re.IGNORECASE
)
PREDICTIONS = ("epsilon", "v_prediction")
TOLD = "text_time"
"""`addition_embed_type` of XL's UNet: it is told the pooled text and the picture's size."""
SDXL_SCALE = 0.13025
"""`scaling_factor` of SDXL's VAE, whose latents have as many channels as SD 1.x's and mean something else."""


def problems(path: Path, configs: Configs) -> Iterator[InputError]:
    """Everything for which the base cannot be trained, from its small files."""
    yield from _kind(path, configs)
    yield from _fitting(path, configs)
    yield from tokenizer(path / "tokenizer", configs.get("text_encoder", {}))
    if SECOND in configs:
        yield from tokenizer(path / "tokenizer_2", configs[SECOND])


def wanted(configs: Configs) -> Sequence[Wanted]:
    """What the configs say of some weights."""
    unet, vae, text = (configs.get(part, {}) for part in ("unet", "vae", "text_encoder"))
    second = configs.get(SECOND, {})
    return (
        ("unet", "conv_in.weight", 1, unet.get("in_channels")),
        ("unet", "conv_in.weight", 0, next(iter(unet.get("block_out_channels", ())), None)),
        ("vae", "decoder.conv_in.weight", 1, vae.get("latent_channels")),
        ("text_encoder", WORDS, 0, text.get("vocab_size")),
        ("text_encoder", WORDS, 1, text.get("hidden_size")),
        (SECOND, WORDS, 1, second.get("hidden_size")),
    )


def remarks(path: Path, configs: Configs) -> Iterator[str]:
    """What the user should know of it."""
    yield from _distilled(path, configs)
    is_xl = configs.get("unet", {}).get("addition_embed_type") == TOLD
    if configs.get("vae", {}).get("scaling_factor") == SDXL_SCALE and not is_xl:
        yield "the VAE scales as Stable Diffusion XL's does: check that it belongs to this base"


def other_kind(configs: Configs) -> str:
    """What the network is where it is none of these families', else ""."""
    unet = configs.get("unet", {})
    kind, added = unet.get("_class_name", "UNet2DConditionModel"), unet.get("addition_embed_type")
    if kind == "UNet2DConditionModel" and added in (None, TOLD):
        return ""
    return f"{kind} with {added} embedding" if added else str(kind)


def _distilled(path: Path, configs: Configs) -> Iterator[str]:
    unet, scheduler, index = (configs.get(part, {}) for part in ("unet", "scheduler", "model_index"))
    why = ""
    if unet.get("time_cond_proj_dim"):
        why = "its UNet takes guidance as an input"
    elif scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler"):
        why = f"its scheduler is {scheduler['_class_name']}"
    elif name := DISTILLED_NAMES.search(
        f"{path.resolve().name} {index.get('_name_or_path', '')} {unet.get('_name_or_path', '')}"
    ):
        why = f"it is called {name.group()}"
    if why:
        yield looks_distilled(why)


def _kind(path: Path, configs: Configs) -> Iterator[InputError]:
    unet, added = configs.get("unet", {}), configs.get("unet", {}).get("addition_embed_type")
    pipeline = str(configs.get("model_index", {}).get("_class_name", ""))
    if pipeline.startswith("StableDiffusionXL") and unet and added != TOLD:
        yield InputError("model_index.json calls it Stable Diffusion XL, and its UNet is not told the pictures' sizes as XL's is",
                         where=path, advice="one of the two is from another base: download it again")  # fmt: skip
    yield from special(path / "unet", unet.get("in_channels"), unet.get("out_channels"))
    scheduler = configs.get("scheduler", {})
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        yield InputError(f"its scheduler says that it predicts {prediction!r}", where=path / "scheduler" / "scheduler_config.json",
                         expected=" or ".join(PREDICTIONS), advice="take the scheduler's config from where the base was published")  # fmt: skip
    if scheduler.get("_class_name", "").startswith("EDM") or configs.get("vae", {}).get("latents_mean"):
        yield InputError("its latents and noise are scaled in a way of its own (EDM)", where=path,
                         expected="noise as Stable Diffusion's", advice="train on the base that it was made from")  # fmt: skip


def special(where: Path, wide: int | None, narrow: int | None) -> Iterator[InputError]:
    """Whether a UNet reads more channels than it predicts, as those do that fill in or edit pictures."""
    if wide and narrow and wide != narrow:
        what = {2 * narrow + 1: "an inpainting base", 2 * narrow: "an editing base"}.get(wide, "a special base")
        yield InputError(f"this is {what}: {wide} input channels", where=where, expected=f"{narrow} input channels",
                         advice="use the plain checkpoint that it was made from")  # fmt: skip


def _fitting(path: Path, configs: Configs) -> Iterator[InputError]:
    """Parts that cannot work together."""
    unet, vae, text = (configs.get(part, {}) for part in ("unet", "vae", "text_encoder"))
    channels, latents = unet.get("out_channels"), vae.get("latent_channels")
    if channels and latents and channels != latents:
        yield InputError(f"the VAE makes latents of {latents} channels and the UNet reads {channels}", where=path / "vae",
                         advice="take the VAE that belongs to the base")  # fmt: skip
    second = configs.get(SECOND, {})
    if unet.get("addition_embed_type") == TOLD:
        yield from _second(path, unet, second)
    width, reads = text.get("hidden_size", 0) + second.get("hidden_size", 0), unet.get("cross_attention_dim")
    if text and width and isinstance(reads, int) and width != reads:
        encoders = "text encoders'" if second else "text encoder's"
        yield InputError(f"the {encoders} vectors have {width} numbers and the UNet reads {reads}", where=path / "text_encoder",
                         advice="take the text encoder that belongs to the base")  # fmt: skip


def _second(path: Path, unet: Mapping[str, Any], text: Mapping[str, Any]) -> Iterator[InputError]:
    """What is wrong with XL's second text encoder, and with what its UNet is told."""
    pooled, rest = text.get("projection_dim"), unet.get("projection_class_embeddings_input_dim", 0)
    size = unet.get("addition_time_embed_dim") or 1
    if not pooled:
        yield InputError("the UNet reads a second text encoder, and there is none", where=path, expected=f"{SECOND}/",
                         advice="download the base again, with all its folders")  # fmt: skip
    elif rest - pooled == 5 * size:
        yield InputError("this is XL's refiner, which is told how beautiful a picture is", where=path / "unet", expected="a base of XL",
                         advice="train on stable-diffusion-xl-base, or a base made from it")  # fmt: skip
    elif rest - pooled != 6 * size:
        yield InputError(f"the UNet is told {rest} numbers, and the second text encoder gives {pooled} and the sizes {6 * size} of them",
                         where=path / SECOND, advice="take the text encoder that belongs to the base")  # fmt: skip
