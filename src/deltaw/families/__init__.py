"""Base model families: one a file, as facts. Importing this imports no tensor library.

To add one: write `families/NAME.py` with a `FAMILY`, put it in `ALL`, and run
`python -m deltaw.families.networks` once for its listing of modules.
"""

from __future__ import annotations

import os

from deltaw.families import flux1, sd1, sd2, sd3, sdxl
from deltaw.families.family import Component, Family

ALL: tuple[Family, ...] = (sd1.FAMILY, sd2.FAMILY, sdxl.FAMILY, sd3.FAMILY, flux1.FAMILY)
"""Every family; where two fit a file equally well, the earlier one is meant."""

# The hub's libraries tell it what they are used with; they read this when they are loaded, which only this package does.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__all__ = ["ALL", "Component", "Family", "named"]


def named(name: str) -> Family:
    """The family of that name.

    Raises:
        KeyError: no family is called so.
    """
    return {family.name: family for family in ALL}[name]
