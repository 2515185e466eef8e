"""Memory that runs on published bases are foretold to need on a GPU, from their shapes alone: `python -m benchmarks.foretold [--px 512]`.

The networks are traced on the meta device, so no weights and no GPU are needed; nothing here was measured on one. One picture a
step, rank 16, Q, K, V and O, bfloat16; what a step holds, and the phases that decide, without what the program itself holds.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch

from benchmarks.peers.random_bases import FLOW_VAE
from deltaw.families import blueprint, flux, sd, sd_3
from deltaw.families.networks import VARIANTS
from deltaw.families.skeleton import VAE
from deltaw.training import graph, memory

BASES = {"sd1": 512, "sdxl": 1024, "sd35-medium": 1024, "flux1": 1024}
"""Variant of `families.networks` to the side of its pictures."""
N_DRAWN = 6


def configs(variant: str) -> dict[str, Any]:
    """A published base's, as `BaseFolder.configs` would have them."""
    found: dict[str, Any] = {part: dict(config) for part, (_, config) in VARIANTS[variant].items()}
    if "transformer" in found:
        read = {"joint_attention_dim": 4096, "pooled_projection_dim": 768, "in_channels": 64}
        found["transformer"] = {**read, **found["transformer"]}
        return {**found, "vae": FLOW_VAE}
    found["unet"] = {"in_channels": 4, **found["unet"]}
    return {**found, "vae": VAE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, help="side of the pictures, instead of each base's own")
    asked_px = parser.parse_args().px
    print("| base | px | checkpointing | 8 bits | a step | train | judge | encode captions | draw | most |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for variant, own_px in BASES.items():
        px = asked_px or own_px
        kind = {"flux1": flux.Flux, "sd35-medium": sd_3.StableDiffusion3}.get(variant, sd.StableDiffusion)
        made = blueprint.of(configs(variant))
        for packed, again in itertools.product((False, True), repeat=2):
            job = graph.Job(torch.bfloat16, 1, 16, kind.targets, (px, px), px, N_DRAWN, kind.guided_twice, N_DRAWN,
                            torch.device("cuda"), checkpointing=again, base_int8=packed)  # fmt: skip
            found = graph.measure(made, job)
            needs = memory.needs(found, job, "adamw", 0, {"vae": 0})
            by_phase = {need.phase: need.n_bytes / 1e9 for need in needs}
            shown = (
                found.step.peak_bytes / 1e9,
                *(by_phase[phase] for phase in ("train", "judge", "encode captions", "draw")),
            )
            words = ("yes" if again else "no", "yes" if packed else "no")
            print(f"| {variant} | {px} | {' | '.join(words)} | {' | '.join(f'{n:.1f} GB' for n in shown)} | "
                  f"{max(by_phase.values()):.1f} GB |")  # fmt: skip


if __name__ == "__main__":
    main()
