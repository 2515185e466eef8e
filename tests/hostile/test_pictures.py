"""Bad pictures as they are found in the wild: one test, or one group of tests, a row of the list of bad inputs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import resource
import socket
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from deltaw.data import buckets, lint
from deltaw.data.cache import key
from deltaw.data.folder import Dataset, scan
from deltaw.data.image import crop_box, fit, load
from deltaw.data.looks import look_at
from deltaw.errors import InputError

PIXELS = "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF"


def drawing(size: tuple[int, int] = (96, 64), seed: int = 0) -> Image.Image:
    """Soft coloured blobs, different for every seed and without any symmetry."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def put(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or drawing()).save(path, **options)
    return path


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reasons(dataset: Dataset) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in dataset.skipped}


def names(dataset: Dataset) -> list[str]:
    return [picture.name for picture in dataset.pictures]


def close(found: Image.Image, wanted: Image.Image, most: float) -> bool:
    assert found.mode == wanted.mode == "RGB"
    assert found.size == wanted.size
    return float(np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).mean()) <= most


# Row 1: cut off


@pytest.mark.parametrize("kind", PIXELS)
def test_row_01_truncated_file_is_skipped(tmp_path, kind):
    put(tmp_path / "whole.png")
    raw = encoded(drawing((400, 300)), kind)
    (tmp_path / "half.png").write_bytes(raw[: len(raw) // 2])
    dataset = scan(tmp_path)
    assert names(dataset) == ["whole.png"]
    assert "cut off" in reasons(dataset)["half.png"] or "damaged" in reasons(dataset)["half.png"]


def test_row_01_truncated_jpeg_stays_refused_where_another_library_lets_it_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    raw = encoded(drawing((400, 300)), "JPEG", progressive=True)
    (tmp_path / "half.jpg").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"cut off"):
        load(tmp_path / "half.jpg")
    with pytest.raises(InputError, match=r"no picture can be used \(skipped: 1,"):
        scan(tmp_path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


# Row 2: no pictures


def test_row_02_empty_and_foreign_files(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "zero.png").touch()
    (tmp_path / "page.png").write_text("<!DOCTYPE html><html>404</html>")
    (tmp_path / "words.jpg").write_text("the picture was here")
    (tmp_path / "lfs.webp").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "LICENSE").write_text("free")
    put(tmp_path / "__MACOSX" / "._a.jpeg", format="JPEG")
    for name in ("._x.jpeg", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\x05\x16\x07junk")
    dataset = scan(tmp_path)
    assert names(dataset) == ["a.png"]
    found = reasons(dataset)
    assert set(found) == {"zero.png", "page.png", "words.jpg", "lfs.webp"}
    assert "an empty file" in found["zero.png"]
    assert "a web page" in found["page.png"]
    assert "plain text" in found["words.jpg"]
    assert "git lfs pull" in found["lfs.webp"]
    assert dataset.n_ignored == 6
    assert any("LICENSE" in note for note in dataset.notes)


# Row 3: the name lies


def test_row_03_content_decides(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(drawing(seed=1), "WEBP"))
    (tmp_path / "b.Jpg").write_bytes(encoded(drawing(seed=2), "JPEG"))
    (tmp_path / "c").write_bytes(encoded(drawing(seed=3), "PNG"))
    (tmp_path / "d.dat").write_bytes(encoded(drawing(seed=4), "BMP"))
    (tmp_path / "e.PNG").write_bytes(encoded(drawing(seed=5), "PNG"))
    dataset = scan(tmp_path)
    assert names(dataset) == ["a.jpg", "b.Jpg", "c", "d.dat", "e.PNG"]
    assert not dataset.skipped


# Row 4: orientation

STORED = {  # what a camera stores for an upright picture, so that its tag undoes it
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_row_04_exif_orientation(tmp_path, kind, orientation):
    upright, turn = drawing((96, 64)), STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    path.write_bytes(encoded(upright.transpose(turn) if turn is not None else upright, kind, exif=exif, quality=95))
    assert close(load(path), upright, 6)
    assert scan(tmp_path).pictures[0].size_px == (96, 64)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\x00\x20"]
)
def test_row_04_broken_exif_is_told(tmp_path, exif):
    path = put(tmp_path / "a.jpg", exif=exif)
    (picture,) = scan(tmp_path).pictures
    assert picture.notes == ("damaged EXIF: taken as it is", *picture.notes[1:])
    assert load(path).size == (96, 64)


def test_row_04_orientation_that_means_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    put(tmp_path / "a.jpg", exif=exif)
    assert "EXIF orientation 9 means nothing: taken as it is" in scan(tmp_path).pictures[0].notes


# Row 5: transparency


def _hidden_red() -> Image.Image:
    """Left half transparent red, right half opaque blue."""
    pixels = np.zeros((32, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 0)
    pixels[:, 32:] = (0, 0, 255, 255)
    return Image.fromarray(pixels)


def _on_white(path: Path) -> None:
    pixels = np.asarray(load(path))
    assert (pixels[:, :32] == 255).all()
    assert (pixels[:, 32:] != 255).any()


def test_row_05_rgba_hides_no_colour(tmp_path):
    _on_white(put(tmp_path / "a.png", _hidden_red()))
    (picture,) = scan(tmp_path).pictures
    assert "transparent: placed on white" in picture.notes


def test_row_05_half_transparent_is_blended(tmp_path):
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 128))
    assert np.abs(np.asarray(load(put(tmp_path / "a.png", image)))[0, 0].astype(int) - (227, 127, 127)).max() <= 1


def test_row_05_grey_with_alpha(tmp_path):
    image = Image.merge("LA", [Image.new("L", (64, 32), 40), _hidden_red().getchannel("A")])
    _on_white(put(tmp_path / "a.png", image))


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_row_05_palette_with_transparency(tmp_path, transparency):
    image = Image.new("P", (64, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 32, 32))
    _on_white(put(tmp_path / "a.png", image, transparency=transparency))


def test_row_05_one_colour_called_transparent(tmp_path):
    _on_white(put(tmp_path / "a.png", _hidden_red().convert("RGB"), transparency=(255, 0, 0)))


def test_row_05_fully_transparent_is_skipped(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "ghost.png", Image.new("RGBA", (64, 64), (255, 0, 0, 0)))
    assert "every pixel is transparent" in reasons(scan(tmp_path))["ghost.png"]


def test_row_05_opaque_alpha_is_no_news(tmp_path):
    put(tmp_path / "a.png", drawing().convert("RGBA"))
    assert scan(tmp_path).pictures[0].notes == ("no caption: the file name describes nothing",)


# Row 6: more than 8 bits


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_row_06_sixteen_bit_ramp_keeps_its_shades(tmp_path, name):
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    path = put(tmp_path / name, Image.fromarray(ramp))
    wanted = np.rint(ramp / 257).astype(np.uint8)
    assert (np.asarray(load(path))[..., 0] == wanted).all()


def test_row_06_big_endian_tiff(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(">u2").reshape(64, 64)
    path = put(tmp_path / "a.tif", Image.frombytes("I;16B", (64, 64), ramp.tobytes()))
    assert (np.asarray(load(path))[..., 0] == np.rint(ramp / 257)).all()


def test_row_06_sixteen_bit_with_a_transparent_level(tmp_path):
    values = np.full((32, 32), 1000, np.uint16)
    values[:, 16:] = 30000
    path = tmp_path / "a.png"
    raw = encoded(Image.fromarray(values), "PNG")
    chunk = b"tRNS" + struct.pack(">H", 1000)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    at = raw.index(b"IDAT") - 4
    path.write_bytes(raw[:at] + chunk + raw[at:])
    pixels = np.asarray(load(path))[..., 0]
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:] == round(30000 / 257)).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-3.0, 900.0)])
def test_row_06_floating_point_tiff(tmp_path, low, high):
    ramp = np.linspace(low, high, 64 * 64, dtype=np.float32).reshape(64, 64)
    pixels = np.asarray(load(put(tmp_path / "a.tif", Image.fromarray(ramp))))[..., 0]
    assert np.abs(pixels - np.linspace(0, 255, 64 * 64).reshape(64, 64)).max() <= 0.51
    told = any("stretched" in note for note in scan(tmp_path).pictures[0].notes)
    assert told == (low < 0)


