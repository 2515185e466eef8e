import random

import pytest

from deltaw.data import buckets
from deltaw.data.buckets import assign, bucket, crop_share, upscale
from deltaw.data.image import crop_box
from deltaw.errors import UsageError

BASES = [(128, 32), (128, 16), (256, 32), (512, 64), (768, 64), (1024, 64)]


def sizes(n: int = 300) -> list[tuple[int, int]]:
    draw = random.Random(0)
    return [(int(16 * 2 ** draw.uniform(0, 8)), int(16 * 2 ** draw.uniform(0, 8))) for _ in range(n)]


@pytest.mark.parametrize(("resolution", "step"), BASES)
def test_every_bucket_keeps_the_promises(resolution, step):
    for size in sizes():
        w, h = bucket(size, resolution, step)
        assert w % step == h % step == 0
        assert w * h <= resolution**2
        assert max(w, h) <= 2 * min(w, h)
        assert w * h >= resolution**2 / 8  # a quarter of the pixels at half the resolution, and the multiples' loss
        assert (w >= h) == (size[0] >= size[1]) or w == h


@pytest.mark.parametrize(("resolution", "step"), BASES)
def test_square_is_exact(resolution, step):
    assert bucket((3000, 3000), resolution, step) == (resolution, resolution)
    assert bucket((resolution, resolution), resolution, step) == (resolution, resolution)


@pytest.mark.parametrize(("resolution", "step"), BASES)
def test_turned_picture_gets_the_turned_bucket(resolution, step):
    for w, h in sizes():
        assert bucket((w, h), resolution, step) == bucket((h, w), resolution, step)[::-1]


def test_bucket_cuts_least():
    for size in sizes():
        size = (size[0] + 4000, size[1] + 4000)  # large enough for the full resolution
        chosen = bucket(size, 512)
        assert all(crop_share(size, chosen) <= crop_share(size, other) for other in buckets.ladder(512, 64))


def test_enlarging_is_avoided_down_to_half_the_resolution():
    assert bucket((400, 400), 512) == (512, 512)
    assert bucket((256, 256), 512) == (512, 512)
    assert bucket((255, 255), 512) == (448, 448)
    assert bucket((130, 130), 512) == (256, 256)
    assert bucket((40, 40), 512) == (256, 256)
    assert upscale((40, 40), (256, 256)) == 6.4


def test_crop_share_is_the_area_outside_the_crop_box():
    for size in sizes():
        size = (size[0] + 500, size[1] + 500)
        shape = bucket(size, 512)
        left, top, right, bottom = crop_box(size, shape)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        seen = (right - left) * (bottom - top) / (size[0] * size[1])
        assert seen == pytest.approx(1 - crop_share(size, shape), abs=2e-3)
        assert abs(left - (size[0] - right)) <= 1
        assert abs(top - (size[1] - bottom)) <= 1


def test_assign_loses_nobody():
    many = sizes(1000)
    found = assign(many, 512)
    assert sorted(index for members in found.values() for index in members) == list(range(1000))
    assert all(bucket(many[index], 512) == shape for shape, members in found.items() for index in members)
    assert list(found) == sorted(found)
    assert all(members == sorted(members) for members in found.values())


def test_notes_say_what_is_lost():
    assert buckets.notes((512, 512), (512, 512), 512) == ()
    assert buckets.notes((1200, 300), (640, 384), 512) == ("58% is cut off to fit 640×384 (the picture is 1200×300)",)
    assert buckets.notes((130, 130), (256, 256), 512) == (
        "small (130×130): trained at 256×256 instead of about 512×512",
    )
    assert "enlarged 6.4 times" in buckets.notes((40, 40), (256, 256), 512)[0]


@pytest.mark.parametrize(("resolution", "nearest"), [(513, "512 or 576"), (500, "448 or 512"), (20, "64 or 64")])
def test_resolution_that_fits_no_step_is_refused(resolution, nearest):
    with pytest.raises(UsageError) as caught:
        bucket((100, 100), resolution)
    assert caught.value.expected == nearest
