"""What the trainers are given: a base and a folder of captioned pictures, as each of them wants it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from deltaw.data import folder as pictures
from deltaw.data import image


@dataclass(frozen=True)
class Job:
    """One piece of work, the same for every trainer.

    Args:
        base: a diffusers folder.
        pictures: with one .txt a picture; `listed`: the same with a metadata.jsonl; `counted`: in a folder
            "1_NAME" of its parent, as sd-scripts wants it.
        px, batch, steps, rank: of the training.
    """

    base: Path
    pictures: Path
    px: int
    batch: int
    steps: int
    rank: int = 8

    @property
    def listed(self) -> Path:
        return self.pictures.with_name("listed")

    @property
    def counted(self) -> Path:
        return self.pictures.with_name("counted")


def prepare(source: Path, scratch: Path, px: int) -> Path:
    """Makes a folder of pictures in the three forms, each picture of `px` × `px`, so that no trainer sees smaller ones; gives the first."""
    found = pictures.scan(source).pictures
    plain, listed, counted = scratch / "plain", scratch / "listed", scratch / "counted" / "1_pictures"
    for out in (plain, listed, counted):
        out.mkdir(parents=True)
    rows = []
    for i, picture in enumerate(found):
        name = f"{i:03d}.png"
        square = Image.fromarray(image.fit(image.load(picture.path), (px, px)))
        for out in (plain, listed, counted):
            square.save(out / name)
        for out in (plain, counted):
            (out / name).with_suffix(".txt").write_text(picture.caption, "utf-8")
        rows.append(json.dumps({"file_name": name, "text": picture.caption}))
    (listed / "metadata.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    return plain