def test_row_06_floating_point_with_nan_is_skipped(tmp_path):
    put(tmp_path / "a.tif", Image.fromarray(np.full((32, 32), np.nan, np.float32)))
    with pytest.raises(InputError, match="not finite"):
        load(tmp_path / "a.tif")


# Row 7: colour spaces. Profiles are made here from their published primaries.

D50 = np.array([0.9642, 1.0, 0.8249])
TO_XYZ_D50 = {  # linear RGB to XYZ, adapted to D50 (Bradford), columns R, G, B
    "sRGB": [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]],
    "Display P3": [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]],
    "Adobe RGB": [[0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197], [0.0194811, 0.0608902, 0.7448387]],
}  # fmt: skip
GAMMA = {"Display P3": 2.2, "Adobe RGB": 563 / 256}
PATCHES = [(128, 128, 128), (150, 90, 60), (60, 120, 80), (90, 110, 170), (200, 180, 140), (240, 240, 240)]


def _icc(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC version 2 profile of these tags."""
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for signature, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += signature + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"\0\0\0\0", 0x02100000, kind, space, pcs)
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + _xyz(D50)[8:] + b"\0" * 48
    return header + struct.pack(">I", len(tags)) + table + body


def _xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(v) * 65536) for v in values))


def _described(name: str) -> dict[bytes, bytes]:
    text = name.encode() + b"\0"
    return {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78, b"cprt": b"text\0\0\0\0none\0"}


def rgb_profile(name: str) -> bytes:
    matrix = np.array(TO_XYZ_D50[name])
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA[name] * 256))
    columns = {tag: _xyz(matrix[:, i]) for i, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _icc(b"RGB ", b"mntr", b"XYZ ", {**_described(name), b"wtpt": _xyz(D50), **columns, **curves})


def cmyk_profile() -> bytes:
    """A press whose every ink combination prints as the grey Lab (100 - 100·K, 0, 0): easy to recognise."""
    ramp = bytes(range(256))
    grid = b"".join(bytes([0 if k else 255, 128, 128]) for _ in range(8) for k in (0, 1))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
    return _icc(b"CMYK", b"prtr", b"Lab ", {**_described("grey press"), b"wtpt": _xyz(D50), b"A2B0": lut})


def _srgb_from_xyz(xyz: np.ndarray) -> np.ndarray:
    linear = np.clip(np.linalg.inv(np.array(TO_XYZ_D50["sRGB"])) @ xyz, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _lab(rgb) -> np.ndarray:
    value = np.asarray(rgb, dtype=float) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    f = np.cbrt(np.array(TO_XYZ_D50["sRGB"]) @ linear / D50)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _delta_e(found, wanted) -> float:
    return float(np.linalg.norm(_lab(found) - _lab(wanted)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("patch", PATCHES)
def test_row_07_profile_is_followed(tmp_path, name, kind, patch):
    path = tmp_path / "a.png"
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    path.write_bytes(encoded(Image.new("RGB", (32, 32), patch), kind, icc_profile=rgb_profile(name), **options))
    wanted = _srgb_from_xyz(np.array(TO_XYZ_D50[name]) @ (np.array(patch) / 255) ** GAMMA[name])
    assert _delta_e(np.asarray(load(path))[16, 16], wanted) < 1.5


def test_row_07_grey_picture_with_a_colour_profile(tmp_path):
    path = put(tmp_path / "a.jpg", Image.new("L", (32, 32), 100), quality=100, icc_profile=rgb_profile("Adobe RGB"))
    wanted = _srgb_from_xyz(np.array(TO_XYZ_D50["Adobe RGB"]) @ np.full(3, (100 / 255) ** GAMMA["Adobe RGB"]))
    assert _delta_e(np.asarray(load(path))[16, 16], wanted) < 1


def test_row_07_grey_picture_with_a_grey_profile(tmp_path):
    linear = b"curv" + bytes(8)  # no entries: linear light
    profile = _icc(b"GRAY", b"mntr", b"XYZ ", {**_described("linear grey"), b"wtpt": _xyz(D50), b"kTRC": linear})
    path = put(tmp_path / "a.png", Image.new("L", (32, 32), 128), icc_profile=profile)
    assert abs(int(np.asarray(load(path))[16, 16, 0]) - 188) <= 1  # sRGB's code for half of the light


def test_row_07_profile_is_told_and_transparency_kept(tmp_path):
    put(tmp_path / "a.png", _hidden_red(), icc_profile=rgb_profile("Adobe RGB"))
    _on_white(tmp_path / "a.png")
    assert "colours converted from Adobe RGB to sRGB" in scan(tmp_path).pictures[0].notes


def test_row_07_srgb_profile_changes_no_bit(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = drawing()
    assert load(put(tmp_path / "a.png", image, icc_profile=profile)).tobytes() == image.tobytes()


@pytest.mark.parametrize("profile", [b"no profile", rgb_profile("Adobe RGB")[:200], cmyk_profile()])
def test_row_07_unusable_profile_is_told(tmp_path, profile):
    image = drawing()
    assert load(put(tmp_path / "a.png", image, icc_profile=profile)).tobytes() == image.tobytes()
    assert any("taken as sRGB" in note for note in scan(tmp_path).pictures[0].notes)


def test_row_07_cmyk_through_its_profile(tmp_path):
    image = Image.merge("CMYK", [Image.new("L", (32, 32), ink) for ink in (255, 255, 255, 128)])
    path = put(tmp_path / "a.jpg", image, quality=100, icc_profile=cmyk_profile())
    lightness = _lab(np.asarray(load(path))[16, 16])
    assert abs(lightness[0] - 50) < 2  # all that ink without the profile is black
    assert abs(lightness[1]) + abs(lightness[2]) < 1


def test_row_07_cmyk_without_profile_is_told(tmp_path):
    image = drawing()
    path = put(tmp_path / "a.jpg", image.convert("CMYK"), quality=100)
    assert close(load(path), image, 4)
    assert any("CMYK without" in note for note in scan(tmp_path).pictures[0].notes)


def test_row_07_ycck(tmp_path):
    """Adobe's four-channel YCC: Y, Cb and Cr of the inks instead of the inks, told by flag 2 in the APP14 marker."""
    image = drawing()
    ycc = [np.asarray(band) for band in ImageOps.invert(image).convert("YCbCr").split()]
    stored = Image.merge("CMYK", [*(Image.fromarray(255 - band) for band in ycc), Image.new("L", image.size, 0)])
    raw = bytearray(encoded(stored, "JPEG", quality=100, subsampling=0))
    raw[raw.index(b"Adobe") + 11] = 2
    (tmp_path / "a.jpg").write_bytes(raw)
    assert close(load(tmp_path / "a.jpg"), image, 4)


def test_row_07_lab_tiff(tmp_path):
    image = drawing()
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(image, transform)
    assert close(load(put(tmp_path / "a.tif", lab)), image, 3)


def test_row_07_one_bit(tmp_path):
    pixels = np.asarray(load(put(tmp_path / "a.png", drawing().convert("1"))))
    assert set(np.unique(pixels)) == {0, 255}


def test_row_07_sixteen_bit_colour(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32896, 0) * 32 for _ in range(32))
    (tmp_path / "a.png").write_bytes(png(32, 32, zlib.compress(rows), depth=16))
    assert np.asarray(load(tmp_path / "a.png"))[0, 0].tolist() == [255, 128, 0]


