"""`deltaw merge --into BASE`: W + Σ wᵢ·ΔWᵢ written as a checkpoint, streamed, with the norm lost to rounding.

Tensors that no change touches are copied byte for byte. The others are read, changed in float32 and rounded
to the type that they have in the base, a block of rows at a time.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import tensorfile
from deltaw.adapters import needs_base
from deltaw.adapters.scaling import computing, is_finite
from deltaw.algebra import combine, inputs
from deltaw.algebra.combine import Term
from deltaw.errors import InputError, UsageError
from deltaw.events import Note, Phase, Saved, Tell, Tick, Warn, silent
from deltaw.families.checkpoint import Checkpoint, Held, Reader, open_checkpoint

if TYPE_CHECKING:
    import torch

    Change = tuple[torch.Tensor, torch.Tensor] | torch.Tensor

Part = tuple[str, Held, bool]
"""A canonical module's path, where its weight or bias lies, and whether it is the bias."""

BLOCK = 1 << 18
"""Numbers that are changed at once."""


@dataclass(frozen=True)
class BakeReport:
    """What was baked.

    Args:
        path: the written checkpoint.
        n_bytes: its size.
        n_changed: tensors of it that differ from the base's in their making.
        norm: Frobenius norm of Σ wᵢ·ΔWᵢ.
        lost: Frobenius norm of what rounding to the base's types took from it.
    """

    path: Path
    n_bytes: int
    n_changed: int
    norm: float
    lost: float


@dataclass
class _Loss:
    """Squared norms, summed up while streaming."""

    whole: float = 0.0
    lost: float = 0.0


def bake(
    files: Sequence[tuple[str | Path, float]],
    base: str | Path,
    out: str | Path,
    *,
    weights: Mapping[str, Mapping[str, float]] | None = None,
    strict: bool = False,
    tell: Tell = silent,
) -> BakeReport:
    """Adds LoRAs to a base's weights for good.

    Args:
        files: path and weight each.
        base: a diffusers folder or a single-file checkpoint.
        out: a folder or a file, as `base` is; never `base` itself.
        weights: as for `merge`.
        strict: LoRAs that are not used whole are refused.
        tell: hears events.

    Raises:
        UsageError: `out` is an input or stands already as a folder.
        InputError: a LoRA does not fit the base.
    """
    from deltaw.device import one_thread

    checkpoint = open_checkpoint(base)
    out = Path(out)
    inputs.require_output(out, (base, *(path for path, _ in files)), folder=checkpoint.where.is_dir())
    if checkpoint.where.is_dir() and out.exists():
        raise UsageError(
            "the output exists", where=out, expected="a new folder", advice="choose another -o or remove it"
        )
    loss = _Loss()
    with (
        one_thread(),
        inputs.opened(files, tell, weights=weights, strict=strict, shapes=checkpoint.shapes) as given,
        checkpoint.reader() as reader,
    ):
        terms = given.terms
        if tokens := [token for term in terms for token in term.delta.embeddings]:
            tell(Warn(f"the vectors of {', '.join(tokens)} are not baked: a token needs the tokenizer too"))
        touched = _touched(checkpoint, terms)
        tell(Phase("bake", sum(len(keys) for keys in touched.values()), "tensors"))
        n_bytes = 0
        for file, header in checkpoint.headers.items():
            target = out / file.relative_to(checkpoint.where) if checkpoint.where.is_dir() else out
            n_bytes += _write(file, header, target, touched.get(file, {}), reader, terms, loss, tell)
    if checkpoint.where.is_dir():
        _copy_rest(checkpoint, out)
    n_changed = sum(len(keys) for keys in touched.values())
    if loss.whole and loss.lost > 0.05**2 * loss.whole:
        tell(Warn(f"{(loss.lost / loss.whole) ** 0.5:.0%} of the change is below the resolution of the base's types"))
    tell(Note(f"rounding took {loss.lost**0.5:.3g} of the change's norm {loss.whole**0.5:.3g}"))
    tell(Saved(str(out), n_bytes, f"{n_changed} tensors changed"))
    return BakeReport(out, n_bytes, n_changed, loss.whole**0.5, loss.lost**0.5)


def _touched(checkpoint: Checkpoint, terms: Sequence[Term]) -> dict[Path, dict[str, list[Part]]]:
    """File to tensor key to the canonical parts in it that change."""
    found: dict[Path, dict[str, list[Part]]] = {}
    for path in combine.paths(terms):
        active = [t.delta.updates[path] for t in terms if path in t.delta.updates and t.weigh(path) != 0]
        for is_bias, kept in ((False, checkpoint.held), (True, checkpoint.biases)):
            wanted = [u for u in active if ("bias" in u.tensors if is_bias else set(u.tensors) - {"bias"})]
            if not wanted:
                continue
            if path not in kept:
                raise InputError(f"the base has no {'bias' if is_bias else 'weight'} of {path}", where=checkpoint.where)
            held = kept[path]
            found.setdefault(held.file, {}).setdefault(held.key, []).append((path, held, is_bias))
    return found


