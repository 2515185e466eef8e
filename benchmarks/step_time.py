"""One training step, DeltaW beside plain peft and beside the limit, alternating in one process.

    python -m benchmarks.step_time                      # the bundled base, batch 4 and 16
    python -m benchmarks.step_time --base sd15 --px 256 # Stable Diffusion 1.5's shapes with random weights
    python -m benchmarks.step_time --base sdxl --px 512 # Stable Diffusion XL's
    python -m benchmarks.step_time --base flux1 --px 512 --blocks 2 4  # FLUX.1's widths, with 2 + 4 of its 19 + 38 blocks
    python -m benchmarks.step_time --base sd35 --px 512 # Stable Diffusion 3.5 medium's shapes

The limit is the frozen network's forward and its backward to the inputs only, as diffusers computes them: what a LoRA step
has to do. DeltaW's attention and convolutions are its own where that is faster, so that it may fall below. All compute in the device's
own precision; adapters are float32, rank 8 on Q, K, V, O. DeltaW's step is the one of its training loop. On a GPU that is a recorded CUDA
graph: the limit and plain peft are then shown recorded too, which neither diffusers nor peft does by itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from deltaw import device as devices
from deltaw import inject, int8
from deltaw.families import flow, flux, kernels, readers, sd, sd_3, sd_xl
from deltaw.families.networks import VARIANTS
from deltaw.training import replay
from deltaw.training.replay import Steps
from deltaw.training.stepping import Batch, Work
from deltaw.zoo import bundled_base

SHAPES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "sd15": VARIANTS["sd1"]["unet"], "sdxl": VARIANTS["sdxl"]["unet"], "flux1": VARIANTS["flux1"]["transformer"],
    "sd35": VARIANTS["sd35-medium"]["transformer"],
}  # fmt: skip
"""Class and shapes of published bases' networks, by name."""
N_CLIP_TOK = 77
TARGETS = {"flux1": flux.Flux.targets, "sd35": sd_3.StableDiffusion3.targets}
"""What is adapted where it is not called as in Stable Diffusion's UNet."""


def network(name: str, device: torch.device, dtype: torch.dtype, **changes: Any) -> Any:
    """A frozen network as diffusers has it: the bundled base's, or one of a published base's shapes with random weights."""
    if name == "bundled":
        found: Any = UNet2DConditionModel.from_pretrained(bundled_base(), subfolder="unet", torch_dtype=dtype)
    else:
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        kind, shapes = SHAPES[name]
        with device:
            found = kind(**{**shapes, **changes})
        torch.set_default_dtype(torch.float32)
    return found.to(device).eval().requires_grad_(False)


def twin(model: Any) -> Any:
    """A network of its own that reads the same weights."""
    with torch.device("meta"):
        made = type(model).from_config(model.config)
    made.load_state_dict(model.state_dict(), assign=True)
    return made.eval().requires_grad_(False)


