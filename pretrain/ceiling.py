"""How good could the decoder be with perfect latents? `python -m pretrain.ceiling --base FOLDER`.

For a few pictures the latents themselves are fitted to the picture through the frozen decoder. The PSNR at step
0 is the encoder's; what is gained by the end the decoder could draw but is not told by the encoder's latents.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from pretrain import data, measure


def fit(vae: torch.nn.Module, x: torch.Tensor, steps: int, lr: float) -> list[float]:
    """Mean PSNR in dB before, at every 50th step, and after."""
    vae.requires_grad_(False)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean
    z = z.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=lr)
    found = []
    for step in range(steps + 1):
        told = step % 50 == 0 or step == steps
        with torch.autocast(x.device.type, torch.bfloat16, enabled=not told):
            ours = vae.decode(z).sample.float()
        if told:
            found.append(round(data.psnr_db(ours.detach(), x).mean().item(), 2))
        optimizer.zero_grad()
        ((ours - x) / 2).square().mean((1, 2, 3)).sum().backward()
        optimizer.step()
    return found


def main() -> None:
    """Fits a few pictures of one style."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--style", default="streamline")
    parser.add_argument("--pictures", type=int, nargs="+", default=[10, 150, 250, 350])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.05)
    args = parser.parse_args()
    x = data.to_tensor(data.load(args.data, args.style).images[np.array(args.pictures)])
    print(fit(measure.open_vae(args.base / "vae"), x, args.steps, args.lr))


if __name__ == "__main__":
    main()
