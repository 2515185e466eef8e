"""Tensors set aside while more of them are made: in memory as far as there is room, then in a temporary file.

So a result of any size is made within the same memory; a small one never touches the disk before it is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from deltaw import tensorfile
from deltaw.errors import DeltawError
from deltaw.tensorfile import Region

if TYPE_CHECKING:
    import torch

ROOM_BYTES = 1 << 27
"""What one spool holds in memory."""

SHELF_BYTES = 1 << 23
"""What it takes of that at once: enough to come from the system by itself, and to go back to it."""

ALIGNED = 64


@dataclass(frozen=True)
class Kept:
    """A tensor that was set aside.

    Args:
        held: itself, or where its bytes lie.
        dtype: its type.
        shape: its shape.
    """

    held: torch.Tensor | Region
    dtype: torch.dtype
    shape: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        """The tensor, read back where it is not in memory."""
        import torch

        if not isinstance(self.held, Region):
            return self.held
        content = torch.empty(self.held.n_bytes, dtype=torch.uint8)
        if content.numel():
            self.held.fill(content.numpy().data)
        return content.view(self.dtype).reshape(self.shape)


class Spool:
    """Keeps tensors; made by `opened`, whose end forgets what lies on the disk."""

    def __init__(self, folder: Path, room_bytes: int):
        self._folder, self._room = folder, room_bytes
        self._file: IO[bytes] | None = None
        self._shelf: torch.Tensor | None = None
        self._n_used = 0

    def keep(self, tensor: torch.Tensor) -> Kept:
        """Sets a tensor aside.

        Raises:
            DeltawError: the disk is full or cannot be written.
        """
        tensor = tensor.detach().contiguous()
        kept = Kept(tensor, tensor.dtype, tuple(tensor.shape))
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            return Kept(self._shelved(tensor), kept.dtype, kept.shape)
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # `opened` closes it
            begin = self._file.tell()
            tensorfile.append(self._file, tensor)
        except OSError as error:
            raise DeltawError(
                f"cannot set results aside ({error.strerror or error})", where=self._folder,
                expected="room for the result, twice", advice="free some space or choose another --out",
            ) from error  # fmt: skip
        return Kept(Region(self._file, begin, tensor.nbytes), kept.dtype, kept.shape)

    def _shelved(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the shelf.

        Left where it was made, a small tensor pins the large ones' room that was freed around it, which for dense
        changes adds up to several times what is kept.
        """
        import torch

        if self._shelf is None or self._n_used + tensor.nbytes > len(self._shelf):
            self._shelf, self._n_used = torch.empty(max(SHELF_BYTES, tensor.nbytes), dtype=torch.uint8), 0
        place = self._shelf[self._n_used : self._n_used + tensor.nbytes]
        self._n_used += -(-tensor.nbytes // ALIGNED) * ALIGNED
        return place.view(tensor.dtype).reshape(tensor.shape).copy_(tensor)

    def close(self) -> None:
        """Gives the temporary file's room back."""
        if self._file is not None:
            self._file.close()


@contextmanager
def opened(folder: Path, room_bytes: int | None = None) -> Iterator[Spool]:
    """Opens a spool whose temporary file, if it needs one, lies in `folder` without a name.

    `room_bytes` is what it may hold in memory, `ROOM_BYTES` by default.
    """
    made = Spool(folder, ROOM_BYTES if room_bytes is None else room_bytes)
    try:
        yield made
    finally:
        made.close()


def write(path: str | Path, kept: Mapping[str, Kept], metadata: Mapping[str, str] | None = None) -> int:
    """Writes what was kept as a safetensors file, as `tensorfile.write` does; returns its size in bytes."""
    described = {name: (tensorfile.dtype_name(one.dtype), one.shape) for name, one in kept.items()}
    return tensorfile.stream(path, described, lambda name: kept[name].held, metadata)
