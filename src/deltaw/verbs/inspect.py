"""`deltaw inspect`: what a LoRA file is, from its header and bytes, without its base and without a tensor library.

Norms and spectra cost arithmetic, so they are made on request (`spectra`).
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deltaw import formats
from deltaw.algebra import spectra as spectral
from deltaw.events import Phase, Table, Tell, Tick, Warn, silent
from deltaw.families.checkpoint import open_checkpoint
from deltaw.formats import loading, readers
from deltaw.formats.match import Match
from deltaw.formats.reading import Entry, Reading
from deltaw.formats.source import Source

_RANK_AXIS = {"down": 0, "w1_b": 0, "w2_b": 0, "a2": 0}
"""Tensors whose first axis is a rank."""

_BITS = {"F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80), "F32": (np.uint32, 0x7F800000),
         "F64": (np.uint64, 0x7FF0000000000000)}  # fmt: skip
"""dtype to its unsigned twin and its exponent bits; all of these set is NaN or infinity (IEEE 754)."""


@dataclass(frozen=True)
class LayerInfo:
    """One module of a file.

    Args:
        path: canonical; of fused modules the first.
        key: its stem in the file.
        algorithm: a name in `adapters.ALL`.
        rank: 0 where the algorithm has none.
        alpha: None where the file gives none.
        dtype: of its tensors, safetensors' name.
        norm: Frobenius norm of ΔW, `effective_rank` and `spectrum` (falling singular values): on request, else None
            or empty. Effective rank is exp of the entropy of the energies (Roy & Vetterli 2007).
    """

    path: str
    key: str
    algorithm: str
    rank: int
    alpha: float | None
    dtype: str
    norm: float | None = None
    effective_rank: float | None = None
    spectrum: tuple[float, ...] = ()


@dataclass(frozen=True)
class InspectReport:
    """What a file is.

    Args:
        path, n_bytes: of the file or folder.
        family, title, variant: of the base that it fits best.
        match: what became of each key.
        algorithms, dtypes: name to how many modules.
        n_params: numbers stored.
        layers: module by module.
        broken: key to what is wrong with its numbers (NaN, infinite).
        zero: keys of tensors that are zero throughout and make a module without effect.
        trigger: words that call it up.
        metadata: what the file says of itself.
        concerns: program to what it would not do right with the file.
        blocks: block of the network to ‖ΔW‖, with `spectra`.
    """

    path: Path
    n_bytes: int
    family: str
    title: str
    variant: str
    match: Match
    algorithms: Mapping[str, int]
    dtypes: Mapping[str, int]
    n_params: int
    layers: tuple[LayerInfo, ...]
    broken: Mapping[str, str]
    zero: tuple[str, ...]
    trigger: tuple[str, ...]
    metadata: Mapping[str, str]
    concerns: Mapping[str, list[str]]
    blocks: Mapping[str, float] = field(default_factory=dict)


def inspect(
    file: str | Path, *, base: str | Path | None = None, spectra: bool = False, tell: Tell = silent
) -> InspectReport:
    """Looks at a LoRA file without changing or executing anything.

    Args:
        file: a LoRA in any dialect.
        base: the base it is meant for, whose shapes then decide; by default the best of those known.
        spectra: also norms, singular values and effective ranks (DoRA, OFT, (IA)³ and GLoRA have none without W).
        tell: hears events.

    Raises:
        InputError: it is no LoRA, or for no base that is known.
    """
    shapes = None if base is None else open_checkpoint(base).shapes
    source, reading = formats.understand(file, shapes=shapes)
    broken, zero, alphas = _scan(source, reading)
    layers = [_layer(entry, source, alphas) for entry in reading.entries]
    if spectra and not broken:
        layers = _with_spectra(file, layers, reading, tell)
    tensors = source.header.tensors
    report = InspectReport(
        path=Path(file), n_bytes=sum(path.stat().st_size for path in {path for path, _ in source.files.values()}),
        family=reading.family.name, title=reading.family.title, variant=reading.match.variant, match=reading.match,
        algorithms=dict(Counter(entry.algorithm for entry in reading.entries)),
        dtypes=dict(Counter(layer.dtype for layer in layers)),
        n_params=sum(math.prod(tensors[key].shape) for entry in reading.entries for key in entry.keys.values()),
        layers=tuple(layers), broken=broken, zero=zero,
        trigger=loading.trigger_words(source.header.metadata), metadata=dict(source.header.metadata),
        concerns=readers.concerns(reading, alphas), blocks=_blocks(layers) if spectra else {},
    )  # fmt: skip
    _tell(report, tell)
    return report


def _scan(source: Source, reading: Reading) -> tuple[dict[str, str], tuple[str, ...], dict[str, float]]:
    """Reads every tensor once: which hold numbers that are not finite, which are zero, and the alphas by stem."""
    contents = {path: np.memmap(path, np.uint8, "r") for path in source.headers}
    broken: dict[str, str] = {}
    zero: list[str] = []
    alphas: dict[str, float] = {}
    for entry in reading.entries:
        for name, key in entry.tensors.items():
            path, own = source.files[key]
            header = source.headers[path]
            info = header.tensors[own]
            raw = contents[path][header.data_start + info.begin : header.data_start + info.end]
            if name == "alpha" and (value := _number(raw, info.dtype)) is not None:
                alphas[entry.stem] = value
            if n_bad := _n_not_finite(raw, info.dtype):
                broken[key] = f"{n_bad} of {math.prod(info.shape)} numbers are NaN or infinite"
            if name not in ("alpha", "on_input") and not raw.any():
                zero.append(key)
    return broken, tuple(zero), alphas


def _n_not_finite(raw: np.ndarray, dtype: str) -> int:
    if dtype not in _BITS:
        return 0
    kind, exponent = _BITS[dtype]
    numbers = np.frombuffer(raw, kind)
    step = 1 << 20  # in pieces, so that a large tensor costs no second copy of itself
    return sum(
        int(np.count_nonzero((numbers[i : i + step] & exponent) == exponent)) for i in range(0, len(numbers), step)
    )


def _number(raw: np.ndarray, dtype: str) -> float | None:
    """A scalar's value; None for a type that numpy has none for."""
    if dtype == "BF16":
        return float(np.frombuffer(raw.tobytes()[:2].rjust(4, b"\0"), np.float32)[0])
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "I16": np.int16,
             "I8": np.int8, "U8": np.uint8}  # fmt: skip
    return float(np.frombuffer(raw, kinds[dtype])[0]) if dtype in kinds and raw.size else None


