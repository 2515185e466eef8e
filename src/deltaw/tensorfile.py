"""Safetensors files: tensors on demand, streamed atomic verified writes. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deltaw.atomic import replacing, write_bytes, write_text
from deltaw.background import Writer, syncing, write_all
from deltaw.errors import DeltawError, InputError
from deltaw.tensorheader import DTYPE_BYTES, Header, TensorInfo, read_header

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPE_BYTES", "Header", "Region", "TensorInfo", "Tensors", "append", "dtype_name", "lazy", "order", "raw", "read",
    "read_header", "replacing", "stream", "torch_dtype", "write", "write_bytes", "write_text",
]  # fmt: skip

_CHUNK_BYTES = 1 << 20
_AHEAD_BYTES = 1 << 26

_DTYPE_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip


_TORCH_NAMES = {theirs: ours for ours, theirs in _DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Region:
    """Bytes of an open file: `n_bytes` from `begin`."""

    file: IO[bytes]
    begin: int
    n_bytes: int

    def fill(self, room: memoryview) -> None:
        """Reads the bytes into memory of their size."""
        self.file.seek(self.begin)
        done = 0
        while done < len(room):
            n = self.file.readinto(room[done:])  # type: ignore[attr-defined]  # of every binary file
            if not n:
                raise _shorter(self.file)
            done += n

    def copy_to(self, target: IO[bytes]) -> None:
        """Appends the bytes to another open file, in the kernel where it can."""
        begin, end = self.begin, self.begin + self.n_bytes
        while begin < end:
            n = _copy_some(self.file, begin, min(end - begin, 1 << 26), target)
            if not n:
                raise _shorter(self.file)
            begin += n


def _shorter(file: IO[bytes]) -> InputError:
    return InputError(
        "the file became shorter while it was read", where=getattr(file, "name", None), advice="try again"
    )


def _copy_some(source: IO[bytes], begin: int, n_bytes: int, target: IO[bytes]) -> int:
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):  # a file system that cannot; reading and writing tells what is wrong
            return os.copy_file_range(source.fileno(), target.fileno(), n_bytes, offset_src=begin)
    source.seek(begin)
    return target.write(source.read(min(n_bytes, _CHUNK_BYTES)))


class Tensors:
    """An open tensor file; each tensor is read when it is asked for, into memory of its own.

    safetensors' own reader is not used: it refuses what is harmless (bytes after the last tensor, a number in the
    metadata), and it maps files into memory, so that streaming a large one looks as if it were held whole.
    """

    def __init__(self, path: str | Path, header: Header, file: IO[bytes]):
        self.path, self.header, self._file, self._asked = Path(path), header, file, 0

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

    def ahead(self, name: str) -> None:
        """Asks the system to bring a stretch from this tensor on from the disk, so that disk and processor work at once."""
        begin = self.header.data_start + self.header.tensors[name].begin
        if hasattr(os, "posix_fadvise") and begin + _AHEAD_BYTES // 2 > self._asked:
            first, self._asked = max(begin, self._asked), begin + _AHEAD_BYTES
            os.posix_fadvise(self._file.fileno(), first, self._asked - first, os.POSIX_FADV_WILLNEED)

    def region(self, name: str) -> Region:
        """Where a tensor's bytes lie, to be copied without passing through this process."""
        info = self.header.tensors[name]
        return Region(self._file, self.header.data_start + info.begin, info.end - info.begin)

    def _read(self, name: str, begin: int, end: int) -> torch.Tensor:
        import torch

        info = self.header.tensors[name]
        row_bytes = DTYPE_BYTES[info.dtype] * prod(info.shape[1:])
        content = torch.empty((end - begin) * row_bytes, dtype=torch.uint8)
        if content.numel():
            self._fill(content.numpy().data, info.begin + begin * row_bytes)
        return content.view(torch_dtype(info.dtype)).reshape(end - begin, *info.shape[1:])

    def _fill(self, room: memoryview, begin: int) -> None:
        Region(self._file, self.header.data_start + begin, len(room)).fill(room)


