"""One training step, DeltaW beside plain peft and beside the limit, alternating in one process.

    python -m benchmarks.step_time                      # the bundled base, batch 4 and 16
    python -m benchmarks.step_time --base sd15 --px 256 # Stable Diffusion 1.5's shapes with random weights

The limit is the frozen network's forward and its backward to the inputs only, as diffusers computes them: what a LoRA step
has to do. DeltaW's attention is its own where that is faster, so that it may fall below. All compute in the device's
own precision; adapters are float32, rank 8 on Q, K, V, O.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from deltaw import device as devices
from deltaw import inject
from deltaw.families import attention, sd
from deltaw.zoo import bundled_base

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def network(name: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A frozen UNet as diffusers has it: the bundled base's, or one of Stable Diffusion 1.5's shapes with random weights."""
    if name == "bundled":
        found = UNet2DConditionModel.from_pretrained(bundled_base(), subfolder="unet", torch_dtype=dtype)
    else:
        torch.manual_seed(0)
        found = UNet2DConditionModel(**SD15).to(dtype=dtype)
    return found.to(device).eval().requires_grad_(False)


def contenders(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Three networks with the same weights."""
    limit, ours, theirs = (network(name, device, dtype) for _ in range(3))
    attention.speed_up(ours, device, dtype)
    inject.wrap(ours, sd.TARGETS, 8, 8.0, torch.Generator().manual_seed(0))
    theirs.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return {"limit": limit, "DeltaW": ours, "plain peft": theirs}


def step(model: nn.Module, x: torch.Tensor, times: torch.Tensor, text: torch.Tensor, *, to_inputs: bool) -> None:
    """Forward, a squared loss, backward."""
    x = x.detach().requires_grad_(to_inputs)
    model(x, times, encoder_hidden_states=text, return_dict=False)[0].float().square().mean().backward()


def measure(
    models: dict[str, nn.Module], inputs: tuple[torch.Tensor, ...], n: int, wait: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds per step, n each, the models taking turns; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for i in range(n + 1):
        for name, model in models.items():
            start = time.perf_counter()
            step(model, *inputs, to_inputs=name == "limit")
            wait()
            if i:
                seconds[name].append(time.perf_counter() - start)
            for parameter in model.parameters():
                parameter.grad = None
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("bundled", "sd15"), default="bundled")
    parser.add_argument("--px", type=int)
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    device, why = devices.choose()
    dtype, _ = devices.compute_dtype(device)
    px, batches = (
        args.px or (128 if args.base == "bundled" else 256),
        args.batch or ([4, 16] if args.base == "bundled" else [1]),
    )
    print(
        f"{args.base}, {px} px, {str(dtype).removeprefix('torch.')} on {device} ({why}), torch {torch.__version__}, {args.runs} runs"
    )
    models = contenders(args.base, device, dtype)
    config = models["limit"].config
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for batch in batches:
        inputs = (
            torch.randn(batch, config.in_channels, px // 8, px // 8).to(device, dtype),
            torch.randint(1000, (batch,)).to(device),
            torch.randn(batch, 77, config.cross_attention_dim).to(device, dtype),
        )
        seconds = measure(models, inputs, args.runs, wait)
        limit = statistics.median(seconds["limit"])
        for name, values in seconds.items():
            middle = statistics.median(values)
            print(
                f"batch {batch:2}  {name:10}  {middle:7.3f} s  ({min(values):.3f} to {max(values):.3f})  {middle / limit:.3f} of the limit"
            )
        print(
            f"batch {batch:2}  DeltaW ÷ plain peft  {statistics.median(seconds['DeltaW']) / statistics.median(seconds['plain peft']):.3f}"
        )


if __name__ == "__main__":
    main()
