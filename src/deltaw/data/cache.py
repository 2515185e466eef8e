"""What encoders made of pictures and captions, kept by content so that it is never stale.

An entry's name is the hash of all that it depends on, so a changed picture, caption or encoder is
another entry and nothing has to be invalidated. The folder is safe to delete at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import safetensors.torch

from deltaw.digests import default_root
from deltaw.errors import DeltawError

if TYPE_CHECKING:
    import torch

__all__ = ["Cache", "Entries", "default_root", "key"]

CODE_VERSION = "1"
"""Raise it when the preparation of pictures or captions changes; every older entry is then unused."""
DIGEST_BYTES = 16


def key(*parts: str) -> str:
    """One name for all that an entry depends on: picture digest, bucket, encoder hash, dtype, caption, ...

    Each part is hashed with its length, so that ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in (CODE_VERSION, *parts):
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


class Cache:
    """Named tensors in one small file an entry.

    A file is a checksum followed by safetensors bytes. Entries are renamed into place but not synced:
    after a power cut the checksum tells, and the entry is made again.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors of an entry on the CPU, or None where it is absent, half-written or damaged."""
        try:
            raw = self._path(key).read_bytes()
        except OSError:
            return None
        check, body = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
        return safetensors.torch.load(body) if check == _checksum(body) else None

    def has(self, key: str) -> bool:
        """Whether an entry is there in its full length; whether it is sound is known when it is read."""
        try:
            with self._path(key).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                n_header = int.from_bytes(file.read(DIGEST_BYTES + 8)[DIGEST_BYTES:], "little")
                header = json.loads(file.read(min(n_header, size)))
            ends = [part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"]
        except (OSError, ValueError, TypeError, AttributeError, LookupError):
            return False
        return size == DIGEST_BYTES + 8 + n_header + max(ends, default=0)

    def drop(self, key: str) -> None:
        """Removes an entry, so that it is made again."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Stores an entry; a reader sees all of it or nothing of it.

        Raises:
            DeltawError: the folder cannot be written or the disk is full.
        """
        body = safetensors.torch.save({name: t.detach().contiguous().cpu() for name, t in tensors.items()})
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(suffix=".part", dir=path.parent)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_checksum(body) + body)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise DeltawError(
                f"the cache cannot be written ({error.strerror or error})", where=self.root,
                expected="room and permission to write", advice="free some space or set DELTAW_CACHE to another folder",
            ) from error  # fmt: skip

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / key[2:]


class Entries(Sequence["torch.Tensor"]):
    """One tensor of each of many entries: held up to a budget, the others read whenever they are asked for.

    Args:
        cache: where all of them lie.
        keys: of the entries.
        name: of the tensor in each.
        budget_bytes: what may stay in memory.
    """

    def __init__(self, cache: Cache, keys: Sequence[str], name: str, budget_bytes: int):
        self._cache, self._keys, self._name, self._left = cache, keys, name, budget_bytes
        self._held: dict[int, torch.Tensor] = {}

    def hold(self, index: int, tensor: torch.Tensor) -> None:
        """Keeps a tensor that is there already, while the budget lasts."""
        if tensor.nbytes <= self._left:
            self._left -= tensor.nbytes
            self._held[index] = tensor
        else:
            self._left = 0

    def check(self) -> list[int]:
        """Reads what fits in memory and looks at the rest; gives the indices of entries that are absent or torn."""
        missing = []
        for index, key in enumerate(self._keys):
            entry = self._cache.get(key) if self._left else None
            if entry is not None:
                self.hold(index, entry[self._name])
            elif self._left or not self._cache.has(key):
                missing.append(index)
        return missing

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | list[torch.Tensor]:
        """A tensor, or several.

        Raises:
            DeltawError: an entry was removed from the cache since it was checked.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index in self._held:
            return self._held[index]
        entry = self._cache.get(self._keys[index])
        if entry is None:
            self._cache.drop(self._keys[index])
            raise DeltawError("an entry of the cache was removed or is damaged", where=self._cache.root,
                              advice="leave the cache alone during a run; --resume makes the entry again")  # fmt: skip
        return entry[self._name]

    def __len__(self) -> int:
        return len(self._keys)


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest()
