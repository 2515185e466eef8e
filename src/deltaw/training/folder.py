"""The result folder of a run: its files, its lock on other runs, its diary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import filelock
import tomli_w

from deltaw import tensorfile
from deltaw.errors import InputError, UsageError
from deltaw.events import Event, Tell, Warn, as_json
from deltaw.training.plan import Value

TORN = ".*.part"
"""What `deltaw.atomic` writes before a file gets its name; a killed process leaves it behind."""


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in `--out`.

    Args:
        path: the folder.
        name: of the run, which its files carry.
    """

    path: Path
    name: str

    @property
    def result(self) -> Path:
        """The LoRA."""
        return self.path / f"{self.name}.safetensors"

    @property
    def state(self) -> Path:
        """What `--resume` continues from."""
        return self.path / "state" / "state.safetensors"

    @property
    def pictures(self) -> Path:
        """What each picture was, so that a resumed run can name those that changed."""
        return self.state.with_name("pictures.json")

    @property
    def config(self) -> Path:
        """Every value and its origin; can be given to `--config`."""
        return self.path / "run.toml"

    @property
    def events(self) -> Path:
        """One JSON object a line, as it happened."""
        return self.path / "events.jsonl"

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.path / "sheet.png"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def snapshot(self, step: int) -> Path:
        """The LoRA as it stood after a step."""
        return self.path / "snapshots" / f"{self.name}-{step:06d}.safetensors"


def prepare(path: Path, pictures: Path, resume: bool) -> RunFolder:
    """Makes the folder, or finds the one to resume; the run is named as the folder of pictures.

    A folder that holds no more than a run that ended before its first save may be used again.

    Raises:
        UsageError: it is the pictures' own folder, or holds something already and nothing is to be resumed.
        InputError: it cannot be made.
    """
    folder = RunFolder(path, pictures.resolve().name or "run")
    if path.resolve() == pictures.resolve():
        raise UsageError("the result folder is the folder of pictures", where=path, expected="another --out",
                         advice="the contact sheet would be trained on the next time")  # fmt: skip
    if path.is_dir() and not resume and not _only_begun(folder):
        raise UsageError("the result folder is not empty", where=path, expected="a new or empty --out",
                         advice="give another --out, or --resume to continue the run that is there")  # fmt: skip
    if resume and not folder.state.is_file():
        begun = path.is_dir() and any(path.iterdir()) and _only_begun(folder)
        what = (
            "the run ended before its first save; there is nothing to resume" if begun else "there is no run to resume"
        )
        raise InputError(what, where=path, advice="leave --resume out, or give the run's --out")
    try:
        folder.state.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the result folder cannot be made ({error.strerror})", where=path, advice="give another --out"
        ) from error
    return folder


def _only_begun(folder: RunFolder) -> bool:
    """Whether nothing is there but what a run writes until its first save, which is a snapshot and then the state."""
    snapshots = folder.snapshot(0).parent
    begun = {folder.config.name, folder.events.name, folder.state.parent.name, snapshots.name}
    names = {entry.name for entry in folder.path.iterdir()} - {torn.name for torn in folder.path.glob(TORN)}
    if folder.state.exists() or not names <= begun:
        return False
    return snapshots.name not in names or (folder.pictures.is_file() and len(list(snapshots.glob("[!.]*"))) <= 1)


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keeps every other process out of the folder; the system frees the lock of a process that died.

    What a killed process was writing lies there under temporary names and is removed.

    Raises:
        UsageError: another process is at work in it.
        InputError: the folder cannot be written to.
    """
    lock = filelock.FileLock(folder.state.with_name("lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UsageError("another process is training into this folder", where=folder.path, expected="one run a folder",
                         advice="wait for it, stop it, or give another --out") from error  # fmt: skip
    except OSError as error:
        raise InputError(f"the result folder cannot be written to ({error.strerror})", where=folder.path,
                         expected="permission to write", advice="give another --out") from error  # fmt: skip
    try:
        for part in (folder.path, folder.state.parent, folder.snapshot(0).parent):
            for torn in part.glob(TORN):
                torn.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def write_config(path: Path, values: Mapping[str, Value], base: str) -> None:
    """Writes every value with its origin as a comment, so that the file is a `--config` too."""
    lines = ["# Every value of this run: origin, then why. `deltaw train FOLDER --config THIS` repeats it.", ""]
    lines.append(f"{tomli_w.dumps({'base': base}).strip()}")
    for name, value in values.items():
        if value.value == "" or value.value is None:
            continue
        plain = list(value.value) if isinstance(value.value, tuple) else value.value
        if isinstance(plain, list):
            lines += [f"# {name}: {value.origin}: {value.reason}", tomli_w.dumps({name: plain}).strip()]
        else:
            lines.append(f"{tomli_w.dumps({name: plain}).strip()}  # {value.origin}: {value.reason}")
    tensorfile.write_text(path, "\n".join(lines) + "\n")


class Diary:
    """A listener that writes every event to a file and passes it on.

    A log that cannot be written is said once and costs nothing else: what a run is for are its files.

    Args:
        path: the file; a resumed run goes on in it.
        tell: the listener behind it.
    """

    def __init__(self, path: Path, tell: Tell):
        self._path = path
        self._tell = tell
        self._file: IO[str] | None = None
        try:
            torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
            self._file = path.open("a", encoding="utf-8", buffering=1)
            if torn:  # by a kill in the middle of a line
                self._file.write("\n")
        except OSError as error:
            self._give_up(error)

    def __call__(self, event: Event) -> None:
        """Writes the event as one JSON line, then tells the listener."""
        if self._file is not None:
            try:
                self._file.write(json.dumps(as_json(event), default=str) + "\n")
            except OSError as error:
                self._give_up(error)
        self._tell(event)

    def __enter__(self) -> Diary:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _give_up(self, error: OSError) -> None:
        self._close()
        self._tell(Warn(f"{self._path} cannot be written ({error.strerror}); the run goes on without its log"))

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what could not be written was said before
                file.close()
