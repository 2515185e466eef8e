"""CLIP's tokenizer as the folder of a base has it, from the merges that come with the package (`zoo/clip`, MIT)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from deltaw import zoo
from deltaw.tensorfile import write_text

START, END = "<|startoftext|>", "<|endoftext|>"
N_TOK = 77
"""Tokens that a text has, the two special ones included."""


def write(folder: Path, padding: str = END) -> None:
    """Writes the three files that transformers reads.

    Args:
        folder: of the tokenizer.
        padding: the token that a text is filled up with; SD 2's and XL's second text encoder were trained with "!".
    """
    merges = gzip.decompress(zoo.clip_merges().read_bytes()).decode().splitlines()
    letters = _letters()
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(pair.replace(" ", "") for pair in merges),
        START,
        END,
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    config = {
        "tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding,
        "model_max_length": N_TOK,
    }  # fmt: skip
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2))


def _letters() -> list[str]:
    """A character for each byte in the order of CLIP's vocabulary: those that can be seen stand for themselves and come first.

    Source: GPT-2's byte-level encoding (Radford et al. 2019), which CLIP took over.
    """
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, seen), *(chr(256 + i) for i in range(256 - len(seen)))]
