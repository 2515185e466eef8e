"""A file whose modules are read on demand is the same change as one that is loaded whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaw import formats
from deltaw.delta import Delta, Update
from deltaw.errors import InputError
from tests.formats import made


@pytest.mark.parametrize(
    ("family", "variant"), [("sd1", "emoji"), ("sdxl", "sdxl"), ("flux1", "flux1"), ("sd3", "sd3-medium")]
)
@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_on_demand_is_the_same_as_whole(family: str, variant: str, dialect: str, tmp_path: Path) -> None:
    formats.save(made.delta(family, variant), tmp_path / "a.safetensors", dialect)
    whole, match = formats.load(tmp_path / "a.safetensors")
    with formats.lazy(tmp_path / "a.safetensors", strict=True) as opened:
        assert made.same(whole, opened.delta) == ""
        assert (opened.delta.metadata, opened.match.matched) == (whole.metadata, match.matched)
        assert opened.dtypes() == {"F16"}
        assert not opened.misfits(opened.meaning.shapes)


def test_every_module_that_is_not_finite_is_named_when_the_first_is_read(tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji")
    broken = list(delta.updates)[1:3]
    updates = {
        path: Update("lora", {**u.tensors, "up": u.tensors["up"] * torch.nan}) if path in broken else u
        for path, u in delta.updates.items()
    }
    formats.save(Delta("sd1", updates), tmp_path / "a.safetensors")
    with formats.lazy(tmp_path / "a.safetensors") as opened:
        assert opened.delta.updates[next(iter(updates))].algorithm == "lora"
        with pytest.raises(InputError, match="2 modules hold numbers that are not finite"):
            opened.delta.updates[broken[0]]
