"""Device, precision and memory: probed, each with its reason."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from deltaw.errors import UsageError

KERNELS_KEPT = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384"
"""How many compiled kernels oneDNN keeps, as a variable of the environment that it reads when the first one is made.

It keeps the latest 1024 by itself. A run of one size of pictures makes some 800, one of five sizes more than twice as many, so that
after every mark many were compiled anew (`docs/performance.md`).
"""


def choose(name: str | None = None) -> tuple[torch.device, str]:
    """The device to compute on, and why. Called before anything is computed, it also has a CPU's compiled kernels kept.

    Args:
        name: what the user asked for, e.g. "cuda:1"; None takes the fastest that works.

    Raises:
        UsageError: the device asked for is unknown or not usable here.
    """
    os.environ.setdefault(*KERNELS_KEPT)
    if name is not None:
        return _usable(name), "asked for"
    if torch.cuda.is_available():
        return _usable("cuda"), torch.cuda.get_device_name(0)
    if torch.backends.mps.is_available():
        return _usable("mps"), "Apple GPU"
    return torch.device("cpu"), f"no GPU found; {torch.get_num_threads()} threads"


def several(device: torch.device, n: int) -> list[torch.device]:
    """`n` devices to compute on side by side, the given one first: a GPU each, or the same CPU, whose cores are shared out.

    Raises:
        UsageError: there are fewer.
    """
    if n == 1:
        return [device]
    if not torch.distributed.is_available():
        raise UsageError("this build of torch has no torch.distributed, without which processes cannot work together",
                         where="processes", advice="take --set processes=1, or a usual build of torch")  # fmt: skip
    if device.type == "cpu":
        return [device] * n
    first, there = device.index or 0, torch.cuda.device_count() if device.type == "cuda" else 1
    if n > there:
        raise UsageError(
            f"{n} processes need as many GPUs, and {there} {'are' if there > 1 else 'is'} here", where="processes",
            expected=f"{there} at most", advice=f"take --set processes={there}",
        )  # fmt: skip
    others = [i for i in range(there) if i != first]
    return [torch.device(device.type, i) for i in (first, *others[: n - 1])]


def _usable(name: str) -> torch.device:
    """The device, after it ran one real kernel: a listed GPU may still be too old or too new."""
    try:
        device = torch.device(name)
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0] if str(error) else repr(error)
        raise UsageError(
            f"device {name!r} cannot be used: {first_line}", where="device", expected="cpu, cuda, cuda:N or mps"
        ) from error
    return device


def compute_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The precision that the frozen base computes in, and why. Adapters are always float32."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes bfloat16"
        return torch.float32, "the GPU has no bfloat16, and float16 overflows in some VAEs"
    if device.type == "cpu":
        if torch.cpu._is_avx512_bf16_supported():  # no public query exists; checked by tests
            return torch.bfloat16, "this CPU has bfloat16 instructions"
        return torch.float32, "this CPU has no bfloat16 instructions"
    return torch.float32, f"bfloat16 is not relied on for {device.type}"


def rss_bytes() -> int:
    """Memory that the process holds now."""
    return psutil.Process().memory_info().rss


def available_bytes(device: torch.device) -> tuple[int, str]:
    """Memory that can still be had, and what bounds it: the GPU, a control group's limit, or the machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, f"free of the GPU's {total / 1e9:.1f} GB"
    memory = psutil.virtual_memory()
    found = [(memory.available, f"free of this machine's {memory.total / 1e9:.1f} GB")]
    group = _control_group(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if group is not None:
        limit, used = group
        found.append((max(0, limit - used), f"free of this container's limit of {limit / 1e9:.1f} GB"))
    return min(found)


def _control_group(membership: Path, root: Path) -> tuple[int, int] | None:
    """(limit, used) bytes of the tightest Linux control group, version 2 or 1, that holds the process.

    Pages of files do not count as used: the system drops them when memory is short.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # no Linux
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root if controllers == "" else root / "memory"
            names = (
                ("memory.max", "memory.current")
                if controllers == ""
                else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            )
            place = top / path.lstrip("/")
            found += [_limit(folder, *names) for folder in (place, *place.parents) if folder.is_relative_to(top)]
    return min((group for group in found if group is not None), key=lambda group: group[0] - group[1], default=None)


def _limit(folder: Path, limit_name: str, used_name: str) -> tuple[int, int] | None:
    try:
        limit, used = int((folder / limit_name).read_text()), int((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # absent, or "max"
        return None
    return limit, used - int(stat.get("file", stat.get("total_cache", 0)))


def give_back() -> None:
    """Returns what was freed to the system, where the C library or the GPU's allocator would keep it for later."""
    gc.collect()
    trim()


def trim() -> None:
    """The same for what was freed without a cycle of references: it takes no time to look for those."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _ask_glibc("malloc_trim", 0)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names for what `mallopt` sets (malloc.h)."""
USUAL_TRIM_BYTES, USUAL_MMAP_BYTES = 64 << 20, 32 << 20
"""Where glibc's own adjustment of both ends in a process that frees large memory."""


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within the context the C library keeps freed memory at the end of its heap, where glibc would give it back unasked.

    A training step frees all that it asked for; given back, it is asked for and cleared again in the next step, which took
    a tenth of the bundled base's. `trim` gives it back all the same.
    """
    _ask_glibc("mallopt", M_MMAP_THRESHOLD, USUAL_MMAP_BYTES)
    _ask_glibc("mallopt", M_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        _ask_glibc("mallopt", M_TRIM_THRESHOLD, USUAL_TRIM_BYTES)


def _ask_glibc(function: str, *arguments: int) -> None:
    """Calls a function of the C library that only glibc has, where it is there; others give memory back anyway."""
    if sys.platform == "linux":
        found = getattr(ctypes.CDLL(None), function, None)
        if found is not None:
            found(*arguments)


def peak_rss_bytes() -> int:
    """The most memory that the process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def peak_device_bytes(device: torch.device) -> int:
    """The most device memory allocated so far; 0 where the device is the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute on one thread: a block that fits the cache is done before a second thread has begun.

    How many it has otherwise is kept, and is the same for the whole process.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
