"""What a network of Stable Diffusion predicts, noise or v, told from what it answers rather than from what its folder says."""

from __future__ import annotations

import torch
from torch import nn

from deltaw import device as devices
from deltaw.families.base import Base

SIGNALS = (0.2, 0.8)
"""Signals a of the times that are asked at: the noise's share in the answer is near 1 at both where noise is predicted, else near a."""
N_LATENTS = 32
"""Latents a side."""
LEAST_NOISE = 0.8
"""The share under most noise that noise is told by; a network that learnt little has less."""
LEAST_RISE = 0.15
"""How much more there is under little noise where v is predicted; a network that learnt nothing answers both times alike."""
WORDS = {"epsilon": "noise", "v_prediction": "v"}
"""A base's objective in a person's words."""


def tried(base: Base, device: torch.device) -> str | None:
    """Loads the network and asks it; None where its answers tell neither.

    Args:
        base: of Stable Diffusion 1.x, 2.x or XL.
        device: where to compute.
    """
    dtype, _ = devices.compute_dtype(device)
    network = base.denoiser(device, dtype)
    found = kind(*shares(base, network, device, dtype, (1, int(base.config["in_channels"]), N_LATENTS, N_LATENTS)))
    del network
    devices.give_back()
    return found


def doubt(base: Base, network: nn.Module, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Why a base's folder is not to be believed in what it predicts, else "".

    Args:
        base: it.
        network: its own, without adapters.
        device, dtype: where and in what that computes.
        shape: of the latents (n, c, h, w) to ask with; where it is a training step's, nothing has to be compiled for it.
    """
    said = base.objective.name
    if said not in WORDS:
        return ""
    found = kind(*shares(base, network, device, dtype, shape))
    if found in (None, said):
        return ""
    return (f"the base says that it predicts {WORDS[said]} and answers as one that predicts {WORDS[found]}: what is trained would be "
            f"of no use; correct prediction_type in {base.folder.path / 'scheduler' / 'scheduler_config.json'}")  # fmt: skip


def kind(most: float, least: float) -> str | None:
    """What is predicted where the noise has these shares in the answers under most noise and under least; None where it is neither."""
    if most > LEAST_NOISE:
        return "epsilon"
    return "v_prediction" if least - most > LEAST_RISE else None


@torch.no_grad()
def shares(
    base: Base, network: nn.Module, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
) -> tuple[float, float]:
    """⟨answer, e⟩ / ⟨e, e⟩ of a network for x = s·e and a text of zeros, at both `SIGNALS`.

    Latents of zeros, a flat grey, with noise e are x = s·e. Of those the noise is e, and v = a·e - s·0 = a·e (Salimans and Ho
    2022, arXiv 2202.00512, appendix D). So the share is 1 or a, as far as the network sees through the noise.
    """
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    text = torch.zeros(len(noise), *base.text_shape, device=device, dtype=dtype)

    def share(signal: float) -> float:
        time = int((base.schedule.a - signal).abs().argmin())
        times = torch.full((len(noise),), time, device=device)
        answer = base.denoise(network, (base.schedule.s[time] * noise).to(dtype), times, text).float()
        return float((answer * noise).sum() / noise.square().sum())

    most, least = (share(signal) for signal in SIGNALS)
    return most, least
