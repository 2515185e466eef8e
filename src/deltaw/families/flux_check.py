"""What is wrong or remarkable with a folder of FLUX.1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw.errors import InputError
from deltaw.families import flow_check
from deltaw.families.faults import WORDS, Configs, Wanted, tokenizer
from deltaw.families.flow_check import PATCH

PIPELINE = "FluxPipeline"
"""`_class_name` in model_index.json; those of bases that fill, control or edit begin likewise and go on otherwise."""
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""Parts that hold weights."""
KIND = "FluxTransformer2DModel"


def parts(index: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG001  # none may be left out
    """The parts that hold weights in a folder with this model_index.json."""
    return PARTS


def problems(path: Path, configs: Configs) -> Iterator[InputError]:
    """Everything for which the base cannot be trained, from its small files."""
    yield from _fitting(path, configs)
    yield from flow_check.scheduler(path, configs)
    yield from tokenizer(path / "tokenizer", configs.get("text_encoder", {}))
    yield from tokenizer(path / "tokenizer_2", configs.get("text_encoder_2", {}))


def wanted(configs: Configs) -> Sequence[Wanted]:
    """What the configs say of some weights."""
    transformer, vae, clip, t5 = (configs.get(part, {}) for part in PARTS)
    return (
        ("transformer", "x_embedder.weight", 1, transformer.get("in_channels")),
        ("transformer", "context_embedder.weight", 1, transformer.get("joint_attention_dim")),
        ("vae", "decoder.conv_in.weight", 1, vae.get("latent_channels")),
        ("text_encoder", WORDS, 0, clip.get("vocab_size")),
        ("text_encoder", WORDS, 1, clip.get("hidden_size")),
        ("text_encoder_2", "shared.weight", 0, t5.get("vocab_size")),
        ("text_encoder_2", "shared.weight", 1, t5.get("d_model")),
    )


def remarks(path: Path, configs: Configs) -> Iterator[str]:  # noqa: ARG001  # as of every family
    """What the user should know of it."""
    if not configs.get("transformer", {}).get("guidance_embeds"):
        yield ("the base draws without guidance, as FLUX.1 schnell does in four steps: training undoes that; a LoRA that is "
               "trained on FLUX.1 dev works on it too")  # fmt: skip


def other_kind(configs: Configs) -> str:
    """What the network is where it is not FLUX.1's, else ""."""
    return flow_check.other_kind(configs, KIND)


def _fitting(path: Path, configs: Configs) -> Iterator[InputError]:
    """Parts that cannot work together."""
    transformer, vae, clip, t5 = (configs.get(part, {}) for part in PARTS)
    reads, has = transformer.get("in_channels"), PATCH**2 * (vae.get("latent_channels") or 0)
    gives = transformer.get("out_channels") or reads
    if reads and gives and reads != gives:
        yield InputError(f"this is a base for another task: it reads {reads} numbers a patch and predicts {gives}",
                         where=path / "transformer", expected=f"{gives} numbers", advice="use FLUX.1 dev")  # fmt: skip
    elif reads and has and reads != has:
        yield InputError(f"the VAE makes patches of {has} numbers and the transformer reads {reads}", where=path / "vae",
                         advice="take the VAE that belongs to the base")  # fmt: skip
    yield from flow_check.widths(path, "text_encoder_2", t5.get("d_model"), transformer.get("joint_attention_dim"))
    yield from flow_check.widths(
        path, "text_encoder", clip.get("hidden_size"), transformer.get("pooled_projection_dim")
    )
