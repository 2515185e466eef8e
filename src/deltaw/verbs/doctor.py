"""`deltaw doctor`: what this machine offers, one line a thing, one fix a problem."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from deltaw import device as devices
from deltaw.data.cache import default_root
from deltaw.errors import DeltawError
from deltaw.events import Table, Tell, Warn, silent

LEAST_MEMORY_BYTES = 4e9
"""The bundled base trains in about 1 GB; Stable Diffusion 1.5 in bfloat16 needs some 4 GB."""
LEAST_DISK_BYTES = 2e9


@dataclass(frozen=True)
class Finding:
    """One thing of the machine: what it is, and what to do where it is a problem ("" where it is none)."""

    name: str
    value: str
    fix: str = ""


def examine(tell: Tell = silent) -> bool:
    """Looks at Python, torch, device, precision, memory, disk and cache; True where nothing is a problem."""
    findings = [look() for look in _LOOKS]
    rows = tuple((f.name, f.value, "ok" if not f.fix else "problem") for f in findings)
    tell(Table("this machine", ("what", "found", ""), rows))
    for finding in findings:
        if finding.fix:
            tell(Warn(f"{finding.name}: {finding.fix}"))
    return not any(f.fix for f in findings)


def _python() -> Finding:
    old = sys.version_info < (3, 11)
    return Finding("Python", platform.python_version(), "install Python 3.11 or newer" if old else "")


def _torch() -> Finding:
    return Finding("torch", torch.__version__)


def _device() -> Finding:
    try:
        device, why = devices.choose()
    except DeltawError as error:
        return Finding("device", error.what, "update the GPU's driver, or take torch's build for it; or use device=cpu")
    return Finding("device", f"{device} ({why}); one kernel ran")


def _precision() -> Finding:
    try:
        dtype, why = devices.compute_dtype(devices.choose()[0])
    except DeltawError as error:
        return Finding("precision", error.what, "mend the device first")
    return Finding("precision", f"{str(dtype).removeprefix('torch.')} ({why})")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    short = memory.available < LEAST_MEMORY_BYTES
    return Finding(
        "memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        f"close programs: {LEAST_MEMORY_BYTES / 1e9:.0f} GB are needed for bases of common size" if short else "",
    )  # fmt: skip


def _disk() -> Finding:
    return _room("disk here", Path())


def _cache() -> Finding:
    root = default_root()
    existing = next(path for path in (root, *root.parents) if path.exists())
    return _room(f"cache ({root})", existing)


def _room(name: str, path: Path) -> Finding:
    free = shutil.disk_usage(path).free
    return Finding(name, f"{free / 1e9:.1f} GB free", "free some space" if free < LEAST_DISK_BYTES else "")


_LOOKS: tuple[Callable[[], Finding], ...] = (_python, _torch, _device, _precision, _memory, _disk, _cache)
