"""Every picture is seen as often as promised, whatever the batch and the buckets."""

from __future__ import annotations

import pytest

from deltaw.training.sampler import Sampler

BUCKETS = {
    "one": {(64, 64): list(range(10))},
    "uneven": {(64, 64): list(range(7)), (96, 64): [7], (64, 96): [8, 9, 10]},
}


@pytest.mark.parametrize("batch", [1, 3, 4, 16])
@pytest.mark.parametrize("buckets", BUCKETS.values(), ids=BUCKETS)
def test_visits_differ_by_no_more_than_a_batch(buckets: dict[tuple[int, int], list[int]], batch: int) -> None:
    sampler = Sampler(buckets, batch, seed=5)
    n = sum(len(members) for members in buckets.values())
    n_steps = 40 * n
    visits = sampler.visits(n_steps)
    assert sum(visits.values()) == n_steps * batch
    for members in buckets.values():
        counts = [visits[i] for i in members]
        assert max(counts) - min(counts) <= 1, "inside a bucket rounds are complete"
        assert abs(sum(counts) - n_steps * batch * len(members) / n) <= batch


def test_nothing_is_dropped_when_the_batch_does_not_divide_the_set() -> None:
    sampler = Sampler({(64, 64): list(range(5))}, batch=2, seed=0)
    seen = [i for turn in range(5) for i in sampler.pictures((64, 64), turn)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))


def test_a_step_is_a_function_of_seed_and_step() -> None:
    one, other = (Sampler(BUCKETS["uneven"], 4, seed) for seed in (1, 2))
    assert one.plan(50)[:20] == one.plan(20)
    assert one.pictures((64, 64), 7) == Sampler(BUCKETS["uneven"], 4, 1).pictures((64, 64), 7)
    assert any(one.pictures((64, 64), t) != other.pictures((64, 64), t) for t in range(5))
