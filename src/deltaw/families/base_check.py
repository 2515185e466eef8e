"""What is wrong or remarkable with a base's folder, everything at once, from its small files and headers alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw import tensorfile
from deltaw.errors import InputError
from deltaw.tensorheader import Header

Configs = Mapping[str, Mapping[str, Any]]
"""Part (of `PARTS`, "scheduler", "model_index") to its config."""

PARTS = ("unet", "vae", "text_encoder")
"""Parts of every Stable Diffusion folder that hold weights."""
SECOND = "text_encoder_2"
"""The part that XL has beside them."""

TITLES = {
    "StableDiffusion3": "Stable Diffusion 3", "Flux": "FLUX", "PixArt": "PixArt",
    "Kolors": "Kolors", "HunyuanDiT": "Hunyuan-DiT", "StableCascade": "Stable Cascade", "Wan": "Wan", "QwenImage": "Qwen-Image",
}  # fmt: skip
"""How the class names of pipelines that are not trained here begin."""
DISTILLED_NAMES = re.compile(
    r"(?<![a-z])(turbo|lightning|lcm|hyper-?sd|schnell|distilled|instaflow|dmd2?)(?![a-z])", re.IGNORECASE
)
PREDICTIONS = ("epsilon", "v_prediction")
QUANTISED = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "8-bit integers", "U8": "packed 8- or 4-bit integers"}
TOLD = "text_time"
"""`addition_embed_type` of XL's UNet: it is told the pooled text and the picture's size."""
SDXL_SCALE = 0.13025
"""`scaling_factor` of SDXL's VAE, whose latents have as many channels as SD 1.x's and mean something else."""
FULL_PRECISION = "get the base's float16 or float32 weights; --set dtype chooses the precision that it is held in"


def problems(path: Path, configs: Configs, headers: Mapping[str, Sequence[Header]]) -> list[InputError]:
    """Everything for which a base cannot be trained.

    Args:
        path: its folder.
        configs: those that could be read.
        headers: of the weight files that could be read, by part.
    """
    found = [*_family(path, configs), *_fitting(path, configs), *_tokenizers(path, configs)]
    found += [*_quantised(path, configs, headers), *_weights(path, configs, headers)]
    return found


def remarks(path: Path, configs: Configs) -> list[str]:
    """What the user should know of a base that can be trained."""
    return [*_distilled(path, configs), *_stale(path), *_foreign_vae(configs)]


def single_file(path: Path) -> InputError:
    """Why a file, rather than a folder, cannot be trained, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(4)
    wanted = "a diffusers folder (with model_index.json)"
    if head == b"GGUF":
        return InputError("the base is quantised (GGUF)", where=path, expected=wanted, advice=FULL_PRECISION)
    if head.startswith((b"PK", b"\x80")):
        return InputError("the base is a pickle, which is never opened", where=path, expected=wanted,
                          advice="get its safetensors version")  # fmt: skip
    kind = "StableDiffusionXLPipeline" if _holds_two_encoders(path) else "StableDiffusionPipeline"
    return InputError("the base is a single file", where=path, expected=wanted,
                      advice=f"turn it into one: {kind}.from_single_file(FILE).save_pretrained(FOLDER), of diffusers")  # fmt: skip


def _holds_two_encoders(file: Path) -> bool:
    """Whether a checkpoint is XL's, by the names of its tensors."""
    try:
        return any(name.startswith("conditioner.embedders.1.") for name in tensorfile.read_header(file).tensors)
    except InputError:
        return False


