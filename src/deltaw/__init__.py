"""DeltaW: train a low-rank ΔW on your pictures, then judge, merge, convert and share it.

The public names are imported when they are first used, so that `import deltaw` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deltaw._version import VERSION as __version__

if TYPE_CHECKING:
    from deltaw.delta import Delta, Update
    from deltaw.errors import DeltawError
    from deltaw.training.report import Report
    from deltaw.training.run import train
    from deltaw.verbs.compare import Comparison, compare
    from deltaw.verbs.generate import generate
    from deltaw.verbs.load import load
    from deltaw.zoo import bundled_base

_WHERE = {
    "Comparison": "deltaw.verbs.compare",
    "Delta": "deltaw.delta",
    "DeltawError": "deltaw.errors",
    "Report": "deltaw.training.report",
    "Update": "deltaw.delta",
    "bundled_base": "deltaw.zoo",
    "compare": "deltaw.verbs.compare",
    "generate": "deltaw.verbs.generate",
    "load": "deltaw.verbs.load",
    "train": "deltaw.training.run",
}

__all__ = [
    "Comparison",
    "Delta",
    "DeltawError",
    "Report",
    "Update",
    "__version__",
    "bundled_base",
    "compare",
    "generate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'deltaw' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
