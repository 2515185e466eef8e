"""Memorisation: how near a drawn picture comes to a trained one, in latent space and whether or not it is mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

QUANTILE = 0.05
"""How near the nearest twentieth of unrelated pictures come to one another: nearer than that is no chance."""
COPY_SHARE = 0.5
"""Of that distance: so near that a picture is the trained one, redrawn."""


@dataclass(frozen=True)
class Limits:
    """Distances below which a sample is close to a trained picture, or a copy of it, and where they come from."""

    close: float
    copied: float
    reason: str


@dataclass(frozen=True)
class Nearest:
    """The trained picture that a sample is nearest to.

    Args:
        index: of the picture in the gallery.
        distance: 0 is the picture itself, 1 is unrelated.
        mirrored: whether it is nearer as its mirror image.
        verdict: "copied", "close" or "novel".
    """

    index: int
    distance: float
    mirrored: bool
    verdict: str


class Gallery:
    """The trained pictures.

    The distance is 1 - cosine of two latents after the mean of all trained pictures is taken off: what they share
    (a white ground, a centred thing) tells nothing, and neither does contrast.

    Args:
        latents: per picture (c, h, w); those of another shape than the samples are resized to it.
        shape: (h, w) of the samples.
    """

    def __init__(self, latents: Sequence[Tensor], shape: tuple[int, int]):
        same = [functional.interpolate(x[None].float(), shape, mode="bilinear", antialias=True)[0] for x in latents]
        self.latents = torch.stack(same)
        self.mean = self.latents.mean(0)
        self.mean = (self.mean + self.mean.flip(-1)) / 2  # so that a picture and its mirror image are equally far

    def distances(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(m, c, h, w) samples to their (m, n) distances from every trained picture, and whether mirrored."""
        ours, theirs = self._normed(self.latents), self._normed(samples)
        straight, mirrored = theirs @ ours.T, self._normed(samples.flip(-1)) @ ours.T
        return 1 - torch.maximum(straight, mirrored), mirrored > straight

    def _normed(self, latents: Tensor) -> Tensor:
        return functional.normalize((latents.float() - self.mean).flatten(1), dim=1)

    def limits(self, base_samples: Tensor) -> Limits:
        """What counts as near: the distances of trained pictures from one another and of the base's own samples.

        The base has not seen the pictures, and no trained picture is a copy of another (exact doubles apart), so a
        sample that is nearer than nearly all of these is near because it was learnt by heart.

        Args:
            base_samples: (m, c, h, w), drawn by the base alone on the same prompts and seeds.
        """
        of_base, _ = self.distances(base_samples)
        found = [("the base's samples", of_base.min(1).values)]
        among, _ = self.distances(self.latents)
        among.fill_diagonal_(torch.inf)
        apart = among.min(1).values
        apart = apart[torch.isfinite(apart) & (apart > 1e-3)]
        if len(apart):
            found.append(("the trained pictures among one another", apart))
        name, close = min(((name, float(d.quantile(QUANTILE))) for name, d in found), key=lambda item: item[1])
        return Limits(close, COPY_SHARE * close, f"nearer than 95 % of {name} are to their nearest trained picture")

    def nearest(self, samples: Tensor, limits: Limits) -> list[Nearest]:
        """The nearest trained picture of each of (m, c, h, w) samples."""
        distances, mirrored = self.distances(samples)
        found = []
        for row, flipped in zip(distances, mirrored, strict=True):
            index = int(row.argmin())
            distance = float(row[index])
            verdict = "copied" if distance < limits.copied else "close" if distance < limits.close else "novel"
            found.append(Nearest(index, distance, bool(flipped[index]), verdict))
        return found
