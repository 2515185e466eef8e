"""Line art that the VAE's decoder is trained on further: `python -m pretrain.lines`.

The pretraining styles have hardly any dark outlines, and a decoder that never drew one blurs them. Nothing
here comes from a held-out style. Three kinds, each drawn at random from a seed:
outlined   the pretraining styles' own SVGs with a dark stroke around every shape, some with a ground shadow;
icon       line and solid icons (Tabler, Lucide, Phosphor, Material Design), black on white or in random colours;
soft       pretraining pictures under a smooth random shading, since line art alone would unlearn gradients.
"""

from __future__ import annotations

import argparse
import colorsys
from pathlib import Path

import numpy as np

from deltaw.errors import DeltawError
from pretrain import data, fetch, sources, svg

STROKE_PX = (1.5, 4.5)
"""Outline widths; a 1-unit stroke of a 48-unit icon is 2.7 px, icon fonts go to 4 px and more."""


def outlined(icon: svg.Icon, zoom: float, random: np.random.Generator) -> np.ndarray:
    """The icon with a dark outline around every shape that has no stroke of its own."""
    width = svg.to_icon_units(icon, random.uniform(*STROKE_PX), zoom)
    join = random.choice(["round", "miter"])
    stroke = f'stroke="{_dark(random)}" stroke-width="{width:.3f}" stroke-linejoin="{join}" stroke-linecap="round"'
    if random.random() < 0.1:
        stroke += ' fill="#ffffff"'
    shadow = _shadow(icon, random) if random.random() < 0.3 else ""
    icon = svg.Icon(icon.name, shadow + f"<g {stroke}>{icon.body}</g>", icon.box)
    zoom *= random.uniform(0.8, 1.0)
    return svg.draw(icon, zoom, offset=tuple(random.uniform(-6, 6, 2)))


def _shadow(icon: svg.Icon, random: np.random.Generator) -> str:
    left, top, width, height = icon.box
    rx, ry = width * random.uniform(0.15, 0.45), height * random.uniform(0.02, 0.05)
    cx, cy = left + width * random.uniform(0.4, 0.6), top + height * random.uniform(0.9, 0.97)
    return f'<ellipse cx="{cx}" cy="{cy}" rx="{rx}" ry="{ry}" opacity="{random.uniform(0.1, 0.3):.2f}"/>'


def recoloured(icon: svg.Icon, random: np.random.Generator) -> np.ndarray:
    """A one-colour icon: half of them black on white, the others in two random colours."""
    plain = random.random() < 0.5
    ink, paper = ("#000000", "#ffffff") if plain else (_dark(random), _any(random))
    if not plain and random.random() < 0.3:
        ink, paper = paper, ink
    zoom = random.uniform(0.55, 0.97)
    extra = ""
    if random.random() < 0.4:
        width = svg.to_icon_units(icon, random.uniform(0.5, 2.5), zoom)
        extra = f' stroke="{ink}" stroke-width="{width:.3f}"'
    return svg.draw(icon, zoom, f'color="{ink}" fill="{ink}"{extra}', paper, tuple(random.uniform(-8, 8, 2)))


def softened(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture with everything but its white paper lit unevenly, as rendered art is."""
    coarse = random.uniform(-1, 1, (3, 3))
    at = np.linspace(0, 2, svg.SIZE_PX)
    rows = np.stack([np.interp(at, range(3), column) for column in coarse.T], 1)
    field = np.stack([np.interp(at, range(3), row) for row in rows], 0)[..., None] * random.uniform(20, 90)
    ink = (picture.min(-1, keepdims=True) < 250).astype(np.float32)
    return np.clip(picture + ink * field, 0, 255).astype(np.uint8)


def _dark(random: np.random.Generator) -> str:
    if random.random() < 0.4:
        return "#000000"
    return _hex(random.random(), random.uniform(0, 0.6), random.uniform(0.05, 0.4))


def _any(random: np.random.Generator) -> str:
    return _hex(random.random(), random.uniform(0, 1), random.uniform(0.4, 1))


def _hex(hue: float, saturation: float, value: float) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(hue, saturation, value))


def make(packages: Path, pictures: dict[str, np.ndarray], n: int, seed: int) -> dict[str, np.ndarray]:
    """`n` pictures, {kind: (m, 128, 128, 3) uint8}: 55 % outlined, 35 % icons, 10 % soft."""
    random = np.random.default_rng(seed)
    emoji = [list(svg.read_set(packages / s.folder).values()) for s in sources.STYLES.values() if s.pretrain]
    icons = [list(svg.read_set(packages / s.folder).values()) for s in sources.LINE_ICONS]
    drawn: dict[str, list[np.ndarray]] = {"outlined": [], "icon": [], "soft": []}
    pool = np.concatenate(list(pictures.values()))
    while sum(map(len, drawn.values())) < n:
        kind = random.choice(list(drawn), p=[0.55, 0.35, 0.10])
        try:
            picture = _one(kind, emoji, icons, pool, random)
        except ValueError:
            continue  # resvg refuses a few bodies once wrapped; another is drawn instead
        if picture.std() > 8:  # nearly empty pictures teach nothing
            drawn[kind].append(picture)
    return {kind: np.stack(found) for kind, found in drawn.items() if found}


def _one(kind: str, emoji: list, icons: list, pool: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if kind == "soft":
        return softened(pool[random.integers(len(pool))], random)
    sets = emoji if kind == "outlined" else icons
    chosen = sets[random.integers(len(sets))]
    icon = chosen[random.integers(len(chosen))]
    return outlined(icon, 0.9, random) if kind == "outlined" else recoloured(icon, random)


def main() -> None:
    """Draws the pictures and writes them as lines.npz."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=fetch.FOLDER)
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain/lines.npz"))
    parser.add_argument("--n", type=int, default=14_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    art = {s: data.load(args.data, s).images for s in sources.pretraining()}
    found = make(args.packages, art, args.n, args.seed)
    if not found:
        raise DeltawError("nothing was drawn", where=args.packages, advice="run pretrain.fetch first")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **found)
    print({kind: len(pictures) for kind, pictures in found.items()}, "->", args.out)


if __name__ == "__main__":
    main()
