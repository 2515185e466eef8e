"""Makes the conformance kit in `tests/contracts/kit/`: small LoRA files with the ΔW that they mean.

    python -m tests.contracts.make_kit

For authors of other loaders: `docs/formats.md` says how to use it. Numbers are multiples of 1/16 and alphas are not
the ranks, so that a wrong scale, a transposed factor or a swapped half shows at once.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from deltaw import adapters, formats
from deltaw.delta import Delta, Update
from deltaw.families import listing

KIT = Path(__file__).parent / "kit"
PATHS = {
    "sd1": ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "unet.down_blocks.0.attentions.0.proj_in",
            "text_encoder.text_model.encoder.layers.11.self_attn.q_proj"),
    "sd2": ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "unet.down_blocks.0.attentions.0.proj_in",
            "text_encoder.text_model.encoder.layers.22.self_attn.q_proj"),
    "sdxl": ("unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", "unet.up_blocks.2.resnets.0.conv_shortcut",
             "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj"),
    "sd3": ("transformer.transformer_blocks.3.attn.to_q", "transformer.transformer_blocks.3.attn.to_k",
            "transformer.transformer_blocks.3.attn.to_v", "transformer.norm_out.linear"),
    "flux1": ("transformer.transformer_blocks.18.attn.to_q", "transformer.transformer_blocks.18.attn.to_k",
              "transformer.transformer_blocks.18.attn.to_v"),
}  # fmt: skip
VARIANTS = {"sd3": "sd3-medium"}
TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
DIALECTS = ("kohya", "kohya-diffusers", "diffusers", "peft", "comfy")
NORM = "unet.down_blocks.0.resnets.0.norm1"
OTHERS = ("loha", "lokr", "ia3", "oft", "glora", "dora-rows", "dora-columns", "tucker")
PEFT_KINDS = ("loha", "lokr", "oft-input", "scale", "dora-rows")
WITHOUT_ALPHA = (
    ("sd1", "diffusers-middle"),
    ("sdxl", "diffusers-middle"),
    ("sd1", "diffusers-old"),
    ("flux1", "xlabs"),
)
FUSED = ("loha", "lokr", "ia3", "oft", "glora")


def base(shape: tuple[int, ...]) -> torch.Tensor:
    """The W that ΔW refers to where it depends on W: ((7·i + 3·j) mod 11 − 5) / 8 over flattened row i, column j."""
    i, j = torch.arange(shape[0])[:, None], torch.arange(torch.Size(shape[1:]).numel())[None]
    return (((7 * i + 3 * j) % 11 - 5) / 8).double().reshape(shape)


def sixteenths(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Random multiples of 1/16 in [-1/2, 1/2], exact in every float type."""
    return torch.randint(-8, 9, tuple(shape), generator=generator) / 16


