"""SVG to pictures; skipped where resvg is not installed (it is an extra)."""

import numpy as np
import pytest

pytest.importorskip("resvg_py")

SQUARE = '<path fill="#d02020" d="M4 4h16v16H4z"/>'


def icon(body=SQUARE):
    from pretrain import svg

    return svg.Icon("square", body, (0, 0, 24, 24))


def test_the_zoom_and_the_paper():
    from pretrain import render, svg

    picture = svg.draw(icon(), 0.9)
    assert picture.shape == (128, 128, 3)
    assert (picture[0, 0] == 255).all()
    assert tuple(picture[64, 64]) == (0xD0, 0x20, 0x20)
    assert render.span_px(picture) == pytest.approx(0.9 * 128 * 16 / 24, abs=1.5)


def test_an_outline_is_dark_and_lies_around_the_shape():
    from pretrain import lines, svg

    plain = svg.draw(icon(), 0.9)
    drawn = lines.outlined(icon(), 0.9, np.random.default_rng(3))
    dark = (drawn.max(-1) < 120).mean()
    assert (plain.max(-1) < 120).mean() == 0
    assert 0.01 < dark < 0.4


def test_an_icon_takes_the_ink():
    from pretrain import lines

    for seed in range(5):
        picture = lines.recoloured(icon('<path fill="currentColor" d="M4 4h16v16H4z"/>'), np.random.default_rng(seed))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 2


def test_outlined_art_keeps_what_is_known_of_it(art, tmp_path):
    import json

    from pretrain import data, outlines, sources

    folder = tmp_path / sources.STYLES["noto"].folder
    folder.mkdir()
    (folder / "icons.json").write_text(json.dumps({"width": 24, "height": 24, "icons": {"square": {"body": SQUARE}}}))
    plain = data.load(art, "noto")
    known = [
        r | {"icon": icon, "licence": "MIT"} for r, icon in zip(plain.records, ["square", "gone"] * 3, strict=False)
    ]
    drawn = outlines.draw(tmp_path, data.Art(plain.images, known), seed=0)
    assert [r["id"] for r in drawn.records] == [r["id"] for r in known if r["icon"] == "square"]
    assert all(r["style"] == "outlined" and r["caption"].endswith(", outlined style") for r in drawn.records)
    assert all(r["licence"] == "MIT" for r in drawn.records)
    assert (drawn.images.max(-1) < 120).mean((1, 2)).min() > 0.005
    data.save(tmp_path / "out", sources.OUTLINED, drawn)
    again = data.load(tmp_path / "out", sources.OUTLINED)
    assert again.records == drawn.records
    assert (again.images == drawn.images).all()
