"""What is wrong or remarkable with a base's folder, everything at once, from its small files and headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw.errors import InputError
from deltaw.families import faults, flux_check, sd3_check, unet_check
from deltaw.families.faults import FULL_PRECISION, Configs
from deltaw.tensorheader import Header

TITLES = {
    "StableDiffusion3": "Stable Diffusion 3 made for another task", "Flux2": "FLUX.2", "Flux": "FLUX.1 made for another task", "PixArt": "PixArt",
    "Kolors": "Kolors", "HunyuanDiT": "Hunyuan-DiT", "StableCascade": "Stable Cascade", "Wan": "Wan", "QwenImage": "Qwen-Image",
}  # fmt: skip
"""How the class names of pipelines that are not trained here begin."""
TRAINED = "Stable Diffusion 1.x, 2.x, XL, 3, 3.5 or FLUX.1"
OF_PIPELINES: Mapping[Any, Any] = {check.PIPELINE: check for check in (flux_check, sd3_check)}
"""A pipeline's class name to the module that checks its bases; the others are those of a UNet."""


def parts(path: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts that hold weights in a folder with this model_index.json."""
    if index.get("_class_name") in OF_PIPELINES:
        return OF_PIPELINES[index["_class_name"]].parts(index)
    has_second = index.get(unet_check.SECOND) and (path / unet_check.SECOND).is_dir()
    return (*unet_check.PARTS, unet_check.SECOND) if has_second else unet_check.PARTS


def other_family(path: Path, index: Mapping[str, Any]) -> InputError | None:
    """Why a base with this model_index.json cannot be trained, where its family is known and another one.

    Nothing else needs to be said of it then: its parts are not those that are looked for.
    """
    pipeline = str(index.get("_class_name", ""))
    if pipeline in OF_PIPELINES:
        return None
    return next((_untrained(path, title) for start, title in TITLES.items() if pipeline.startswith(start)), None)


def problems(path: Path, configs: Configs, headers: Mapping[str, Sequence[Header]]) -> list[InputError]:
    """Everything for which a base cannot be trained.

    Args:
        path: its folder.
        configs: those that could be read.
        headers: of the weight files that could be read, by part.
    """
    check = _of(configs)
    found = [*_named(path, configs), *check.problems(path, configs), *faults.quantised(path, configs, headers)]
    return [*found, *faults.compared(path, check.wanted(configs), headers)]


def remarks(path: Path, configs: Configs) -> list[str]:
    """What the user should know of a base that can be trained."""
    return [*_stale(path, configs), *_of(configs).remarks(path, configs)]


def _of(configs: Configs) -> Any:
    """The module that checks bases of this family."""
    return OF_PIPELINES.get(configs.get("model_index", {}).get("_class_name"), unet_check)


def not_read(path: Path) -> InputError | None:
    """Why a file, rather than a folder, is never opened as a base, by its first bytes."""
    wanted = "a safetensors checkpoint, or a diffusers folder (with model_index.json)"
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        return InputError(
            f"cannot be read ({error.strerror})", where=path, expected=wanted, advice="check its permissions"
        )
    if head.startswith(b"GGUF"):
        return InputError("the base is quantised (GGUF)", where=path, expected=wanted, advice=FULL_PRECISION)
    if head.startswith((b"PK", b"\x80")) and not head.endswith(b"{"):  # a safetensors file's first bytes are a number
        return InputError("the base is a pickle, which is never opened", where=path, expected=wanted,
                          advice="get its safetensors version")  # fmt: skip
    return None


def _untrained(path: Path, what: str) -> InputError:
    return InputError(f"this base is not of a family that can be trained ({what})", where=path, expected=TRAINED,
                      advice="its LoRA files can be merged, converted and inspected all the same")  # fmt: skip


def _named(path: Path, configs: Configs) -> Iterator[InputError]:
    """What contradicts model_index.json, or is a network that is not trained here."""
    index = configs.get("model_index", {})
    if kind := _of(configs).other_kind(configs):
        yield _untrained(path, kind)
    for part, (_, name) in _parts(index).items():
        have = configs.get(part, {}).get("_class_name")
        if part != "scheduler" and have and name and have != name:
            yield InputError(f"model_index.json calls the {part} a {name}, its own config a {have}", where=path / "model_index.json",
                             advice="one of the two is from another base: download it again")  # fmt: skip
        if name and part != "feature_extractor" and not (path / part).is_dir():
            yield InputError(f"model_index.json names a {part}, and there is no such folder", where=path,
                             advice="download the base again, with all its folders")  # fmt: skip


def _parts(index: Mapping[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    """Part to (library, class) where both are named; a safety checker is not missed."""
    pairs = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2 and k != "safety_checker"}
    return {part: (library, name) for part, (library, name) in pairs.items()}


def _stale(path: Path, configs: Configs) -> Iterator[str]:
    for part in parts(path, configs.get("model_index", {})):
        files = sorted(p.name for p in (path / part).glob("*") if p.suffix in (".bin", ".ckpt", ".pt"))
        if files:
            yield f"{part}/{files[0]} lies beside the safetensors file and is not read; if it is newer, convert it"
        whole = sorted(p.name for p in (path / part).glob("*.safetensors") if "-of-" not in p.name)
        if len(whole) > 1:
            used = next((name for name in whole if name.count(".") == 1), whole[0])
            yield f"{part} holds {len(whole)} weight files ({', '.join(whole)}); {used} is read"
