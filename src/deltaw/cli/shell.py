"""What all commands share: the app, common options, and the listener that a verb tells its events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

from cyclopts import App, Parameter

from deltaw._version import VERSION
from deltaw.cli.terminal import Display, display

app = App(
    name="deltaw",
    version=VERSION,
    help_format="plaintext",
    result_action="return_value",
    help="Teach an image model a style or subject as a small ΔW, and prove that it worked.",
)

OUT_NAMES = ["--out", "-o"]
"""Of the option that says where a result goes, in every command that has one."""

Strict = Annotated[bool, Parameter(help="Warnings about the input are errors.", negative="")]
AsJson = Annotated[bool, Parameter(name="--json", help="One JSON event a line.", negative="")]
Base = Annotated[
    str | None,
    Parameter(help="Base model: a diffusers folder, a single safetensors file or a hub id. Default: the bundled one."),
]
Denoising = Annotated[int | None, Parameter(help="Denoising steps.")]
Sampler = Annotated[
    str | None,
    Parameter(help="base (its own scheduler) or dpm++. Default: what needs fewer steps where the base allows it."),
]
Guidance = Annotated[float | None, Parameter(help="Classifier-free guidance.")]
Device = Annotated[str | None, Parameter(help="cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str | None, Parameter(help="float32, bfloat16 or float16.")]


@contextlib.contextmanager
def listening(*, as_json_lines: bool) -> Iterator[Display]:
    """The display, closed at the end whatever happens."""
    show = display(as_json_lines=as_json_lines)
    try:
        yield show
    finally:
        show.close()
