"""Which modules a base has and how large their weights are, without building its networks.

The listings in `families/modules/` are made by `families/networks.py` from the true-shape networks on
the meta device; a test asserts that they are equal. `shapes_of` reads the same from a base on disk.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from deltaw.errors import InputError
from deltaw.families import ALL, Family
from deltaw.tensorfile import read_header

Shapes = Mapping[str, tuple[int, ...]]
"""Canonical module path to the shape of its weight, in the network's own order."""

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""The folders of a diffusers base that hold networks which a LoRA may change."""

_CLIP_ROOTS = ("embeddings.", "encoder.", "final_layer_norm")


@functools.cache
def modules(variant: str) -> Shapes:
    """The listing of a variant (`Family.variants`): Linear, Conv2d, norms and embeddings of every component."""
    packed = resources.files("deltaw.families").joinpath("modules", f"{variant}.json.gz").read_bytes()
    return MappingProxyType({path: tuple(shape) for path, shape in json.loads(gzip.decompress(packed)).items()})


def canonical(component: str, path: str, is_clip: bool) -> str:
    """A network's own module path as the canonical one, with its component.

    transformers 5 drops `text_model.` from the paths of `CLIPTextModel`; every file and older reader
    has it, so the canonical path has it too.
    """
    if is_clip and path.startswith(_CLIP_ROOTS):
        path = f"text_model.{path}"
    return f"{component}.{path}"


def shapes_of(folder: str | Path) -> Shapes:
    """The listing of a base in the diffusers layout, from the headers of its safetensors files.

    Raises:
        InputError: the folder holds no such base, or a file in it is broken.
    """
    folder = Path(folder)
    found: dict[str, tuple[int, ...]] = {}
    for component in COMPONENTS:
        names = weight_files(folder / component)
        clip = is_clip(folder / component / "config.json") if names else False
        for name in names:
            for key, info in read_header(name).tensors.items():
                if key.endswith(".weight"):
                    found[canonical(component, key.removesuffix(".weight"), clip)] = info.shape
    if not found:
        raise InputError(
            "no base model is here", where=folder, expected="a diffusers folder with safetensors files in unet/ or transformer/",
            advice="give the folder that holds model_index.json",
        )  # fmt: skip
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component, shards included, without the half-precision copies beside them."""
    return [path for path in sorted(folder.glob("*.safetensors")) if not _is_twin(path)]


def family_of(shapes: Shapes) -> Family:
    """The family that a base of these shapes belongs to: most names and dimensions in common.

    Raises:
        InputError: the base's modules are no known family's.
    """

    def in_common(family: Family) -> tuple[int, int]:
        listed = modules(family.variants[0])
        same = [path for path in shapes if path in listed and len(shapes[path]) == len(listed[path])]
        return len(same), sum(shapes[path] == listed[path] for path in same)

    best = max(ALL, key=in_common)
    if not in_common(best)[0]:
        raise InputError("the base is of no family that DeltaW knows", expected=", ".join(f.title for f in ALL))
    return best


def _is_twin(path: Path) -> bool:
    """A half-precision copy (`model.fp16.safetensors`) beside the file itself."""
    plain = path.with_name(path.name.replace(".fp16", ""))
    return plain != path and plain.exists()


def is_clip(config: Path) -> bool:
    """Whether a component's config.json describes a CLIP."""
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "the component's config cannot be read", where=config, advice="download the base again"
        ) from error
    return "CLIP" in "".join(described.get("architectures") or [])
