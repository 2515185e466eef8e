"""Trains the VAE's decoder further, on line art too: `python -m pretrain.decoder --base FOLDER --out FOLDER`.

The encoder and `quant_conv` stay as they are, so the latents and with them the U-Net stay valid. Batches mix the
pretraining styles with `pretrain.lines`; no picture of a held-out style is among them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from pretrain import data, networks, run, sources

PLAIN_SHARE = 0.35
"""Of a batch: pictures of the pretraining styles as they are, so that these do not get worse."""


def loss_of(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Root mean square error of each picture, averaged, plus the absolute error of its differences.

    The root keeps pictures that are hard from drowning the others, as the mean of a PSNR does; the
    differences weigh edges, which is where line art is lost.
    """
    error = ours - theirs
    root = (error.square().mean((1, 2, 3)) + 1e-6).sqrt().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return root + 0.5 * edges


class Batches:
    """Random batches from the mixed pools, flipped and inverted now and then; every step has its own seed."""

    def __init__(self, plain: np.ndarray, lines: dict[str, np.ndarray], batch: int, seed: int):
        self.plain, self.lines, self.batch, self.seed = plain, np.concatenate(list(lines.values())), batch, seed

    def at(self, step: int) -> torch.Tensor:
        random = np.random.default_rng((self.seed, step))
        chosen = []
        for _ in range(self.batch):
            pool = self.plain if random.random() < PLAIN_SHARE else self.lines
            picture = pool[random.integers(len(pool))]
            if random.random() < 0.5:
                picture = picture[:, ::-1]
            if random.random() < 0.05:
                picture = 255 - picture
            if random.random() < 0.3:
                picture = np.roll(picture, random.integers(-8, 9, 2), (0, 1))
            chosen.append(picture)
        return data.to_tensor(np.stack(chosen))


def decode(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """What the decoder makes of the frozen encoder's latents, in bf16 where that is fast."""
    with torch.autocast(x.device.type, torch.bfloat16):
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
        return vae.decode(z).sample.float()


def save(vae: AutoencoderKL, base: Path, out: Path) -> None:
    """Writes the base with the new decoder in fp16; every other file is copied."""
    shutil.copytree(base, out, dirs_exist_ok=True)
    networks.write_diffusers(vae, out / "vae")


def main() -> None:
    """Trains and writes."""
    parser = run.options(__doc__.splitlines()[0], "decoder", steps=4000, batch=8, lr=6e-4)
    parser.add_argument("--base", type=Path, required=True, help="a base in the diffusers layout")
    parser.add_argument("--lines", type=Path, default=run.RUNS / "lines.npz")
    parser.add_argument("--out", type=Path, default=run.RUNS / "base-decoder")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(args.base / "vae", torch_dtype=torch.float32).to(args.device).eval()
    vae.requires_grad_(False)
    trained = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)
    with np.load(args.lines) as arrays:
        lines = {kind: arrays[kind] for kind in arrays.files}
    plain = data.pretraining(args.data).some(args.limit).images
    batches = Batches(plain, lines, args.batch, args.seed)
    watch = data.to_tensor(
        np.concatenate([data.load(args.data, s).images[::200][:4] for s in sources.pretraining()])
    ).to(args.device)

    @torch.no_grad()
    def psnr() -> float:
        return data.psnr_db(decode(vae, watch), watch).mean().item()

    def step_loss(step: int) -> torch.Tensor:
        x = batches.at(step).to(args.device)
        return loss_of(decode(vae, x), x)

    optimizer = torch.optim.AdamW(trained.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    run.train({"network": trained}, optimizer, step_loss, run.schedule(args, hold=0.3), args.run, watched=psnr)
    save(vae, args.base, args.out)
    print("->", args.out)


if __name__ == "__main__":
    main()
