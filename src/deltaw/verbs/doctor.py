"""`deltaw doctor`: what this machine offers, one line a thing, one fix a problem."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from deltaw import device as devices
from deltaw import joined
from deltaw.data.cache import default_root
from deltaw.errors import DeltawError
from deltaw.events import Table, Tell, Warn, silent
from deltaw.families import rotary
from deltaw.families.single import UNPACKED

LEAST_MEMORY_BYTES = 4e9
"""The bundled base trains in about 1 GB; Stable Diffusion 1.5 in bfloat16 needs some 4 GB."""
LEAST_DISK_BYTES = 2e9
KERNEL_SIDE = 1024
N_KERNELS = 3
LARGEST_ERROR = 0.02
"""Of a product in the chosen precision; bfloat16 rounds to about 0.3 %."""


@dataclass(frozen=True)
class Finding:
    """One thing of the machine: what it is, and what to do where it is a problem ("" where it is none)."""

    name: str
    value: str
    fix: str = ""


def examine(tell: Tell = silent) -> bool:
    """Looks at Python, torch, libraries, device, kernels, precision, memory, disk and cache; True where nothing is a problem."""
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
    threads = f"{torch.get_num_threads()} threads on {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores"
    value = f"{torch.__version__}, {threads}"
    if torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi"):
        return Finding(
            "torch", value, "an NVIDIA driver is here but this torch is built without CUDA: install the CUDA build"
        )
    return Finding("torch", value)


def _libraries() -> Finding:
    names = ("diffusers", "transformers", "safetensors", "pillow")
    return Finding("libraries", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))


def _device() -> Finding:
    try:
        device, why = devices.choose()
    except DeltawError as error:
        return Finding("device", error.what, "update the GPU's driver, or take torch's build for it; or use device=cpu")
    n = torch.cuda.device_count() if device.type == "cuda" else 1
    more = f"; {n} GPUs, which train together with --set processes={n}" if n > 1 else ""
    return Finding("device", f"{device} ({why}); one kernel ran{more}")


def _kernels() -> Finding:
    """DeltaW's own kernels, which training of large bases on an NVIDIA GPU uses."""
    try:
        device = devices.choose()[0]
    except DeltawError:
        device = torch.device("cpu")
    if device.type != "cuda":
        return Finding("GPU kernels", "none are needed here")
    if why := joined.broken(device) or rotary.broken(device):
        return Finding("GPU kernels", f"cannot be used: {why}",
                       "install the triton of this torch and a C compiler; training works without them, and takes longer")  # fmt: skip
    return Finding("GPU kernels", "built, and right on a small product")


def _precision() -> Finding:
    """The precision that is chosen, after a product in it was compared with float32."""
    try:
        device = devices.choose()[0]
    except DeltawError as error:
        return Finding("precision", error.what, "mend the device first")
    dtype, why = devices.compute_dtype(device)
    name = str(dtype).removeprefix("torch.")
    a = torch.randn(KERNEL_SIDE, KERNEL_SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    exact, found = a @ a, (a.to(dtype) @ a.to(dtype)).float()
    error = float((found - exact).norm() / exact.norm())
    if not error < LARGEST_ERROR:  # not a number fails too
        return Finding("precision", f"{name} ({why}); a product is wrong by {error:.1%}",
                       "train with --set dtype=float32, and update torch or the driver")  # fmt: skip
    faster = _seconds(a) / _seconds(a.to(dtype))
    speed = f", {faster:.1f} times the speed of float32" if dtype is not torch.float32 else ""
    return Finding("precision", f"{name} ({why}){speed}")


def _seconds(a: torch.Tensor) -> float:
    """Of the quickest of some products."""
    found = []
    for _ in range(N_KERNELS):
        start = time.perf_counter()
        (a @ a).sum().item()  # the number has to arrive, so that a GPU has finished
        found.append(time.perf_counter() - start)
    return min(found)


def _memory() -> Finding:
    try:
        device = devices.choose()[0]
    except DeltawError:
        device = torch.device("cpu")
    free, bound = devices.available_bytes(device)
    short = free < LEAST_MEMORY_BYTES
    return Finding(
        "memory", f"{free / 1e9:.1f} GB {bound}",
        f"close programs: {LEAST_MEMORY_BYTES / 1e9:.0f} GB are needed for bases of common size" if short else "",
    )  # fmt: skip


def _disk() -> Finding:
    return _room("disk here", Path())


def _cache() -> Finding:
    root = default_root()
    name = f"cache ({root})"
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding(
            name, f"cannot be written ({error.strerror or error})", "set DELTAW_CACHE to a folder that can be written"
        )
    found = _room(name, existing)
    unpacked = sorted(folder.name for folder in root.glob(f"{UNPACKED}/*/*"))
    if not unpacked:
        return found
    n_bytes = sum(file.stat().st_size for file in (root / UNPACKED).rglob("*") if file.is_file())
    return replace(
        found, value=f"{found.value}; {UNPACKED}/ holds {n_bytes / 1e9:.1f} GB of unpacked files: {', '.join(unpacked)}"
    )


def _room(name: str, path: Path) -> Finding:
    free = shutil.disk_usage(path).free
    return Finding(name, f"{free / 1e9:.1f} GB free", "free some space" if free < LEAST_DISK_BYTES else "")


_LOOKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _torch,
    _libraries,
    _device,
    _kernels,
    _precision,
    _memory,
    _disk,
    _cache,
)
