"""The plain peft loop that DeltaW is compared with: peft injected into diffusers' network, nothing else.

    python -m benchmarks.plain_peft FOLDER OUT.safetensors [--base FOLDER] [--px 128] [--steps 150] [--batch 16] [--lr 1e-3]

Latents and text embeddings are encoded once, as any sensible loop does, and lie where the network is; precision is bfloat16 where
the device has it; sampling, times and noise are uniform, the rate is constant, AdamW as torch ships it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from deltaw import device as devices
from deltaw import tensorfile
from deltaw.data import folder, image
from deltaw.diffusion.objective import mix
from deltaw.families import bases, flow, sd
from deltaw.families.base import Base
from deltaw.zoo import bundled_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, default=bundled_base())
    parser.add_argument("--px", type=int)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, help="the rank where nothing is said")
    parser.add_argument("--every", type=int, default=0, help="steps between snapshots, written beside OUT")
    args = parser.parse_args()
    base = bases.open_base(args.base)
    device, _ = devices.choose()
    latents, texts = (t.to(device) for t in encode(base, args.folder, args.px or base.resolution_px, device))
    dtype, _ = devices.compute_dtype(device)
    kind: Any = {"unet": UNet2DConditionModel, "transformer": FluxTransformer2DModel}[base.component]
    network = kind.from_pretrained(args.base, subfolder=base.component, torch_dtype=dtype).requires_grad_(False)
    network.to(device)
    if base.component == "transformer":
        flow.without_cudnn_attention()
    network.add_adapter(
        LoraConfig(r=args.rank, lora_alpha=args.alpha or args.rank, init_lora_weights="gaussian", target_modules=f".*{trained(base)}")
    )  # fmt: skip
    parameters = [p for p in network.parameters() if p.requires_grad]
    for p in parameters:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=args.lr)
    torch.manual_seed(0)
    start = time.perf_counter()
    for step in range(1, args.steps + 1):
        chosen = torch.randint(len(latents), (args.batch,))
        times = torch.randint(base.schedule.n_times, (args.batch,))
        a, s = (t.to(device) for t in base.schedule.at(times))
        e = torch.randn(args.batch, *latents.shape[1:], device=device)
        x, target = mix(latents[chosen], e, a, s), base.objective.target(latents[chosen], e, a, s)
        prediction = base.denoise(network, x.to(dtype), times.to(device), texts[chosen].to(dtype))
        torch.nn.functional.mse_loss(prediction.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if args.every and step % args.every == 0:
            save(network, base, args.alpha or args.rank, args.out.with_stem(f"{args.out.stem}-{step:06}"))
    print(f"plain peft: {args.steps} steps in {time.perf_counter() - start:.1f} s")
    save(network, base, args.alpha or args.rank, args.out)


def save(network: Any, base: Base, alpha: float, out: Path) -> None:
    """The adapter as diffusers names it, its alpha where diffusers writes it."""
    state = {f"{base.component}.{k}": v for k, v in get_peft_model_state_dict(network).items()}
    tensorfile.write(out, state, {"lora_adapter_metadata": json.dumps({f"{base.component}.lora_alpha": alpha})})


def trained(base: Base) -> str:
    """Which layers every trainer adapts: Q, K, V and O of the attention, of FLUX.1 both streams'."""
    return base.targets if base.component == "transformer" else sd.StableDiffusion.targets


def encode(base: Base, pictures: Path, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (n, c, h, w) and texts (n, n_tok, width) of a folder."""
    dataset = folder.scan(pictures)
    encode_image, encode_text = base.image_encoder(device), base.text_encoder(device)
    pixels = [image.fit(image.load(p.path), (side, side)) for p in dataset.pictures]
    latents = torch.cat([encode_image(p[None]) for p in pixels])
    return latents, encode_text([p.caption for p in dataset.pictures])


if __name__ == "__main__":
    main()