# Row 8: several frames


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_row_08_first_frame(tmp_path, kind):
    first = Image.new("RGB", (64, 64), (0, 0, 255))
    others = [Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 255, 0))]
    (tmp_path / "a.png").write_bytes(encoded(first, kind, save_all=True, append_images=others))
    (picture,) = scan(tmp_path).pictures
    assert ("several pages: the first one" if kind == "TIFF" else "animated: first frame") in picture.notes
    assert close(load(picture.path), first, 6)


def test_row_08_stereo_jpeg_of_a_phone_is_one_picture(tmp_path):
    put(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[drawing(seed=1)])
    (picture,) = scan(tmp_path).pictures
    assert not any("animated" in note for note in picture.notes)
    assert close(load(picture.path), drawing(), 6)


# Row 9: codecs


def test_row_09_avif_is_decoded(tmp_path):
    (tmp_path / "a.avif").write_bytes(encoded(drawing(), "AVIF", quality=95))
    assert close(load(tmp_path / "a.avif"), drawing(), 6)


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("a.jxl", b"\xff\x0a" + b"\0" * 60, "pillow-jxl-plugin"),
        ("a.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 60, "pillow-jxl-plugin"),
        ("a.cr2", b"II*\0\x10\0\0\0CR\x02\0" + b"\0" * 60, "a camera's raw file"),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "a camera's raw file"),
        ("a.raf", b"FUJIFILMCCD-RAW 0201" + b"\0" * 60, "a camera's raw file"),
        ("a.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        ("a.psd", b"8BPS\0\x01" + b"\0" * 60, "a Photoshop document"),
    ],
)
def test_row_09_undecodable_is_skipped_with_the_remedy(tmp_path, name, head, said):
    put(tmp_path / "good.png")
    (tmp_path / name).write_bytes(head)
    (tmp_path / "misnamed.dat").write_bytes(head)
    found = reasons(scan(tmp_path))
    assert said in found[name]
    assert found["misnamed.dat"] == found[name]
    assert "save it as PNG or JPEG" in found[name]


