"""Safetensors files: the header without a tensor library, tensors on demand, atomic verified writes.

The header format is safetensors' own (8 bytes little-endian length, JSON, tensor bytes). It is read
here in plain Python so that looking at a file costs milliseconds and so that a broken file gets a
sentence instead of a parser's code word. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deltaw.atomic import replacing, write_bytes, write_text
from deltaw.errors import DeltawError, InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Header", "TensorInfo", "Tensors", "dtype_name", "lazy", "raw", "read", "read_header", "replacing", "stream", "write",
    "write_bytes", "write_text",
]  # fmt: skip

MAX_HEADER_BYTES = 100_000_000
"""safetensors' own cap; a larger header is not a model, whatever it says."""

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


_DTYPE_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: safetensors dtype name, shape, byte range after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself, without its tensors.

    `data_start` is the file offset of tensor byte 0; `extra_bytes` counts bytes after the last tensor.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    extra_bytes: int = 0


def read_header(path: str | Path) -> Header:
    """Reads and checks the header of a safetensors file.

    Raises:
        InputError: the file is missing, is something else (named), is cut off, or contradicts itself.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            n_header = int.from_bytes(head, "little")
            plausible = size > 8 and 2 <= n_header <= min(MAX_HEADER_BYTES, size - 8)
            raw = file.read(n_header) if plausible else head + file.read(504)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, advice="check the path") from error
    if not plausible or not raw.lstrip().startswith(b"{"):
        raise _not_safetensors(path, size, head, raw)
    try:
        listing = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the header is not valid JSON ({error})",
            where=path,
            expected="a safetensors file",
            advice="download it again",
        ) from error
    return _checked(path, listing, data_start=8 + n_header, n_data=size - 8 - n_header)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
    return found


def _not_safetensors(path: Path, size: int, head: bytes, start: bytes) -> InputError:
    """Says what the file is instead, since 'invalid header' helps nobody."""
    text = start[:256].lstrip().lower()
    if size == 0:
        what, advice = "the file is empty", "download it again"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        what, advice = "this is a web page, not a tensor file", "download the file itself, not its page"
    elif text.startswith(b"version https://git-lfs"):
        what, advice = "this is a git-lfs pointer, not the file", "run `git lfs pull` where it came from"
    elif start[:2] == b"PK" or start[:1] == b"\x80":
        what = "this is a pickle (.pt/.ckpt/.bin), which can run code when opened"
        advice = "get the .safetensors version, or convert it where you trust it"
    elif size > 8 and int.from_bytes(head, "little") > size - 8 and start[8:9] == b"{":
        what, advice = f"the header is cut off: {size} bytes are not all of it", "download it again"
    else:
        what, advice = f"this is no safetensors file ({size} bytes)", "check what was given"
    return InputError(what, where=path, expected="a safetensors file", advice=advice)


def _checked(path: Path, listing: dict[str, Any], data_start: int, n_data: int) -> Header:
    metadata = listing.pop("__metadata__", {}) or {}
    if not isinstance(metadata, dict):
        raise InputError(
            "__metadata__ is not an object", where=path, expected="string to string", advice="repair or drop it"
        )
    tensors: dict[str, TensorInfo] = {}
    for name, entry in listing.items():
        try:
            begin, end = (int(x) for x in entry["data_offsets"])
            info = TensorInfo(entry["dtype"], tuple(int(n) for n in entry["shape"]), begin, end)
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"tensor {name!r} is not described properly ({error!r})", where=path) from error
        width = DTYPE_BYTES.get(info.dtype)
        if width is None:
            raise InputError(
                f"tensor {name!r} has the unknown dtype {info.dtype!r}", where=path, advice="convert it to F16 or F32"
            )
        if min((begin, *info.shape)) < 0 or end - begin != width * prod(info.shape):
            raise InputError(
                f"tensor {name!r} says {info.dtype} {list(info.shape)} and {end - begin} bytes, which contradict each other",
                where=path, advice="download it again",
            )  # fmt: skip
        tensors[name] = info
    return Header(tensors, {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}, data_start,
                  _extra_bytes(path, tensors, n_data))  # fmt: skip


def _extra_bytes(path: Path, tensors: Mapping[str, TensorInfo], n_data: int) -> int:
    """Bytes after the last tensor; raises where tensors overlap, leave gaps or are missing."""
    at = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != at:
            raise InputError(
                f"tensor {name!r} begins at byte {info.begin}, {at} was expected",
                where=path,
                advice="download it again",
            )
        at = info.end
    if at > n_data:
        raise InputError(
            f"the download is incomplete: {_mb(n_data)} of {_mb(at)} are there", where=path, advice="download it again"
        )
    return n_data - at


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


class Tensors:
    """An open tensor file; each tensor is read when it is asked for, into memory of its own.

    safetensors' own reader is not used: it refuses what is harmless (bytes after the last tensor, a number in the
    metadata), and it maps files into memory, so that streaming a large one looks as if it were held whole.
    """

    def __init__(self, path: str | Path, header: Header, file: IO[bytes]):
        self.path, self.header, self._file = Path(path), header, file

    def keys(self) -> list[str]:
        """The names, in the order of the header."""
        return list(self.header.tensors)

    def get_tensor(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        shape = self.header.tensors[name].shape
        return self._read(name, 0, shape[0]) if shape else self._read(name, 0, 1).reshape(())

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """The rows `begin` to `end` of a tensor's first axis."""
        return self._read(name, begin, end)

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes as they stand in the file."""
        info = self.header.tensors[name]
        content = bytearray(info.end - info.begin)
        self._fill(memoryview(content), info.begin)
        return memoryview(content)

    def _read(self, name: str, begin: int, end: int) -> torch.Tensor:
        import torch

        info = self.header.tensors[name]
        row_bytes = DTYPE_BYTES[info.dtype] * prod(info.shape[1:])
        content = torch.empty((end - begin) * row_bytes, dtype=torch.uint8)
        if content.numel():
            self._fill(content.numpy().data, info.begin + begin * row_bytes)
        return content.view(_torch_dtype(info.dtype)).reshape(end - begin, *info.shape[1:])

    def _fill(self, room: memoryview, begin: int) -> None:
        self._file.seek(self.header.data_start + begin)
        done = 0
        while done < len(room):
            n = self._file.readinto(room[done:])  # type: ignore[attr-defined]  # of every binary file
            if not n:
                raise InputError("the file became shorter while it was read", where=self.path, advice="try again")
            done += n


@contextlib.contextmanager
def lazy(path: str | Path) -> Iterator[Tensors]:
    """Opens a tensor file whose tensors are read when asked for.

    Raises:
        InputError: as `read_header`.
    """
    header = read_header(path)
    with Path(path).open("rb", buffering=0) as file:
        yield Tensors(path, header, file)  # type: ignore[arg-type]  # a FileIO reads bytes as well


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, next(ours for ours, theirs in _DTYPE_NAMES.items() if theirs == name))


def raw(path: str | Path, name: str) -> memoryview:
    """A tensor's bytes as they stand in the file."""
    with lazy(path) as tensors:
        return tensors.raw(name)


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, in the order of the header."""
    with lazy(path) as handle:
        return {name: handle.get_tensor(name) for name in handle.header.tensors}


def write(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Writes a safetensors file atomically and verified; returns its size in bytes.

    The bytes depend on the arguments alone, so equal tensors and metadata give equal files.
    """
    described = {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    return stream(path, described, lambda name: tensors[name], metadata)


def stream(
    path: str | Path, described: Mapping[str, tuple[str, tuple[int, ...]]],
    get: Callable[[str], torch.Tensor | memoryview], metadata: Mapping[str, str] | None = None,
) -> int:  # fmt: skip
    """Writes a safetensors file tensor by tensor, atomically and verified; returns its size in bytes.

    Args:
        path: the final name.
        described: tensor name to its safetensors dtype and shape. Wide dtypes are laid first, so that all are aligned.
        get: makes a tensor, or its bytes as they are to stand in the file; asked once a name, in the file's order.
        metadata: strings for the header.

    Raises:
        DeltawError: the disk is full or cannot be written, or a tensor is not as described.
    """
    order = sorted(described, key=lambda name: (-DTYPE_BYTES[described[name][0]], name))
    head = _head(order, described, metadata or {})
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(head)
            for name in order:
                _put(file, name, described[name], get(name), path)
        header = read_header(temporary)
        if {name: (i.dtype, i.shape) for name, i in header.tensors.items()} != dict(described) or header.extra_bytes:
            raise DeltawError("the file read back differs from what was written", where=path, advice="check the disk")
    return Path(path).stat().st_size


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype.

    Raises:
        DeltawError: the format has none for it.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPE_NAMES:
        raise DeltawError(f"a safetensors file cannot hold {name}", expected=", ".join(_DTYPE_NAMES))
    return _DTYPE_NAMES[name]


def _head(order: list[str], described: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    listing: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name in order:
        dtype, shape = described[name]
        end = at + DTYPE_BYTES[dtype] * prod(shape)
        listing[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(listing, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _put(
    file: IO[bytes],
    name: str,
    described: tuple[str, tuple[int, ...]],
    made: torch.Tensor | memoryview,
    path: str | Path,
) -> None:
    dtype, shape = described
    if not isinstance(made, memoryview):
        if (dtype_name(made.dtype), tuple(made.shape)) != described:
            raise DeltawError(f"{name} is {made.dtype} {tuple(made.shape)}, not {dtype} {shape}", where=path)
        import torch

        made = made.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    if made.nbytes != DTYPE_BYTES[dtype] * prod(shape):
        raise DeltawError(f"{name} has {made.nbytes} bytes, not those of {dtype} {shape}", where=path)
    file.write(made)