@contextlib.contextmanager
def lazy(path: str | Path) -> Iterator[Tensors]:
    """Opens a tensor file whose tensors are read when asked for.

    Raises:
        InputError: as `read_header`.
    """
    header = read_header(path)
    with Path(path).open("rb", buffering=0) as file:
        yield Tensors(path, header, file)  # type: ignore[arg-type]  # a FileIO reads bytes as well


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype that safetensors calls by this name."""
    import torch

    return getattr(torch, _TORCH_NAMES[name])


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
    get: Callable[[str], torch.Tensor | Iterator[torch.Tensor] | Region], metadata: Mapping[str, str] | None = None,
) -> int:  # fmt: skip
    """Writes a safetensors file tensor by tensor, atomically and verified; returns its size in bytes.

    Args:
        path: the final name.
        described: tensor name to its safetensors dtype and shape. Wide dtypes are laid first, so that all are aligned.
        get: makes a tensor or blocks of its rows, or says where its bytes lie; asked once a name, in the file's order.
        metadata: strings for the header.

    Raises:
        DeltawError: the disk is full or cannot be written, or a tensor is not as described.
    """
    names = order(described)
    head = _head(names, described, metadata or {})
    with replacing(path) as temporary:
        with temporary.open("wb", buffering=0) as file, syncing(file), Writer.of(temporary) as writer:
            writer.put(memoryview(head))
            for name in names:
                made = get(name)
                if isinstance(made, Region):
                    writer.copy(made.n_bytes, _fitting(made, name, described[name], path).copy_to)
                else:
                    _put(writer, name, described[name], made, path)
        header = read_header(temporary)
        if {name: (i.dtype, i.shape) for name, i in header.tensors.items()} != dict(described) or header.extra_bytes:
            raise DeltawError("the file read back differs from what was written", where=path, advice="check the disk")
    return Path(path).stat().st_size


def order(described: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """The order in which `stream` lays and asks for tensors: wide dtypes first, then by name."""
    return sorted(described, key=lambda name: (-DTYPE_BYTES[described[name][0]], name))


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype.

    Raises:
        DeltawError: the format has none for it.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPE_NAMES:
        raise DeltawError(f"a safetensors file cannot hold {name}", expected=", ".join(_DTYPE_NAMES))
    return _DTYPE_NAMES[name]


def _head(names: list[str], described: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    listing: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name in names:
        dtype, shape = described[name]
        end = at + DTYPE_BYTES[dtype] * prod(shape)
        listing[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(listing, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _put(
    writer: Writer, name: str, described: tuple[str, tuple[int, ...]], made: torch.Tensor | Iterator[torch.Tensor],
    path: str | Path,
) -> None:  # fmt: skip
    shape = described[1]
    if isinstance(made, Iterator):
        n_rows = 0
        for block in made:
            n_rows += block.shape[0]
            _put_tensor(writer, name, (described[0], (block.shape[0], *shape[1:])), block, path)
        if n_rows != shape[0]:
            raise DeltawError(f"{name} has {n_rows} rows, not {shape[0]}", where=path)
    else:
        _put_tensor(writer, name, described, made, path)


def _put_tensor(
    writer: Writer, name: str, described: tuple[str, tuple[int, ...]], made: torch.Tensor, path: str | Path
) -> None:
    if (dtype_name(made.dtype), tuple(made.shape)) != described:
        raise DeltawError(f"{name} is {made.dtype} {tuple(made.shape)}, not {described[0]} {described[1]}", where=path)
    writer.put(_content(made))


def append(file: IO[bytes], tensor: torch.Tensor) -> None:
    """Writes a tensor's bytes to an open file, as safetensors keeps them."""
    write_all(file, _content(tensor))


def _content(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, as safetensors keeps them."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _fitting(region: Region, name: str, described: tuple[str, tuple[int, ...]], path: str | Path) -> Region:
    if region.n_bytes != DTYPE_BYTES[described[0]] * prod(described[1]):
        raise DeltawError(f"{name} has {region.n_bytes} bytes, not those of {described[0]} {described[1]}", where=path)
    return region