def test_row_09_heic_names_its_package_or_is_tried(tmp_path):
    put(tmp_path / "good.png")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 60)
    reason = reasons(scan(tmp_path))["a.heic"]
    assert "HEIC" in reason
    with contextlib.suppress(ImportError):
        __import__("pillow_heif")
        return
    assert "deltaw[formats]" in reason


def test_row_09_raw_preview_does_not_pose_as_the_picture(tmp_path):
    put(tmp_path / "a.dng", format="TIFF", tiffinfo={50706: b"\x01\x04\0\0"})
    with pytest.raises(InputError, match="a camera's raw file"):
        load(tmp_path / "a.dng")


# Row 10: bombs


def png(width: int, height: int, data: bytes, depth: int = 8) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">2I5B", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BOMBS = [(20000, 20000), (1, 100000), (100000, 64), (2**31 - 1, 2**31 - 1), (10001, 10000)]


@pytest.mark.parametrize("size", BOMBS)
def test_row_10_bomb_is_refused_by_its_header(tmp_path, size):
    put(tmp_path / "good.png")
    (tmp_path / "bomb.png").write_bytes(png(*size, zlib.compress(b"\0" * 2**20)))
    assert "pixels" in reasons(scan(tmp_path))["bomb.png"]


def test_row_10_bombs_take_no_memory(tmp_path):
    """In a process of its own, since a peak never falls."""
    put(tmp_path / "good.png")
    for i, (width, height) in enumerate(BOMBS):
        (tmp_path / f"{i}.png").write_bytes(png(width, height, zlib.compress(b"\0" * 2**26)))
    code = (
        "import resource, sys; from deltaw.data.folder import scan; from deltaw.data.image import load\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "load(sys.argv[1] + '/good.png'); before = peak(); scan(sys.argv[1]); print(peak() - before)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(found.stdout) * (1 if sys.platform == "darwin" else 1024) < 32 * 2**20


def test_row_10_other_formats_that_declare_too_much(tmp_path):
    raw = bytearray(encoded(drawing(), "BMP"))
    raw[18:26] = struct.pack("<2i", 30000, 30000)
    (tmp_path / "a.bmp").write_bytes(raw)
    raw = bytearray(encoded(drawing(), "GIF"))
    raw[6:10] = struct.pack("<2H", 65535, 65535)
    (tmp_path / "a.gif").write_bytes(raw)
    for name in ("a.bmp", "a.gif"):
        with pytest.raises(InputError, match="pixels"):
            load(tmp_path / name)


def test_row_10_archive_named_png(tmp_path):
    put(tmp_path / "good.png")
    (tmp_path / "a.png").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    assert "a ZIP archive" in reasons(scan(tmp_path))["a.png"]


# Row 11: small, long, flat


def test_row_11_one_pixel_is_skipped(tmp_path):
    put(tmp_path / "good.png")
    put(tmp_path / "dot.png", Image.new("RGB", (1, 1)))
    assert "1×1 pixels are too few" in reasons(scan(tmp_path))["dot.png"]


def test_row_11_small_gets_a_small_bucket_and_tiny_a_warning(tmp_path):
    put(tmp_path / "large.png", drawing((700, 700)))
    put(tmp_path / "small.png", drawing((150, 150)))
    put(tmp_path / "tiny.png", drawing((40, 40)))
    dataset = scan(tmp_path)
    shapes = {p.name: buckets.bucket(p.size_px, 512) for p in dataset.pictures}
    assert shapes == {"large.png": (512, 512), "small.png": (256, 256), "tiny.png": (256, 256)}
    found = {finding.kind: finding for finding in lint.lint(dataset, 512)}
    assert found["small"].names == ("small.png",)
    assert found["upscaled"].names == ("tiny.png",)
    assert "enlarged 6.4 times" in found["upscaled"].text


def test_row_11_extreme_aspect_and_solid_colour(tmp_path):
    put(tmp_path / "long.png", drawing((900, 200)))
    put(tmp_path / "flat.png", Image.new("RGB", (600, 600), (10, 200, 30)))
    dataset = scan(tmp_path)
    found = {finding.kind: finding for finding in lint.lint(dataset, 512)}
    assert found["extreme aspect"].names == ("long.png",)
    found = {finding.kind: finding for finding in lint.lint_looks(dataset, list(look_at(dataset)))}
    assert found["one colour"].names == ("flat.png",)
    assert found["blur"].names == ("long.png",)


# Row 12: duplicates


def test_row_12_exact_and_near_duplicates(tmp_path):
    image = drawing((300, 300))
    put(tmp_path / "a.png", image)
    (tmp_path / "a_again.png").write_bytes((tmp_path / "a.png").read_bytes())
    put(tmp_path / "half.png", image.resize((150, 150)))
    put(tmp_path / "mirrored.png", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    put(tmp_path / "recompressed.jpg", image, quality=60)
    put(tmp_path / "other.png", drawing((300, 300), seed=1))
    dataset = scan(tmp_path)
    (same,) = (finding for finding in lint.lint(dataset, 128, 32) if finding.kind == "same file")
    assert same.names == ("a.png", "a_again.png")
    assert "different captions" in same.text
    looks = lint.lint_looks(dataset, list(look_at(dataset)))
    (alike,) = (finding for finding in looks if finding.kind == "look alike")
    assert alike.names == ("a.png", "half.png", "mirrored.png", "recompressed.jpg")


# Row 13: names that differ in little


def test_row_13_same_stem_and_same_letters(tmp_path):
    put(tmp_path / "a.png", drawing(seed=1))
    put(tmp_path / "a.jpg", drawing(seed=2))
    put(tmp_path / "A.png", drawing(seed=3))
    put(tmp_path / "a.PNG", drawing(seed=4))
    (tmp_path / "a.txt").write_text("shared")
    dataset = scan(tmp_path)
    assert names(dataset) == ["A.png", "a.PNG", "a.jpg", "a.png"]
    assert [p.caption for p in dataset.pictures] == ["", "shared", "shared", "shared"]
    assert "caption files for several pictures each (1): a.txt" in dataset.notes
    assert len({key(p.digest, p.caption) for p in dataset.pictures}) == 4


# Row 14: odd names

ODD = [
    "日本語 の 絵", "🦊 fox 👩‍🚀", unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "über"), "with space",
    "100%", "[x]", "-rf", "quote'\"`$(id)", "new\nline", "tab\there", "x" * 240, "con", "a;b&c|d", "\u202egnp.evil",
]  # fmt: skip


def test_row_14_odd_names_all_work(tmp_path):
    for i, name in enumerate(ODD):
        put(tmp_path / f"{name}.png", drawing(seed=i))
        (tmp_path / f"{name}.txt").write_text(f"caption {i}")
    dataset = scan(tmp_path)
    assert not dataset.skipped
    assert {p.caption for p in dataset.pictures} == {f"caption {i}" for i in range(len(ODD))}
    assert all(p.name.isprintable() or "\u200d" in p.name for p in dataset.pictures)
    for picture in dataset.pictures:
        assert load(picture.path, digest=picture.digest).size == picture.size_px


def test_row_14_bytes_that_are_no_text(tmp_path):
    stem = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        Path(os.fsdecode(stem + b".png")).write_bytes(encoded(drawing(), "PNG"))
    except OSError:
        pytest.skip("this file system takes no such names")
    Path(os.fsdecode(stem + b".txt")).write_text("a cup")
    Path(os.fsdecode(stem + b".jpg")).write_bytes(b"")
    dataset = scan(tmp_path)
    (picture,) = dataset.pictures
    assert (picture.name, picture.caption) == ("caf\\udce9.png", "a cup")
    assert picture.caption_source == "caf\\udce9.txt"
    repr(reasons(dataset)).encode()
    with pytest.raises(InputError) as caught:
        load(os.fsdecode(stem + b".jpg"))
    str(caught.value).encode()


def test_row_14_unicode_forms_find_each_other(tmp_path):
    put(tmp_path / f"{unicodedata.normalize('NFD', 'é')}.png", drawing(seed=1))
    (tmp_path / f"{unicodedata.normalize('NFC', 'é')}.txt").write_text("from another system")
    put(tmp_path / f"{unicodedata.normalize('NFD', 'ü')}.png", drawing(seed=2))
    row = f'{{"file_name": "{unicodedata.normalize("NFC", "ü")}.png", "text": "in a table"}}'
    (tmp_path / "metadata.jsonl").write_text(row)
    dataset = scan(tmp_path)
    assert [p.caption for p in dataset.pictures] == ["from another system", "in a table"]
    assert not dataset.skipped


def test_row_14_order_is_that_of_bytes_in_one_unicode_form(tmp_path):
    for i, name in enumerate(("b", "B", "a10", "a9", unicodedata.normalize("NFD", "é"), "z")):
        put(tmp_path / f"{name}.png", drawing(seed=i))
    found = [unicodedata.normalize("NFC", name.removesuffix(".png")) for name in names(scan(tmp_path))]
    assert found == ["B", "a10", "a9", "b", "z", unicodedata.normalize("NFC", "é")]


# Row 15: links and specials


def test_row_15_links_loops_and_specials(tmp_path):
    root, away = tmp_path / "set", tmp_path / "away"
    put(root / "sub" / "a.png", drawing(seed=1))
    outside = put(away / "b.png", drawing(seed=2))
    (root / "linked.png").symlink_to(outside)
    (root / "again").symlink_to(root / "sub")
    (root / "sub" / "up").symlink_to(root)
    (root / "circle.png").symlink_to(root / "circle.png")
    (root / "dangling.png").symlink_to(root / "gone.png")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "sock.png"))
        dataset = scan(root)
    assert names(dataset) == ["linked.png", "sub/a.png"]
    found = reasons(dataset)
    assert "a link to nothing" in found["dangling.png"]
    assert "a link to nothing" in found["circle.png"]
    assert found["pipe.png"] == "a named pipe, not a file"
    assert found["sock.png"] == "a socket, not a file"
    notes = "\n".join(dataset.notes)
    assert "links that lead out of the folder, followed (1): linked.png" in notes
    assert "again leads to a folder that is read already" in notes
    assert "sub/up leads to a folder that is read already" in notes


