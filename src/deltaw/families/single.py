"""A single-file checkpoint as the diffusers folder that everything here reads: made once, in the cache, tensor by tensor.

Weights are copied byte for byte, so that no more than one of them is ever in memory, and what is trained on is the file.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import nn

from deltaw import digests, tensorfile
from deltaw.errors import DeltawError, InputError
from deltaw.events import Note, Phase, Tell, Tick
from deltaw.families import autoencoder, base_check, checkpoint, faults, listing, openclip, skeleton, unet_check
from deltaw.families.checkpoint import Checkpoint
from deltaw.families.family import Original
from deltaw.tensorheader import Header

UNPACKED = "bases"
"""The cache's folder of what was unpacked: DIGEST/NAME each."""
SPARE_BYTES = 256 << 20
"""Left free on the disk beyond what the folder needs."""
TELLS_V, TELLS_ZERO_SNR = "v_pred", "ztsnr"
"""Keys that checkpoints have which predict v, and whose last time is noise alone."""


@dataclass(frozen=True)
class Source:
    """Where a weight of the folder lies in the file.

    Args:
        key: of the tensor.
        begin, end: its rows.
        shape: in the folder.
        turned: rows and columns are swapped.
    """

    key: str
    begin: int
    end: int
    shape: tuple[int, ...]
    turned: bool = False


def place(file: Path) -> Path:
    """The folder that a file is unpacked to, or was.

    Raises:
        InputError: it is no safetensors file, or cannot be read; said before gigabytes are read for their digest.
    """
    if refusal := base_check.not_read(file):
        raise refusal
    tensorfile.read_header(file)
    kept = digests.default_root() / UNPACKED / digests.of_file(file)[:16]
    whole = (folder for folder in kept.glob("[!.]*") if folder.is_dir())  # what was begun has a dot before its name
    return next(whole, kept / file.stem.lstrip("."))


