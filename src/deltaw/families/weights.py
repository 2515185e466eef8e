"""A network from its files, one tensor at a time: the file is never in memory beside the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw import int8, tensorfile


def load(
    empty: Callable[[], nn.Module], files: Sequence[Path], device: torch.device, dtype: torch.dtype, *, packed: bool = False,
) -> nn.Module | None:  # fmt: skip
    """The frozen network in evaluation mode, or None where its files do not hold exactly what it is made of.

    diffusers maps the whole file and converts from there, so that a network in bfloat16 from a float16 file needs twice
    its size for a moment; for Stable Diffusion 1.5 that moment decided a run's peak. Files with older names, or
    with something missing, are for diffusers' own loader, which knows the names and says what is missing.

    Args:
        empty: makes the network on the meta device. What its modules share is read into the first of them.
        files: its safetensors files.
        device: where the network goes.
        dtype: of its weights, which are converted as they are read.
        packed: large linear layers are kept in 8 bits (`int8`), never all of them in more.
    """
    with torch.device("meta"):
        network = empty()
    wanted = {
        name: tuple(tensor.shape) for name, tensor in network.named_parameters()
    }  # what modules share counts once
    there = {name: info.shape for file in files for name, info in tensorfile.read_header(file).tensors.items()}
    if there != wanted or next(network.buffers(), None) is not None:
        return None
    for file in files:
        with tensorfile.lazy(file) as tensors:
            for name in tensors.header.tensors:
                _put(network, name, tensors.get_tensor(name).to(device), dtype, packed=packed)
    return network.eval()


def _put(network: nn.Module, name: str, tensor: torch.Tensor, dtype: torch.dtype, *, packed: bool) -> None:
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    if packed and leaf == "weight" and int8.fits(module):
        bias: Any = module.bias  # read before, or put later
        int8.put(network, path, int8.Int8Linear(*int8.pack(tensor), bias))
    else:
        setattr(module, leaf, nn.Parameter(tensor.to(dtype), requires_grad=False))
