"""The pretraining art with dark outlines, as one more style for the U-Net: `python -m pretrain.outlines`.

The pretraining styles have hardly any outlines, so a U-Net of these alone has no features for them, and no small change
can call up what is not there. Bases that people use have seen all kinds of drawing. Every picture is the
art of a style that the U-Net may see; nothing comes from a held-out style.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pretrain import captions, colours, data, fetch, lines, run, sources, svg


def draw(packages: Path, art: data.Art, seed: int) -> data.Art:
    """Each of the pictures once more, from its own SVG, under this style's name.

    The records keep the licence and the package they came from. What cannot be drawn with an outline is left out.
    """
    random = np.random.default_rng(seed)
    icons = {name: svg.read_set(packages / sources.STYLES[name].folder) for name in {r["style"] for r in art.records}}
    pictures, records = [], []
    for known in art.records:
        try:
            picture = lines.outlined(icons[known["style"]][known["icon"]], 0.95, random)
        except (KeyError, ValueError):
            continue  # a newer package may lack the icon; resvg refuses a few bodies once wrapped
        record = known | {"style": sources.OUTLINED, "style_word": sources.OUTLINED, "colors": colours.words(picture)}
        pictures.append(picture)
        records.append(record | {"caption": captions.fixed(record)})
    return data.Art(np.stack(pictures), records)


def main() -> None:
    """Draws and writes outlined.npz and outlined.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=fetch.FOLDER)
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--out", type=Path, default=run.RUNS / "outlines")
    parser.add_argument("--limit", type=int, help="use only so many pictures, to try it out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    art = draw(args.packages, data.pretraining(args.data).some(args.limit), args.seed)
    data.save(args.out, sources.OUTLINED, art)
    print(f"{len(art)} pictures -> {args.out}")


if __name__ == "__main__":
    main()
