"""Small pictures first: does a run reach a held-out loss earlier whose first steps see smaller pictures?

    python -m benchmarks.curriculum [--styles inkline streamline] [--share 0 0.25 0.5] [--px 64]

Every run has the plan's own values but for its sheet, and never stops early. Its questions are about pictures of full size. Printed are, at
every mark, the seconds since the first step, questions and saving included, and the held-out loss against the base.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from deltaw.data import folder, image
from deltaw.events import Event, Note, Step
from deltaw.families import bases
from deltaw.training import run, stepping
from deltaw.training.stepping import Batch, Work
from deltaw.zoo import bundled_base

EXAMPLES = Path(__file__).parents[1] / "examples"


def small(pictures: Path, px: int) -> list[Tensor]:
    """Latents (c, px/f, px/f) of a folder's pictures, in the order that a run has them in."""
    base = bases.open_base(bundled_base())
    encode = base.image_encoder(torch.device("cpu"))
    found = folder.scan(pictures).pictures
    return [encode(image.fit(image.load(p.path), (px, px))[None])[0] for p in found]


def train(pictures: Path, share: float, px: int) -> list[str]:
    """Trains with small pictures for that share of the steps; says where it was at every mark."""
    latents, beginnings, marks = small(pictures, px), [], []
    full = stepping.batch

    def batch(work: Work, chosen: list[int], step: int) -> Batch:
        if step > share * work.plan.settings.steps:
            return full(work, chosen, step)
        return full(replace(work, feed=replace(work.feed, latents=latents)), chosen, step)

    def tell(event: Event) -> None:
        if isinstance(event, Step) and not beginnings:
            beginnings.append(time.monotonic())
        if isinstance(event, Note) and event.text.startswith("step ") and "held-out loss" in event.text:
            marks.append(f"{time.monotonic() - beginnings[0]:5.1f} s  {event.text}")

    settings = ['prompts=["a cat"]', "sample_steps=1", "stop=false"]
    with tempfile.TemporaryDirectory() as out, mock.patch.object(stepping, "batch", batch):
        run.train(pictures, out=f"{out}/run", settings=settings, tell=tell)
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", default=["inkline", "streamline"])
    parser.add_argument("--share", nargs="+", type=float, default=[0.0, 0.25, 0.5])
    parser.add_argument("--px", type=int, default=64)
    args = parser.parse_args()
    for style in args.styles:
        for share in args.share:
            print(f"{style}, {args.px} px for {share:.0%} of the steps", flush=True)
            for mark in train(EXAMPLES / style, share, args.px):
                print(f"  {mark}", flush=True)


if __name__ == "__main__":
    main()