def update(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Update:
    """An update of any algorithm with nothing left at zero, rank 2 and alpha 0.5."""
    algorithm = {
        "dora-rows": "lora", "dora-columns": "lora", "tucker": "lora", "boft": "oft", "norm": "full",
    }.get(kind, kind)  # fmt: skip
    tensors = adapters.named(algorithm).init(shape, 2, 0.5, generator)
    if kind == "tucker":
        tensors |= {"mid": torch.zeros(2, 2, *shape[2:]), "down": torch.zeros(2, shape[1], *(1 for _ in shape[2:]))}
    if kind == "boft":  # two factors of the butterfly, blocks of 4
        tensors["blocks"] = torch.zeros(2, shape[0] // 4, 4, 4)
    if kind == "norm":
        tensors["bias"] = torch.zeros(shape)
    tensors = {
        n: sixteenths(t.shape, generator).half() if t.is_floating_point() and t.ndim else t for n, t in tensors.items()
    }
    if kind.startswith("dora"):
        axis = 0 if kind == "dora-rows" else 1
        norms = torch.randint(8, 25, (shape[axis],), generator=generator) / 16
        tensors["magnitude"] = norms.half().reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return Update(algorithm, tensors)


def expected(delta: Delta, shapes: listing.Shapes) -> dict[str, object]:
    """What a loader must find: for each module the norm of ΔW, its sum, and entries by their flat index."""
    found: dict[str, object] = {}
    for path, change in delta.updates.items():
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in change.tensors.items()}
        dense = adapters.dense(change.algorithm, tensors, shapes[path], base(shapes[path])).flatten()
        at = [i * (dense.numel() - 1) // 11 for i in range(12)]
        found[path] = {
            "shape": list(shapes[path]), "norm": float(dense.norm()), "sum": float(dense.sum()),
            "entries": {str(i): float(dense[i]) for i in at}, "needs_base": adapters.needs_base(change.algorithm, change.tensors),
        }  # fmt: skip
    return found


def loras() -> Iterator[tuple[str, str, Delta]]:
    """LoRA for family × dialect, as (file name, dialect, change)."""
    for number, (family, paths) in enumerate(PATHS.items()):
        shapes = listing.modules(VARIANTS.get(family, family))
        generator = torch.Generator().manual_seed(number)
        lora = Delta(family, {path: update("lora", shapes[path], generator) for path in paths})
        for dialect in DIALECTS:
            yield f"{family}-lora-{dialect}", dialect, lora
        plain = {p: {n: t for n, t in u.tensors.items() if n != "alpha"} for p, u in lora.updates.items()}
        for own, dialect in WITHOUT_ALPHA:
            held = {p: Update("lora", t) for p, t in plain.items() if dialect != "diffusers-old" or "attn2" in p}
            if dialect == "xlabs":  # one `down` for q, k and v, as XLabs trains them
                held = {
                    p: Update("lora", {**u.tensors, "down": held[paths[0]].tensors["down"]}) for p, u in held.items()
                }
            if own == family:
                yield f"{family}-lora-{dialect}", dialect, Delta(family, held)


def others() -> Iterator[tuple[str, str, Delta]]:
    """The other algorithms: in kohya's dialect, on SD 3's fused q, k and v, and as PEFT keeps them."""
    shapes = listing.modules("sd1")
    generator = torch.Generator().manual_seed(99)
    for kind in OTHERS:
        path = "unet.down_blocks.0.resnets.0.conv1" if kind == "tucker" else TO_Q
        yield f"sd1-{kind}-kohya", "kohya", Delta("sd1", {path: update(kind, shapes[path], generator)})
    for kind in FUSED:
        parts = [path for path in PATHS["sd3"] if ".attn." in path]
        n_rows = [listing.modules("sd3-medium")[path] for path in parts]
        whole = update(kind, (sum(shape[0] for shape in n_rows), n_rows[0][1]), generator)
        tensors = {name: tensor for name, tensor in whole.tensors.items() if kind != "oft" or name != "alpha"}
        split = adapters.named(kind).split_rows(tensors, [shape[0] for shape in n_rows])
        yield (
            f"sd3-{kind}-fused-kohya",
            "kohya",
            Delta("sd3", {p: Update(kind, t) for p, t in zip(parts, split, strict=True)}),
        )
    for kind in PEFT_KINDS:
        yield f"sd1-{kind}-peft", "peft", Delta("sd1", {TO_Q: update(kind, shapes[TO_Q], generator)})
    for kind, path in (("boft", TO_Q), ("norm", NORM)):
        yield f"sd1-{kind}-kohya", "kohya", Delta("sd1", {path: update(kind, shapes[path], generator)})


def counted() -> Iterator[tuple[str, str, Delta]]:
    """cloneofsimo's numbers, which have to count every attention layer of a component: those of the text encoder."""
    shapes = listing.modules("sd1")
    generator = torch.Generator().manual_seed(7)
    paths = [
        path
        for path in shapes
        if path.startswith("text_encoder.") and path.endswith(("q_proj", "k_proj", "v_proj", "out_proj"))
    ]
    factors = {path: adapters.named("lora").init(shapes[path], 1, 1.0, generator) for path in paths}
    yield "sd1-lora-cloneofsimo", "cloneofsimo", Delta("sd1", {
        path: Update("lora", {name: sixteenths(one[name].shape, generator).half() for name in ("up", "down")})
        for path, one in factors.items()
    })  # fmt: skip


def make(folder: Path, truth: bool = True) -> None:
    """Writes every file, and `expected.json` with the `truth` about them, which takes the dense matrices."""
    shutil.rmtree(folder, ignore_errors=True)
    facts: dict[str, object] = {}
    for stem, dialect, delta in itertools.chain(loras(), others(), counted()):
        name = stem + ("" if dialect == "peft" else ".safetensors")
        formats.save(delta, folder / name, dialect)
        facts[name] = expected(delta, listing.modules(VARIANTS.get(delta.family, delta.family))) if truth else None
    if truth:
        (folder / "expected.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(KIT)
