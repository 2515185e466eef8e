"""Where a LoRA's tensors lie: one file, or a folder of PEFT adapters, seen as one header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw.errors import InputError
from deltaw.families.listing import COMPONENTS
from deltaw.formats import alphas, peft_kinds, pickled, torch_file
from deltaw.tensorfile import Header, TensorInfo, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
ROOT = "base_model.model."
DIFFUSERS_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")


@dataclass(frozen=True)
class Source:
    """The tensors of a LoRA under one header.

    Args:
        where: what the user gave.
        header: every key once; its offsets are those in the key's own file.
        files: key to the file it lies in and its name there.
        headers: file to what it says of its own tensors: where they lie.
        strides: key to strides of those that do not lie row by row (pickled files).
        configs: stem prefix to the `LoraConfig` that holds its alphas.
    """

    where: Path
    header: Header
    files: Mapping[str, tuple[Path, str]]
    headers: Mapping[Path, Header]
    strides: Mapping[str, tuple[int, ...]]
    configs: Mapping[str, Mapping[str, Any]]


def locate(path: str | Path) -> Source:
    """Finds and opens what a user calls a LoRA: a file, a PEFT folder, or diffusers' folder.

    Raises:
        InputError: nothing of the kind is there, or a header is broken.
    """
    path = Path(path)
    if not path.is_dir():
        return _file(path)
    if (path / CONFIG).exists():
        return _adapters(path, {"": path})
    folders = {component: path / component for component in COMPONENTS if (path / component / CONFIG).exists()}
    if folders:
        return _adapters(path, folders)
    for name in DIFFUSERS_NAMES:
        if (path / name).exists():
            return _file(path / name)
    raise InputError("no LoRA is in this folder", where=path, expected=f"{CONFIG} or {DIFFUSERS_NAMES[0]}",
                     advice="give the file itself")  # fmt: skip


def _file(path: Path) -> Source:
    header, stored, strides = _headers(path)
    packed = _object(header.metadata.get(alphas.HEADER, "{}"), path)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in packed.items():
        component, _, name = key.partition(".")
        configs.setdefault(f"{component}.", {})[name] = value
    return Source(path, header, {key: (path, key) for key in header.tensors}, {path: stored}, strides, configs)


def _headers(path: Path) -> tuple[Header, Header, Mapping[str, tuple[int, ...]]]:
    """What a file's tensors are, where they lie, and the strides of those that do not lie row by row."""
    if torch_file.is_one(path):
        read = pickled.read(path)
        return read.header, read.stored, read.strides
    header = read_header(path)
    return header, header, {}


def _adapters(where: Path, folders: Mapping[str, Path]) -> Source:
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, tuple[Path, str]] = {}
    configs: dict[str, dict[str, Any]] = {}
    metadata: dict[str, str] = {}
    headers: dict[Path, Header] = {}
    strides: dict[str, tuple[int, ...]] = {}
    for component, folder in folders.items():
        configs[f"{ROOT}{component}."[: None if component else -1]] = _config(folder / CONFIG)
        weights = folder / (
            PICKLED_WEIGHTS if not (folder / WEIGHTS).exists() and (folder / PICKLED_WEIGHTS).exists() else WEIGHTS
        )
        header, headers[weights], steps = _headers(weights)
        metadata.update(header.metadata)
        for key, info in header.tensors.items():
            name = f"{ROOT}{component}.{key.removeprefix(ROOT)}" if component else key
            tensors[name], files[name] = info, (weights, key)
            strides |= {name: steps[key]} if key in steps else {}
    return Source(where, Header(tensors, metadata, 0), files, headers, strides, configs)


def _config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the adapter's configuration cannot be read", where=path) from error
    config = _object(text, path)
    if problem := peft_kinds.refusal(config):
        raise InputError(
            problem, where=path, expected=" or ".join(peft_kinds.KINDS), advice="convert it to a plain LoRA with PEFT"
        )
    return config


def _object(text: str, where: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the adapter's configuration is not valid JSON ({error})", where=where) from error
    if not isinstance(found, dict):
        raise InputError("the adapter's configuration is not an object", where=where)
    return found
