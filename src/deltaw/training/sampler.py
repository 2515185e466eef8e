"""Which pictures a step sees: a pure function of the seed and the step, so resuming needs no state."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deltaw.errors import UsageError


@dataclass(frozen=True)
class Sampler:
    """Deals pictures out in batches of one bucket each.

    Every bucket is an endless row of shuffled rounds over its pictures, cut into batches, so a
    batch that does not divide the bucket runs on into the next round and nothing is dropped.
    Buckets take turns in proportion to their size.

    Args:
        buckets: (width, height) in px to the pictures' indices.
        batch: pictures per step; a bucket with fewer is seen whole, several times in a batch.
        seed: of the shuffles.
    """

    buckets: Mapping[tuple[int, int], Sequence[int]]
    batch: int
    seed: int

    def plan(self, n_steps: int) -> list[tuple[tuple[int, int], int]]:
        """For every step its bucket and how many batches that bucket has had before it.

        The bucket that is furthest behind its share goes next (the largest remainder), so after any
        number of steps each is within one batch of its share.
        """
        names = sorted(self.buckets)
        sizes = np.array([len(self.buckets[name]) for name in names], dtype=np.float64)
        share = sizes / sizes.sum()
        taken = np.zeros(len(names))
        turns = []
        for step in range(n_steps):
            chosen = int(np.argmax(share * (step + 1) - taken))
            turns.append((names[chosen], int(taken[chosen])))
            taken[chosen] += 1
        return turns

    def pictures(self, bucket: tuple[int, int], turn: int) -> list[int]:
        """The indices in a bucket's batch number `turn`, from 0."""
        members = self.buckets[bucket]
        first = turn * self.batch
        return [
            members[_shuffled(self.seed, bucket, i // len(members), len(members))[i % len(members)]]
            for i in range(first, first + self.batch)
        ]

    def visits(self, n_steps: int) -> dict[int, int]:
        """Picture index to how often n_steps steps visit it: what the plan promises."""
        count = {index: 0 for members in self.buckets.values() for index in members}
        for bucket, turn in self.plan(n_steps):
            for index in self.pictures(bucket, turn):
                count[index] += 1
        return count


@functools.lru_cache(maxsize=64)
def _shuffled(seed: int, bucket: tuple[int, int], turn: int, n: int) -> np.ndarray:
    """Round `turn` over a bucket's `n` pictures; kept, since a shuffle of a million takes longer than a step may wait."""
    # SeedSequence mixes its words, so neighbouring rounds are unrelated
    return np.random.default_rng([seed, *bucket, turn]).permutation(n)


def micro_batches(batch: int) -> list[int]:
    """How many of a step's pictures can be computed at a time, so that each time they are as many: most first."""
    small = [n for n in range(1, math.isqrt(batch) + 1) if batch % n == 0]
    return sorted({*small, *(batch // n for n in small)}, reverse=True)


def require_parts(batch: int, processes: int, micro_batch: int) -> None:
    """Refuses parts that do not make up a step.

    Raises:
        UsageError: `processes` is no divisor of `batch`, or `micro_batch` none of what each of them computes.
    """
    if processes not in (fitting := micro_batches(batch)):
        raise UsageError(f"a step of {batch} pictures cannot be shared out evenly among {processes} processes", where="processes",
                         expected=f"a divisor of batch: {', '.join(map(str, fitting))}", advice="give both, --batch and --set processes=N")  # fmt: skip
    if micro_batch not in (fitting := micro_batches(batch // processes)):
        whose = (
            f"a step of {batch} pictures" if processes == 1 else f"a process's share of {batch // processes} pictures"
        )
        raise UsageError(f"{whose} is not made of parts of {micro_batch}", where="micro_batch",
                         expected=f"a divisor of batch{' / processes' * (processes > 1)}: {', '.join(map(str, fitting))}", advice="give both, --batch and --set micro_batch=N")  # fmt: skip
