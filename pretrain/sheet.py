"""The model card's contact sheet: `python -m pretrain.sheet --base FOLDER`.

Samples: a row a style and one without a style word, a column a concept, one seed a column. Below, pictures of the
held-out styles over what the VAE makes of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from deltaw import tensorfile
from pretrain import captions, data, measure, sources

CONCEPTS = (
    "red apple",
    "dog face",
    "sailboat",
    "hamburger",
    "rocket",
    "house",
    "guitar",
    "penguin",
    "sunflower",
    "ghost",
)
MARGIN_PX, LABEL_PX, SIDE_PX = 4, 18, 112
LABEL_WIDTH_PX = 96


def rows_of_samples(base: Path) -> list[tuple[str, np.ndarray]]:
    """A labelled row of uint8 pictures for every style word, and one for none."""
    pipe = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for word in [*(sources.STYLES[s].word for s in sources.pretraining()), ""]:
        seeds = [torch.Generator().manual_seed(i) for i in range(len(CONCEPTS))]
        prompts = [captions.prompt(name, word) for name in CONCEPTS]
        made = pipe(prompts, num_inference_steps=25, guidance_scale=4.0, generator=seeds, output_type="np").images
        rows.append((word or "no style", (made * 255).round().astype(np.uint8)))
        print(rows[-1][0], flush=True)
    return rows


def rows_of_reconstructions(base: Path, art: Path) -> list[tuple[str, np.ndarray]]:
    """For every held-out style a row of its pictures and a row of their reconstructions."""
    vae = measure.open_vae(base / "vae")
    rows = []
    for style in sources.held_out():
        images = data.load(art, style).images
        chosen = images[np.linspace(0, len(images) - 1, len(CONCEPTS) + 2).astype(int)[1:-1]]
        with torch.no_grad():
            ours = measure.decoded(vae, vae.encode(data.to_tensor(chosen)).latent_dist.mean)
        back = ((ours + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        rows += [(style, chosen), ("  decoded", back)]
    return rows


def drawn(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """The rows under each other, labels on the left, concept names on top."""
    step = SIDE_PX + MARGIN_PX
    sheet = Image.new("RGB", (LABEL_WIDTH_PX + step * len(CONCEPTS), LABEL_PX + step * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for j, name in enumerate(CONCEPTS):
        pen.text((LABEL_WIDTH_PX + j * step + 4, 2), name, fill="black")
    for i, (label, pictures) in enumerate(rows):
        pen.text((4, LABEL_PX + i * step + SIDE_PX // 2), label, fill="black")
        for j, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
            sheet.paste(small, (LABEL_WIDTH_PX + j * step, LABEL_PX + i * step))
    return sheet


def main() -> None:
    """Samples, reconstructs and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    args = parser.parse_args()
    sheet = drawn(rows_of_samples(args.base) + rows_of_reconstructions(args.base, args.data))
    with tensorfile.replacing(args.out) as temporary:
        sheet.quantize(256, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)
    print(f"{args.out}: {args.out.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
