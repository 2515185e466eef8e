"""Files of `torch.save`, as a header over the bytes on the disk: nothing is executed, no tensor is read, no torch imported.

The present form is a ZIP archive with `data.pkl` and one stored (never compressed) member a storage; the one before torch 1.6
is five pickles and the storages after them. Both leave every tensor at a place in the file that the pickle describes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from deltaw.errors import InputError
from deltaw.formats import unpickle
from deltaw.formats.unpickle import Stored
from deltaw.tensorheader import DTYPE_BYTES, TensorInfo

_MAX_PICKLE_BYTES = 8_000_000
"""A description of 20,000 tensors; a longer one is no LoRA's."""

_MAX_DIRECTORY_BYTES = 8_000_000
"""zipfile reads an archive's whole directory at once."""

_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of the older form."""

_ADVICE = "get the .safetensors version, or have the one who made it save tensors only"


@dataclass(frozen=True)
class Saved:
    """What a file of `torch.save` holds: the saved value, and where each storage lies (first byte and byte after the last)."""

    value: Any
    storages: Mapping[str, tuple[int, int]]


def is_one(path: Path) -> bool:
    """Whether a file begins as a ZIP archive or a pickle, and not as a safetensors file whose length looks so."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False  # the reader of headers says what is wrong with it
    return head[:4] == b"PK\x03\x04" or (
        head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and head[8:] != b"{"
    )


def read(path: Path) -> Saved:
    """Reads the description of what was saved.

    Raises:
        InputError: it holds more than tensors, names, numbers and containers (nothing was executed), or is broken.
    """
    try:
        with path.open("rb") as file:
            return _archive(file, path) if file.read(2) == b"PK" else _pickles(file, path)
    except unpickle.Refused as error:
        raise InputError(
            f"this pickle is more than tensors: {error}; nothing was executed", where=path, expected="tensors, names and numbers",
            advice=_ADVICE,
        ) from error  # fmt: skip
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError) as error:
        raise InputError(
            f"the pickle file is broken ({error})",
            where=path,
            expected="a file of torch.save",
            advice="download it again",
        ) from error


def place(tensor: Stored, saved: Saved) -> tuple[TensorInfo, tuple[int, ...]]:
    """Where a tensor's numbers lie, as one run of them, and its strides in it (empty where they lie row by row).

    Raises:
        ValueError: they are not all in the file.
    """
    if tensor.storage.key not in saved.storages:
        raise ValueError(f"the storage {tensor.storage.key[:40]!r} is missing")
    begin, end = saved.storages[tensor.storage.key]
    width = DTYPE_BYTES[tensor.dtype]
    n = (
        0
        if 0 in tensor.shape
        else 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    )
    first = begin + tensor.offset * width
    if (
        first + n * width > end or prod(tensor.shape) * width > end - begin
    ):  # as many numbers as there are, or it is a bomb
        raise ValueError(f"a tensor of {list(tensor.shape)} reaches beyond its storage")
    info = TensorInfo(tensor.dtype, (n,), first, first + n * width)
    return info, () if tensor.strides == _row_by_row(tensor.shape) or n <= 1 else tensor.strides


def _row_by_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= size
    return tuple(strides)


class _Limited:
    """A file of which no more than so many bytes are read at once."""

    def __init__(self, file: IO[bytes], n_most: int):
        self.file, self.n_most = file, n_most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n: int = -1) -> bytes:
        if n > self.n_most:
            raise ValueError("its directory is larger than that of any LoRA")
        return self.file.read(n if n >= 0 else self.n_most)


def _archive(file: IO[bytes], path: Path) -> Saved:
    members = zipfile.ZipFile(_Limited(file, _MAX_DIRECTORY_BYTES)).infolist()  # type: ignore[arg-type]  # it is read only
    named = {member.filename: member for member in members}
    pickles = [name for name in named if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(
            "this ZIP archive is no file of torch.save", where=path, expected="one data.pkl in it", advice=_ADVICE
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in named and _content(file, named[f"{root}byteorder"], 16) != b"little":
        raise InputError("the numbers in it are big-endian", where=path, expected="little-endian", advice=_ADVICE)
    value = unpickle.load(io.BytesIO(_content(file, named[pickles[0]], _MAX_PICKLE_BYTES)))
    prefix = f"{root}data/"
    storages = {name.removeprefix(prefix): _span(file, m) for name, m in named.items() if name.startswith(prefix)}
    return Saved(value, storages)


def _span(file: IO[bytes], member: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a member's bytes lie; torch never compresses, so what is compressed is not torch's (or a bomb)."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError("a member is compressed or encrypted, which torch never does")
    file.seek(member.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise ValueError("a member is not where the directory says")
    begin = member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if begin + member.file_size > file.seek(0, io.SEEK_END):
        raise ValueError("the download is incomplete")
    return begin, begin + member.file_size


def _content(file: IO[bytes], member: zipfile.ZipInfo, n_most: int) -> bytes:
    begin, end = _span(file, member)
    if end - begin > n_most:
        raise unpickle.Refused(f"its description is {(end - begin) / 1e6:.0f} MB long")
    file.seek(begin)
    return file.read(end - begin)


def _pickles(file: IO[bytes], path: Path) -> Saved:
    """The form before torch 1.6: magic number, protocol, system, value and the storages' order, then their numbers."""
    file.seek(0)
    start = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    if unpickle.load(start) != _MAGIC:
        raise unpickle.Refused("torch did not write it")
    unpickle.load(start)
    seen: dict[str, unpickle.Storage] = {}
    system, value, order = unpickle.load(start), unpickle.load(start, seen), unpickle.load(start)
    if not isinstance(system, dict) or system.get("little_endian") is not True or not isinstance(order, list):
        raise ValueError("it does not say how its numbers are kept")
    size = file.seek(0, io.SEEK_END)
    storages: dict[str, tuple[int, int]] = {}
    at = start.tell()
    for key in order:
        if not isinstance(key, str) or key not in seen:
            raise ValueError("a storage belongs to no tensor")
        width = DTYPE_BYTES[seen[key].dtype] if seen[key].dtype else 1
        file.seek(at)
        n = int.from_bytes(file.read(8), "little")
        begin, at = at + 8, at + 8 + n * width
        if at > size:
            raise ValueError("the download is incomplete")
        storages[key] = (begin, at)
    return Saved(value, storages)
