"""Errors that a user can act on, and the exit codes that a script can.

Every failure that DeltaW foresees is a `DeltawError`: what happened, where, what was expected and
what to do. The command prints it with `render`; nothing else formats errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILURE = 1
"""Something failed that none of the other codes names."""
EXIT_USAGE = 2
"""An option is unknown, of the wrong type, or contradicts another."""
EXIT_INPUT = 3
"""A picture folder, a base or a LoRA file cannot be used as it is."""
EXIT_UNVERIFIED = 4
"""A result was written but the proof that it works failed."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl+C, after saving what could be saved."""


class DeltawError(Exception):
    """A failure with its place and its remedy.

    Args:
        what: what happened, one sentence without a full stop.
        where: the file, option or module it happened at.
        expected: what would have been right.
        advice: what to do now.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, what: str, *, where: object = None, expected: str = "", advice: str = ""):
        self.what = what
        self.where = "" if where is None else str(where)
        self.expected = expected
        self.advice = advice
        super().__init__(render(self))


class UsageError(DeltawError):
    """The request itself is wrong: an option, a value, a combination."""

    exit_code = EXIT_USAGE


class InputError(DeltawError):
    """Something that was given to read (folder, base, LoRA) cannot be used."""

    exit_code = EXIT_INPUT


class UnverifiedError(DeltawError):
    """A written result failed the proof that it works."""

    exit_code = EXIT_UNVERIFIED


class Interrupted(DeltawError):
    """The user asked to stop; what could be saved was saved."""

    exit_code = EXIT_INTERRUPTED


class ManyErrors(DeltawError):
    """Several problems found at once, so that they can be mended at once."""

    def __init__(self, what: str, errors: Iterable[DeltawError]):
        self.errors = list(errors)
        self.exit_code = max((e.exit_code for e in self.errors), default=EXIT_FAILURE)
        super().__init__(what)


_STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but for the line end, and those that turn the direction of writing."""


def plain(text: str) -> str:
    """Text without what steers a terminal: names in files may hold it."""
    return _STEERING.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def render(error: DeltawError) -> str:
    """The error as the lines that a user reads: what (where), expected, advice."""
    head = f"{error.what}: {error.where}" if error.where else error.what
    lines = [head]
    if error.expected:
        lines.append(f"  expected: {error.expected}")
    if error.advice:
        lines.append(f"  do: {error.advice}")
    for inner in getattr(error, "errors", ()):
        lines += [f"  - {line}" if i == 0 else f"    {line}" for i, line in enumerate(render(inner).splitlines())]
    return plain("\n".join(lines))


def refuse_all(what: str, errors: list[DeltawError]) -> None:
    """Raises nothing for no error, the error itself for one, `ManyErrors` for several."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ManyErrors(what, errors)
