"""Trains the VAE from nothing, then normalises its latents: `python -m pretrain.vae`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from pretrain import data, networks, run, sources
from pretrain.decoder import loss_of

KL_WEIGHT = 1e-6


@torch.no_grad()
def latents(vae: AutoencoderKL, images: np.ndarray, batch: int = 32) -> torch.Tensor:
    """The posterior means of uint8 pictures, (n, channels, h, w) float32.

    In bf16, six times as fast on a CPU and off by 0.005 where the latents' spread is 1.
    """
    device = next(vae.parameters()).device
    found = []
    with torch.autocast(device.type, torch.bfloat16):
        for i in range(0, len(images), batch):
            found.append(vae.encode(data.to_tensor(images[i : i + batch]).to(device)).latent_dist.mean.float().cpu())
    return torch.cat(found)


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Makes the latents (z - mean) / std by channel, exactly, inside the two 1×1 convolutions.

    `quant_conv` gives the mean and the log variance of each channel: W, b -> W/s, (b-m)/s for the first and
    b - 2 log s for the second; `post_quant_conv` takes z s + m: W -> W s, b -> b + W m.
    """
    n = len(mean)
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:n] /= std[:, None, None, None]
    into.bias[:n] = (into.bias[:n] - mean) / std
    into.bias[n:] -= 2 * std.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= std[None, :, None, None]


def main() -> None:
    """Trains, normalises and writes."""
    parser = run.options(__doc__.splitlines()[0], "vae", steps=20_000, batch=16, lr=1e-3)
    parser.add_argument("--out", type=Path, default=run.RUNS / "base")
    parser.add_argument("--styles", nargs="*", default=list(sources.pretraining()), choices=list(sources.STYLES))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = networks.vae().to(args.device)
    images = data.pretraining(args.data, tuple(args.styles)).some(args.limit).images

    def step_loss(step: int) -> torch.Tensor:
        random = np.random.default_rng((args.seed, step))
        chosen = images[random.integers(len(images), size=args.batch)]
        chosen = np.where(random.random((args.batch, 1, 1, 1)) < 0.5, chosen[:, :, ::-1], chosen)
        x = data.to_tensor(chosen).to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            ours = vae.decode(posterior.sample()).sample.float()
        return loss_of(ours, x) + KL_WEIGHT * posterior.kl().mean()

    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    run.train({"network": vae}, optimizer, step_loss, run.schedule(args), args.run)
    vae.eval()
    z = latents(vae, images[:: max(1, len(images) // 1000)])
    fold_normalisation(vae, z.mean((0, 2, 3)).to(args.device), z.std((0, 2, 3)).to(args.device))
    networks.write_diffusers(vae, args.out / "vae")
    print("->", args.out / "vae")


if __name__ == "__main__":
    main()
