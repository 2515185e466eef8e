"""A base's weights by canonical path, from a diffusers folder or a single file, read on demand.

Single files keep the original names: the denoiser after `model.diffusion_model.` (or bare, FLUX), text
encoders after the prefixes of the program that published them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import families
from deltaw.errors import InputError
from deltaw.families import Family, listing, openclip
from deltaw.families.family import Original, unchanged
from deltaw.families.listing import COMPONENTS, Shapes
from deltaw.tensorfile import Header, Tensors, lazy, read_header

if TYPE_CHECKING:
    import torch

_DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
ENCODER_PREFIXES = {
    ("sd1", "text_encoder"): (("cond_stage_model.transformer.", unchanged),),
    ("sd2", "text_encoder"): (
        ("cond_stage_model.model.", openclip.original),
        ("cond_stage_model.transformer.", unchanged),
    ),
    ("sdxl", "text_encoder"): (("conditioner.embedders.0.transformer.", unchanged),),
    ("sdxl", "text_encoder_2"): (("conditioner.embedders.1.model.", openclip.original),),
    ("sd3", "text_encoder"): (("text_encoders.clip_l.transformer.", unchanged),),
    ("sd3", "text_encoder_2"): (("text_encoders.clip_g.transformer.", unchanged),),
    ("sd3", "text_encoder_3"): (("text_encoders.t5xxl.transformer.", unchanged),),
    ("flux1", "text_encoder"): (("text_encoders.clip_l.transformer.", unchanged),),
    ("flux1", "text_encoder_2"): (("text_encoders.t5xxl.transformer.", unchanged),),
}


@dataclass(frozen=True)
class Held:
    """A canonical module's weight or bias as it lies in a checkpoint.

    Args:
        file: that holds it.
        key: of the tensor there.
        begin, end: its rows in that tensor.
        swapped: the two halves of the rows are in the other order.
    """

    file: Path
    key: str
    begin: int
    end: int
    swapped: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A base on disk.

    Args:
        where: what was given.
        family: that its weights belong to.
        shapes: canonical path to weight shape.
        held: canonical path to its weight; `biases` likewise.
        headers: of every file, also of those that hold nothing with a canonical path.
    """

    where: Path
    family: Family
    shapes: Shapes
    held: Mapping[str, Held]
    biases: Mapping[str, Held]
    headers: Mapping[Path, Header]

    @contextlib.contextmanager
    def reader(self) -> Iterator[Reader]:
        """Opens its files; tensors are read one by one."""
        with contextlib.ExitStack() as stack:
            yield Reader(self, {path: stack.enter_context(lazy(path)) for path in self.headers})


