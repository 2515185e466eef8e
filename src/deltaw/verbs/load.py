"""`deltaw.load`: a LoRA file of any dialect as a `Delta`."""

from __future__ import annotations

from pathlib import Path

from deltaw import formats
from deltaw.delta import Delta
from deltaw.events import Tell, Warn, silent


def load(path: str | Path, *, strict: bool = False, tell: Tell = silent) -> Delta:
    """Reads a LoRA in any dialect.

    Args:
        path: a file, or a folder of PEFT's or diffusers'.
        strict: anything in the file that is not used is an error.
        tell: hears a warning for everything that is not used.

    Raises:
        InputError: nothing in it fits a known base, a tensor is not finite, or `strict` and something is not used.
    """
    delta, match = formats.load(path, strict=strict)
    for line in match.losses():
        tell(Warn(f"{Path(path).name}: {line}"))
    return delta
