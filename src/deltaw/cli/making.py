"""`deltaw generate`: pictures from a base and any number of LoRAs."""

from __future__ import annotations

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


@app.command
def generate(
    prompts: Annotated[list[str] | None, Parameter(help="What to draw; several are drawn one after the other.")] = None,
    /,
    *,
    lora: Annotated[
        list[str] | None, Parameter(help="FILE[:STRENGTH]; may be repeated, 0 and negative work.", negative="")
    ] = None,
    base: Base = None,
    negative: Annotated[str | None, Parameter(help="What to steer away from.")] = None,
    seed: Annotated[int | None, Parameter(help="Seed of the first picture; the next ones add 1 each.")] = None,
    steps: Denoising = None,
    sampler: Sampler = None,
    guidance: Guidance = None,
    size: Annotated[str | None, Parameter(help="SIDE or WIDTHxHEIGHT in pixels.")] = None,
    count: Annotated[int, Parameter(help="Pictures per prompt.")] = 1,
    out: Annotated[
        Path | None, Parameter(name=OUT_NAMES, help="A .png file, or a folder. Default: the current folder.")
    ] = None,
    grid: Annotated[
        str | None, Parameter(help="One labelled sheet: strength=0,0.5,1 or prompt=a cat|a dog or seed=…")
    ] = None,
    like: Annotated[
        Path | None, Parameter(help="A PNG made by this command: repeat it, except for what is given.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    strict: Strict = False,
    json: AsJson = False,
) -> None:
    """Draw pictures with a base and any number of LoRAs; the settings are stored in the PNG."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import generate as verb

        verb.generate(
            prompts, loras=lora or (), base=base, negative=negative, seed=seed, steps=steps, sampler=sampler, guidance=guidance,
            size=size, count=count, out=out, grid=grid, like=like, device=device, dtype=dtype, strict=strict, tell=show,
        )  # fmt: skip
