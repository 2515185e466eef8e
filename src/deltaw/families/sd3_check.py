"""What is wrong or remarkable with a folder of Stable Diffusion 3 or 3.5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw.errors import InputError
from deltaw.families import flow_check
from deltaw.families.faults import WORDS, Configs, Wanted, looks_distilled, tokenizer

PIPELINE = "StableDiffusion3Pipeline"
"""`_class_name` in model_index.json."""
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts that hold weights; the last, T5, may be left out."""
T5 = PARTS[-1]
KIND = "SD3Transformer2DModel"


def parts(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts that hold weights in a folder with this model_index.json."""
    return PARTS if has_t5(index) else PARTS[:-1]


def has_t5(index: Mapping[str, Any]) -> bool:
    """Whether a model_index.json names a T5.

    Where it does not, diffusers' pipeline puts zeros in its place, as in training, where each encoder was left out now and
    then (Esser et al. 2024, arXiv 2403.03206, section 5.3.1).
    """
    return index.get(T5) not in (None, [None, None])


def problems(path: Path, configs: Configs) -> Iterator[InputError]:
    """Everything for which the base cannot be trained, from its small files."""
    yield from _fitting(path, configs)
    yield from flow_check.scheduler(path, configs)
    for encoder in parts(configs.get("model_index", {}))[2:]:
        yield from tokenizer(path / encoder.replace("text_encoder", "tokenizer"), configs.get(encoder, {}))


def wanted(configs: Configs) -> Sequence[Wanted]:
    """What the configs say of some weights."""
    transformer, vae, first, second, t5 = (configs.get(part, {}) for part in PARTS)
    return (
        ("transformer", "pos_embed.proj.weight", 1, transformer.get("in_channels")),
        ("transformer", "context_embedder.weight", 1, transformer.get("joint_attention_dim")),
        ("vae", "decoder.conv_in.weight", 1, vae.get("latent_channels")),
        ("text_encoder", WORDS, 1, first.get("hidden_size")),
        ("text_encoder_2", WORDS, 1, second.get("hidden_size")),
        ("text_encoder_3", "shared.weight", 0, t5.get("vocab_size")),
        ("text_encoder_3", "shared.weight", 1, t5.get("d_model")),
    )


def remarks(path: Path, configs: Configs) -> Iterator[str]:
    """What the user should know of it."""
    name = f"{path.resolve().name} {configs.get('model_index', {}).get('_name_or_path', '')}".casefold()
    if "turbo" in name:
        yield looks_distilled("it is called turbo")
    if not has_t5(configs.get("model_index", {})):
        yield "the base has no T5: texts are read by its two CLIPs alone, 77 tokens of them"


def other_kind(configs: Configs) -> str:
    """What the network is where it is not this family's, else ""."""
    return flow_check.other_kind(configs, KIND)


def _fitting(path: Path, configs: Configs) -> Iterator[InputError]:
    """Parts that cannot work together."""
    transformer, vae, first, second, t5 = (configs.get(part, {}) for part in PARTS)
    reads, has = transformer.get("in_channels"), vae.get("latent_channels")
    if reads and has and reads != has:
        yield InputError(f"the VAE makes latents of {has} channels and the transformer reads {reads}", where=path / "vae",
                         advice="take the VAE that belongs to the base")  # fmt: skip
    yield from flow_check.widths(path, "text_encoder_3", t5.get("d_model"), transformer.get("joint_attention_dim"))
    pooled = first.get("projection_dim", 0) + second.get("projection_dim", 0)
    yield from flow_check.widths(path, "text_encoder_2", pooled, transformer.get("pooled_projection_dim"))
