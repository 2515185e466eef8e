"""Device, precision and memory: probed, each with its reason."""

from __future__ import annotations

import resource
import sys

import psutil
import torch

from deltaw.errors import UsageError


def choose(name: str | None = None) -> tuple[torch.device, str]:
    """The device to compute on, and why.

    Args:
        name: what the user asked for, e.g. "cuda:1"; None takes the fastest that works.

    Raises:
        UsageError: the device asked for is unknown or not usable here.
    """
    if name is not None:
        return _usable(name), "asked for"
    if torch.cuda.is_available():
        return _usable("cuda"), torch.cuda.get_device_name(0)
    if torch.backends.mps.is_available():
        return _usable("mps"), "Apple GPU"
    return torch.device("cpu"), f"no GPU found; {torch.get_num_threads()} threads"


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


def peak_rss_bytes() -> int:
    """The most memory that the process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def peak_device_bytes(device: torch.device) -> int:
    """The most device memory allocated so far; 0 where the device is the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
