"""Which keys other common programs would leave out, or read as something else, when they load a file.

From the programs' sources and tries in 2026; `docs/formats.md` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deltaw.formats.reading import Entry, Reading

_LAST_OF_XLABS = {"single_blocks.37.processor.qkv_lora", "double_blocks.18.processor.qkv_lora2"}
"""What ComfyUI tells such a file by (`comfy/lora_convert.py`, `convert_lora`)."""

KOHYA_STYLE = ("kohya", "kohya-diffusers")


def concerns(reading: Reading, alphas: Mapping[str, float]) -> dict[str, list[str]]:
    """Program to what it would not do right with the file; a program that is not named has no known trouble.

    Args:
        reading: of the file.
        alphas: stem to alpha, of the entries that have one.
    """
    found = {
        "diffusers": _diffusers(reading, alphas),
        "ComfyUI": _comfy(reading),
        "sd-scripts": _sd_scripts(reading),
    }
    return {program: lines for program, lines in found.items() if lines}


def _diffusers(reading: Reading, alphas: Mapping[str, float]) -> list[str]:
    entries = reading.entries
    lines = _counted(entries, "dora_scale is dropped, so the norms have no effect",
                     lambda e: "magnitude" in e.tensors and e.dialect in KOHYA_STYLE)  # fmt: skip
    if reading.family.name in ("sd1", "sd2", "sdxl"):
        lines += _counted(entries, "the whole file is refused for keys without 'lora' in them",
                          lambda e: e.dialect != "cloneofsimo" and not all("lora" in key for key in e.keys.values()))  # fmt: skip
    lines += _counted(entries, "it has no reader for this dialect", lambda e: e.dialect in ("cloneofsimo",))
    scales = {alphas[e.stem] for e in entries if e.stem in alphas and e.dialect == "kohya"}
    if len(scales) > 1 and reading.family.name in ("sd1", "sd2", "sdxl"):
        lines.append(
            f"alphas differ ({len(scales)} values); of a kohya file, attention gets the commonest (diffusers 0.42)"
        )
    encoder = [e for e in entries if e.dialect == "kohya" and e.place and e.place.paths[0].startswith("text_encoder")]
    if encoder and not any(e.stem.endswith("out_proj") for e in encoder):
        lines.append(
            f"{len(encoder)} text-encoder modules: not recognised where no out_proj is among them (diffusers 0.42)"
        )
    return lines


def _comfy(reading: Reading) -> list[str]:
    plain = reading.family.name in ("sd1", "sd2", "sdxl")
    whole = {entry.stem for entry in reading.entries} >= _LAST_OF_XLABS
    return [
        *_counted(reading.entries, "it has no reader for this dialect", lambda e: e.dialect in ("cloneofsimo", "peft")),
        *_counted(reading.entries, "diffusers' keys of Stable Diffusion are not loaded", lambda e: e.dialect == "diffusers" and plain),
        *_counted(reading.entries, "XLabs' keys are loaded only where the last double and the last single block are among them", lambda e: e.dialect == "xlabs" and not whole),
        *_counted(reading.entries, "(IA)³ is not loaded", lambda e: e.algorithm == "ia3"),
    ]  # fmt: skip


def _sd_scripts(reading: Reading) -> list[str]:
    return [
        *_counted(reading.entries, "only kohya's own keys are read", lambda e: e.dialect not in KOHYA_STYLE),
        *_counted(reading.entries, "needs LyCORIS beside it", lambda e: e.algorithm != "lora" and e.dialect in KOHYA_STYLE),
    ]  # fmt: skip


def _counted(entries: Sequence[Entry], text: str, applies: Callable[[Entry], bool]) -> list[str]:
    n = sum(applies(entry) for entry in entries)
    return [f"{n} modules: {text}"] if n else []
