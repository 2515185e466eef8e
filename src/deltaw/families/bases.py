"""Opening a base: which family it is of, and the class that knows it."""

from __future__ import annotations

from pathlib import Path

from deltaw.families import base_folder
from deltaw.families.base import Base
from deltaw.families.base_folder import BaseFolder
from deltaw.families.flux import Flux
from deltaw.families.sd import StableDiffusion
from deltaw.families.sd_3 import StableDiffusion3
from deltaw.families.sd_xl import StableDiffusionXL


def open_base(base: str | Path) -> Base:
    """Opens a base given as a folder or a hub id.

    Raises:
        InputError: it cannot be found, is not whole, or is of another family.
    """
    return opened(base_folder.read(base_folder.find(str(base))))


def opened(folder: BaseFolder) -> Base:
    """The base in a checked folder, whose family its network's own config tells; others were refused by `base_check`."""
    if "text_encoder_3" in folder.configs:
        return StableDiffusion3(folder, "sd3")
    if "transformer" in folder.configs:
        return Flux(folder, "flux1")
    unet = folder.configs["unet"]
    if unet.get("addition_embed_type"):
        return StableDiffusionXL(folder, "sdxl")
    return StableDiffusion(folder, "sd2" if unet.get("use_linear_projection") else "sd1")
