"""A run that cannot fit is refused before anything is spent, with the cheapest change that fits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deltaw.errors import DeltawError, UsageError, refuse_all
from deltaw.families.base import Base
from deltaw.training import forecast
from deltaw.training.forecast import Forecast
from deltaw.training.plan import Plan
from deltaw.training.sampler import micro_batches

Change = tuple[str, dict[str, Any]]
"""What to write on the command line, and what it changes in a `Job`."""
LEAST_RANK = 4
ANYWAY = "or try anyway with --set ignore_room=true"


def require(
    predicted: Forecast, base: Base, made: Plan, available: tuple[int, str], places: Mapping[str, Path]
) -> None:
    """Refuses a run that needs more memory or disk than there is.

    Args:
        predicted: of the plan.
        base: opened; needed where a change is searched.
        made: the plan.
        available: bytes that can be had and what bounds them, as `devices.available_bytes` gives.
        places: of the result and the cache.

    Raises:
        UsageError: or ManyErrors; the advice names a change that fits, as predicted in the same way.
    """
    problems: list[DeltawError] = []
    free_bytes, bound = available
    if predicted.needed_bytes > free_bytes:
        need = predicted.tightest
        what = (
            f"the run needs {predicted.needed_bytes / 1e9:.2f} GB of memory and {free_bytes / 1e9:.2f} GB are {bound}"
        )
        advice = f"{_cheapest(base, made, predicted, free_bytes)}, {ANYWAY}"
        problems.append(UsageError(what, where=f"{need.phase}: {need.reason}", advice=advice))
    problems += _disk_problems(predicted, places)
    refuse_all("the run does not fit", problems)


def _cheapest(base: Base, made: Plan, predicted: Forecast, free_bytes: int) -> str:
    """The first change, in the order of what it costs in quality, with which the run fits; those that do not help are left out."""
    alone = predicted.needed_bytes - predicted.beside_bytes
    if alone < predicted.needed_bytes and alone <= free_bytes:
        return f"take --set processes=1: it needs {alone / 1e9:.2f} GB"
    words: list[str] = []
    kept: dict[str, Any] = {}
    least = predicted.needed_bytes
    for kind in _changes(base, made):
        said = ""
        for text, values in kind:
            smaller = forecast.make(base, made, **{**kept, **values}).needed_bytes
            if smaller >= least:
                break
            least, said = smaller, text
            kept |= values
            if least <= free_bytes:
                return f"take {' '.join([*words, said])}: it needs {least / 1e9:.2f} GB"
        words += [said] if said else []
    return f"free memory: even with {' '.join(words) or 'other settings'} it needs {least / 1e9:.2f} GB"


def _changes(base: Base, made: Plan) -> Iterator[Sequence[Change]]:
    """Kinds of changes, each ever smaller: what costs time alone, precision, the sheet, resolution, and at last rank."""
    settings = made.settings
    yield [(f"--set micro_batch={n}", {"batch": n}) for n in micro_batches(settings.micro_batch)[1:]]
    yield [("--set checkpointing=true", {"checkpointing": True})]
    if settings.dtype == "float32":
        yield [("--set dtype=bfloat16", {"dtype": torch.bfloat16})]
    yield [("--set base_int8=true", {"base_int8": True})]
    yield [("--set 'prompts=[\"…\"]' with a single one", {"n_drawn": 1})]
    step = base.bucket_step_px
    sides = range(settings.resolution - step, max(step, settings.resolution // 2) - 1, -step)
    yield [(f"--resolution {side}", {"largest_px": (side, side), "drawn_px": side}) for side in sides]
    yield [(f"--rank {LEAST_RANK}", {"rank": min(LEAST_RANK, settings.rank)})]


def _disk_problems(predicted: Forecast, places: Mapping[str, Path]) -> Iterator[UsageError]:
    """One problem a disk: places on the same one are added up."""
    wanted: dict[int, tuple[int, list[Path]]] = {}
    for place, folder in places.items():
        n_bytes, folders = wanted.get(folder.stat().st_dev, (0, []))
        wanted[folder.stat().st_dev] = (n_bytes + predicted.disk_bytes(place), [*folders, folder])
    for n_bytes, folders in wanted.values():
        free_bytes = shutil.disk_usage(folders[0]).free
        if n_bytes > free_bytes:
            yield UsageError(
                f"the run writes {n_bytes / 1e6:.0f} MB and {free_bytes / 1e6:.0f} MB are free",
                where=", ".join(dict.fromkeys(str(f) for f in folders)),
                advice=f"free some space, take fewer --set snapshots=N, another --out or DELTAW_CACHE, {ANYWAY}",
            )  # fmt: skip
