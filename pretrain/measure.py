"""Measures a base: `python -m pretrain.measure --base FOLDER`. Four figures, each on fixed inputs.

concept, style   200 prompts "NAME, STYLE style" with fixed seeds through the unmodified StableDiffusionPipeline
                 (guidance 4), judged by `pretrain.classifier`
line, mixed      mean PSNR of encode -> decode on the held-out line style, and on validation pairs of the
                 pretraining styles; the other held-out styles are told too

`--sampler`, `--steps`: as `deltaw generate` has them; the base's own scheduler (DDIM) in 25 steps by default.
`--vae FOLDER` (repeatable) decodes the same latents with another VAE as well: with the encoder unchanged the
U-Net's part is the same and need not be sampled twice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from deltaw import tensorfile
from deltaw.families import solvers
from pretrain import captions, classifier, data, run, sources

N_PROMPTS = 200
STEPS = 25
MIN_STYLES = 4
"""Prompted concepts are those that the base saw in at least so many styles."""


def asked(folder: Path, n: int = N_PROMPTS) -> list[dict[str, Any]]:
    """The records whose names and styles are prompted: the same number of each style, chosen with seed 0."""
    split = data.splits()
    art = data.pretraining(folder)
    styles: dict[str, int] = {}
    for record in art.records:
        styles[record["id"]] = styles.get(record["id"], 0) + 1
    random = np.random.default_rng(0)
    found = []
    for i, style in enumerate(sources.pretraining()):
        pool = [
            r
            for r in art.records
            if r["style"] == style and styles[r["id"]] >= MIN_STYLES and r["id"] not in split["novel_concepts"]
        ]
        count = n // len(sources.pretraining()) + (i < n % len(sources.pretraining()))
        found += [pool[j] for j in random.permutation(len(pool))[:count]]
    return found


@torch.no_grad()
def sample(
    base: Path,
    records: list[dict[str, Any]],
    device: str,
    sampler: str = solvers.OWN,
    steps: int = STEPS,
    batch: int = 20,
) -> torch.Tensor:
    """The latents that the base makes of the prompts; picture i has seed i, whatever the batch."""
    pipe = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, safety_checker=None).to(device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = solvers.scheduler(pipe.scheduler, sampler)
    found = []
    for i in range(0, len(records), batch):
        prompts = [captions.prompt(r["name"], r["style_word"]) for r in records[i : i + batch]]
        seeds = [torch.Generator().manual_seed(i + j) for j in range(len(prompts))]
        made = pipe(
            prompts,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=seeds,
            output_type="latent",
            return_dict=False,
        )
        found.append(made[0].float().cpu())
        print(f"{min(i + batch, len(records))} of {len(records)} prompts", flush=True)
    return torch.cat(found)


def open_vae(folder: Path) -> AutoencoderKL:
    """A VAE in fp32: the files are fp16."""
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()


@torch.no_grad()
def decoded(vae: AutoencoderKL, z: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1], rounded to 8 bits as a saved file is."""
    x = torch.cat([vae.decode(part).sample for part in z.split(16)]).clamp(-1, 1)
    return ((x + 1) * 127.5).round() / 127.5 - 1


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Mean PSNR in dB of encode -> decode, in fp32, with the posterior's mean."""
    found = []
    for i in range(0, len(images), 16):
        x = data.to_tensor(images[i : i + 16])
        found.append(data.psnr_db(decoded(vae, vae.encode(x).latent_dist.mean), x))
    return round(torch.cat(found).mean().item(), 2)


def reconstruction(vae: AutoencoderKL, folder: Path, every: int) -> dict[str, float]:
    """PSNR on the held-out styles and on the pretraining styles' validation pairs."""
    found = {style: psnr(vae, data.load(folder, style).images[::every]) for style in sources.held_out()}
    return found | {"mixed": psnr(vae, data.validation(folder).images)}


def judged(vae: AutoencoderKL, z: torch.Tensor, records: list[dict[str, Any]], judge_path: Path) -> dict[str, float]:
    """What the classifier recognises in the sampled pictures."""
    judge, labels = classifier.load(judge_path)
    return classifier.hits(judge, decoded(vae, z), *labels.of(records))


def main() -> None:
    """Measures the base and, on the same latents, every other VAE that is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--vae", type=Path, action="append", default=[], help="another VAE for the same latents")
    parser.add_argument("--classifier", type=Path, default=run.RUNS / "classifier.safetensors")
    parser.add_argument("--prompts", type=int, default=N_PROMPTS)
    parser.add_argument(
        "--every", type=int, default=4, help="of the held-out styles' pictures, measure every n-th; 0: no PSNR"
    )
    parser.add_argument(
        "--latents", type=Path, help="what an earlier run sampled (its --out with .safetensors): judge that again"
    )
    parser.add_argument("--sampler", choices=(solvers.OWN, solvers.FAST), default=solvers.OWN)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=run.RUNS / "measures.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    records = asked(args.data, args.prompts)
    z = (
        tensorfile.read(args.latents)["latents"]
        if args.latents
        else sample(args.base, records, args.device, args.sampler, args.steps)
    )
    result = {}
    for folder in [args.base / "vae", *args.vae]:
        vae = open_vae(folder)
        result[str(folder)] = judged(vae, z, records, args.classifier)
        if args.every:
            result[str(folder)]["psnr_db"] = reconstruction(vae, args.data, args.every)
        print(folder, json.dumps(result[str(folder)]), flush=True)
    tensorfile.write(
        args.out.with_suffix(".safetensors"), {"latents": z}, {"prompts": json.dumps([r["caption"] for r in records])}
    )
    tensorfile.write_text(args.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
