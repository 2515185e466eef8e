"""The conformance kit: our own loader finds the ΔW that each file means, and the script makes the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deltaw import adapters, formats
from deltaw.families import listing
from tests.contracts import make_kit
from tests.contracts.make_kit import KIT, base

TRUTH = json.loads((KIT / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TRUTH)
def test_a_file_means_what_it_is_said_to_mean(name: str) -> None:
    delta, match = formats.load(KIT / name, strict=True)
    shapes = listing.modules(match.variant)
    assert set(delta.updates) == set(TRUTH[name])
    for path, wanted in TRUTH[name].items():
        update = delta.updates[path]
        assert adapters.needs_base(update.algorithm, update.tensors) == wanted["needs_base"]
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in update.tensors.items()}
        dense = adapters.dense(update.algorithm, tensors, shapes[path], base(shapes[path])).flatten()
        assert float(dense.norm()) == pytest.approx(wanted["norm"], rel=1e-9)
        assert float(dense.sum()) == pytest.approx(wanted["sum"], rel=1e-9, abs=1e-6)
        assert all(
            float(dense[int(i)]) == pytest.approx(value, rel=1e-9, abs=1e-9) for i, value in wanted["entries"].items()
        )


def test_the_script_makes_these_files(tmp_path: Path) -> None:
    make_kit.make(tmp_path, truth=False)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path.relative_to(KIT): path.read_bytes() for path in KIT.rglob("*") if path.is_file()}
    del kept[Path("expected.json")]
    assert set(made) == set(kept)
    for path, content in made.items():
        assert content == kept[path], path


def test_the_kit_stays_small() -> None:
    assert sum(path.stat().st_size for path in KIT.rglob("*") if path.is_file()) < 1_800_000
    assert torch.equal(base((2, 2)), torch.tensor([[-5, -2], [2, 5]], dtype=torch.float64) / 8)
