"""The report on a folder of pictures, and its page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from deltaw.errors import InputError
from deltaw.events import Event, Table
from deltaw.verbs import pictures as verb
from deltaw.verbs import pictures_page


@pytest.fixture
def odd(tmp_path: Path, paint: Callable[..., Path]) -> Path:
    """A folder with something of everything."""
    folder = tmp_path / "odd"
    paint(folder / "wide.png", 1, (640, 160), "a wide one")
    paint(folder / '<img src=x onerror="alert(1)">.png', 2, (64, 64), "</style><script>alert(1)</script>{{ 7*7 }}")
    paint(folder / "mute_1234.png", 3, (64, 64))
    (folder / "IMG_0001.png").write_bytes((folder / "mute_1234.png").read_bytes())
    (folder / "half.png").write_bytes((folder / "wide.png").read_bytes()[:100])
    return folder


def test_the_page_holds_every_picture_finding_and_skipped_file(odd: Path, tiny_base: Path, tmp_path: Path) -> None:
    report = verb.check(odd, base=tiny_base)
    n_bytes = pictures_page.write(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(page.encode()) == n_bytes
    for finding in report.findings:
        assert f">{finding.kind.capitalize()}</h2>" in page
    assert "half.png" in page
    assert "1 file is skipped" in page
    stored = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)\)", page)
    assert len(stored) == len(report.dataset.pictures)  # each once, however many findings it is in
    assert all(Image.open(io.BytesIO(base64.b64decode(s))).format == "WEBP" for s in stored)


def test_what_files_say_is_text_on_the_page(odd: Path, tiny_base: Path, tmp_path: Path) -> None:
    pictures_page.write(verb.check(odd, base=tiny_base), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("</style>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 7*7 }}" in page
    assert "http" not in page.replace("&#34;", "")  # nothing is fetched


def test_the_crop_is_drawn_where_the_trainer_cuts(odd: Path, tiny_base: Path, tmp_path: Path) -> None:
    report = verb.check(odd, base=tiny_base)
    cards = {
        p.name: pictures_page._card(i, p, size)
        for i, (p, size) in enumerate(zip(report.dataset.pictures, report.sizes_px, strict=True))
    }
    wide = cards["wide.png"]
    w, h = report.sizes_px[[p.name for p in report.dataset.pictures].index("wide.png")]
    kept = 160 * w / h / 640  # the share of the width that the bucket keeps
    assert wide.is_cut
    assert wide.left == pytest.approx(100 * (1 - kept) / 2, abs=0.3)
    assert wide.left == pytest.approx(wide.right, abs=0.3)
    assert (wide.top, wide.bottom) == (0, 0)
    assert not cards["mute_1234.png"].is_cut


def test_each_picture_is_told_where_asked(odd: Path, tiny_base: Path) -> None:
    events: list[Event] = []
    verb.check(odd, base=tiny_base, each=True, tell=events.append)
    rows = next(e.rows for e in events if isinstance(e, Table) and e.title == "pictures")
    wide = next(row for row in rows if row[0] == "wide.png")
    assert (wide[1], *wide[3:]) == ("640×160", "a wide one", "wide.txt", "")
    assert len(rows) == 4


def test_a_picture_that_changed_meanwhile_is_named(odd: Path, tiny_base: Path, tmp_path: Path) -> None:
    report = verb.check(odd, base=tiny_base)
    Image.new("RGB", (64, 64)).save(odd / "wide.png")
    with pytest.raises(InputError, match=r"changed since it was scanned.*wide\.png"):
        pictures_page.write(report, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("a.b.txt", ".txt"),
        ("x/y.caption", ".caption"),
        ("metadata.jsonl:3", "metadata.jsonl"),
        ("file name", "file name"),
    ],
)
def test_kinds_of_sources(source: str, kind: str) -> None:
    assert verb.source_kind(source) == kind
