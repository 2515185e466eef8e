"""Renders the packages to 128-pixel pictures with records: `python -m pretrain.render`.

Per style STYLE.npz (`images`) and STYLE.json. One zoom a style, so that most pictures fill the frame and sizes
within a style stay as they were drawn. Nearly blank pictures are left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretrain import captions, colours, concepts, data, fetch, sources, svg

SPAN_PX = 116
"""What the 75th-percentile drawing of a style spans."""
BLANK_SHARE = 0.03


def span_px(picture: np.ndarray) -> int:
    """The longer side of what is drawn."""
    drawn = (picture < 250).any(-1)
    if not drawn.any():
        return 0
    sides = [np.flatnonzero(drawn.any(axis)) for axis in (0, 1)]
    return int(max(s[-1] - s[0] for s in sides)) + 1


def style(name: str, packages: Path, known: list[concepts.Concept]) -> data.Art:
    """One style's pictures and records."""
    source = sources.STYLES[name]
    folder = packages / source.folder
    if name == "fluent-3d":
        found, pictures = _photos(folder / "assets", known)
    else:
        found, pictures = _icons(name, folder, known)
    records, kept = [], []
    for concept, (icon, picture) in zip(found, pictures, strict=True):
        if (picture < 250).any(-1).mean() < BLANK_SHARE:
            continue
        records.append(record(concept, name, icon, picture))
        kept.append(picture)
    return data.Art(np.stack(kept), records)


def _icons(
    name: str, folder: Path, known: list[concepts.Concept]
) -> tuple[list[concepts.Concept], list[tuple[str, np.ndarray]]]:
    listing = svg.read_set(folder)
    icon_of = concepts.icons(name, folder, set(listing), known)
    found = [c for c in known if c.id in icon_of]
    spans = [span_px(svg.draw(listing[icon_of[c.id]])) for c in found]
    zoom = SPAN_PX / float(np.percentile(spans, 75))
    return found, [(icon_of[c.id], svg.draw(listing[icon_of[c.id]], zoom)) for c in found]


def _photos(folder: Path, known: list[concepts.Concept]) -> tuple[list[concepts.Concept], list[tuple[str, np.ndarray]]]:
    """The 3D style is a folder of pictures named by code points."""
    path_of = {concepts.concept_id(path.stem): path for path in sorted(folder.glob("*.webp"))}
    found = [c for c in known if c.id in path_of]
    opened = {c.id: Image.open(path_of[c.id]).convert("RGBA") for c in found}
    side = {c.id: max(_box_sides(opened[c.id])) for c in found}
    scale = SPAN_PX / float(np.percentile(list(side.values()), 75))
    return found, [(path_of[c.id].stem, _over_white(opened[c.id], scale)) for c in found]


def _box_sides(picture: Image.Image) -> tuple[int, int]:
    left, top, right, bottom = picture.getchannel("A").getbbox() or (0, 0, 1, 1)
    return right - left, bottom - top


def _over_white(picture: Image.Image, scale: float) -> np.ndarray:
    paper = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(paper, picture).convert("RGB")
    flat = flat.resize([round(n * scale) for n in flat.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (svg.SIZE_PX, svg.SIZE_PX), "white")
    canvas.paste(flat, tuple((svg.SIZE_PX - n) // 2 for n in flat.size))
    return np.asarray(canvas)


def record(concept: concepts.Concept, style_name: str, icon: str, picture: np.ndarray) -> dict[str, Any]:
    """All that is known of a picture."""
    source = sources.STYLES[style_name]
    known = asdict(concept) | {
        "style": style_name, "style_word": source.word, "icon": icon, "package": source.spec, "licence": source.licence,
        "colors": colours.words(picture),
    }  # fmt: skip
    return known | {"caption": captions.fixed(known)}


def main() -> None:
    """Renders every style and says how many pictures it has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=fetch.FOLDER)
    parser.add_argument("--out", type=Path, default=data.FOLDER)
    parser.add_argument("--styles", nargs="*", default=list(sources.STYLES), choices=list(sources.STYLES))
    args = parser.parse_args()
    known = concepts.read(args.packages)
    for name in args.styles:
        art = style(name, args.packages, known)
        data.save(args.out, name, art)
        print(
            f"{name:12} {len(art):5} pictures, colours {Counter(c for r in art.records for c in r['colors']).most_common(3)}"
        )


if __name__ == "__main__":
    main()
