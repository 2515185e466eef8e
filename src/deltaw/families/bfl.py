"""Names of FLUX.1's transformer in the code it was published with (black-forest-labs/flux).

There q, k and v of a stream are one Linear, and in the single blocks the first layer of the MLP is in
it too; diffusers has a Linear for each.
"""

from __future__ import annotations

from collections.abc import Iterable

from deltaw.families.family import Original

_OUTSIDE = {
    "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
}  # fmt: skip
_DOUBLE = {
    "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
    "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
}  # fmt: skip
_SINGLE = {
    "norm.linear": "modulation.lin", "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm",
}  # fmt: skip
_FUSED = {
    "transformer_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_transformer_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}


def original(paths: Iterable[str]) -> list[Original]:
    """Original names of the transformer's modules; a fused one stands once, with its parts in row order."""
    found: dict[str, Original] = {}
    for path in paths:
        entry = _original(path)
        found.setdefault(entry.name, entry)
    return list(found.values())


def _original(path: str) -> Original:
    if path in _OUTSIDE:
        return Original(_OUTSIDE[path], (path,))
    if path == "norm_out.linear":  # diffusers chunks it (scale, shift), the original (shift, scale)
        return Original("final_layer.adaLN_modulation.1", (path,), swapped=True)
    kind, number, rest = path.split(".", 2)
    theirs, names = ("double_blocks", _DOUBLE) if kind == "transformer_blocks" else ("single_blocks", _SINGLE)
    for name, parts in _FUSED[kind].items():
        if rest in parts:
            return Original(f"{theirs}.{number}.{name}", tuple(f"{kind}.{number}.{part}" for part in parts))
    return Original(f"{theirs}.{number}.{names[rest]}", (path,))
