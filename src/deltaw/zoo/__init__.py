"""What comes with the package: a small base model, and the words of CLIP."""

from pathlib import Path


def bundled_base() -> Path:
    """The diffusers folder of the small base model that is installed with DeltaW (see its README.md)."""
    return Path(__file__).parent / "emoji"


def clip_merges() -> Path:
    """The merges of CLIP's byte-pair encoding, one a line, packed with gzip (its licence lies beside it)."""
    return Path(__file__).parent / "clip" / "merges.txt.gz"
