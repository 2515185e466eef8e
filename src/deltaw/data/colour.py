"""Any picture that Pillow decodes, as 8-bit sRGB on white.

Pillow's own `convert("RGB")` ignores colour profiles, shows the colours hidden under transparent
pixels, and clips 16-bit grey to white; each of that would be trained on without a word.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms

from deltaw.data.walk import printable
from deltaw.errors import InputError

GREY16_MAX = 65535.0
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""An ICC profile's colour space to the Pillow mode that it describes."""


def to_srgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The decoded `image` in mode RGB, with a note for everything that was done to its colours.

    Raises:
        InputError: every pixel is transparent.
    """
    icc = image.info.get("icc_profile")
    notes: list[str] = []
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bit(image, notes)
    colours, alpha = _split(image)
    rgb = _to_rgb(colours, icc, notes)
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb, tuple(notes)
    if alpha.getextrema() == (0, 0):
        raise InputError("every pixel is transparent", advice="remove the picture or give it a background")
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white, (*notes, "transparent: placed on white")


def _eight_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """Grey of 16 or 32 bits or floating point, scaled to 0..255 by its range and rounded."""
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError("it holds pixels that are not finite numbers", advice="save it as PNG or JPEG")
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if image.mode == "F" else (GREY16_MAX,)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        values, top = values - low, high - low or 1.0
        notes.append(f"values from {low:.6g} to {high:.6g} were stretched to black and white")
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):  # the one grey level that a 16-bit PNG calls transparent
        values[values == hidden] = top
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, in a mode that a profile can describe, and the opacity (mode L) or None."""
    alpha = None
    if image.mode in ("LA", "La"):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    return image, alpha


def _to_rgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    if icc:
        converted = _through_profile(image, icc, notes)
        if converted is not None:
            return converted
    if image.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return _transformed(image, lab)
    if image.mode == "CMYK":
        notes.append("CMYK without a usable colour profile: colours are approximate")
    return image if image.mode == "RGB" else image.convert("RGB")


def _through_profile(image: Image.Image, icc: bytes, notes: list[str]) -> Image.Image | None:
    """The picture through its embedded profile, or None (with a note where it matters) without use of it."""
    try:
        parsed = ImageCms.core.profile_frombytes(icc)
        space = parsed.xcolor_space.strip()
        name = printable((parsed.profile_description or "a profile without a name").strip())
        mode = PROFILE_MODES.get(space, "")
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if mode != image.mode:
            notes.append(f"its colour profile is for {space}, not for its pixels: taken as sRGB")
            return None
        if name.lower().startswith("srgb"):
            return image if image.mode == "RGB" else image.convert("RGB")
        converted = _transformed(image, ImageCms.ImageCmsProfile(parsed))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append("its colour profile is damaged: taken as sRGB")
        return None
    notes.append(f"colours converted from {name} to sRGB")
    return converted


def _transformed(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    transform = ImageCms.buildTransform(
        profile, ImageCms.createProfile("sRGB"), image.mode, "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None only where `inPlace` was asked for
    return converted