def _family(path: Path, configs: Configs) -> Iterator[InputError]:
    unet, index = configs.get("unet", {}), configs.get("model_index", {})
    pipeline = str(index.get("_class_name", ""))
    other = next((title for start, title in TITLES.items() if pipeline.startswith(start)), "")
    kind, added = unet.get("_class_name", "UNet2DConditionModel"), unet.get("addition_embed_type")
    if other or kind != "UNet2DConditionModel" or added not in (None, TOLD):
        what = other or (f"{kind} with {added} embedding" if added else str(kind))
        yield InputError(f"this base is not of a family that can be trained ({what})", where=path,
                         expected="Stable Diffusion 1.x, 2.x or XL", advice="its LoRA files can be merged, converted and inspected all the same")  # fmt: skip
    if pipeline.startswith("StableDiffusionXL") and unet and added != TOLD:
        yield InputError("model_index.json calls it Stable Diffusion XL, and its UNet is not told the pictures' sizes as XL's is",
                         where=path, advice="one of the two is from another base: download it again")  # fmt: skip
    wide, narrow = unet.get("in_channels"), unet.get("out_channels")
    if wide and narrow and wide != narrow:
        what = {2 * narrow + 1: "an inpainting base", 2 * narrow: "an editing base"}.get(wide, "a special base")
        yield InputError(f"this is {what}: {wide} input channels", where=path / "unet", expected=f"{narrow} input channels",
                         advice="use the plain checkpoint that it was made from")  # fmt: skip
    scheduler = configs.get("scheduler", {})
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        yield InputError(f"its scheduler says that it predicts {prediction!r}", where=path / "scheduler" / "scheduler_config.json",
                         expected=" or ".join(PREDICTIONS), advice="take the scheduler's config from where the base was published")  # fmt: skip
    if scheduler.get("_class_name", "").startswith("EDM") or configs.get("vae", {}).get("latents_mean"):
        yield InputError("its latents and noise are scaled in a way of its own (EDM)", where=path,
                         expected="noise as Stable Diffusion's", advice="train on the base that it was made from")  # fmt: skip
    for part, (_, name) in _parts(index).items():
        have = configs.get(part, {}).get("_class_name")
        if part != "scheduler" and have and name and have != name:
            yield InputError(f"model_index.json calls the {part} a {name}, its own config a {have}", where=path / "model_index.json",
                             advice="one of the two is from another base: download it again")  # fmt: skip
        if name and part != "feature_extractor" and not (path / part).is_dir():
            yield InputError(f"model_index.json names a {part}, and there is no such folder", where=path,
                             advice="download the base again, with all its folders")  # fmt: skip


