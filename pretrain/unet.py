"""Trains the U-Net on the frozen VAE and text encoder: `python -m pretrain.unet --base FOLDER`.

v-prediction (Salimans & Ho 2022), an average of the weights over time, 10 % empty captions. `--outlines FOLDER` mixes in
the style that `pretrain.outlines` draws.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from deltaw import tensorfile
from deltaw.families import attention
from pretrain import captions, data, networks, run, sources
from pretrain.text import spoken, tokens
from pretrain.vae import latents

SNR_FULL = 4.0
OUTLINED_SHARE = 0.3
"""Of the samples, where outlines are given: enough to learn them, while most are still the art as it is."""


def weight(snr: torch.Tensor) -> torch.Tensor:
    """The v-loss's weight: 1 up to SNR 4, then 5/(SNR+1).

    Little noise teaches little; much noise, where composition is decided, keeps its full weight
    (min-SNR's SNR/(SNR+1) there learned composition later).
    """
    return torch.where(snr <= SNR_FULL, torch.ones_like(snr), (SNR_FULL + 1) / (snr + 1))


def v_loss(
    unet: UNet2DConditionModel,
    x0: torch.Tensor,
    e: torch.Tensor,
    t: torch.Tensor,
    text: torch.Tensor,
    alphas: torch.Tensor,
) -> torch.Tensor:
    """Weighted squared error of v = a e - s x0 at x = a x0 + s e, with a² = `alphas`[t] and s² = 1 - a²."""
    a2 = alphas[t][:, None, None, None]
    a, s = a2.sqrt(), (1 - a2).sqrt()
    with torch.autocast(x0.device.type, torch.bfloat16):
        v = unet(a * x0 + s * e, t, text).sample.float()
    error = (v - (a * e - s * x0)).square().mean((1, 2, 3))
    snr = alphas[t] / (1 - alphas[t])
    return (weight(snr) * error).mean()


def views(art: data.Art, n: int, seed: int) -> np.ndarray:
    """(n, pictures, 128, 128, 3): each picture as it is, then mirrored where that is allowed and moved or shrunk a little."""
    random = np.random.default_rng(seed)
    out = [art.images]
    for _ in range(n - 1):
        out.append(
            np.stack([_moved(p, captions.may_flip(r), random) for p, r in zip(art.images, art.records, strict=True)])
        )
    return np.stack(out)


def _moved(picture: np.ndarray, flip: bool, random: np.random.Generator) -> np.ndarray:
    if flip and random.random() < 0.5:
        picture = picture[:, ::-1]
    side = int(random.integers(112, 129))
    left, top = random.integers(0, 129 - side, 2)
    canvas = Image.new("RGB", (128, 128), "white")
    canvas.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (int(left), int(top)))
    return np.asarray(canvas)


def encoded(vae: AutoencoderKL, art: data.Art, n_views: int, seed: int, folder: Path) -> torch.Tensor:
    """(views, pictures, channels, 16, 16): the latents, kept in the run's folder, since a resumed run needs them again."""
    path = folder / f"latents-{len(art)}-{n_views}-{seed}.safetensors"
    if not path.exists():
        z = torch.stack([latents(vae, view) for view in views(art, n_views, seed)])
        folder.mkdir(parents=True, exist_ok=True)
        tensorfile.write(path, {"latents": z})
    return tensorfile.read(path)["latents"]


def choose(n_plain: int, n: int, batch: int, share: float, random: np.random.Generator) -> np.ndarray:
    """Indices of a batch: pictures from `n_plain` on are outlined and get their share."""
    chosen = random.integers(n_plain, size=batch)
    if n > n_plain:
        chosen = np.where(random.random(batch) < share, random.integers(n_plain, n, size=batch), chosen)
    return chosen


def main() -> None:
    """Trains and writes a whole base."""
    parser = run.options(__doc__.splitlines()[0], "unet", steps=100_000, batch=32, lr=7e-4)
    parser.add_argument("--base", type=Path, required=True, help="a folder with vae/, tokenizer/ and text_encoder/")
    parser.add_argument("--start", type=Path, help="a U-Net's folder to go on from, else from nothing")
    parser.add_argument("--out", type=Path, default=run.RUNS / "base")
    parser.add_argument("--views", type=int, default=4, help="variants of each picture that are encoded")
    parser.add_argument("--outlines", type=Path, help="the folder of pretrain.outlines, to learn that style too")
    parser.add_argument("--outlined", type=float, default=OUTLINED_SHARE, help="share of outlined samples")
    parser.add_argument("--hold", type=float, default=0.4, help="share of the run before the rate falls")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    art = data.pretraining(args.data).some(args.limit)
    n_plain = len(art)
    if args.outlines:
        art = art.and_also(data.load(args.outlines, sources.OUTLINED).some(args.limit))
    vae = AutoencoderKL.from_pretrained(args.base / "vae", torch_dtype=torch.float32).to(args.device).eval()
    z = encoded(vae, art, args.views, args.seed, args.run).to(args.device)
    tokenizer = CLIPTokenizer.from_pretrained(args.base / "tokenizer")
    encoder = (
        CLIPTextModel.from_pretrained(args.base / "text_encoder", torch_dtype=torch.float32).to(args.device).eval()
    )
    unet = (
        UNet2DConditionModel.from_pretrained(args.start, torch_dtype=torch.float32) if args.start else networks.unet()
    )
    attention.speed_up(unet, torch.device(args.device), torch.bfloat16)  # autocast's; a fifth of a step on a CPU
    unet.to(args.device).train()
    alphas = networks.scheduler().alphas_cumprod.to(args.device)

    def step_loss(step: int) -> torch.Tensor:
        random = np.random.default_rng((args.seed, step))
        chosen, view = (
            choose(n_plain, len(art), args.batch, args.outlined, random),
            random.integers(args.views, size=args.batch),
        )
        with torch.no_grad():
            ids = tokens(tokenizer, spoken(art.records, chosen, random, empty=0.1), args.device)
            with torch.autocast(args.device, torch.bfloat16):
                text = encoder(input_ids=ids).last_hidden_state
        x0 = z[view, chosen]
        noise = torch.Generator().manual_seed(int(random.integers(2**31)))
        e = torch.randn(x0.shape, generator=noise).to(args.device)
        t = torch.randint(len(alphas), (args.batch,), generator=noise).to(args.device)
        return v_loss(unet, x0, e, t, text, alphas)

    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    ema = run.Ema(unet, 0.999)
    run.train({"network": unet}, optimizer, step_loss, run.schedule(args, args.hold), args.run, ema=ema)
    write(args.base, args.out, unet, ema.weights())


def write(base: Path, out: Path, unet: UNet2DConditionModel, weights: dict[str, torch.Tensor]) -> None:
    """The whole base: this U-Net, the scheduler, the index, and the other parts as they are."""
    networks.write_diffusers(unet, out / "unet", weights)
    networks.write_index(out)
    if base.resolve() != out.resolve():
        for part in ("vae", "tokenizer", "text_encoder"):
            shutil.copytree(base / part, out / part, dirs_exist_ok=True)
    print("->", out)


if __name__ == "__main__":
    main()