def inputs(config: Any, px: int, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a network of that config reads for a batch of pictures of `px`, what it denoises first; numbers drawn at random."""

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(device, dtype)

    if "pos_embed_max_size" in config:  # Stable Diffusion 3
        rows = N_CLIP_TOK + sd_3.N_T5_TOK
        text = numbers(batch, rows, config.joint_attention_dim), numbers(batch, config.pooled_projection_dim)
        x = numbers(batch, config.in_channels, px // 8, px // 8)
        return sd_3.arguments(x, torch.rand(batch).to(device), *text)
    if "joint_attention_dim" in config:
        x = numbers(batch, config.in_channels // 4, px // 8, px // 8)
        text = numbers(batch, flux.N_TOK, config.joint_attention_dim), numbers(batch, config.pooled_projection_dim)
        return flux.arguments(config, x, torch.rand(batch).to(device, dtype), *text)
    asked: dict[str, Any] = {
        "sample": numbers(batch, config.in_channels, px // 8, px // 8),
        "timestep": torch.randint(1000, (batch,)).to(device),
        "encoder_hidden_states": numbers(batch, N_CLIP_TOK, config.cross_attention_dim),
        "return_dict": False,
    }
    if config.addition_embed_type:  # XL is told the text's summary and the picture's size
        sizes = torch.tensor([[px, px, 0, 0, px, px]]).expand(batch, -1).to(device)
        asked["added_cond_kwargs"] = {"text_embeds": numbers(batch, sd_xl.n_pooled(config)), "time_ids": sizes}
    return asked


Step = Callable[[], object]
"""Forward, a squared loss, backward."""


def contenders(
    limit: Any, asked: Mapping[str, Any], targets: str, device: torch.device, dtype: torch.dtype, *, packed: bool
) -> dict[str, Step]:
    """The steps of three networks on the same weights."""
    ours, theirs = twin(limit), twin(limit)
    if packed:
        int8.pack_all(ours)
    kernels.speed_up(ours, device, dtype)
    wrapped = inject.wrap(ours, targets, 8, 8.0, torch.Generator().manual_seed(0))
    theirs.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=f".*{targets}"))
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    steps = {
        "limit": plain(limit, asked, to_inputs=True), "DeltaW": as_trained(ours, wrapped, asked, device, dtype),
        "plain peft": plain(theirs, asked, to_inputs=False),
    }  # fmt: skip
    if device.type == "cuda":
        steps |= {f"{name}, recorded": Recorded(steps[name]) for name in ("limit", "plain peft")}
    return steps


def plain(model: nn.Module, asked: Mapping[str, Any], *, to_inputs: bool) -> Step:
    """A step as torch launches it; the gradients of the step before are forgotten."""
    first = next(iter(asked))

    def step() -> None:
        x = asked[first].detach().requires_grad_(to_inputs)
        for parameter in model.parameters():
            parameter.grad = None
        model(**{**asked, first: x})[0].float().square().mean().backward()

    return step


def as_trained(
    model: nn.Module, wrapped: inject.Wrapped, asked: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> Step:
    """A step of DeltaW's training loop, without its optimizer's."""
    first = next(iter(asked))
    x = asked[first]
    n = torch.ones(len(x))

    def denoise(network: nn.Module, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return network(**{**asked, first: x})[0]  # type: ignore[no-any-return]

    compute = loop_steps(model, wrapped, denoise, device, dtype)
    return lambda: compute(Batch(x, n, n, torch.zeros(x.shape), n))


def loop_steps(
    model: nn.Module,
    wrapped: inject.Wrapped,
    denoise: Callable[..., torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Steps:
    """The steps of DeltaW's training loop on a network, without a run around them; `denoise` calls it, as `Base.denoise` does."""
    flat, why = readers.gather(model, wrapped, device, dtype)
    if why:
        print(f"DeltaW's kernels cannot be used: {why}")
    base: Any = SimpleNamespace(denoise=denoise)
    nothing: Any = None
    whole: Any = SimpleNamespace(settings=SimpleNamespace(micro_batch=sys.maxsize))
    return Steps(Work(base, model, wrapped, flat, nothing, whole, device, dtype), print)


class Recorded:
    """A step as a CUDA graph, recorded at its third call."""

    def __init__(self, step: Step):
        self.step, self.n, self.stream = step, 0, torch.cuda.Stream()
        self.graph: Any = None

    def __call__(self) -> None:
        self.n += 1
        if self.graph is not None:
            self.graph.replay()
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        if self.n == 3:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.step()
        else:
            with torch.cuda.stream(self.stream):
                self.step()
        torch.cuda.current_stream().wait_stream(self.stream)


def measure(steps: Mapping[str, Step], n: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per step, n each, the contenders taking turns; the first rounds warm up and do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(n + replay.n_first(device)):
        for name, step in steps.items():
            wait(device)
            start = time.perf_counter()
            step()
            wait(device)
            if i >= replay.n_first(device):
                seconds[name].append(time.perf_counter() - start)
    return seconds


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def held_bytes(step: Step, device: torch.device) -> int:
    """What the GPU holds at the peak of a step beyond what it held before, recorded or not."""
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("bundled", *SHAPES), default="bundled")
    parser.add_argument("--px", type=int)
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--int8", action="store_true", help="DeltaW keeps the base's linear layers in 8 bits")
    parser.add_argument("--blocks", type=int, nargs=2, help="FLUX.1's double and single blocks, where all are too many")
    args = parser.parse_args()
    device, why = devices.choose()
    dtype, _ = devices.compute_dtype(device)
    px, batches = (
        args.px or {"bundled": 128, "sd15": 256}.get(args.base, 512),
        args.batch or ([4, 16] if args.base == "bundled" else [1]),
    )
    print(
        f"{args.base}, {px} px, {str(dtype).removeprefix('torch.')} on {device} ({why}), torch {torch.__version__}, {args.runs} runs"
    )
    cut = dict(zip(("num_layers", "num_single_layers"), args.blocks or (), strict=False))
    targets = TARGETS.get(args.base, sd.StableDiffusion.targets)
    if args.base in TARGETS:
        flow.without_cudnn_attention()
    limit_network = network(args.base, device, dtype, **cut)
    for batch in batches:
        asked = inputs(limit_network.config, px, batch, device, dtype)
        steps = contenders(limit_network, asked, targets, device, dtype, packed=args.int8)
        if device.type == "cuda":
            for name in ("limit", "DeltaW", "plain peft"):
                print(f"batch {batch:2}  {name:20}  holds {held_bytes(steps[name], device) / 1e9:.2f} GB in a step")
        seconds = measure(steps, args.runs, device)
        limit = statistics.median(seconds["limit"])
        for name, values in seconds.items():
            middle = statistics.median(values)
            print(
                f"batch {batch:2}  {name:20}  {middle:7.4f} s  ({min(values):.4f} to {max(values):.4f})  {middle / limit:.3f} of the limit"
            )
        print(
            f"batch {batch:2}  DeltaW ÷ plain peft  {statistics.median(seconds['DeltaW']) / statistics.median(seconds['plain peft']):.3f}"
        )


if __name__ == "__main__":
    main()
