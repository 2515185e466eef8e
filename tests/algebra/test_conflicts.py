"""The conflict report on changes whose relation is planted, and the pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaw import formats
from deltaw.delta import Delta, Update
from deltaw.errors import UsageError
from deltaw.events import Warn
from deltaw.verbs import picture
from deltaw.verbs.conflicts import conflicts
from deltaw.verbs.inspect import inspect
from tests.algebra.dense import dense
from tests.formats import made


def opposed(delta: Delta, where: str) -> Delta:
    """The same change, its sign turned in one part of the network."""
    return Delta(delta.family, {
        path: Update("lora", {**u.tensors, "up": -u.tensors["up"] if where in path else u.tensors["up"]})
        for path, u in delta.updates.items()
    })  # fmt: skip


def test_planted_conflicts_are_found_where_they_are(tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji", rank=3)
    formats.save(delta, tmp_path / "a.safetensors")
    formats.save(opposed(delta, "mid_block"), tmp_path / "b.safetensors")
    told: list[object] = []
    report = conflicts([(tmp_path / "a.safetensors", 1.0), (tmp_path / "b.safetensors", 0.5)], tell=told.append)
    (pair,) = report.pairs
    assert pair.fighting == ("unet.mid_block",)
    for path, overlap in pair.layers.items():
        assert overlap.cosine == pytest.approx(-1.0 if "mid_block" in path else 1.0, abs=1e-9)
        assert overlap.angle_out == pytest.approx(0.0, abs=0.01)
    assert pair.shared == pytest.approx(1.0)
    assert any(isinstance(event, Warn) and "unet.mid_block" in event.text for event in told)


def test_the_figures_are_those_of_the_dense_changes(tmp_path: Path) -> None:
    a, b = made.delta("sd1", "emoji", rank=3), made.delta("sd1", "emoji", rank=5, alpha=None, seed=4)
    formats.save(a, tmp_path / "a.safetensors")
    formats.save(b, tmp_path / "b.safetensors", "diffusers")
    (pair,) = conflicts([(tmp_path / "a.safetensors", -1.0), (tmp_path / "b.safetensors", 2.0)]).pairs
    one, other = dense(a), dense(b)
    for path, overlap in pair.layers.items():
        x, y = -one[path].flatten(), 2 * other[path].flatten()
        assert overlap.inner == pytest.approx(float(x @ y), rel=1e-5, abs=1e-6 * float(x.norm() * y.norm()))
        assert (overlap.energy_a, overlap.energy_b) == pytest.approx((float(x @ x), float(y @ y)), rel=1e-5)
    path = next(iter(pair.layers))
    spaces = [torch.linalg.qr(d[path].flatten(1) @ torch.randn(d[path].flatten(1).shape[1], r, dtype=torch.float64))[0]
              for d, r in ((one, 3), (other, 5))]  # fmt: skip
    angle = torch.rad2deg(torch.acos(torch.linalg.svdvals(spaces[0].mT @ spaces[1])[0]))
    assert pair.layers[path].angle_out == pytest.approx(float(angle), abs=0.01)


def test_pages_hold_the_picture_and_nothing_that_runs(tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji").with_metadata({"<script>alert(1)</script>": "<img src=x>"})
    formats.save(delta, tmp_path / "a.safetensors")
    formats.save(made.delta("sd1", "emoji", seed=2), tmp_path / "b.safetensors")
    picture.of_inspect(inspect(tmp_path / "a.safetensors", spectra=True), tmp_path / "i.html")
    picture.of_conflicts(
        conflicts([(tmp_path / "a.safetensors", 1.0), (tmp_path / "b.safetensors", 1.0)]), tmp_path / "c.html"
    )
    for name in ("i.html", "c.html"):
        page = (tmp_path / name).read_text()
        assert "data:image/png;base64," in page
        assert "<script" not in page
        assert "<img src=x" not in page
    with pytest.raises(UsageError, match="no spectra"):
        picture.of_inspect(inspect(tmp_path / "a.safetensors"), tmp_path / "x.html")


def test_one_file_has_no_conflict(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two files"):
        conflicts([(tmp_path / "a.safetensors", 1.0)])


def test_a_page_of_many_pairs_lists_those_that_get_along_worst(tmp_path: Path) -> None:
    among = made.paths("emoji")[:2]
    for i in range(6):
        formats.save(made.delta("sd1", "emoji", among=among, seed=i % 5), tmp_path / f"f{i}.safetensors")
    files = [(tmp_path / f"f{i}.safetensors", -1.0 if i == 5 else 1.0) for i in range(6)]  # f5 undoes f0
    picture.of_conflicts(conflicts(files), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "12 of 15 pairs" in page
    assert page.split("<h2>")[1].startswith("f0:1 and f5:-1: -1.000")
    assert page.count("<table>") == 12
