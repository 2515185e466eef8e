"""Base models that come with the package."""

from pathlib import Path


def bundled_base() -> Path:
    """The diffusers folder of the small base model that is installed with DeltaW (see its README.md)."""
    return Path(__file__).parent / "emoji"
