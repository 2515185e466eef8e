"""Names of the transformer of SD 3 and 3.5 in the code it was published with (Stability-AI/sd3.5).

There q, k and v of a stream are one Linear; diffusers has a Linear for each. The last block's
text stream has neither an output projection nor an MLP, and its modulation has two chunks only.
"""

from __future__ import annotations

from collections.abc import Iterable

from deltaw.families.family import Original

_OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}  # fmt: skip
_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
}  # fmt: skip
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}


def original(paths: Iterable[str]) -> list[Original]:
    """Original names of the transformer's modules; a fused one stands once, with its parts in row order."""
    paths = list(paths)
    last = max((int(path.split(".")[1]) for path in paths if path.startswith("transformer_blocks.")), default=-1)
    found: dict[str, Original] = {}
    for path in paths:
        entry = _original(path, last)
        found.setdefault(entry.name, entry)
    return list(found.values())


def _original(path: str, last: int) -> Original:
    if path in _OUTSIDE:
        return Original(_OUTSIDE[path], (path,))
    if path == "norm_out.linear":  # diffusers chunks it (scale, shift), the original (shift, scale)
        return Original("final_layer.adaLN_modulation.1", (path,), swapped=True)
    _, number, rest = path.split(".", 2)
    for name, parts in _FUSED.items():
        if rest in parts:
            return Original(
                f"joint_blocks.{number}.{name}", tuple(f"transformer_blocks.{number}.{part}" for part in parts)
            )
    swapped = int(number) == last and rest == "norm1_context.linear"  # two chunks, as norm_out
    return Original(f"joint_blocks.{number}.{_BLOCK[rest]}", (path,), swapped)
