"""The state of a run as one safetensors file, so that it is whole or absent, and never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw import tensorfile
from deltaw.errors import InputError, UsageError
from deltaw.flat import Flat
from deltaw.training import optim

GROUP = "all"
"""In place of an index: what an optimizer keeps for all numbers together."""
NUMBERS = {int: torch.int64, float: torch.float64}
FORMAT = 1
"""Raised when a state of this version could not be continued by an older DeltaW."""


@dataclass(frozen=True)
class State:
    """Where a run stands. Noise and order are functions of seed and step and need no state.

    Args:
        step: optimizer steps done.
        adapter: `PATH.up`/`PATH.down` to tensor, float32.
        optimizer: `INDEX.NAME` to tensor.
        fingerprint: what the run depends on (settings, picture digests, base), by name.
        history: `losses (step,)` and whatever the report needs, as tensors.
        notes: JSON values for the report.
    """

    step: int
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    fingerprint: Mapping[str, str]
    history: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)


def save(path: Path, state: State) -> None:
    """Writes the state atomically: a kill at any moment leaves the one before."""
    tensors = {f"adapter/{k}": v for k, v in state.adapter.items()}
    tensors |= {f"optimizer/{k}": v for k, v in state.optimizer.items()}
    tensors |= {f"history/{k}": v for k, v in state.history.items()}
    about = {"format": FORMAT, "step": state.step, "fingerprint": dict(state.fingerprint), "notes": dict(state.notes)}
    tensorfile.write(path, tensors, {"deltaw.state": json.dumps(about, sort_keys=True)})


def step_of(path: Path) -> int:
    """The step that a state was saved after, from its header."""
    return int(_about(path)["step"])


def load(path: Path) -> State:
    """Reads a state.

    Raises:
        InputError: there is none, it is damaged, or it was written by a newer DeltaW.
    """
    if not path.is_file():
        raise InputError("there is no run to resume", where=path, advice="leave --resume out, or give the run's --out")
    about = _about(path)
    parts: dict[str, dict[str, Tensor]] = {"adapter": {}, "optimizer": {}, "history": {}}
    for name, tensor in tensorfile.read(path).items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return State(about["step"], **parts, fingerprint=about["fingerprint"], notes=about["notes"])


def _about(path: Path) -> dict[str, Any]:
    about = json.loads(tensorfile.read_header(path).metadata.get("deltaw.state", "{}"))
    if about.get("format") != FORMAT:
        raise InputError(
            f"the state has format {about.get('format')}", where=path, expected=f"format {FORMAT}",
            advice="resume it with the DeltaW that wrote it",
        )  # fmt: skip
    return about


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What another run was saved with, one entry a difference, in words."""
    changed = [k for k in sorted({*saved, *now}) if saved.get(k) != now.get(k)]
    return [f"{k}: was {_short(saved.get(k))}, is {_short(now.get(k))}" for k in changed]


def _short(value: str | None) -> str:
    return "absent" if value is None else value if len(value) <= 40 else f"{value[:37]}…"


def optimizer_tensors(optimizer: torch.optim.Optimizer, flat: Flat) -> dict[str, Tensor]:
    """The state of an optimizer of `flat.values` as `INDEX.NAME` to tensor, by the parameters' order and not by how they lie."""
    numbers = optim.found_numbers(optimizer).items()
    found = {f"{GROUP}.{name}": torch.tensor(n, dtype=NUMBERS[type(n)]) for name, n in numbers}
    for name, value in optimizer.state.get(flat.values, {}).items():
        tensor = torch.as_tensor(value)
        parts = flat.split(tensor).values() if tensor.shape == flat.values.shape else [tensor] * len(flat.names)
        found |= {f"{i}.{name}": part for i, part in enumerate(parts)}
    return found


def restore(saved: State, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, flat: Flat) -> None:
    """Puts adapter and optimizer tensors back, bit for bit.

    Args:
        saved: the state.
        parameters: by name.
        optimizer: of `flat.values`.
        flat: of the parameters.

    Raises:
        UsageError: they are of other modules or another rank; nothing was changed then.
    """
    shapes = {name: list(tensor.shape) for name, tensor in saved.adapter.items()}
    wanted = {name: list(p.shape) for name, p in parameters.items()}
    if shapes != wanted:
        unlike = next(name for name in (*shapes, *wanted) if shapes.get(name) != wanted.get(name))
        raise UsageError(
            f"the saved adapter does not fit this run: {unlike} was {shapes.get(unlike, 'absent')}, is "
            f"{wanted.get(unlike, 'absent')}", where="--resume", expected="the same base, rank and targets",
            advice="undo the change, or start anew with another --out",
        )  # fmt: skip
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved.adapter[name])
    entry: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    names = flat.names
    for key, tensor in saved.optimizer.items():
        index, _, name = key.partition(".")
        if index == GROUP:
            optimizer.param_groups[0][name] = tensor.item()
            continue
        if not tensor.dim():  # the number of steps, of all alike
            entry[name] = tensor
            continue
        if name not in entry:
            entry[name] = torch.zeros_like(flat.values, requires_grad=False)
            parts[name] = flat.split(entry[name])
        parts[name][names[int(index)]].copy_(tensor)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: entry} if entry else {}})
