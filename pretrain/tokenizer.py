"""The base's own tokenizer: byte-level BPE in CLIP's form, 4096 entries: `python -m pretrain.tokenizer`."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPTokenizer

from pretrain import captions, data, networks, run

END = "</w>"
N_MERGES = 4096 - 2 * 256 - 2


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for every byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def merges(counts: Counter[str], n: int) -> list[tuple[str, str]]:
    """The `n` most frequent pairs in turn (Sennrich et al. 2016); ties go to the pair that sorts first."""
    letters = byte_letters()
    split = [[letters[b] for b in word.encode()] for word in counts]
    pieces = [[*word[:-1], word[-1] + END] for word in split]
    weights = list(counts.values())
    found: list[tuple[str, str]] = []
    while len(found) < n:
        pairs: dict[tuple[str, str], int] = defaultdict(int)
        for word, weight in zip(pieces, weights, strict=True):
            for pair in pairwise(word):
                pairs[pair] += weight
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        pieces = [_joined(word, best) for word in pieces]
    return found


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def count_words(records: list[dict[str, Any]], n_captions: int = 8) -> Counter[str]:
    """Words and single signs of random captions, as CLIP's pattern splits them."""
    random = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    for record in records:
        for _ in range(n_captions):
            counts.update(re.findall(r"[^\W\d_]+|\d|[^\s\w]+", captions.drawn(record, random, empty=0).lower()))
    return counts


def build(found: list[tuple[str, str]]) -> CLIPTokenizer:
    """CLIP's tokenizer over these merges."""
    alphabet = list(byte_letters().values())
    tokens = alphabet + [a + END for a in alphabet] + [a + b for a, b in found]
    tokens += [f"<|unused{i}|>" for i in range(networks.BOS - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary, pairs = Path(scratch) / "vocab.json", Path(scratch) / "merges.txt"
        vocabulary.write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False), "utf-8")
        pairs.write_text("\n".join(["#version: 0.2", *(" ".join(p) for p in found)]), "utf-8")
        special = {"unk_token": tokens[-1], "bos_token": tokens[-2], "eos_token": tokens[-1], "pad_token": tokens[-1]}
        (Path(scratch) / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", **special}), "utf-8"
        )
        return CLIPTokenizer.from_pretrained(scratch, model_max_length=networks.N_TOKENS)


def main() -> None:
    """Learns the merges from the captions and writes the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--out", type=Path, default=run.RUNS / "base")
    args = parser.parse_args()
    counts = count_words(data.pretraining(args.data).records)
    tokenizer = build(merges(counts, N_MERGES))
    tokenizer.save_pretrained(args.out / "tokenizer")
    print(f"{len(counts)} words -> {args.out / 'tokenizer'}; 'red apple' = {tokenizer('red apple').input_ids}")


if __name__ == "__main__":
    main()
