"""The loss of LoRA files on pictures that nobody trained on, beside the base's.

The questions are those of `deltaw.judge.questions`: fixed noise, eight fixed times a picture, the
unweighted objective, so that every file answers the same ones and differences are paired.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from deltaw import formats, inject
from deltaw.data import buckets, feed, folder
from deltaw.data.cache import Cache
from deltaw.delta import Delta
from deltaw.events import silent
from deltaw.families.base import Base
from deltaw.judge import questions as asking
from deltaw.judge import scores

HERE = Path(__file__).parent
CPU = torch.device("cpu")


def questions(base: Base, pictures: Path, seed: int = 12345) -> asking.Questions:
    """The fixed questions about a folder of captioned pictures."""
    dataset = folder.scan(pictures)
    sizes = [buckets.bucket(p.size_px, base.resolution_px, base.bucket_step_px) for p in dataset.pictures]
    captions = [p.caption for p in dataset.pictures]
    with tempfile.TemporaryDirectory() as cache:
        data = feed.fill(base, dataset.pictures, sizes, captions, CPU, Cache(cache), silent)
    return asking.about(data.latents, [data.texts[c] for c in captions], base.objective, base.schedule, seed)


def compare(base: Base, pictures: Path, files: Sequence[Path]) -> list[scores.Score]:
    """Each file's score against the base, computed in float32."""
    probe = questions(base, pictures)
    unet = base.denoiser(CPU, torch.float32)
    shapes = formats.shapes_of(base.folder.path)

    def losses(deltas: list[tuple[Delta, float]]) -> torch.Tensor:
        with inject.applied({"unet": unet}, deltas):
            return probe.losses(lambda x, times, text: base.denoise(unet, x, times, text))

    without = losses([])
    plain = torch.ones_like(without)
    return [
        scores.score(i, losses([(formats.load(f, shapes=shapes)[0], 1.0)]), without, plain) for i, f in enumerate(files)
    ]