@dataclass(frozen=True)
class Reader:
    """An open checkpoint."""

    checkpoint: Checkpoint
    handles: Mapping[Path, Tensors]

    def weight(self, path: str) -> torch.Tensor:
        """The weight of a canonical module, in its own dtype."""
        return self._rows(self.checkpoint.held[path])

    def blocks(self, path: str, n: int) -> Iterator[torch.Tensor]:
        """The rows of a canonical module's weight in blocks of about `n` numbers, so that none of it is held whole."""
        held, shape = self.checkpoint.held[path], self.checkpoint.shapes[path]
        if held.swapped:
            yield self._rows(held)
            return
        step = max(1, n // max(1, math.prod(shape[1:])))
        for begin in range(held.begin, held.end, step):
            yield self.handles[held.file].rows(held.key, begin, min(begin + step, held.end))

    def bias(self, path: str) -> torch.Tensor:
        """The bias of a canonical module, in its own dtype."""
        return self._rows(self.checkpoint.biases[path])

    def _rows(self, held: Held) -> torch.Tensor:
        import torch

        rows = self.handles[held.file].rows(held.key, held.begin, held.end)
        return torch.cat(rows.chunk(2)[::-1]) if held.swapped else rows


def open_checkpoint(where: str | Path) -> Checkpoint:
    """Finds out what a checkpoint is, from its headers.

    Raises:
        InputError: it is no base of a known family, or a header is broken.
    """
    where = Path(where)
    if where.is_dir():
        return _folder(where)
    header = read_header(where)
    layouts = [layout for family in families.ALL if (layout := _single_file(family, header)) is not None]
    if not layouts:
        raise InputError("this file is no base of a known family", where=where,
                         expected="a checkpoint of " + ", ".join(family.title for family in families.ALL),
                         advice="give the base, not a LoRA")  # fmt: skip
    family, named = max(layouts, key=lambda layout: len(layout[1]))
    return cut(where, family, {where: header}, {where: named})


def cut(
    where: Path, family: Family, headers: Mapping[Path, Header], named: Mapping[Path, Mapping[str, Original]]
) -> Checkpoint:
    """Cuts the tensors of every file into their canonical parts.

    Args:
        where: what was given.
        family: that they belong to.
        headers: of its files.
        named: file to the name that a module has there to what it is.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    held: dict[str, Held] = {}
    biases: dict[str, Held] = {}
    for file, names in named.items():
        tensors = headers[file].tensors
        for name, entry in names.items():
            for ending, kept in (("weight", held), ("bias", biases)):
                key = f"{name}{ending}" if name.endswith("_") else f"{name}.{ending}"
                if key not in tensors or not tensors[key].shape:
                    continue
                shape, at = tensors[key].shape, 0
                for part, n in zip(entry.parts, _rows(shape[0], entry.parts, shapes), strict=True):
                    kept[part] = Held(file, key, at, at + n, entry.swapped)
                    if ending == "weight":
                        shapes[part] = (n, *shape[1:])
                    at += n
    return Checkpoint(where, family, shapes, held, biases, headers)


def _rows(n_rows: int, parts: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """How many rows of a tensor each part has: equally many, but that FLUX' MLP has four times those of q, k and v."""
    if all(part in shapes for part in parts):  # a bias after its weight
        return [shapes[part][0] for part in parts]
    shares = [4 if part.endswith("proj_mlp") and len(parts) > 1 else 1 for part in parts]
    return [n_rows * share // sum(shares) for share in shares]


def _single_file(family: Family, header: Header) -> tuple[Family, dict[str, Original]] | None:
    """Original tensor names (without `.weight`) to canonical parts, or None where the file is not this family's."""
    for variant in family.variants:
        shapes = listing.modules(variant)
        named = _denoiser_names(family, shapes, header)
        if named:
            for component in family.components[1:]:
                named |= _encoder_names(family, component.name, shapes, header)
            return family, named
    return None


def _denoiser_names(family: Family, shapes: Shapes, header: Header) -> dict[str, Original]:
    prefix = f"{family.denoiser}."
    own = [path.removeprefix(prefix) for path in shapes if path.startswith(prefix)]
    originals = family.original(own)
    for start in _DENOISER_PREFIXES:
        fitting = [entry for entry in originals if f"{start}{entry.name}.weight" in header.tensors]
        n_rows = sum(
            header.tensors[f"{start}{e.name}.weight"].shape[1:] == shapes[prefix + e.parts[0]][1:] for e in fitting
        )
        if len(fitting) > 0.9 * len(originals) and n_rows > 0.9 * len(fitting):
            return {start + e.name: _of(family.denoiser, e) for e in fitting}
    return {}


def _encoder_names(family: Family, component: str, shapes: Shapes, header: Header) -> dict[str, Original]:
    own = [path.removeprefix(f"{component}.") for path in shapes if path.startswith(f"{component}.")]
    for start, original in ENCODER_PREFIXES[family.name, component]:
        if any(key.startswith(start) for key in header.tensors):
            return {start + entry.name: _of(component, entry) for entry in original(own)}
    return {}


def _of(component: str, entry: Original) -> Original:
    return Original(entry.name, tuple(f"{component}.{part}" for part in entry.parts), entry.swapped)


def _folder(where: Path) -> Checkpoint:
    headers: dict[Path, Header] = {}
    named: dict[Path, dict[str, Original]] = {}
    for component in COMPONENTS:
        for file in listing.weight_files(where / component):
            headers[file] = read_header(file)
            stems = {key.rpartition(".")[0] for key in headers[file].tensors if key.endswith((".weight", ".bias"))}
            is_clip = listing.is_clip(where / component / "config.json")
            named[file] = {stem: Original(stem, (listing.canonical(component, stem, is_clip),)) for stem in stems}
    if not headers:
        raise InputError("no base model is here", where=where, expected="a diffusers folder with safetensors files",
                         advice="give the folder that holds model_index.json")  # fmt: skip
    shapes = listing.shapes_of(where)
    return cut(where, listing.family_of(shapes), headers, named)
