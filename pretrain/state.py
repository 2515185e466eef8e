"""A training run's whole state in one safetensors file, so that a stopped run goes on as if it had not.

One file, written under a temporary name and then renamed, cannot be half old and half new. Numbers that are no tensors
lie as JSON in its header; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deltaw import tensorfile
from deltaw.errors import InputError

SEPARATOR = "::"


def save(
    path: Path, modules: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> None:
    """Writes the modules' weights, the optimizer's state, the random state and `facts` atomically."""
    tensors = {f"{name}{SEPARATOR}{key}": t.clone() for name, m in modules.items() for key, t in m.state_dict().items()}
    for i, entries in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer{SEPARATOR}{i}{SEPARATOR}{key}": torch.as_tensor(t).clone() for key, t in entries.items()
        }
    tensors[f"random{SEPARATOR}cpu"] = torch.get_rng_state()
    tensorfile.write(path, tensors, {"facts": json.dumps(facts)})


def load(path: Path, modules: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts a saved run back into `modules` and `optimizer`, restores the random state, returns the facts.

    Raises:
        InputError: the file belongs to another network.
    """
    tensors = tensorfile.read(path)
    for name, module in modules.items():
        own = {k.split(SEPARATOR, 1)[1]: t for k, t in tensors.items() if k.startswith(name + SEPARATOR)}
        if own.keys() != module.state_dict().keys():
            raise InputError(
                "the checkpoint belongs to another network", where=path, advice="remove it or choose another --run"
            )
        module.load_state_dict(own)
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer" + SEPARATOR):
            _, i, field = key.split(SEPARATOR)
            entries.setdefault(int(i), {})[field] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors[f"random{SEPARATOR}cpu"])
    return json.loads(tensorfile.read_header(path).metadata["facts"])
