"""Spoiling a base for tests of what is said of it."""

from __future__ import annotations

import json
from pathlib import Path


def change(file: Path, **values: object) -> None:
    """Other values in a JSON file's object."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
