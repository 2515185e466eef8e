"""Which files a folder holds: nested folders, links and specials, in an order that is always the same."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

JUNK = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "lost+found"})
"""What systems leave in folders, in lower case; names that begin with a dot are left alone as well."""

MOST_LISTED = 20


@dataclass(frozen=True)
class Skipped:
    """A file (or a row of a metadata file, named `file:row`) that is not used, and why."""

    path: Path
    name: str
    reason: str


@dataclass
class Found:
    """The regular files below a folder, sorted; what could not be read; what was left alone; which are links."""

    files: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    n_ignored: int = 0
    notes: list[str] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)


def walk(root: Path, exclude: Sequence[Path] = ()) -> Found:
    """Lists a folder without changing it; every folder once, so that circles of links end.

    Args:
        root: an existing folder.
        exclude: folders or files inside it to leave alone, such as the run's own output.
    """
    found = Found()
    left_alone = {os.path.realpath(path) for path in exclude}
    home = Path(os.path.realpath(root))
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        for path in _entries(folder, root, seen, found):
            if path.name.startswith(".") or path.name.lower() in JUNK:
                found.n_ignored += 1
            elif left_alone and os.path.realpath(path) in left_alone:
                found.n_ignored += 1
                found.notes.append(f"{shown(path, root)} is left alone: it is where results go")
            else:
                _sort_in(path, root, found, waiting)
    found.files.sort(key=lambda path: order(path, root))
    found.skipped.sort(key=lambda skipped: order(skipped.path, root))
    if away := [shown(p, root) for p in found.links if not Path(os.path.realpath(p)).is_relative_to(home)]:
        found.notes.append(counted("links that lead out of the folder, followed", away))
    return found


def _entries(folder: Path, root: Path, seen: set[tuple[int, int]], found: Found) -> list[Path]:
    """The paths in a folder, last first since they are taken from a stack's end; none where it was read before."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            found.notes.append(f"{shown(folder, root)} leads to a folder that is read already")
            return []
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        found.skipped.append(Skipped(folder, shown(folder, root), f"the folder cannot be read ({error.strerror})"))
        return []
    return [folder / name for name in sorted(names, key=os.fsencode, reverse=True)]


def _sort_in(path: Path, root: Path, found: Found, waiting: list[Path]) -> None:
    linked = path.is_symlink()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = f"a link to nothing ({error.strerror})" if linked else f"cannot be read ({error.strerror})"
        found.skipped.append(Skipped(path, shown(path, root), reason))
        return
    if linked:
        found.links.append(path)
    if stat.S_ISDIR(mode):
        waiting.insert(0 if linked else len(waiting), path)  # real folders first: their names are the ones to show
    elif stat.S_ISREG(mode):
        found.files.append(path)
    else:
        found.skipped.append(Skipped(path, shown(path, root), f"{special(mode)}, not a file"))


def special(mode: int) -> str:
    """What a path that is no regular file is, from its `st_mode`."""
    names = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_it, name in names if is_it(mode)), "a device")


def order(path: Path, root: Path) -> tuple[bytes, bytes]:
    """A sort key that does not depend on locale, system or the Unicode form that a file system stores."""
    name = path.relative_to(root).as_posix()
    return os.fsencode(unicodedata.normalize("NFC", name)), os.fsencode(name)


def shown(path: Path, root: Path) -> str:
    """The path below `root` as a message can hold it: no line break, control, or byte that is no text."""
    return printable(path.relative_to(root).as_posix())


def printable(text: str) -> str:
    """The text with controls, direction marks and undecodable bytes written as escapes."""
    return "".join(char if _is_shown(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _is_shown(char: str) -> bool:
    return char == "\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")  # U+200D joins emoji


def counted(what: str, names: Sequence[str]) -> str:
    """`what` (how many): which; with the first `MOST_LISTED` names."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"{what} ({len(names)}): {', '.join(names[:MOST_LISTED])}{more}"