def _parts(index: Mapping[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    """Part to (library, class) where both are named; a safety checker is not missed."""
    pairs = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2 and k != "safety_checker"}
    return {part: (library, name) for part, (library, name) in pairs.items()}


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


def _tokenizers(path: Path, configs: Configs) -> Iterator[InputError]:
    yield from _tokenizer(path / "tokenizer", configs.get("text_encoder", {}))
    if SECOND in configs:
        yield from _tokenizer(path / "tokenizer_2", configs[SECOND])


def _tokenizer(folder: Path, text: Mapping[str, Any]) -> Iterator[InputError]:
    """What is wrong with a tokenizer, beside the config of the text encoder that reads its tokens."""
    vocabulary = _vocabulary(folder)
    if vocabulary is None:
        yield InputError(f"the {folder.name} is missing or cannot be read", where=folder, expected="tokenizer.json or vocab.json",
                         advice="download the base again")  # fmt: skip
        return
    known = text.get("vocab_size")
    if known and max(vocabulary, default=0) >= known:
        yield InputError(f"the tokenizer knows {max(vocabulary) + 1} tokens and the text encoder {known}", where=folder,
                         advice="take the tokenizer that belongs to the base")  # fmt: skip
    longest, length = (
        text.get("max_position_embeddings"),
        _json(folder / "tokenizer_config.json").get("model_max_length"),
    )
    if longest and isinstance(length, int) and length > longest:
        yield InputError(f"the tokenizer gives {length} tokens and the text encoder reads {longest}", where=folder,
                         advice="take the tokenizer that belongs to the base")  # fmt: skip


def _vocabulary(folder: Path) -> list[int] | None:
    """The tokens' numbers, or None where no vocabulary can be read."""
    words = _json(folder / "tokenizer.json").get("model", {}).get("vocab") or _json(folder / "vocab.json")
    return list(words.values()) if isinstance(words, dict) and words else None


def _quantised(path: Path, configs: Configs, headers: Mapping[str, Sequence[Header]]) -> Iterator[InputError]:
    for part, config in configs.items():
        if isinstance(method := config.get("quantization_config"), Mapping):
            name = method.get("quant_method", "quantised")
            yield InputError(f"the {part} is quantised ({name})", where=path / part, expected="floating-point weights",
                             advice=FULL_PRECISION)  # fmt: skip
    for part, files in headers.items():
        types = {QUANTISED[t.dtype] for header in files for key, t in header.tensors.items()
                 if t.dtype in QUANTISED and not key.endswith("position_ids")}  # fmt: skip
        if types:
            yield InputError(f"the {part}'s weights are stored as {', '.join(sorted(types))}", where=path / part,
                             expected="floating-point weights", advice=FULL_PRECISION)  # fmt: skip
    if packed := sorted(path.rglob("*.gguf")):
        yield InputError(f"GGUF weights ({packed[0].name}) cannot be trained", where=packed[0].parent, expected="safetensors",
                         advice=FULL_PRECISION)  # fmt: skip


def _weights(path: Path, configs: Configs, headers: Mapping[str, Sequence[Header]]) -> Iterator[InputError]:
    """Weights that are not those that the config speaks of, told by the first and the widest layers."""
    unet, vae, text = (configs.get(part, {}) for part in ("unet", "vae", "text_encoder"))
    second = configs.get(SECOND, {})
    wanted = (
        ("unet", "conv_in.weight", 1, unet.get("in_channels")),
        ("unet", "conv_in.weight", 0, next(iter(unet.get("block_out_channels", ())), None)),
        ("vae", "decoder.conv_in.weight", 1, vae.get("latent_channels")),
        ("text_encoder", "text_model.embeddings.token_embedding.weight", 0, text.get("vocab_size")),
        ("text_encoder", "text_model.embeddings.token_embedding.weight", 1, text.get("hidden_size")),
        (SECOND, "text_model.embeddings.token_embedding.weight", 1, second.get("hidden_size")),
    )
    for part, key, axis, n in wanted:
        stored = next((h.tensors[key].shape for h in headers.get(part, ()) if key in h.tensors), None)
        if n and stored and stored[axis] != n:
            yield InputError(f"the {part}'s config and weights are of two bases: {key} is {list(stored)}", where=path / part,
                             expected=f"{n} at place {axis + 1}", advice="download the base again")  # fmt: skip


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
        yield (f"the base looks distilled ({why}): training undoes that; train on the base that it was distilled from, "
               "the LoRA works on both")  # fmt: skip


def _stale(path: Path) -> Iterator[str]:
    for part in (*PARTS, SECOND):
        files = sorted(p.name for p in (path / part).glob("*") if p.suffix in (".bin", ".ckpt", ".pt"))
        if files:
            yield f"{part}/{files[0]} lies beside the safetensors file and is not read; if it is newer, convert it"
        whole = sorted(p.name for p in (path / part).glob("*.safetensors") if "-of-" not in p.name)
        if len(whole) > 1:
            used = next((name for name in whole if name.count(".") == 1), whole[0])
            yield f"{part} holds {len(whole)} weight files ({', '.join(whole)}); {used} is read"


def _foreign_vae(configs: Configs) -> Iterator[str]:
    is_xl = configs.get("unet", {}).get("addition_embed_type") == TOLD
    if configs.get("vae", {}).get("scaling_factor") == SDXL_SCALE and not is_xl:
        yield "the VAE scales as Stable Diffusion XL's does: check that it belongs to this base"


def _json(file: Path) -> dict[str, Any]:
    """The file's object; empty where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
