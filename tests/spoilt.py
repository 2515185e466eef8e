"""Spoiling a base for tests of what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from deltaw.verbs import base as verb


def change(file: Path, **values: object) -> None:
    """Other values in a JSON file's object."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def assert_named(other: Path, spoil: Callable[[Path], object], said: str) -> None:
    """A sound base has no problem; spoilt, it has one that is named so, and every problem says where and what to do."""
    assert verb.check(other) == verb.BaseReport((), ())
    spoil(other)
    problems = verb.check(other).problems
    assert any(said in problem.what for problem in problems), [p.what for p in problems]
    assert all(problem.advice and problem.where for problem in problems)
