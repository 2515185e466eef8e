"""Why a run has no finite loss: every suspect is tried on the batch that failed, none is guessed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deltaw.errors import DeltawError
from deltaw.training import loading, stepping, verify
from deltaw.training.loop import NotFiniteError
from deltaw.training.stepping import Work


def explain(work: Work, error: NotFiniteError, saved: str) -> DeltawError:
    """The error with its tested cause.

    Args:
        work: as it failed.
        error: the step and pictures that failed.
        saved: what was kept.
    """
    cause, advice = _cause(work, error)
    return DeltawError(
        f"{error.n_steps} steps in a row had no finite loss or gradient; {cause}", where=error.where,
        expected="finite numbers", advice=f"{advice}; {saved}",
    )  # fmt: skip


def _cause(work: Work, error: NotFiniteError) -> tuple[str, str]:
    feed, seen = work.feed, sorted(set(error.pictures))
    if broken := [i for i in seen if not bool(torch.isfinite(feed.latents[i]).all())]:
        return f"the cause: the latents of {len(broken)} pictures are not finite", "empty the cache and use a sound VAE"
    if broken := [feed.captions[i] for i in seen if not bool(torch.isfinite(feed.texts[feed.captions[i]]).all())]:
        return f"the cause: the embedding of {broken[0]!r} is not finite", "use a sound text encoder"
    trained = {name: p.detach().clone() for name, p in work.wrapped.parameters().items()}
    if broken := [name for name, t in trained.items() if not bool(torch.isfinite(t).all())]:
        return f"the cause: the adapter itself is not finite ({broken[0]})", "lower --lr"
    used = str(work.dtype).removeprefix("torch.")
    base_alone = _finite(work, error, verify.zeros(work.wrapped))
    exact = _in_float32(work)
    if not _finite(exact, error, verify.zeros(exact.wrapped)):
        return "the cause: the base alone, in float32, is not finite on this batch", "check the base's weights"
    if not _finite(exact, error, trained):
        name, largest = _largest(trained)
        return (
            f"the cause: the learning rate: the base alone is finite in float32 but not with the adapter, "
            f"which has grown to {largest:.3g} ({name})", "lower --lr",
        )  # fmt: skip
    if work.dtype == torch.float32:
        return (
            "the same batch is finite when it is tried again: the hardware or a library is at fault",
            "go on with --resume",
        )
    who = "the base alone" if not base_alone else "base and adapter"
    return f"the cause: the precision: {who} overflows in {used} and is finite in float32", "use --set dtype=float32"


def _in_float32(work: Work) -> Work:
    """The same network read anew: what overflowed on loading is infinite for good."""
    network = work.base.denoiser(work.device, torch.float32)
    exact, _ = loading.prepared(work.base, network, work.feed, work.plan, work.device, torch.float32)
    return exact


def _finite(work: Work, error: NotFiniteError, tensors: Mapping[str, Tensor]) -> bool:
    """Whether loss and gradient of the failed batch are finite with these adapters."""
    with verify.holding(work.wrapped, tensors):
        failed = stepping.batch(work, error.pictures, error.step)
        parts = failed.parts(work.plan.settings.micro_batch)
        loss = stepping.gradients(work, parts, lambda part: stepping.add_gradients(work, part))
        return all(bool(torch.isfinite(t).all()) for t in (loss, work.flat.grads))


def _largest(tensors: Mapping[str, Tensor]) -> tuple[str, float]:
    return max(((name, float(t.abs().max())) for name, t in tensors.items()), key=lambda found: found[1])
