"""`deltaw train`: its flags are made of the declared options, so the module is loaded only when it is asked for."""

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
from deltaw.cli.shell import AsJson, Strict, listening
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
    """Its line of help stands where it is registered, so that `deltaw --help` need not load every option."""
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
