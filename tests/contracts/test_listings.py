"""Families: listings equal the networks, names stay unique in every dialect, a file is taken for its own family's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deltaw import families, formats
from deltaw.families import listing
from tests.formats import made

VARIANTS = [variant for family in families.ALL for variant in family.variants]


@pytest.mark.filterwarnings("ignore")  # transformers' own, of token numbers that play no part
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_listing_is_that_of_the_network(variant: str) -> None:
    networks = pytest.importorskip("deltaw.families.networks")
    assert list(listing.modules(variant).items()) == list(networks.listing(variant).items())


def test_the_bundled_base_is_listed() -> None:
    base = Path(formats.__file__).parents[1] / "zoo" / "emoji"
    assert dict(listing.shapes_of(base)) == dict(listing.modules("emoji"))
    assert listing.family_of(listing.shapes_of(base)).name == "sd1"


@pytest.mark.parametrize("dialect", formats.ALL, ids=lambda d: d.NAME)
@pytest.mark.parametrize(("family", "variant"), made.VARIANTS)
def test_no_two_modules_share_a_name(family: str, variant: str, dialect: formats.Dialect) -> None:
    """`named_places` raises where they would; and every module has one name at most."""
    shapes = listing.modules(variant)
    named = dialect.names(families.named(family), shapes)
    paths = [path for place in named.values() for path in place.paths]
    assert len(paths) == len(set(paths))
    assert set(paths) <= set(shapes)
    for place in named.values():
        assert sum(shapes[path][0] for path in place.paths) == place.shape(shapes)[0]


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "comfy"])
@pytest.mark.parametrize(("family", "variant"), made.VARIANTS)
def test_a_file_is_taken_for_its_own_family(family: str, variant: str, dialect: str, tmp_path: Path) -> None:
    formats.save(made.delta(family, variant), tmp_path / "x.safetensors", dialect)
    _, reading = formats.understand(tmp_path / "x.safetensors")
    assert reading.family.name == family
    assert reading.match.variant == variant or family == "sd3"  # SD 3 and 3.5 medium share most widths


def test_families_and_formats_import_no_tensor_library() -> None:
    code = "import sys; from deltaw import families, formats; assert not {'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
