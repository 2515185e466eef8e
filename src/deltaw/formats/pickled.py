"""Pickled LoRAs and token vectors (`.pt`, `.bin`, `.ckpt`, `.pth`) under the keys that the same things have in safetensors.

| saved value | becomes |
| --- | --- |
| a dict of tensors (kohya, diffusers, PEFT; also under `state_dict`) | the same keys |
| a list of tensors, `[up, down, up, down, …]` (cloneofsimo) | `unet:0:up`, `unet:0:down`, … or `text_encoder:…` |
| a dict with `string_to_param` (A1111, the original textual inversion) | `string_to_param.*`, the token from `name` |
| a dict of `<token>` and vectors (cloneofsimo's `.ti.pt`, diffusers) | the same keys |

The files are read as `torch_file` describes them; nothing in them is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw.errors import InputError
from deltaw.formats import torch_file
from deltaw.formats.unpickle import Module, Stored
from deltaw.tensorheader import Header, TensorInfo

EMBED = "<embed>"
"""cloneofsimo's header value of a key that is a token."""

TOKEN = "deltaw.token"
"""Header key: the token of a file whose keys do not name it and whose name may change."""

_PARAMS = "string_to_param"
_ADVICE = "get the .safetensors version, or save its tensors as a dict by name"


@dataclass(frozen=True)
class Pickled:
    """A pickled file as headers.

    Args:
        header: key to what the tensor is, with its own shape.
        stored: the same, each tensor as the run of numbers that it has in the file.
        strides: key to strides in that run, of those that do not lie there row by row.
    """

    header: Header
    stored: Header
    strides: Mapping[str, tuple[int, ...]]


def read(path: Path) -> Pickled:
    """Reads what a pickled file holds; no tensor is read, and nothing in it is executed.

    Raises:
        InputError: it holds more than tensors, or is no form of a LoRA or of token vectors.
    """
    saved = torch_file.read(path)
    tensors, metadata = _named(saved.value, path)
    if not tensors:
        raise InputError("the file holds no tensors", where=path, expected="a LoRA", advice="check what was saved")
    own: dict[str, TensorInfo] = {}
    runs: dict[str, TensorInfo] = {}
    strides: dict[str, tuple[int, ...]] = {}
    for key, tensor in tensors.items():
        try:
            runs[key], steps = torch_file.place(tensor, saved)
        except ValueError as error:
            raise InputError(
                f"the pickle file is broken ({key[:80]}: {error})", where=path, advice="download it again"
            ) from error
        own[key] = TensorInfo(tensor.dtype, tensor.shape, runs[key].begin, runs[key].end)
        if steps:
            strides[key] = steps
    return Pickled(Header(own, metadata, 0), Header(runs, metadata, 0), strides)


def beside(path: Path) -> tuple[str, ...]:
    """A note where files lie that cloneofsimo's tool wrote together with this one: `x.pt`, `x.text_encoder.pt`, `x.ti.pt`."""
    ends = (".text_encoder.pt", ".ti.pt", ".pt")
    own = next((end for end in ends if path.name.endswith(end)), None)
    if own is None:
        return ()
    stem = path.name.removesuffix(own)
    others = [f"{stem}{end}" for end in ends if end != own and path.with_name(f"{stem}{end}").is_file()]
    return (
        (f"{' and '.join(others)} beside it is of the same training and not in this file: `deltaw merge` adds it",)
        if others
        else ()
    )


def _named(value: Any, path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The saved tensors by key, and what stands in place of a header's metadata."""
    if isinstance(value, list):
        return _counted(value, path)
    if isinstance(value, dict) and isinstance(inner := value.get("state_dict"), dict):
        value = inner
    if not isinstance(value, dict):
        raise InputError(
            "it holds no tensors by name", where=path, expected="a dict or a list of tensors", advice=_ADVICE
        )
    if _PARAMS in value:
        return _vectors(value, path)
    if value and all(isinstance(key, int) for key in value):
        raise InputError(
            "this is a hypernetwork, not a LoRA", where=path, expected="a LoRA", advice="use it in the web UI it is for"
        )
    tensors = {str(key): tensor for key, tensor in value.items() if isinstance(tensor, Stored)}
    others = {str(key): said for key, said in value.items() if not isinstance(said, Stored)}
    if odd := [key for key, said in others.items() if "." in key or isinstance(said, dict | list | Module)]:
        raise InputError(
            f"what it has under {odd[0][:80]!r} is no tensor", where=path, expected="tensors by name", advice=_ADVICE
        )
    said = {key: str(said) for key, said in others.items() if isinstance(said, str | int | float)}
    tokens = {key: EMBED for key in tensors if key.startswith("<") and key.endswith(">")}
    return tensors, {**said, **tokens}


def _counted(value: list[Any], path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """cloneofsimo's list. CLIP's attention has one width throughout, a U-Net has several."""
    pairs = list(zip(value[::2], value[1::2], strict=False))
    if len(value) % 2 or not all(isinstance(tensor, Stored) and len(tensor.shape) in (2, 4) for tensor in value):
        raise InputError(
            "this list is no list of up and down", where=path, expected="[up, down, up, down, …]", advice=_ADVICE
        )
    widths = {n for up, down in pairs for n in (up.shape[0], down.shape[1])}
    component = "text_encoder" if len(widths) == 1 else "unet"
    classes = [
        "CrossAttention",
        "Attention",
        "GEGLU",
        *(["ResnetBlock2D"] if any(len(t.shape) == 4 for t in value) else []),
    ]
    metadata = {"unet": json.dumps(classes)} if component == "unet" else {}
    return {
        f"{component}:{i}:{name}": tensor
        for i, pair in enumerate(pairs) for name, tensor in zip(("up", "down"), pair, strict=True)
    }, metadata  # fmt: skip


def _vectors(value: dict[Any, Any], path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """A1111's file: `*` stands for the token, which is called `name`, or as the file."""
    params = value[_PARAMS]
    params = params.parameters if isinstance(params, Module) else params
    if not isinstance(params, dict) or not params or not all(isinstance(t, Stored) for t in params.values()):
        raise InputError(f"its {_PARAMS} holds no vectors", where=path, expected="vectors by token", advice=_ADVICE)
    said = {key: str(v) for key, v in value.items() if isinstance(key, str) and isinstance(v, str | int | float)}
    name = said.pop("name", "")
    if len(params) == 1:
        return {f"{_PARAMS}.*": next(iter(params.values()))}, {**said, **({TOKEN: name} if name else {})}
    return {str(token): tensor for token, tensor in params.items()}, {**said, **dict.fromkeys(map(str, params), EMBED)}
