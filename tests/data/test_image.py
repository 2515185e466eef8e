import numpy as np
import pytest
from PIL import Image

from deltaw.data.image import crop_box, fit, load


def test_fit_of_the_same_size_changes_no_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert (fit(Image.fromarray(pixels), (96, 64)) == pixels).all()


def test_fit_shows_the_middle():
    pixels = np.zeros((60, 200, 3), np.uint8)
    pixels[:, 70:130] = (0, 200, 0)
    found = fit(Image.fromarray(pixels), (60, 60))
    assert found.shape == (60, 60, 3)
    assert found.dtype == np.uint8
    assert (found == (0, 200, 0)).all()


def test_fit_does_not_alias():
    """Every second column white: reduced by 8 it is grey, not stripes."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, ::2] = 255
    found = fit(Image.fromarray(pixels), (32, 32))
    assert np.abs(found[2:-2, 2:-2].astype(int) - 128).max() <= 2  # at the border the kernel is cut off


def test_fit_can_be_trained_on_directly():
    found = fit(Image.new("RGB", (50, 40)), (32, 32))
    assert found.flags.writeable
    assert found.flags.c_contiguous


@pytest.mark.parametrize(
    ("size", "bucket", "box"),
    [
        ((512, 384), (160, 96), (0, 38, 512, 345)),
        ((384, 512), (96, 160), (38, 0, 345, 512)),
        ((100, 100), (128, 128), (0, 0, 100, 100)),
        ((1000, 16), (160, 96), (486, 0, 513, 16)),
    ],
)
def test_crop_box(size, bucket, box):
    assert crop_box(size, bucket) == box


def test_load_is_the_same_twice(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    assert load(path).tobytes() == load(str(path)).tobytes()
