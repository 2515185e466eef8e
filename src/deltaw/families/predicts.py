"""What a network of Stable Diffusion predicts, noise or v, told from what it answers rather than from what its folder says."""

from __future__ import annotations

import torch

from deltaw import device as devices
from deltaw.families.base import Base

SIGNAL = 0.4
"""The signal a of the time that is asked at: an answer's share of the noise is near 1 there where noise is predicted, else near a."""
N_LATENTS = 32
"""Latents a side."""
NOISE, V = (0.8, 1.1), (0.15, 0.6)
"""Shares of the noise that are taken for one and the other; a network that learnt nothing has none."""
WORDS = {"epsilon": "noise", "v_prediction": "v"}


@torch.no_grad()
def tried(base: Base, device: torch.device) -> str | None:
    """Loads the network and asks it once; None where its answer tells neither.

    Latents of zeros, a flat grey, with noise e are x = s·e. Of those the noise is e, and v = a·e - s·0 = a·e (Salimans and Ho
    2022, arXiv 2202.00512, appendix D). So the answer's projection on e is 1 or a, as far as the network sees through the noise.

    Args:
        base: of Stable Diffusion 1.x, 2.x or XL.
        device: where to compute.
    """
    dtype, _ = devices.compute_dtype(device)
    network = base.denoiser(device, dtype)
    answer = share(base, network, device, dtype)
    del network
    devices.give_back()
    kinds = (("epsilon", NOISE), ("v_prediction", V))
    return next((kind for kind, (least, most) in kinds if least < answer < most), None)


@torch.no_grad()
def share(base: Base, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> float:
    """⟨answer, e⟩ / ⟨e, e⟩ of a network for x = s·e and a text of zeros."""
    time = int((base.schedule.a - SIGNAL).abs().argmin())
    shape = (1, int(base.config["in_channels"]), N_LATENTS, N_LATENTS)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    x, text = base.schedule.s[time] * noise, torch.zeros(1, *base.text_shape, device=device)
    answer = base.denoise(network, x.to(dtype), torch.tensor([time], device=device), text.to(dtype)).float()
    return float((answer * noise).sum() / noise.square().sum())
