"""Names of CLIP text encoders in single-file checkpoints that hold OpenCLIP's network (SD 2, SDXL's second)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deltaw.families.family import Original

_BLOCK = {
    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2",
}  # fmt: skip
_OUTSIDE = {"text_model.embeddings.token_embedding": "token_embedding", "text_model.final_layer_norm": "ln_final"}
_LAYERS = "text_model.encoder.layers."
BARE: Mapping[str, tuple[str, bool]] = {
    "text_model.embeddings.position_embedding.weight": ("positional_embedding", False),
    "text_projection.weight": ("text_projection", True),
}
"""Weights that are no module's there: canonical name to (OpenCLIP's, whether rows and columns are swapped)."""


def original(paths: Iterable[str]) -> list[Original]:
    """OpenCLIP's names; q, k and v are one tensor there, `in_proj_weight`. `BARE` has what it keeps otherwise."""
    found: dict[str, Original] = {}
    for path in paths:
        if path in _OUTSIDE:
            found[path] = Original(_OUTSIDE[path], (path,))
        elif path.startswith(_LAYERS):
            number, _, rest = path.removeprefix(_LAYERS).partition(".")
            block = f"transformer.resblocks.{number}"
            if rest in _BLOCK:
                found[path] = Original(f"{block}.{_BLOCK[rest]}", (path,))
            elif rest.startswith("self_attn."):
                parts = tuple(f"{_LAYERS}{number}.self_attn.{name}_proj" for name in "qkv")
                found[block] = Original(f"{block}.attn.in_proj_", parts)
    return list(found.values())
