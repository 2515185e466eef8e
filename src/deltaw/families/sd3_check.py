"""What is wrong or remarkable with a folder of Stable Diffusion 3 or 3.5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from deltaw.errors import InputError
from deltaw.families import flow_check
from deltaw.families.faults import WORDS, Configs, Wanted, looks_distilled, tokenizer

PIPELINE = "StableDiffusion3Pipeline"
"""`_class_name` in model_index.json."""
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts that hold weights."""
KIND = "SD3Transformer2DModel"


def problems(path: Path, configs: Configs) -> Iterator[InputError]:
    """Everything for which the base cannot be trained, from its small files."""
    yield from _fitting(path, configs)
    yield from flow_check.scheduler(path, configs)
    for part, encoder in zip(("tokenizer", "tokenizer_2", "tokenizer_3"), PARTS[2:], strict=True):
        yield from tokenizer(path / part, configs.get(encoder, {}))


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
