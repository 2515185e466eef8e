"""The rendered art: one STYLE.npz of pictures and one STYLE.json of records each, and the splits between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltaw.errors import InputError
from pretrain import sources

FOLDER = Path("runs/pretrain/art")


@dataclass(frozen=True)
class Art:
    """Pictures (n, 128, 128, 3) uint8 and, in the same order, what is known of each."""

    images: np.ndarray
    records: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def where_record(self, wanted: Callable[[dict[str, Any]], bool]) -> Art:
        """The pictures whose record is wanted."""
        keep = [wanted(r) for r in self.records]
        return Art(self.images[np.asarray(keep, bool)], [r for r, k in zip(self.records, keep, strict=True) if k])

    def and_also(self, other: Art) -> Art:
        """These pictures, then the other's."""
        return Art(np.concatenate([self.images, other.images]), [*self.records, *other.records])

    def some(self, n: int | None) -> Art:
        """At most `n` pictures, spread over all; all of them without `n`."""
        if n is None or n >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, n).astype(int)
        return Art(self.images[chosen], [self.records[i] for i in chosen])


def load(folder: Path, style: str) -> Art:
    """One style's pictures and records.

    Raises:
        InputError: the style was not rendered.
    """
    try:
        with np.load(folder / f"{style}.npz") as arrays:
            images = arrays["images"]
        return Art(images, json.loads((folder / f"{style}.json").read_text("utf-8")))
    except FileNotFoundError as error:
        raise InputError(
            "the art is not there", where=error.filename, advice="run `python -m pretrain.render`, or give --data"
        ) from error


def save(folder: Path, style: str, art: Art) -> None:
    """Writes what `load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{style}.npz", images=art.images)
    (folder / f"{style}.json").write_text(json.dumps(art.records, ensure_ascii=False, indent=0), "utf-8")


def splits() -> dict[str, Any]:
    """Which concepts and which (concept, style) pairs are held out, and the concepts to adapt and to judge with."""
    return json.loads(Path(__file__).with_name("splits.json").read_text("utf-8"))


def is_validation(record: dict[str, Any], split: dict[str, Any]) -> bool:
    """Whether the picture is kept for validation: its concept and its style are known, together they are new."""
    return record["id"] in split["validation_pairs"].get(record["style"], ())


def pretraining(folder: Path, styles: tuple[str, ...] | None = None) -> Art:
    """All pictures that text encoder and U-Net may see: no novel concept, no validation pair."""
    split = splits()
    return together(folder, styles or sources.pretraining()).where_record(
        lambda r: r["id"] not in split["novel_concepts"] and not is_validation(r, split)
    )


def validation(folder: Path) -> Art:
    """The validation pairs of the pretraining styles."""
    split = splits()
    return together(folder, sources.pretraining()).where_record(lambda r: is_validation(r, split))


def together(folder: Path, styles: tuple[str, ...]) -> Art:
    """Several styles as one."""
    found = [load(folder, style) for style in styles]
    return Art(np.concatenate([f.images for f in found]), [r for f in found for r in f.records])


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr_db(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture in [-1, 1], on the range of one 8-bit picture."""
    return -10 * ((ours.clamp(-1, 1) - theirs) / 2).square().mean((1, 2, 3)).log10()
