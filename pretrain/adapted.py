"""What the judge sees in pictures drawn with LoRAs of the streamline style: `python -m pretrain.adapted FILE ...`.

48 prompts "NAME, streamline style" of concepts that are in none of the example's pictures, fixed seeds, drawn as `deltaw generate`
draws; the base without a LoRA first. The judge of `pretrain.classifier` has learnt this style too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from deltaw import formats
from deltaw.families import bases, sd, solvers
from deltaw.verbs.painter import Painter, Recipe
from deltaw.zoo import bundled_base
from pretrain import data, measure, run

STYLE = "streamline"
EXAMPLE = Path(__file__).parent.parent / "examples" / STYLE
N_PROMPTS = 48
BATCH = 24


def asked(folder: Path) -> list[dict[str, Any]]:
    """Records of concepts that the base knows and the example does not show, as if drawn in its style."""
    used = {p.read_text(encoding="utf-8").split(",")[0] for p in EXAMPLE.glob("*.txt")}
    records = [r for r in measure.asked(folder) if r["name"] not in used]
    return [{**r, "style": STYLE} for r in records[:: len(records) // N_PROMPTS][:N_PROMPTS]]


def recipes(records: list[dict[str, Any]], base: sd.StableDiffusion, painter: Painter) -> list[Recipe]:
    """What to draw; picture i has seed i."""
    (sampler, steps), side = solvers.chosen(base), base.resolution_px
    guidance = painter.default("guidance", base.guidance)
    return [
        Recipe(f"{r['name']}, {STYLE} style", "", i, steps, guidance, side, side, sampler=sampler)
        for i, r in enumerate(records)
    ]


def main() -> None:
    """Judges the base and every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="LoRAs of the style")
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--base", type=Path, default=bundled_base())
    parser.add_argument("--classifier", type=Path, default=run.RUNS / "classifier.safetensors")
    args = parser.parse_args()
    base = bases.open_base(args.base)
    painter, vae = Painter(base), measure.open_vae(args.base / "vae")
    records = asked(args.data)
    wanted = recipes(records, base, painter)
    shapes = formats.shapes_of(base.folder.path)
    for file in [None, *args.files]:
        deltas = [(formats.load(file, shapes=shapes)[0], 1.0)] if file else []
        z = torch.cat([painter.latents(wanted[i : i + BATCH], deltas) for i in range(0, len(wanted), BATCH)])
        print(file or "base", json.dumps(measure.judged(vae, z, records, args.classifier)), flush=True)


if __name__ == "__main__":
    main()
