"""Trains the text encoder against the pictures' latents: `python -m pretrain.text --base FOLDER`.

A contrastive loss as CLIP's (Radford et al. 2021) with a small network over the VAE's latents on the other
side. A few minutes of it, then frozen, save most of the time that the U-Net would need to find out what words mean.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from pretrain import captions, data, networks, run
from pretrain.vae import latents


class Pairing(nn.Module):
    """Both towers: the text encoder, the latents' network, and the learned temperature."""

    def __init__(self, text: CLIPTextModel, width: int = 128):
        super().__init__()
        self.text = text
        self.text_out = nn.Linear(256, 256, bias=False)
        self.picture = nn.Sequential(
            nn.Conv2d(networks.LATENT_CHANNELS, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Flatten(), nn.Linear(2 * width * 16, 256, bias=False),
        )  # fmt: skip
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # exp: 1/0.07, CLIP's start

    def forward(self, tokens: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Scaled cosine of every caption (rows) with every picture (columns)."""
        text = F.normalize(self.text_out(self.text(input_ids=tokens).pooler_output), dim=-1)
        picture = F.normalize(self.picture(z), dim=-1)
        return self.log_scale.clamp(max=4.6).exp() * text @ picture.T


def contrastive(scores: torch.Tensor) -> torch.Tensor:
    """The symmetric cross-entropy of finding the own partner."""
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def tokens(tokenizer: CLIPTokenizer, texts: list[str], device: str) -> torch.Tensor:
    """Ids padded as the pipeline pads them."""
    return tokenizer(
        texts, padding="max_length", max_length=networks.N_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids.to(device)


def spoken(
    records: list[dict[str, Any]], chosen: np.ndarray, random: np.random.Generator, *, empty: float
) -> list[str]:
    """A random caption for each chosen picture."""
    return [captions.drawn(records[i], random, empty=empty) for i in chosen]


def main() -> None:
    """Trains and writes the text encoder beside the VAE and the tokenizer."""
    parser = run.options(__doc__.splitlines()[0], "text", steps=1500, batch=256, lr=1e-3)
    parser.add_argument("--base", type=Path, required=True, help="a folder with vae/ and tokenizer/")
    parser.add_argument("--out", type=Path, default=run.RUNS / "base")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = CLIPTokenizer.from_pretrained(args.base / "tokenizer")
    vae = AutoencoderKL.from_pretrained(args.base / "vae", torch_dtype=torch.float32).to(args.device).eval()
    art = data.pretraining(args.data).some(args.limit)
    args.batch = min(args.batch, len(art))
    z = latents(vae, art.images).to(args.device)
    pairing = Pairing(networks.text_encoder()).to(args.device)

    def scores(step: int) -> torch.Tensor:
        random = np.random.default_rng((args.seed, step))
        chosen = random.permutation(len(art))[: args.batch]
        return pairing(tokens(tokenizer, spoken(art.records, chosen, random, empty=0), args.device), z[chosen])

    @torch.no_grad()
    def retrieval() -> float:
        return (scores(10**9).argmax(1).cpu() == torch.arange(args.batch)).float().mean().item()

    optimizer = torch.optim.AdamW(pairing.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    run.train(
        {"network": pairing},
        optimizer,
        lambda step: contrastive(scores(step)),
        run.schedule(args),
        args.run,
        watched=retrieval,
    )
    networks.write_text_encoder(pairing.text, args.out / "text_encoder")
    if args.base.resolve() != args.out.resolve():
        for part in ("vae", "tokenizer"):
            shutil.copytree(args.base / part, args.out / part, dirs_exist_ok=True)
    print(f"retrieval among {args.batch} {retrieval():.3f} -> {args.out / 'text_encoder'}")


if __name__ == "__main__":
    main()