def test_row_15_pipe_given_to_load_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a named pipe, not a file"):
        load(tmp_path / "pipe")


def test_row_15_unreadable_folder_is_named(tmp_path, monkeypatch):
    put(tmp_path / "a.png")
    put(tmp_path / "secret" / "b.png")
    real = os.scandir

    def guarded(path):
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert reasons(scan(tmp_path)) == {"secret": "the folder cannot be read (Permission denied)"}


def test_row_15_drive_that_drops_while_reading(tmp_path, monkeypatch):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png", drawing(seed=1))
    real = hashlib.file_digest

    def dropping(file, name):
        if file.name.endswith("b.png"):
            raise OSError(errno.EIO, "Input/output error")
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", dropping)
    dataset = scan(tmp_path)
    assert names(dataset) == ["a.png"]
    assert "cannot be read (Input/output error)" in reasons(dataset)["b.png"]


def test_row_15_picture_that_vanished_since_the_scan(tmp_path):
    put(tmp_path / "a.png")
    (picture,) = scan(tmp_path).pictures
    picture.path.unlink()
    with pytest.raises(InputError, match="cannot be read") as caught:
        load(picture.path)
    assert "a.png" in caught.value.where


# Row 16: the user's folder


def _listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in (root, *root.rglob("*"))}