def _write(
    file: Path, header: tensorfile.Header, target: Path, touched: Mapping[str, list[Part]],
    reader: Reader, terms: Sequence[Term], loss: _Loss, tell: Tell,
) -> int:  # fmt: skip
    described = {key: (info.dtype, info.shape) for key, info in header.tensors.items()}
    n_done = itertools.count(1)

    if touched:
        with tensorfile.lazy(file) as plain:

            def get(key: str) -> Iterator[torch.Tensor] | tensorfile.Region:
                plain.ahead(key)
                if key not in touched:
                    return plain.region(key)
                tell(Tick(next(n_done), key))
                return _changed(key, touched[key], reader.handles[file], reader, terms, loss)

            return tensorfile.stream(target, described, get, header.metadata)
    with tensorfile.replacing(target) as temporary:
        shutil.copyfile(file, temporary)
    return target.stat().st_size


def _changed(
    key: str, parts: Sequence[Part], handle: tensorfile.Tensors, reader: Reader, terms: Sequence[Term], loss: _Loss
) -> Iterator[torch.Tensor]:
    """The tensor with its parts' changes added in float32 (float64 if it is), rounded once to its own type.

    It comes in blocks of rows that stay in the processor's cache: on whole weights the same arithmetic takes six
    times as long, nearly all of it waiting for memory.
    """
    n_rows, *row = handle.header.tensors[key].shape
    changes = [(held, _change(path, held, is_bias, reader, terms, loss)) for path, held, is_bias in parts]
    step = max(1, BLOCK // max(1, math.prod(row)))
    for begin in range(0, n_rows, step):
        tensor = handle.rows(key, begin, min(begin + step, n_rows))
        made = tensor.to(computing(tensor))
        for held, change in changes:
            first, last = max(held.begin, begin), min(held.end, begin + step)
            if first < last:
                _add(made[first - begin : last - begin], change, first - held.begin, last - held.begin)
        rounded = made.to(tensor.dtype)
        if not is_finite(rounded):
            raise InputError(f"W + ΔW of {parts[0][0]} is too large for {tensor.dtype}, or W is not finite",
                             expected="finite numbers", advice="lower the weight, check the base")  # fmt: skip
        if rounded.dtype != made.dtype:
            loss.lost += float(made.sub_(rounded.to(made.dtype)).square_().sum())
        yield rounded


def _change(path: str, held: Held, is_bias: bool, reader: Reader, terms: Sequence[Term], loss: _Loss) -> Change:
    """A part's change as thin factors or dense, its rows in the order in which the checkpoint keeps them."""
    needs = _needs_base(path, terms)
    total = combine.sum_of(path, terms, reader.checkpoint.shapes[path], reader.weight if needs else None)
    if is_bias and total.bias is not None:
        loss.whole += float(total.bias.norm()) ** 2
        return _in_order(total.bias, held)
    loss.whole += combine.norm_of(total) ** 2
    if total.factors is not None:
        return _in_order(total.factors[0], held), total.factors[1]
    return _in_order(total.whole(), held)


def _add(rows: torch.Tensor, change: Change, begin: int, end: int) -> None:
    if isinstance(change, tuple):
        rows.flatten(1).addmm_(change[0][begin:end], change[1])
    else:
        rows += change[begin:end].reshape(rows.shape)


def _in_order(rows: torch.Tensor, held: Held) -> torch.Tensor:
    """Rows in the order in which the checkpoint keeps them."""
    import torch

    return torch.cat(rows.chunk(2)[::-1]) if held.swapped else rows


def _needs_base(path: str, terms: Sequence[Term]) -> bool:
    updates = [term.delta.updates[path] for term in terms if path in term.delta.updates]
    return any(needs_base(update.algorithm, update.tensors) for update in updates)


def _copy_rest(checkpoint: Checkpoint, out: Path) -> None:
    """Configs, tokenizers, the VAE: everything of a folder that is not a network with a canonical path."""
    for folder, _, names in os.walk(checkpoint.where):
        for name in names:
            source = Path(folder) / name
            target = out / source.relative_to(checkpoint.where)
            if source not in checkpoint.headers and not target.exists():
                with tensorfile.replacing(target) as temporary:
                    shutil.copyfile(source, temporary)
