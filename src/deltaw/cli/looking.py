"""The commands that only look: inspect, check, compare, doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from deltaw.cli.shell import (
    OUT_NAMES,
    AsJson,
    Base,
    Denoising,
    Device,
    Dtype,
    Guidance,
    Sampler,
    Strict,
    app,
    listening,
)
from deltaw.errors import EXIT_INPUT, InputError

ForBase = Annotated[str | None, Parameter(help="The base it is meant for: a diffusers folder or a single file.")]


@app.command
def inspect(
    file: Path,
    /,
    *,
    base: ForBase = None,
    spectra: Annotated[bool, Parameter(help="Also norms, spectra and effective ranks.", negative="")] = False,
    html: Annotated[Path | None, Parameter(help="Write a page with a picture.")] = None,
    json: AsJson = False,
) -> None:
    """Say what a LoRA file is: family, dialect, algorithm, ranks, alphas, faults, and who reads it how."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import inspect as verb

        report = verb.inspect(file, base=base, spectra=spectra or html is not None, tell=show)
        if html is not None:
            from deltaw.verbs import picture

            picture.of_inspect(report, html)


@app.command
def check(
    path: Annotated[Path, Parameter(help="A LoRA file, a folder of pictures, or a base.")],
    /,
    *,
    base: ForBase = None,
    trigger: Annotated[str, Parameter(help="The trigger word that the pictures are to be trained with.")] = "",
    resolution: Annotated[
        int | None, Parameter(help="Side of a square picture in pixels. Default: the base's.")
    ] = None,
    caption_encoding: Annotated[str | None, Parameter(help="Encoding of caption files that are not UTF-8.")] = None,
    html: Annotated[
        Path | None, Parameter(help="Of pictures: write a page with thumbnails as training sees them.")
    ] = None,
    strict: Strict = False,
    json: AsJson = False,
) -> None:
    """Judge before the hours are spent: does this LoRA fit, are these pictures and this base fit to train on?"""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import base as base_verb
        from deltaw.verbs import check as verb
        from deltaw.verbs import pictures

        if not path.exists():
            raise InputError("there is nothing of this name", where=path,
                             expected="a LoRA file, a folder of pictures, or a base", advice="check the path")  # fmt: skip
        if base_verb.is_base(path):
            looked = base_verb.check(path, tell=show)
            sound = not looked.problems and not (strict and looked.remarks)
        elif pictures.is_adapter(path):
            sound = verb.check(path, base=base, tell=show).fits
        else:
            found = pictures.check(path, base=base, trigger=trigger, resolution=resolution,
                                   caption_encoding=caption_encoding, each=json, tell=show)  # fmt: skip
            if html is not None:
                from deltaw.verbs import pictures_page

                pictures_page.write(found, html, tell=show)
            sound = not (strict and (found.findings or found.dataset.skipped))
    if not sound:
        sys.exit(EXIT_INPUT)


@app.command
def compare(
    files: Annotated[list[str], Parameter(help="FILE[:STRENGTH] each; a file may stand several times.")],
    /,
    *,
    prompt: Annotated[list[str] | None, Parameter(help="A prompt of the sheet; may be repeated.", negative="")] = None,
    reference: Annotated[
        Path | None, Parameter(help="A folder of captioned pictures to judge by, best ones nobody trained on.")
    ] = None,
    base: Base = None,
    out: Annotated[
        Path | None, Parameter(name=OUT_NAMES, help="Result folder, new or empty. Default: compare.")
    ] = None,
    seed: Annotated[int, Parameter(help="Seed of the first column; the next ones follow.")] = 0,
    seeds: Annotated[int, Parameter(help="Pictures a prompt.")] = 1,
    steps: Denoising = None,
    sampler: Sampler = None,
    guidance: Guidance = None,
    device: Device = None,
    dtype: Dtype = None,
    strict: Strict = False,
    json: AsJson = False,
) -> None:
    """Judge LoRAs at any strengths by your own pictures: paired losses, drift, copies, one sheet, one sentence."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import compare as verb

        verb.compare(
            files, prompts=prompt or (), reference=reference, base=base, out=out, seed=seed, seeds=seeds, steps=steps,
            sampler=sampler, guidance=guidance, device=device, dtype=dtype, strict=strict, tell=show,
        )  # fmt: skip


@app.command
def doctor(*, json: AsJson = False) -> None:
    """Say what this machine offers: Python, torch, device, precision, memory, disk; one fix a problem."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import doctor as verb

        if not verb.examine(tell=show):
            sys.exit(EXIT_INPUT)
