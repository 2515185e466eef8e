"""The one training loop of all steps: learning rate by steps or by the clock, checkpoints, resuming, logging."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch

from deltaw.errors import DeltawError
from pretrain import state

RUNS = Path("runs/pretrain")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: warm-up, a constant rate until `hold` of the way, then a cosine to zero.

    The way is measured by steps or, where `minutes` is reached first, by the clock: a shared machine's
    speed is not known beforehand, and a run that is cut off before its rate has fallen wastes most of itself.
    """

    steps: int
    lr: float
    minutes: float = float("inf")
    warmup: int = 50
    hold: float = 0.4

    def way(self, step: int, elapsed_s: float) -> float:
        return max(step / self.steps, elapsed_s / 60 / self.minutes)

    def rate(self, step: int, elapsed_s: float) -> float:
        way = min(self.way(step, elapsed_s), 1.0)
        fall = 1.0 if way < self.hold else 0.5 * (1 + cos(pi * (way - self.hold) / (1 - self.hold)))
        return self.lr * min(1.0, (step + 1) / self.warmup) * fall


class Ema(torch.nn.Module):
    """An exponential moving average of a network's weights; early on it forgets faster."""

    def __init__(self, network: torch.nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.names = [name for name, _ in network.named_parameters()]
        for name, p in network.named_parameters():
            self.register_buffer(name.replace(".", "/"), p.detach().clone())

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, p in network.named_parameters():
            self.get_buffer(name.replace(".", "/")).lerp_(p.detach(), 1 - keep)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: self.get_buffer(name.replace(".", "/")) for name in self.names}


def train(
    modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], torch.Tensor],
    schedule: Schedule,
    folder: Path,
    *,
    ema: Ema | None = None,
    watched: Callable[[], float] | None = None,
    save_every_s: float = 120,
) -> None:
    """Runs `loss_of(step)` and the optimizer until the schedule ends; goes on where `folder` left off.

    `modules` is what a checkpoint holds; `ema` follows modules["network"]; `watched()` is a figure for the log.

    Raises:
        DeltawError: the loss is not finite.
    """
    held = dict(modules) | ({"ema": ema} if ema else {})
    path, step, before_s = folder / "state.safetensors", 0, 0.0
    if path.exists():
        facts = state.load(path, held, optimizer)
        step, before_s = facts["step"], facts["elapsed_s"]
    start = saved = time.monotonic()
    while schedule.way(step, before_s + time.monotonic() - start) < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, before_s + time.monotonic() - start)
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise DeltawError(f"the loss is {loss.item()} at step {step}", where=path, advice="lower --lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        step += 1
        if ema:
            ema.update(modules["network"], step)
        elapsed_s = before_s + time.monotonic() - start
        over = schedule.way(step, elapsed_s) >= 1
        if step % 25 == 0 or over:
            _log(folder, step, loss.item(), elapsed_s)
        if over or time.monotonic() - saved > save_every_s:
            state.save(path, held, optimizer, {"step": step, "elapsed_s": elapsed_s})
            saved = time.monotonic()
            if watched:
                _log(folder, step, watched(), time.monotonic() - start + before_s, "watched")


def _log(folder: Path, step: int, value: float, elapsed_s: float, name: str = "loss") -> None:
    line = json.dumps({"step": step, name: round(value, 5), "elapsed_s": round(elapsed_s)})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def options(description: str, name: str, *, steps: int, batch: int, lr: float) -> argparse.ArgumentParser:
    """The options that every training step has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=RUNS / "art", help="rendered art")
    parser.add_argument("--run", type=Path, default=RUNS / name, help="checkpoint and log; an old run there goes on")
    parser.add_argument("--limit", type=int, help="use only so many pictures, to try a step out")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end by the clock, if that comes first")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def schedule(args: argparse.Namespace, hold: float = 0.4) -> Schedule:
    """The schedule that the options ask for."""
    return Schedule(args.steps, args.lr, args.minutes, min(50, max(1, args.steps // 10)), hold)
