"""From a `Delta` to a file in a dialect, or a refusal that names what the dialect cannot hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw import adapters, families, spool, tensorfile
from deltaw.delta import Delta, Update
from deltaw.errors import DeltawError, InputError, refuse_all
from deltaw.families import Family, listing
from deltaw.families.listing import Shapes
from deltaw.formats import alphas, embedding, fused, peft_kinds, reading
from deltaw.formats.keys import Place
from deltaw.formats.source import CONFIG, ROOT, WEIGHTS
from deltaw.spool import Kept, Spool

if TYPE_CHECKING:
    import torch

    from deltaw.formats import Dialect


def pack(
    delta: Delta, dialect: Dialect, where: str | Path, shapes: Shapes | None, kept: Spool
) -> tuple[dict[str, Kept], dict[str, str]]:
    """The file's tensors and metadata; `shapes` are those of the base, by default of the best fitting one known.

    One module is looked at after the other, and what is made of it is set aside.

    Raises:
        InputError: the dialect cannot hold this change; every reason is named.
    """
    family = families.named(delta.family)
    if shapes is None:
        shapes = base_shapes(delta, family)
        if dialect.original(family) and delta.updates and not _fits_any(delta, shapes):
            raise InputError(
                f"{dialect.NAME} names modules by their number, which depends on the base's depth, and no known base has "
                "modules of these shapes", where=where, advice="give the base's shapes, or choose the dialect diffusers",
            )  # fmt: skip
    places = dialect.names(family, shapes)
    stems = {path: (stem, place) for stem, place in places.items() for path in place.paths}
    problems: list[DeltawError] = [_refusal(dialect, path, where) for path in delta.updates if path not in stems]
    tensors: dict[str, Kept] = {}
    notes: dict[str, fused.Joined] = {}
    for stem, place in dict(stems[path] for path in delta.updates if path in stems).items():
        try:
            algorithm, named, how = _joined(delta, place, shapes)
            if algorithm not in dialect.ALGORITHMS:
                raise ValueError(f"it has no keys for {algorithm}")
            notes |= {stem: how} if how is not None else {}
            for name, tensor in _as_kept(dialect, algorithm, named).items():
                tensors[dialect.key(stem, f"{algorithm}.{name}", len(place.shape(shapes)))] = kept.keep(tensor)
        except (ValueError, KeyError) as error:
            reason = f"it has no key for {error.args[0]}" if isinstance(error, KeyError) else str(error)
            problems.append(_refusal(dialect, place.paths[0], where, reason))
    refuse_all(f"the dialect {dialect.NAME} cannot hold this change", problems[:10])
    metadata = {**delta.metadata, **_trigger(delta), **fused.note(notes), reading.FAMILY: family.name}
    try:
        vectors, named = embedding.pack(delta, dialect.NAME)
        tensors |= {key: kept.keep(vector) for key, vector in vectors.items()}
        return tensors, {**metadata, **named, **dialect.describe(delta, shapes)}
    except ValueError as error:
        raise InputError(
            f"{dialect.NAME} cannot hold this change: {error}", where=where, advice="choose another dialect"
        ) from error


def _fits_any(delta: Delta, shapes: Shapes) -> bool:
    return any(path in shapes and not problem_of(update, shapes[path]) for path, update in delta.updates.items())


def write(delta: Delta, dialect: Dialect, path: str | Path, shapes: Shapes | None = None) -> int:
    """Writes the file (or PEFT's folder) and returns its size in bytes.

    Raises:
        InputError: the dialect cannot hold this change; every reason is named.
    """
    with spool.opened(Path(path).parent) as kept:
        tensors, metadata = pack(delta, dialect, path, shapes, kept)
        if dialect.NAME == "peft":
            return _write_folders(Path(path), tensors, metadata)
        return spool.write(path, tensors, metadata)


def _write_folders(path: Path, tensors: Mapping[str, Kept], metadata: dict[str, str]) -> int:
    configs = _by_component(json.loads(metadata.pop(alphas.HEADER)))
    n_bytes = 0
    for component, config in configs.items():
        folder = Path(path) / component if len(configs) > 1 else Path(path)
        root = f"{ROOT}{component}."
        own = {ROOT + key.removeprefix(root): tensor for key, tensor in tensors.items() if key.startswith(root)}
        note = {"deltaw.component": component} if len(configs) == 1 else {}
        n_bytes += spool.write(folder / WEIGHTS, own, {**metadata, **note})
        n_bytes += tensorfile.write_text(folder / CONFIG, json.dumps({"peft_type": "LORA", **config}, indent=2))
    return n_bytes


def write_vectors(delta: Delta, path: str | Path) -> int:
    """Writes a file of one token's vectors, in the form that the family's programs read; returns its size in bytes.

    Raises:
        InputError: there is more in the change.
    """
    try:
        return tensorfile.write(path, *embedding.alone(delta))
    except ValueError as error:
        raise InputError(str(error), where=path, advice="choose kohya, which bundles vectors with the LoRA") from error


def base_shapes(delta: Delta, family: Family) -> Shapes:
    """The listing of the family's network that the change fits best, with the change's own modules."""
    variants = [listing.modules(variant) for variant in family.variants]

    def fit(listed: Shapes) -> tuple[int, int]:
        own = [(update, listed[path]) for path, update in delta.updates.items() if path in listed]
        return sum(not problem_of(update, shape) for update, shape in own), len(own)

    return max(variants, key=fit)


def problem_of(update: Update, shape: tuple[int, ...]) -> str:
    """Why an update cannot change a weight of `shape`, or ""."""
    return adapters.fits(update.algorithm, {name: tuple(t.shape) for name, t in update.tensors.items()}, shape)


def _joined(delta: Delta, place: Place, shapes: Shapes) -> tuple[str, dict[str, torch.Tensor], fused.Joined | None]:
    present = {path: delta.updates[path] for path in place.paths if path in delta.updates}
    algorithms = sorted({update.algorithm for update in present.values()})
    if len(algorithms) > 1:
        raise ValueError(f"{' and '.join(algorithms)} do not join into one change of a fused weight")
    algorithm, how = algorithms[0], None
    if len(place.paths) == 1:
        tensors = dict(present[place.paths[0]].tensors)
    else:
        parts = [present[path].tensors if path in present else None for path in place.paths]
        tensors, how = fused.join(algorithm, parts, [shapes[path][0] for path in place.paths])
    if place.swapped:
        tensors = fused.swap_halves(algorithm, tensors, place.shape(shapes)[0])
    return algorithm, tensors, how


def _as_kept(dialect: Dialect, algorithm: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that go into the file: alphas only where the dialect keeps them there."""
    alpha = tensors.get("alpha")
    if dialect.ALPHA_IN_FILE:
        return tensors
    if dialect.ALPHA_IN_FILE is None and alpha is not None and float(alpha) != tensors["down"].shape[0]:
        raise ValueError(f"it has no alpha, and alpha {float(alpha):g} is not the rank {tensors['down'].shape[0]}")
    if dialect.ALPHA_IN_FILE is None and alpha is not None:
        raise ValueError("it has no alpha, so that reading it back would not give the same tensors")
    kept = peft_kinds.as_kept(algorithm, {name: tensor for name, tensor in tensors.items() if name != "alpha"})
    if "magnitude" in kept:
        kept["magnitude"] = _peft_norms(kept["magnitude"])
    return kept


def _peft_norms(norms: torch.Tensor) -> torch.Tensor:
    """PEFT's shape of DoRA norms: `(out,)` for Linear, `(1, out, 1, 1)` for Conv2d; per output only."""
    if norms.shape[0] == 1:
        raise ValueError("its DoRA norms are per output, these are per input")
    return norms.flatten() if norms.ndim == 2 else norms.reshape(1, -1, 1, 1)


def _by_component(packed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = {}
    for key, value in packed.items():
        component, _, name = key.partition(".")
        configs.setdefault(component, {})[name] = value
    return configs


def _trigger(delta: Delta) -> dict[str, str]:
    return {"modelspec.trigger_phrase": ", ".join(delta.trigger)} if delta.trigger else {}


def _refusal(
    dialect: Dialect, path: str, where: str | Path, reason: str = "it has no name for the module"
) -> InputError:
    return InputError(f"{dialect.NAME} cannot hold {path}: {reason}", where=where,
                      advice="choose another dialect (kohya holds most), or `deltaw convert --to lora` first")  # fmt: skip
