"""What the checks of every family's base look for: tokenizers, packed weights, weights of another base."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw.errors import InputError
from deltaw.tensorheader import Header

Configs = Mapping[str, Mapping[str, Any]]
"""Part, "scheduler" or "model_index" to its config."""
Wanted = tuple[str, str, int, int | None]
"""Part, a weight's name, a place of its shape, and what its config says stands there; None where it says nothing."""

WORDS = "text_model.embeddings.token_embedding.weight"
"""A CLIP's weight for each token."""
QUANTISED = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "8-bit integers", "U8": "packed 8- or 4-bit integers"}
FULL_PRECISION = "get the base's float16 or float32 weights; --set dtype chooses the precision that it is held in"


def tokenizer(folder: Path, text: Mapping[str, Any]) -> Iterator[InputError]:
    """What is wrong with a tokenizer, beside the config of the text encoder that reads its tokens."""
    vocabulary = _vocabulary(folder)
    if vocabulary is None:
        yield InputError(f"the {folder.name} is missing or cannot be read", where=folder, expected="tokenizer.json or vocab.json",
                         advice="download the base again")  # fmt: skip
        return
    known = text.get("vocab_size")
    if known and max(vocabulary, default=0) >= known:
        yield InputError(f"the tokenizer knows {max(vocabulary) + 1} tokens and the text encoder {known}", where=folder,
                         advice="take the tokenizer that belongs to the base")  # fmt: skip
    longest, length = (
        text.get("max_position_embeddings"),
        read_json(folder / "tokenizer_config.json").get("model_max_length"),
    )
    if longest and isinstance(length, int) and length > longest:
        yield InputError(f"the tokenizer gives {length} tokens and the text encoder reads {longest}", where=folder,
                         advice="take the tokenizer that belongs to the base")  # fmt: skip


def _vocabulary(folder: Path) -> list[int] | None:
    """The tokens' numbers, or None where no vocabulary can be read."""
    words = read_json(folder / "tokenizer.json").get("model", {}).get("vocab") or read_json(folder / "vocab.json")
    if isinstance(words, list):  # T5's: (word, how likely), a word's place being its number
        return list(range(len(words))) or None
    return list(words.values()) if isinstance(words, dict) and words else None


def quantised(path: Path, configs: Configs, headers: Mapping[str, Sequence[Header]]) -> Iterator[InputError]:
    """Parts whose weights are packed into fewer bits."""
    for part, config in configs.items():
        if isinstance(method := config.get("quantization_config"), Mapping):
            name = method.get("quant_method", "quantised")
            yield InputError(f"the {part} is quantised ({name})", where=path / part, expected="floating-point weights",
                             advice=FULL_PRECISION)  # fmt: skip
    for part, files in headers.items():
        if types := packed_types(files):
            yield InputError(f"the {part}'s weights are stored as {types}", where=path / part,
                             expected="floating-point weights", advice=FULL_PRECISION)  # fmt: skip
    if packed := sorted(path.rglob("*.gguf")):
        yield InputError(f"GGUF weights ({packed[0].name}) cannot be trained", where=packed[0].parent, expected="safetensors",
                         advice=FULL_PRECISION)  # fmt: skip


def packed_types(files: Sequence[Header]) -> str:
    """As what weights are stored in files that hold some in fewer bits, else ""."""
    found = {QUANTISED[t.dtype] for header in files for key, t in header.tensors.items()
             if t.dtype in QUANTISED and not key.endswith("position_ids")}  # fmt: skip
    return ", ".join(sorted(found))


def compared(path: Path, wanted: Sequence[Wanted], headers: Mapping[str, Sequence[Header]]) -> Iterator[InputError]:
    """Weights that are not those that the config speaks of, told by the first and the widest layers."""
    for part, key, axis, n in wanted:
        stored = next((h.tensors[key].shape for h in headers.get(part, ()) if key in h.tensors), None)
        if n and stored and stored[axis] != n:
            yield InputError(f"the {part}'s config and weights are of two bases: {key} is {list(stored)}", where=path / part,
                             expected=f"{n} at place {axis + 1}", advice="download the base again")  # fmt: skip


def looks_distilled(why: str) -> str:
    """The remark on a base that was distilled to draw in few steps, as far as can be told by `why`."""
    return (f"the base looks distilled ({why}): training undoes that; train on the base that it was distilled from, "
            "the LoRA works on both")  # fmt: skip


def read_json(file: Path) -> dict[str, Any]:
    """The file's object; empty where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
