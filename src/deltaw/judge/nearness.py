"""Memorisation: how near a drawn picture comes to a trained one, in latent space and whether or not it is mirrored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

QUANTILE = 0.05
"""How near the nearest twentieth of unrelated pictures come to one another: nearer than that is no chance."""
COPY_SHARE = 0.5
"""Of that distance: so near that a picture is the trained one, redrawn."""

BLOCK = 128
"""Pictures that are compared at once; of 1024 px, four channels, 34 MB."""
MOST_ASKED = 512
"""Pictures whose distance from all others is found."""


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
    """The trained pictures, read a block at a time as often as they are asked about: there may be more than memory holds.

    The distance is 1 - cosine of two latents after the mean of all trained pictures is taken off: what they share
    (a white ground, a centred thing) tells nothing, and neither does contrast.

    Args:
        latents: per picture (c, h, w); those of another shape than the samples are resized to it.
        shape: (h, w) of the samples.
        chosen: indices of the latents that are in the gallery; default: all.
    """

    def __init__(self, latents: Sequence[Tensor], shape: tuple[int, int], chosen: Sequence[int] | None = None):
        self._all, self._shape = latents, shape
        self._chosen = range(len(latents)) if chosen is None else chosen
        total = torch.zeros(())
        for block in self._blocks():
            total = total + block.sum(0)
        mean = total / len(self._chosen)
        self._mean = (mean + mean.flip(-1)) / 2  # so that a picture and its mirror image are equally far

    def __getitem__(self, index: int) -> Tensor:
        """A picture's latent, (c, h, w) with the samples' h and w."""
        latent = self._all[self._chosen[index]].float()
        if latent.shape[1:] == self._shape:
            return latent
        return functional.interpolate(latent[None], self._shape, mode="bilinear", antialias=True)[0]

    def _blocks(self) -> Iterator[Tensor]:
        n = len(self._chosen)
        for begin in range(0, n, BLOCK):
            yield torch.stack([self[i] for i in range(begin, min(begin + BLOCK, n))])

    def _distances(self, samples: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(m, c, h, w) samples to a block's first index, their (m, n) distances from its n pictures, and whether mirrored."""
        theirs, turned, at = self._normed(samples), self._normed(samples.flip(-1)), 0
        for block in self._blocks():
            ours = self._normed(block)
            straight, mirrored = theirs @ ours.T, turned @ ours.T
            yield at, 1 - torch.maximum(straight, mirrored), mirrored > straight
            at += len(block)

    def _normed(self, latents: Tensor) -> Tensor:
        return functional.normalize((latents.float() - self._mean).flatten(1), dim=1)

    def limits(self, base_samples: Tensor) -> Limits:
        """What counts as near: the distances of trained pictures from one another and of the base's own samples.

        The base has not seen the pictures, and no trained picture is a copy of another (exact doubles apart), so a
        sample that is nearer than nearly all of these is near because it was learnt by heart. Of many pictures `MOST_ASKED`,
        evenly spread, are asked how far all others are.

        Args:
            base_samples: (m, c, h, w), drawn by the base alone on the same prompts and seeds.
        """
        n = len(self._chosen)
        asked = torch.arange(0, n, -(-n // MOST_ASKED))
        samples = torch.cat([base_samples.float(), torch.stack([self[int(i)] for i in asked])])
        least = torch.full((len(samples),), torch.inf)
        for at, distances, _ in self._distances(samples):
            own = (asked >= at) & (asked < at + distances.shape[1])
            distances[len(base_samples) :][own, asked[own] - at] = torch.inf
            least = torch.minimum(least, distances.min(1).values)
        of_base, apart = least[: len(base_samples)], least[len(base_samples) :]
        found = [("the base's samples", of_base)]
        apart = apart[torch.isfinite(apart) & (apart > 1e-3)]
        if len(apart):
            found.append(("the trained pictures among one another", apart))
        name, close = min(((name, float(d.quantile(QUANTILE))) for name, d in found), key=lambda item: item[1])
        return Limits(close, COPY_SHARE * close, f"nearer than 95 % of {name} are to their nearest trained picture")

    def nearest(self, samples: Tensor, limits: Limits) -> list[Nearest]:
        """The nearest trained picture of each of (m, c, h, w) samples."""
        least = torch.full((len(samples),), torch.inf)
        index, flipped = torch.zeros(len(samples), dtype=torch.long), torch.zeros(len(samples), dtype=torch.bool)
        for at, distances, mirrored in self._distances(samples):
            here, nearest = distances.min(1)
            nearer = here < least
            least = torch.where(nearer, here, least)
            index = torch.where(nearer, at + nearest, index)
            flipped = torch.where(nearer, mirrored.gather(1, nearest[:, None])[:, 0], flipped)
        return [_judged(*found, limits) for found in zip(index.tolist(), least.tolist(), flipped.tolist(), strict=True)]

    def nearest_of_rows(self, rows: Sequence[Tensor], limits: Limits) -> list[tuple[Nearest, ...]]:
        """As `nearest`, for several rows of samples: all pictures are gone through once for all of them."""
        found = iter(self.nearest(torch.cat([*rows]), limits))
        return [tuple(itertools.islice(found, len(row))) for row in rows]


def _judged(index: int, distance: float, mirrored: bool, limits: Limits) -> Nearest:
    verdict = "copied" if distance < limits.copied else "close" if distance < limits.close else "novel"
    return Nearest(index, distance, mirrored, verdict)
