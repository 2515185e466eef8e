"""Copies are told from things in the same style."""

from __future__ import annotations

import torch

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
