"""Memory that runs out in mid-run: named, with the cheapest change and with what was kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from deltaw.errors import DeltawError
from deltaw.training import sampler, state
from deltaw.training.folder import RunFolder
from deltaw.training.plan import Settings

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "failed to allocate")
"""What allocators write into a RuntimeError, which is all that tells it from a mistake."""


@contextlib.contextmanager
def named(settings: Settings, folder: RunFolder) -> Iterator[None]:
    """Turns an allocator's failure within the context into one with advice; nothing that was saved is touched.

    Raises:
        DeltawError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        said = str(error).strip().splitlines() or ["no word from the allocator"]
        raise DeltawError(
            f"memory ran out ({said[0][:120]})", where=folder.path, expected="less to hold at once",
            advice=f"{cheapest(settings)}, or close other programs; {kept(folder)}",
        ) from error  # fmt: skip


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error).lower() for sign in SIGNS)


def cheapest(settings: Settings) -> str:
    """The change that saves memory at the least cost to the result."""
    if settings.micro_batch > 1:
        return f"take --set micro_batch={sampler.micro_batches(settings.micro_batch)[1]}"
    if not settings.checkpointing:
        return "take --set checkpointing=true"
    if settings.dtype == "float32":
        return "take --set dtype=bfloat16"
    return f"take --resolution {max(64, settings.resolution // 2 // 64 * 64)}"


def kept(folder: RunFolder) -> str:
    """What a run that ends here leaves behind, and how to go on."""
    if folder.result.is_file():
        return f"the LoRA itself is written: {folder.result}"
    if folder.state.is_file():
        step = state.step_of(folder.state)
        return f"step {step} is saved: --resume goes on from it (with --set resume_anyway=true after a change)"
    return "nothing was saved yet"
