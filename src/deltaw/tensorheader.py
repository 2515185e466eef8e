"""What a safetensors file says about itself, read in plain Python.

The format is safetensors' own (8 bytes little-endian length, JSON, tensor bytes). Reading it here means that looking
at a file costs milliseconds, and that a broken one gets a sentence instead of a parser's code word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from deltaw.errors import InputError

MAX_HEADER_BYTES = 100_000_000
"""safetensors' own cap; a larger header is not a model, whatever it says."""

_MOST_DIMENSIONS = 16

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
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
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"duplicate key {twice[:80]!r}")
    return found


_KINDS = {
    b"GGUF": "a GGUF file, whose numbers are quantised", b"\x1f\x8b": "a gzip archive", b"7z\xbc\xaf": "a 7-Zip archive", b"Rar!": "a RAR archive",
    b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"RIFF": "a picture", b"\x93NUMPY": "a NumPy file", b"\x89HDF": "an HDF5 file (Keras)",
    b"\x08\x00\x00\x00TFL": "a TensorFlow Lite file",
}  # fmt: skip
"""First bytes to what such a file is."""


def _strange(start: bytes) -> tuple[str, str]:
    """What a file is by its first bytes, and what to do; empty for nothing that is known."""
    for magic, kind in _KINDS.items():
        if start.startswith(magic):
            return f"this is {kind}", "unpack it" if "archive" in kind else "get the .safetensors version"
    if not any(start):
        return "the file begins with nothing but zeros, as one whose download was begun", "download it again"
    text = start[:200].decode("utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "ignore").strip()
    if text and text.isprintable() and len(text) >= len(start[:200]) // 3:
        return f"this is text ({text[:60]!r}), not a tensor file", "look at it: a server's answer, perhaps"
    return "", ""


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
        what, advice = _strange(start)
        what, advice = what or f"this is no safetensors file ({size} bytes)", advice or "check what was given"
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
            begin, end = entry["data_offsets"]
            info = TensorInfo(str(entry["dtype"]), tuple(entry["shape"]), begin, end)
            if len(info.shape) > _MOST_DIMENSIONS or any(type(n) is not int for n in (begin, end, *info.shape)):
                raise TypeError("shape and offsets are no short lists of whole numbers")
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"tensor {name[:80]!r} is not described properly ({str(error)[:80]})",
                where=path,
                advice="download it again",
            ) from error
        width = DTYPE_BYTES.get(info.dtype)
        if width is None:
            raise InputError(
                f"tensor {name[:80]!r} has the unknown dtype {info.dtype[:20]!r}",
                where=path,
                advice="convert it to F16 or F32",
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