@contextlib.contextmanager
def unpacking(file: Path, target: Path, tell: Tell) -> Iterator[tuple[Path, str, bool]]:
    """Unpacks a file to a folder beside `target`, which it becomes at the end; on an error nothing is left.

    Args:
        file: the checkpoint.
        target: its `place`.
        tell: hears of it.

    Yields:
        The folder, the variant that the base is of, and whether the file told what it predicts; else noise is said.

    Raises:
        InputError: it is no base that can be trained, or not whole.
        DeltawError: the cache cannot be written, or has no room.
    """
    found, variant = _recognised(file)
    networks = skeleton.parts(variant)
    found = _with_vae(found, networks["vae"])
    sources = {part: _sources(found, part, network) for part, network in networks.items()}
    header = found.headers[file]
    n_bytes = _require_room(file, target, header, sources)
    tell(Phase(f"unpack {file.name}", sum(map(len, sources.values())), "tensors"))
    with _beside(target) as made:
        skeleton.write(variant, networks, made)
        n_done = 0
        for part, network in networks.items():
            weights = "model.safetensors" if _is_clip(network) else "diffusion_pytorch_model.safetensors"
            n_done = _write_part(file, made / part / weights, sources[part], n_done, tell)
        yield made, variant, _told(variant, header, made)
    tell(Note(f"{file.name} was unpacked to {target} ({n_bytes / 1e9:.1f} GB), which is read from now on; it may be deleted at any "
              "time between runs"))  # fmt: skip


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` at the end; on an error nothing is left."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    except OSError as error:
        raise DeltawError(f"the cache cannot be written ({error.strerror or error})", where=target.parent,
                          expected="room and permission to write", advice="set DELTAW_CACHE to another folder") from error  # fmt: skip
    try:
        yield made
        if not target.exists():  # another run may have been faster
            made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def is_base(file: Path) -> bool:
    """Whether a file holds a network under the names that published checkpoints have, by its header alone."""
    try:
        return any(key.startswith("model.diffusion_model.") for key in tensorfile.read_header(file).tensors)
    except InputError:
        return False


def _recognised(file: Path) -> tuple[Checkpoint, str]:
    """The file's weights by canonical path, and the variant that they are of.

    Raises:
        InputError: it is none that can be trained.
    """
    found = checkpoint.open_checkpoint(file)
    if found.family.name not in {"sd1", "sd2", "sdxl"}:
        raise InputError(f"the base is a single file of {found.family.title}, which may lack text encoders and VAE", where=file,
                         expected="a diffusers folder (with model_index.json)",
                         advice="get the folder that it was published as, e.g. by its hub id")  # fmt: skip
    variant = max(
        found.family.variants, key=lambda v: sum(listing.modules(v).get(p) == s for p, s in found.shapes.items())
    )
    reads, makes = (found.shapes.get(f"unet.{layer}", (None, None)) for layer in ("conv_in", "conv_out"))
    for refusal in unet_check.special(file, reads[1], makes[0]):
        raise refusal
    if types := faults.packed_types([found.headers[file]]):
        raise InputError(f"its weights are stored as {types}", where=file, expected="floating-point weights",
                         advice=faults.FULL_PRECISION)  # fmt: skip
    return found, variant


def _with_vae(found: Checkpoint, vae: nn.Module) -> Checkpoint:
    paths = [name.removesuffix(".weight") for name in vae.state_dict() if name.endswith(".weight")]
    named = {
        f"{autoencoder.PREFIX}{entry.name}": Original(entry.name, tuple(f"vae.{part}" for part in entry.parts))
        for entry in autoencoder.original(paths)
    }
    own = checkpoint.cut(found.where, found.family, found.headers, {found.where: named})
    return Checkpoint(
        found.where, found.family, {**found.shapes, **own.shapes}, {**found.held, **own.held}, {**found.biases, **own.biases},
        found.headers,
    )  # fmt: skip


def _sources(found: Checkpoint, part: str, network: nn.Module) -> dict[str, Source]:
    """Every weight of a part, under the name that files have for it, to where it lies.

    Raises:
        InputError: some are missing, or of other shapes.
    """
    header, sources, missing = found.headers[found.where], {}, []
    for name, tensor in network.state_dict().items():
        canonical, wanted = listing.canonical(part, name, _is_clip(network)), tuple(tensor.shape)
        path, _, leaf = canonical.rpartition(".")
        stored = canonical.removeprefix(f"{part}.")
        held = (found.biases if leaf == "bias" else found.held).get(path)
        source = Source(held.key, held.begin, held.end, wanted) if held else _bare(found, part, stored, wanted)
        if source is None:
            missing.append(name)
            continue
        shape = header.tensors[source.key].shape
        rows = (source.end - source.begin, *shape[1:])
        if _plain(rows) != _plain(wanted):
            raise InputError(f"{source.key} is {list(rows)}", where=found.where, expected=f"{list(wanted)}",
                             advice="get the checkpoint from where it was published")  # fmt: skip
        sources[stored] = source
    if missing:
        n = len(network.state_dict())
        some = f"{len(missing)} of {n} tensors of its {part} are missing, e.g. {missing[0]}"
        raise InputError(some if len(missing) < n else f"it holds no {part}", where=found.where, expected="a whole checkpoint: UNet, VAE and text encoders",
                         advice="get the full checkpoint, or the diffusers folder")  # fmt: skip
    return sources


def _is_clip(network: nn.Module) -> bool:
    return type(network).__name__.startswith("CLIP")


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the 1×1 that a convolution has and a linear layer lacks."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _bare(found: Checkpoint, part: str, stored: str, shape: tuple[int, ...]) -> Source | None:
    """A weight of OpenCLIP that is no module's there."""
    name, turned = openclip.BARE.get(stored, ("", False))
    tensors = found.headers[found.where].tensors
    for start, original in checkpoint.ENCODER_PREFIXES.get((found.family.name, part), ()):
        if original is openclip.original and (key := f"{start}{name}") in tensors:
            return Source(key, 0, tensors[key].shape[0], shape, turned)
    return None


def _require_room(file: Path, target: Path, header: Header, sources: Mapping[str, Mapping[str, Source]]) -> int:
    """How many bytes the folder will have.

    Raises:
        DeltawError: there is no room for them.
    """
    needed = 0
    for source in (source for part in sources.values() for source in part.values()):
        needed += prod(source.shape) * tensorfile.DTYPE_BYTES[header.tensors[source.key].dtype]
    there = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed + SPARE_BYTES:
        raise DeltawError(f"unpacking {file.name} needs {(needed + SPARE_BYTES) / 1e9:.1f} GB and {free / 1e9:.1f} GB are free", where=there,
                          expected="room for the base as a diffusers folder", advice="free some space or set DELTAW_CACHE to another folder")  # fmt: skip
    return needed


def _write_part(file: Path, target: Path, sources: Mapping[str, Source], n_done: int, tell: Tell) -> int:
    """Writes a part's weights; returns how many tensors are done now."""
    with tensorfile.lazy(file) as tensors:
        known = tensors.header.tensors

        def get(stored: str) -> torch.Tensor | tensorfile.Region:
            nonlocal n_done
            n_done += 1
            tell(Tick(n_done, stored))
            source = sources[stored]
            tensors.ahead(source.key)
            if source.turned:
                return tensors.get_tensor(source.key).t().contiguous()
            if source.end - source.begin == known[source.key].shape[0]:
                return tensors.region(source.key)
            return tensors.rows(source.key, source.begin, source.end).reshape(source.shape)

        described = {stored: (known[source.key].dtype, source.shape) for stored, source in sources.items()}
        tensorfile.stream(target, described, get, {"format": "pt"})
    return n_done


def _told(variant: str, header: Header, folder: Path) -> bool:
    """Writes down what the file says that it predicts; whether it does."""
    if variant not in skeleton.PUBLISHED:
        return True
    if TELLS_V in header.tensors:
        skeleton.predicting(variant, folder, "v_prediction", zero_snr=TELLS_ZERO_SNR in header.tensors)
        return True
    return False