def _layer(entry: Entry, source: Source, alphas: Mapping[str, float]) -> LayerInfo:
    shapes = {name: source.header.tensors[key].shape for name, key in entry.tensors.items()}
    ranks = [shapes[name][axis] for name, axis in _RANK_AXIS.items() if name in shapes]
    rank = ranks[0] if ranks else 0
    main = next((name for name in entry.tensors if name not in ("alpha", "on_input")), "alpha")
    alpha = alphas.get(entry.stem)
    if alpha is None and rank:
        alpha = loading.configured_alpha(source, entry, rank)
    path = entry.place.paths[0] if entry.place else entry.stem
    return LayerInfo(path, entry.stem, entry.algorithm, rank, alpha, source.header.tensors[entry.tensors[main]].dtype)


def _with_spectra(file: str | Path, layers: list[LayerInfo], reading: Reading, tell: Tell) -> list[LayerInfo]:
    """The layers by canonical module (fused ones apart), with norms and singular values."""
    delta, _ = formats.load(file, shapes=reading.shapes)
    by_path = {
        path: layer for layer, e in zip(layers, reading.entries, strict=True) if e.place for path in e.place.paths
    }
    tell(Phase("spectra", len(delta.updates), "modules"))
    found: list[LayerInfo] = []
    for i, (path, update) in enumerate(delta.updates.items()):
        layer = by_path[path]
        values = spectral.of_update(update, reading.shapes[path])
        norm, effective = spectral.summary(values) if values is not None else (None, None)
        found.append(LayerInfo(path, layer.key, layer.algorithm, layer.rank, layer.alpha, layer.dtype, norm, effective,
                               tuple(values or ())))  # fmt: skip
        tell(Tick(i + 1))
    return found


def _blocks(layers: list[LayerInfo]) -> dict[str, float]:
    squares: dict[str, float] = {}
    for layer in layers:
        if layer.norm is not None:
            name = block_of(layer.path)
            squares[name] = squares.get(name, 0.0) + layer.norm**2
    return {name: math.sqrt(square) for name, square in squares.items()}


def block_of(path: str) -> str:
    """The block of a network that a module belongs to: `unet.down_blocks.1`, `transformer.transformer_blocks.7`."""
    match = re.match(r"(\w+(?:\.text_model\.encoder|\.encoder)?\.[a-z_]+(?:\.\d+)?)", path)
    return match[1] if match else path


def _tell(report: InspectReport, tell: Tell) -> None:
    ranks = [layer.rank for layer in report.layers if layer.rank]
    alphas = sorted({layer.alpha for layer in report.layers if layer.alpha is not None})
    many = (
        f"{min(ranks)} to {max(ranks)}, mostly {statistics.mode(ranks)}"
        if len(set(ranks)) > 1
        else str(ranks[0] if ranks else "none")
    )
    rows = (
        ("base", f"{report.title} ({report.variant or 'as given'})"),
        ("dialect", ", ".join(f"{name} ({n} keys)" for name, n in report.match.dialects.items())),
        ("algorithm", ", ".join(f"{name} ({n} modules)" for name, n in report.algorithms.items())),
        ("rank", many),
        ("alpha", "as the rank (none given)" if not alphas else ", ".join(f"{alpha:g}" for alpha in alphas[:6])),
        ("type", ", ".join(report.dtypes)),
        ("size", f"{report.n_bytes / 1e6:.1f} MB, {report.n_params:,} numbers"),
        ("trigger", ", ".join(report.trigger) or "none named"),
        ("keys", report.match.counts()),
    )
    tell(Table(str(report.path), ("what", "value"), rows))
    if report.blocks:
        whole = math.sqrt(math.fsum(norm**2 for norm in report.blocks.values())) or 1.0
        shares = tuple((name, f"{norm:.3g}", f"{(norm / whole) ** 2:.1%}") for name, norm in report.blocks.items())
        tell(Table("energy by block", ("block", "norm", "share"), shares))
    for line in (*report.match.losses(), *report.match.notes):
        tell(Warn(line))
    for key, why in list(report.broken.items())[:5]:
        tell(Warn(f"{key}: {why}"))
    if report.zero:
        tell(
            Warn(
                f"{len(report.zero)} tensors are zero throughout, the first is {report.zero[0]}; their modules have no effect"
            )
        )
    for program, lines in report.concerns.items():
        for line in lines:
            tell(Warn(f"{program}: {line}"))
