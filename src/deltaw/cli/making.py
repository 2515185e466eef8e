"""`deltaw train` and `deltaw generate`: the commands that open a base."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from deltaw import options
from deltaw.cli.shell import AsJson, Base, Strict, app, listening
from deltaw.errors import EXIT_INTERRUPTED

METAVARS: dict[Any, str] = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH"}

Settings = Annotated[
    list[str] | None,
    Parameter(name="--set", help="key=value for an option without a flag; see docs/options.md.", negative=""),
]
Config = Annotated[Path | None, Parameter(help="A TOML file of options; flags win over it.")]


class Stop:
    """Ctrl+C: the first finishes the step and saves, the second gives up at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: object) -> None:
        if self.asked:
            os._exit(EXIT_INTERRUPTED)
        self.asked = True
        sys.stderr.write("stopping after this step and saving; Ctrl+C again gives up\n")


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds a flag for every visible training option; what it means stands in `deltaw.options` alone."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = []
    for name, (kind, help_text) in options.fields(options.TrainOptions, visible=True).items():
        annotation: Any = Annotated[bool, Parameter(help=help_text, negative="", show_default=False)]
        if kind is not bool:  # text for now: `options.parse` checks all types at once
            annotation = Annotated[str | None, Parameter(help=help_text, metavar=METAVARS[kind])]
        default = False if kind is bool else None
        flags.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    positional = [p for p in own if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    rest = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
    command.__signature__ = signature.replace(parameters=[*positional, *flags, *rest])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*positional, *flags, *rest)}
    return command


@app.command
@_with_options
def train(
    folder: Annotated[Path, Parameter(help="A folder of pictures, flat or nested, with or without captions.")],
    /,
    *,
    config: Config = None,
    settings: Settings = None,
    dry_run: Annotated[bool, Parameter(help="Show the plan and stop.", negative="")] = False,
    strict: Strict = False,
    json: AsJson = False,
    **flags: Any,
) -> None:
    """Train a LoRA on a folder of pictures and prove that the written file works."""
    stop = Stop()
    previous = signal.signal(signal.SIGINT, stop)
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    try:
        with listening(as_json_lines=json) as show:
            from deltaw.training import run

            if dry_run:
                run.look(folder, options.parse(given, settings or (), config), strict=strict, tell=show)
                return
            run.train(
                folder, config=config, settings=settings or (), strict=strict, stop_asked=lambda: stop.asked, tell=show,
                **given,
            )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, previous)


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
    steps: Annotated[int | None, Parameter(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, Parameter(help="Classifier-free guidance.")] = None,
    size: Annotated[str | None, Parameter(help="SIDE or WIDTHxHEIGHT in pixels.")] = None,
    count: Annotated[int, Parameter(help="Pictures per prompt.")] = 1,
    out: Annotated[Path | None, Parameter(help="A .png file, or a folder. Default: the current folder.")] = None,
    grid: Annotated[
        str | None, Parameter(help="One labelled sheet: strength=0,0.5,1 or prompt=a cat|a dog or seed=…")
    ] = None,
    like: Annotated[
        Path | None, Parameter(help="A PNG made by this command: repeat it, except for what is given.")
    ] = None,
    device: Annotated[str | None, Parameter(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, Parameter(help="float32, bfloat16 or float16.")] = None,
    strict: Strict = False,
    json: AsJson = False,
) -> None:
    """Draw pictures with a base and any number of LoRAs; the settings are stored in the PNG."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import generate as verb

        verb.generate(
            prompts, loras=lora or (), base=base, negative=negative, seed=seed, steps=steps, guidance=guidance, size=size,
            count=count, out=out, grid=grid, like=like, device=device, dtype=dtype, strict=strict, tell=show,
        )  # fmt: skip
