"""The `deltaw` command: a thin shell over the library. Verbs are imported when they are used."""

from __future__ import annotations

import gc
import os
import sys

from cyclopts.exceptions import CycloptsError

from deltaw.cli import files, looking, making
from deltaw.cli.shell import app
from deltaw.errors import EXIT_INTERRUPTED, DeltawError, UsageError, render

__all__ = ["files", "looking", "main", "making"]

app.command(
    "deltaw.cli.training:train", name="train",
    help="Train a LoRA on a folder of pictures and prove that the written file works.",
)  # fmt: skip
app.command(
    "deltaw.cli.training:rebuild", name="rebuild",
    help="Repeat the run that wrote a LoRA, from its own header, and say whether the result is bit-identical.",
)  # fmt: skip

# GNU OpenMP's waiting threads spin, which slows training down when other programs use the cores: to four or five
# times a step's time, with a short spin to three, and nothing is lost on an idle machine (`python -m benchmarks.threads`).
# It is read when torch is loaded, which the verbs do.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# Loading torch and diffusers makes millions of objects that stay: looking through them again and again for garbage
# is a fifth of the start.
gc.set_threshold(100_000, 20, 100)
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler talks on standard error otherwise


def main() -> None:
    """Runs the command; every foreseen failure ends in one message and its exit code."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        asked = " ".join(("deltaw", *(error.command_chain or ())))
        _fail(UsageError(str(error).strip(), advice=f"see `{asked} --help`"))
    except DeltawError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(error: DeltawError) -> None:
    sys.stderr.write(f"deltaw: {render(error)}\n")
    sys.exit(error.exit_code)
