"""`deltaw strip` and `deltaw edit`: another header, the tensors byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaw import tensorfile
from deltaw.algebra.inputs import require_output
from deltaw.errors import InputError, UsageError
from deltaw.events import Saved, Tell, silent
from deltaw.formats import loading

KEPT_BY_STRIP = ("modelspec.architecture", "modelspec.trigger_phrase", "modelspec.title", "modelspec.sai_model_spec",
                 "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")  # fmt: skip
"""What a reader may need, and nothing that says who trained on what."""


@dataclass(frozen=True)
class MetadataReport:
    """What changed in a header.

    Args:
        path, n_bytes: of the written file.
        removed: entries that are gone, with their old values.
        changed: entries that are new or other, with their new values.
    """

    path: Path
    n_bytes: int
    removed: Mapping[str, str]
    changed: Mapping[str, str]


def edit(
    file: str | Path, out: str | Path, *, put: Mapping[str, str] | None = None, drop: tuple[str, ...] = (),
    tell: Tell = silent,
) -> MetadataReport:  # fmt: skip
    """Writes a copy of a tensor file with other metadata.

    Args:
        file: a safetensors file.
        out: what to write; never `file`.
        put: entries to add or replace.
        drop: entries to remove.
        tell: hears events.

    Raises:
        InputError: an entry to drop is not there, or the file cannot be read.
        UsageError: `out` is the input, or nothing is to be changed.
    """
    if not put and not drop:
        raise UsageError("nothing is to be changed", where=file, expected="entries to put or to drop",
                         advice="--set key=value or --drop key; `deltaw inspect` lists them")  # fmt: skip
    header = tensorfile.read_header(file)
    if missing := [name for name in drop if name not in header.metadata]:
        raise InputError(
            f"the header has no {missing[0]!r}", where=file, expected=", ".join(header.metadata) or "no entries at all"
        )
    kept = {name: value for name, value in header.metadata.items() if name not in drop}
    return written(file, out, header, {**kept, **(put or {})}, tell)


def strip(file: str | Path, out: str | Path, *, tell: Tell = silent) -> MetadataReport:
    """Writes a copy without metadata, but for what a reader needs: base, rank, alpha, trigger words, dialect.

    Raises:
        InputError: the file cannot be read.
        UsageError: `out` is the input.
    """
    header = tensorfile.read_header(file)
    kept = {n: v for n, v in header.metadata.items() if n in KEPT_BY_STRIP or loading.is_dialects(n)}
    return written(file, out, header, kept, tell)


def written(
    file: str | Path, out: str | Path, header: tensorfile.Header, metadata: Mapping[str, str], tell: Tell
) -> MetadataReport:
    """Writes a copy with another header, the tensors byte for byte.

    Args:
        file: what to copy; `header`: as read from it.
        out: what to write; never `file`.
        metadata: the new entries.
        tell: hears what was saved.

    Raises:
        UsageError: `out` is the input.
    """
    require_output(out, [file])
    described = {name: (info.dtype, info.shape) for name, info in header.tensors.items()}
    with tensorfile.lazy(file) as tensors:
        n_bytes = tensorfile.stream(out, described, tensors.region, metadata)
    tell(Saved(str(out), n_bytes, f"{len(metadata)} entries in the header"))
    return MetadataReport(
        Path(out), n_bytes,
        removed={n: v for n, v in header.metadata.items() if n not in metadata},
        changed={n: v for n, v in metadata.items() if header.metadata.get(n) != v},
    )  # fmt: skip
