"""Opening a base: where it is, which family it is of, and the class that knows it."""

from __future__ import annotations

from pathlib import Path

from deltaw import device as devices
from deltaw.events import Note, Phase, Tell, Warn, silent
from deltaw.families import base_folder, predicts, sd3_check, single, skeleton
from deltaw.families.base import Base
from deltaw.families.base_folder import BaseFolder
from deltaw.families.flux import Flux
from deltaw.families.sd import StableDiffusion
from deltaw.families.sd_3 import StableDiffusion3
from deltaw.families.sd_xl import StableDiffusionXL


def open_base(base: str | Path, tell: Tell = silent) -> Base:
    """Opens a base given as a folder, a single file or a hub id.

    Raises:
        InputError: it cannot be found, is not whole, or is of another family.
    """
    return opened(base_folder.read(find(base, tell)))


def find(base: str | Path, tell: Tell = silent) -> Path:
    """The folder of a base given as a folder, a single file, which is unpacked, or a hub id.

    Args:
        base: it.
        tell: hears that a file is unpacked, and what its network was found to predict.

    Raises:
        InputError: it cannot be found, or the file is no base that can be trained.
        DeltawError: there is no room to unpack it.
    """
    found = base_folder.find(str(base))
    if found.is_dir():
        return found
    place = single.place(found)
    if not place.exists():
        with single.unpacking(found, place, tell) as (folder, variant, told):
            if not told:
                _try_prediction(folder, variant, tell)
    return place


def _try_prediction(folder: Path, variant: str, tell: Tell) -> None:
    """Has the folder say what its network was found to predict, since nothing in the file tells."""
    tell(Phase("try what the base predicts"))
    guess = predicts.tried(opened(base_folder.read(folder)), devices.choose()[0])
    if guess is None:
        tell(Warn("it cannot be told whether the base predicts noise or v; noise is assumed, as most bases do"))
        return
    skeleton.predicting(variant, folder, guess)
    tell(Note(f"tried: the base predicts {predicts.WORDS[guess]}"))


def opened(folder: BaseFolder) -> Base:
    """The base in a checked folder, whose family its network's own config tells; others were refused by `base_check`."""
    if folder.configs["model_index"].get("_class_name") == sd3_check.PIPELINE:
        return StableDiffusion3(folder, "sd3")
    if "transformer" in folder.configs:
        return Flux(folder, "flux1")
    unet = folder.configs["unet"]
    if unet.get("addition_embed_type"):
        return StableDiffusionXL(folder, "sdxl")
    return StableDiffusion(folder, "sd2" if unet.get("use_linear_projection") else "sd1")
