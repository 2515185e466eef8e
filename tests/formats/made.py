"""Changes of every family with a few modules of each kind, made from a seed."""

from __future__ import annotations

import torch

from deltaw import families
from deltaw.adapters import lora
from deltaw.delta import Delta, Update
from deltaw.families import listing

KINDS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_in", "proj_out",
    "proj_mlp", "ff.net.0.proj", "ff.net.2", "q_proj", "fc1", "conv1", "conv_shortcut", "downsamplers.0.conv",
    "norm_out.linear", "norm1_context.linear", "SelfAttention.q", "wi_0", "linear_1", "conv_in",
)  # fmt: skip


def paths(variant: str, n_most: int = 24) -> list[str]:
    """Linear and convolution paths of a variant, spread over its depth, fused groups complete."""
    found = [
        path for path, shape in listing.modules(variant).items()
        if len(shape) in (2, 4) and path.endswith(tuple(f".{kind}" for kind in KINDS))
    ]  # fmt: skip
    blocks = list(dict.fromkeys(path.rpartition(".")[0] for path in found))
    step = max(1, len(blocks) * 3 // n_most)
    chosen = set(blocks[::step]) | set(blocks[-2:])
    return [path for path in found if path.rpartition(".")[0] in chosen]


def delta(family: str, variant: str, *, rank: int = 2, alpha: float | None = 1.5, dtype: torch.dtype = torch.float16,
          among: list[str] | None = None, seed: int = 0) -> Delta:  # fmt: skip
    """A LoRA with random `up` and `down`; `alpha` None leaves the alphas out."""
    generator = torch.Generator().manual_seed(seed)
    shapes = listing.modules(variant)
    updates: dict[str, Update] = {}
    for path in among if among is not None else paths(variant):
        tensors = lora.init(shapes[path], rank, alpha or 0.0, generator)
        tensors["up"] = torch.randn(tensors["up"].shape, generator=generator)
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items() if name != "alpha"}
        if alpha is not None:
            tensors["alpha"] = torch.tensor(float(alpha))
        updates[path] = Update("lora", tensors)
    return Delta(family, updates)


def same(a: Delta, b: Delta) -> str:
    """How two changes differ, bit for bit, or ""."""
    if a.family != b.family:
        return f"families {a.family} and {b.family}"
    if set(a.updates) != set(b.updates):
        return f"modules {sorted(set(a.updates) ^ set(b.updates))[:4]}"
    for path, one in a.updates.items():
        other = b.updates[path]
        if one.algorithm != other.algorithm or set(one.tensors) != set(other.tensors):
            return f"{path}: {one.algorithm} {sorted(one.tensors)} and {other.algorithm} {sorted(other.tensors)}"
        for name, tensor in one.tensors.items():
            theirs = other.tensors[name]
            if theirs.dtype != tensor.dtype or theirs.shape != tensor.shape or not theirs.equal(tensor):
                return f"{path}.{name}: {tensor.dtype} {tuple(tensor.shape)} and {theirs.dtype} {tuple(theirs.shape)}"
    return ""


VARIANTS = [(family.name, variant) for family in families.ALL for variant in family.variants]
"""Every family with each of its networks."""
