"""What a file is, from its first bytes. File names lie; signatures seldom do."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 512

SAVE_AS = "save it as PNG or JPEG"
FETCH_AGAIN = "fetch the file itself again"


@dataclass(frozen=True)
class Kind:
    """A sort of file.

    `pillow` is Pillow's name of the decoder, "" where there is none; `picture` is true for pictures
    even then; `advice` says what to do with a file that cannot be used.
    """

    name: str
    pillow: str = ""
    picture: bool = False
    advice: str = ""


def _decoded(name: str, pillow: str, advice: str = "") -> Kind:
    return Kind(name, pillow, picture=True, advice=advice)


def _foreign(name: str, advice: str) -> Kind:
    return Kind(name, picture=True, advice=advice)


UNKNOWN = Kind("something unknown", advice="look at it or remove it")
TEXT = Kind("plain text", advice="rename it, or fetch the picture itself again")
EMPTY = Kind("an empty file", advice=FETCH_AGAIN)
HEIC = _decoded("HEIC", "HEIF", f'{SAVE_AS}, or `pip install "deltaw[formats]"` (pillow-heif)')
AVIF = _decoded("AVIF", "AVIF", advice=f"{SAVE_AS}, or install a Pillow with AVIF")
JXL = _decoded("JPEG XL", "JXL", advice=f"{SAVE_AS}, or `pip install pillow-jxl-plugin`")
RAW = _foreign("a camera's raw file", advice=f"{SAVE_AS} with the camera's own program")
HTML = Kind("a web page", advice="fetch the picture itself, not its page")
SVG = _foreign("an SVG drawing", advice=f"{SAVE_AS} at the size you want")
VIDEO = Kind("a video", advice="take still pictures from it")

SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", _decoded("PNG", "PNG")),
    (0, b"\xff\xd8\xff", _decoded("JPEG", "JPEG")),
    (8, b"WEBP", _decoded("WebP", "WEBP")),
    (0, b"GIF8", _decoded("GIF", "GIF")),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", _decoded("JPEG 2000", "JPEG2000")),
    (0, b"\xff\x4f\xff\x51", _decoded("JPEG 2000", "JPEG2000")),
    (0, b"\xff\x0a", JXL),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", JXL),
    (8, b"CR\x02", RAW),
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"IIRO", RAW),
    (0, b"IIRS", RAW),
    (0, b"IIU\0", RAW),
    (0, b"FOVb", RAW),
    (0, b"II*\0", _decoded("TIFF", "TIFF")),
    (0, b"MM\0*", _decoded("TIFF", "TIFF")),
    (0, b"II+\0", _decoded("TIFF", "TIFF")),
    (0, b"MM\0+", _decoded("TIFF", "TIFF")),
    (0, b"8BPS", _foreign("a Photoshop document", SAVE_AS)),
    (0, b"v/1\x01", _foreign("OpenEXR", SAVE_AS)),
    (0, b"#?RADIANCE", _foreign("Radiance HDR", SAVE_AS)),
    (0, b"gimp xcf", _foreign("a GIMP document", SAVE_AS)),
    (0, b"%PDF", Kind("a PDF", advice="take the pictures out of it")),
    (0, b"PK\x03\x04", Kind("a ZIP archive", advice="unpack it first")),
    (0, b"Rar!", Kind("a RAR archive", advice="unpack it first")),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", advice="unpack it first")),
    (0, b"\x1f\x8b", Kind("a gzip archive", advice="unpack it first")),
    (0, b"version https://git-lfs", Kind("a git-lfs pointer", advice="run `git lfs pull` where it came from")),
    (0, b"\x00\x05\x16\x07", Kind("a macOS resource fork", advice="delete it: the picture is another file")),
    (0, b"\x1aE\xdf\xa3", VIDEO),
)

BRANDS: dict[bytes, Kind] = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"heif"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    b"crx ": RAW,
}


def kind(head: bytes) -> Kind:
    """The sort of file that begins with `head`, its first `HEAD_BYTES` bytes (or all, where shorter)."""
    if not head:
        return EMPTY
    for offset, signature, found in SIGNATURES:
        if head.startswith(signature, offset):
            return found
    if head[4:8] == b"ftyp":
        return _brand(head)
    if head[:2] == b"BM" and head[14:18] in (n.to_bytes(4, "little") for n in (12, 40, 52, 56, 64, 108, 124)):
        return _decoded("BMP", "BMP")
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return _decoded("PNM", "PPM")
    return _markup(head)


def _brand(head: bytes) -> Kind:
    """Kind of an ISO media file: its main brand, or for the general `mif1` a more telling compatible one."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    compatible = [head[i : i + 4] for i in range(16, end, 4)]
    if head[8:12] in (b"mif1", b"msf1") and {b"avif", b"avis"} & set(compatible):
        return AVIF
    return BRANDS.get(head[8:12], VIDEO)


def _markup(head: bytes) -> Kind:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--")) and b"<svg" in text:
        return SVG
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return HTML
    is_text = not any(byte < 32 and byte not in b"\t\n\r" for byte in head)
    return TEXT if is_text else UNKNOWN