def test_row_16_the_folder_is_only_read(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    before = _listing(tmp_path)
    tmp_path.chmod(0o555)
    try:
        scan(tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert _listing(tmp_path) == before


def test_row_16_own_output_is_never_an_input(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "runs" / "sheet.png", drawing(seed=1))
    put(tmp_path / "single.png", drawing(seed=2))
    dataset = scan(tmp_path, exclude=[tmp_path / "runs", tmp_path / "single.png", tmp_path / "not there"])
    assert names(dataset) == ["a.png"]
    assert "runs is left alone: it is where results go" in dataset.notes


def test_row_16_edited_picture_is_reported(tmp_path):
    put(tmp_path / "a.png")
    (picture,) = scan(tmp_path).pictures
    put(tmp_path / "a.png", drawing(seed=1))
    with pytest.raises(InputError, match="changed since it was scanned"):
        load(picture.path, digest=picture.digest)


# Row 17: how many


def test_row_17_no_folder_no_pictures(tmp_path):
    with pytest.raises(InputError, match="there is no such folder") as caught:
        scan(tmp_path / "gone")
    assert caught.value.advice
    with pytest.raises(InputError, match="no picture can be used") as caught:
        scan(tmp_path)
    assert str(tmp_path) in caught.value.where
    with pytest.raises(InputError, match="this is a single picture, not a folder"):
        scan(put(tmp_path / "a.png"))
    (tmp_path / "b.md").write_text("text")
    with pytest.raises(InputError, match="this is a file, not a folder"):
        scan(tmp_path / "b.md")
    with pytest.raises(InputError, match=r"cannot be read|no such folder"):
        scan("nul\0byte")


def test_row_17_nothing_usable_says_why_for_every_file(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.png").touch()
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(InputError) as caught:
        scan(tmp_path)
    text = str(caught.value)
    assert "skipped: 30, left alone: 1" in text
    assert "00.png: this is an empty file" in text
    assert "19.png" in text
    assert "20.png" not in text
    assert "and 10 more" in text


def test_row_17_one_picture_works(tmp_path):
    put(tmp_path / "a.png")
    dataset = scan(tmp_path)
    assert buckets.assign([p.size_px for p in dataset.pictures], 128, 32) == {(160, 96): [0]}
    assert fit(load(dataset.pictures[0].path), (160, 96)).shape == (96, 160, 3)
    assert crop_box((96, 64), (160, 96)) == (0, 3, 96, 61)


def test_row_17_many_files_stay_in_bounds(tmp_path):
    raw = encoded(drawing((16, 16)), "PNG")
    for i in range(2000):
        (tmp_path / f"{i:05}.png").write_bytes(raw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = scan(tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(dataset.pictures) == 2000
    assert grown < 32 * 2**10 * (1024 if sys.platform == "darwin" else 1)
    sizes = [p.size_px for p in dataset.pictures]
    assert sum(map(len, buckets.assign(sizes, 128, 32).values())) == 2000
