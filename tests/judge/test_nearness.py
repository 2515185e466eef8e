"""Copies are told from things in the same style."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.nn import functional

from deltaw.judge import nearness
from deltaw.judge.nearness import Gallery


def _pictures(n: int = 12, seed: int = 0) -> torch.Tensor:
    """Blobs of their own on a ground that all share."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 4, 4, 4, generator=generator)
    return 3.0 + torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic")


def _verdicts(samples: torch.Tensor) -> list[str]:
    gallery = Gallery(list(_pictures()), (16, 16))
    return [found.verdict for found in gallery.nearest(samples, gallery.limits(_pictures(8, seed=9)))]


def test_a_trained_picture_is_a_copy_mirrored_or_not_and_faint_or_not() -> None:
    mine = _pictures()
    gallery = Gallery(list(mine), (16, 16))
    limits = gallery.limits(_pictures(8, seed=9))
    [plain] = gallery.nearest(mine[3:4], limits)
    assert (plain.index, plain.mirrored, plain.verdict) == (3, False, "copied")
    [flipped] = gallery.nearest(mine[3:4].flip(-1), limits)
    assert (flipped.index, flipped.mirrored, flipped.verdict) == (3, True, "copied")
    assert abs(flipped.distance - plain.distance) < 1e-5
    [noisy] = gallery.nearest(0.5 * mine[3:4] + 1.5 + 0.1 * torch.randn(1, 4, 16, 16), limits)
    assert (noisy.index, noisy.verdict) == (3, "copied")


def test_other_pictures_of_the_style_are_novel_and_half_of_one_is_close() -> None:
    assert _verdicts(_pictures(10, seed=5)).count("novel") >= 8
    mixed = 0.6 * _pictures()[:4] + 0.4 * _pictures(4, seed=7)
    assert "novel" not in _verdicts(mixed)


def test_doubles_among_the_pictures_do_not_make_the_limit_nothing() -> None:
    mine = [*_pictures(), _pictures()[0]]
    gallery = Gallery(mine, (16, 16))
    assert gallery.limits(_pictures(8, seed=9)).close > 0.1


def test_a_single_picture_is_judged_by_the_bases_samples() -> None:
    gallery = Gallery([_pictures()[0]], (16, 16))
    limits = gallery.limits(_pictures(8, seed=9))
    assert "the base's samples" in limits.reason


def test_pictures_of_other_shapes_are_resized() -> None:
    wide = torch.nn.functional.interpolate(_pictures()[:1], (16, 24), mode="bilinear")[0]
    gallery = Gallery([wide, *_pictures()[1:]], (16, 16))
    assert gallery.nearest(_pictures()[1:2], gallery.limits(_pictures(8, seed=9)))[0].index == 1


def test_what_is_found_block_by_block_is_what_all_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "BLOCK", 5)
    monkeypatch.setattr(nearness, "MOST_ASKED", 7)
    pictures, base, samples = (
        _pictures(23),
        _pictures(8, seed=9),
        torch.cat([_pictures(23)[20:22].flip(-1), _pictures(3, seed=4)]),
    )
    gallery = Gallery([_pictures(1, seed=3)[0], *pictures], (16, 16), chosen=range(1, 24))
    mean = (pictures.mean(0) + pictures.mean(0).flip(-1)) / 2

    def distances(these: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ours, theirs, turned = (
            functional.normalize((x - mean).flatten(1), dim=1) for x in (pictures, these, these.flip(-1))
        )
        return 1 - torch.maximum(theirs @ ours.T, turned @ ours.T), turned @ ours.T > theirs @ ours.T

    limits = gallery.limits(base)
    among = distances(pictures)[0].fill_diagonal_(torch.inf)[::4].min(1).values  # 6 of 23, no more than 7
    wanted = min(float(distances(base)[0].min(1).values.quantile(0.05)), float(among.quantile(0.05)))
    assert limits.close == pytest.approx(wanted, rel=1e-5)
    found = gallery.nearest(samples, limits)
    far, mirrored = distances(samples)
    assert [n.index for n in found] == far.argmin(1).tolist()
    assert [n.distance for n in found] == pytest.approx(far.min(1).values.tolist(), abs=1e-6)
    assert [n.mirrored for n in found] == [bool(mirrored[i, n.index]) for i, n in enumerate(found)]
    assert [(n.index, n.mirrored) for n in found[:2]] == [(20, True), (21, True)]
    assert torch.equal(gallery[found[0].index], pictures[20])


def test_many_pictures_are_never_all_in_memory_at_once() -> None:
    """Their latents may lie in the cache; only one block of them is asked for between two questions."""

    class Counted(list[torch.Tensor]):
        alive = most = 0

        def __getitem__(self, index: int) -> torch.Tensor:
            latent = torch.full((4, 4, 4), float(index))
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)
            weakref.finalize(latent, self._gone)
            return latent

        def _gone(self) -> None:
            Counted.alive -= 1

        def __len__(self) -> int:
            return 3000

    gallery = Gallery(Counted(), (4, 4))
    gallery.nearest(torch.randn(3, 4, 4, 4), gallery.limits(torch.randn(3, 4, 4, 4)))
    assert Counted.most <= nearness.MOST_ASKED + nearness.BLOCK
