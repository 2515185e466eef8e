"""`deltaw train`: its flags are made of the declared options, so the module is loaded only when it is asked for."""

from __future__ import annotations

import gc
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from deltaw import options
from deltaw.cli.shell import OUT_NAMES, AsJson, Strict, listening
from deltaw.cli.terminal import SHOW_CURSOR, silence
from deltaw.errors import EXIT_INTERRUPTED, Interrupted
from deltaw.events import Event, Phase, Tell, Tick

METAVARS: dict[Any, str] = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH"}

Settings = Annotated[
    list[str] | None,
    Parameter(name="--set", help="key=value for an option without a flag; see docs/options.md.", negative=""),
]
Config = Annotated[Path | None, Parameter(help="A TOML file of options; flags win over it.")]


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What ends a run in good order: Ctrl+C, a scheduler, a closed terminal (which Windows does not tell of)."""


class Stop:
    """A request to end: the first finishes the step and saves, a second Ctrl+C gives up at once.

    Files are written whole or not at all, so giving up costs the steps since the last save and no more.
    """

    def __init__(self) -> None:
        self.asked = False
        self.phase = Phase("start")
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
        self.previous = {number: signal.signal(number, self) for number in heeded}

    def __call__(self, number: int, _: object) -> None:
        """Handles a signal; only `os` is used, since the one interrupted may be in the middle of printing."""
        if number == getattr(signal, "SIGHUP", None):
            silence(*(descriptor for descriptor in (1, 2) if os.isatty(descriptor)))
        elif self.asked:
            if os.isatty(1):
                os.write(1, SHOW_CURSOR)
            os._exit(EXIT_INTERRUPTED)
        else:
            os.write(2, b"stopping after this step and saving; Ctrl+C again gives up\n")
        self.asked = True

    def hears(self, tell: Tell) -> Tell:
        """A listener that ends the run between two pieces of work outside the training loop, which polls by itself.

        Raises:
            Interrupted: out of the listener, so that the verb unwinds as it does for an error.
        """

        def heard(event: Event) -> None:
            tell(event)
            self.phase = event if isinstance(event, Phase) else self.phase
            if self.asked and isinstance(event, Phase | Tick) and self.phase.unit != "steps":
                raise Interrupted(
                    f"stopped at: {self.phase.name}", expected="what has its final name is whole",
                    advice="the same command goes on, with --resume where steps were saved",
                )  # fmt: skip

        return heard

    def close(self) -> None:
        """Gives the signals back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds a flag for every training option that is one; what it means stands in `deltaw.options` alone."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = []
    for name, (kind, help_text, shown) in options.flags(options.TrainOptions).items():
        annotation: Any = Annotated[bool | None, Parameter(help=help_text, negative="" if shown else None, show=shown)]
        if kind is not bool:  # text for now: `options.parse` checks all types at once
            names = OUT_NAMES if name == "out" else None
            annotation = Annotated[
                str | None, Parameter(name=names, help=help_text, metavar=METAVARS[kind], show=shown)
            ]
        flags.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
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
    profile: Annotated[bool, Parameter(help="Measure where a step's time goes; see the report.", negative="")] = False,
    strict: Strict = False,
    json: AsJson = False,
    **flags: Any,
) -> None:
    """Its line of help stands where it is registered, so that `deltaw --help` need not load every option."""
    stop = Stop()
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        with listening(as_json_lines=json) as show:
            from deltaw.training import run

            gc.freeze()  # what was loaded stays; the collector need not look at it between the phases
            if dry_run:
                run.dry_run(folder, options.parse(given, settings or (), config), strict=strict, tell=show)
                return
            run.train(
                folder, config=config, settings=settings or (), strict=strict, profile=profile,
                stop_asked=lambda: stop.asked, tell=stop.hears(show), **given,
            )  # fmt: skip
    finally:
        stop.close()


def rebuild(
    file: Annotated[Path, Parameter(help="A LoRA by `deltaw train`.")],
    folder: Annotated[Path, Parameter(help="The pictures that it was trained on.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(name=OUT_NAMES, help="Result folder. Default: runs/NAME-rebuilt.")] = None,
    base: Annotated[str | None, Parameter(help="The base that it was trained on. Default: the bundled one.")] = None,
    settings: Settings = None,
    json: AsJson = False,
) -> None:
    """Its line of help stands where it is registered, as that of `train`."""
    stop = Stop()
    try:
        with listening(as_json_lines=json) as show:
            from deltaw.training import rebuild as again

            again.rebuild(
                file, folder, out=out or Path("runs") / f"{file.stem}-rebuilt", base=base, settings=settings or (),
                stop_asked=lambda: stop.asked, tell=stop.hears(show),
            )  # fmt: skip
    finally:
        stop.close()
