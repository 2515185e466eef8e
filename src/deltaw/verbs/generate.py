"""`deltaw generate`: pictures from a base and any number of LoRAs, through diffusers' own pipeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from deltaw import formats, sheet, tensorfile, zoo
from deltaw.delta import Delta
from deltaw.errors import InputError, UsageError
from deltaw.events import Note, Phase, Saved, Tell, Tick, Warn, silent
from deltaw.families import bases, solvers
from deltaw.families.base import Base
from deltaw.options import weighted
from deltaw.verbs.painter import Painter, Recipe, Use

CHUNK = "deltaw"
"""The PNG text chunk that holds a picture's recipe as JSON."""
GRID_KEYS = {"strength": float, "prompt": str, "seed": int, "steps": int, "sampler": str, "guidance": float}
"""What a grid can vary, and the type of its values."""


def generate(
    prompts: str | Sequence[str] | None = None, *, loras: Sequence[str | Path | tuple[str | Path, float]] = (),
    base: str | Path | None = None, negative: str | None = None, seed: int | None = None, steps: int | None = None,
    sampler: str | None = None, guidance: float | None = None, size: str | None = None, count: int = 1, out: str | Path | None = None,
    grid: str | None = None, like: str | Path | None = None, device: str | None = None, dtype: str | None = None,
    strict: bool = False, tell: Tell = silent,
) -> list[Path]:  # fmt: skip
    """Draws pictures and writes them as PNGs that hold their recipe; returns the files.

    Args:
        prompts: one or several; not needed with `like`.
        loras: files, each with a strength (1 by default; 0 and negative work).
        base: a diffusers folder, single file or hub id; the bundled base by default.
        negative: what to steer away from.
        seed: of the first picture; the next ones add 1 each.
        steps, sampler, guidance, size: as the base recommends by default; size is "SIDE" or "WIDTHxHEIGHT".
        count: pictures per prompt.
        out: a file for one picture or a grid, else a folder; the current folder by default.
        grid: "strength=0,0.5,1", "prompt=a cat|a dog", ...: one labelled sheet instead of single files.
        like: a PNG made here; its recipe is repeated, except for what is given.
        device, dtype: where and in which precision to compute.
        strict: a LoRA that fits the base only partly is an error.
        tell: listener.

    Raises:
        InputError: a LoRA or picture cannot be used with this base.
        UsageError: nothing to draw, options that contradict each other, or a sampler that the base is not drawn with.
    """
    past = read_recipe(like) if like else {}
    paths = [_lora_path(entry) for entry in loras]
    opened = bases.open_base(base or zoo.bundled_base(), tell)
    uses, deltas_of = _loaded(paths, past, like, opened, strict, tell)
    wanted = [prompts] if isinstance(prompts, str) else list(prompts or ([past["prompt"]] if past else []))
    if not wanted and not (grid or "").startswith("prompt="):
        raise UsageError("there is nothing to draw", expected="a PROMPT, --like FILE.png or --grid prompt=a|b")
    if negative and not opened.guided_twice:
        raise UsageError(f"{opened.folder.path.name} is guided by a number and reads no negative prompt", where="--negative",
                         advice="say in the prompt what should be there instead")  # fmt: skip
    drawn_by, usual = solvers.chosen(opened, sampler or past.get("sampler", solvers.OWN if past else None))
    tell(Phase("load base"))
    painter = Painter(opened, device or past.get("device"), dtype or past.get("dtype"))
    width, height = _size(size or past.get("size") or str(painter.base.resolution_px), painter.base.drawn_step_px)
    recipe = Recipe(
        prompt=wanted[0] if wanted else "", negative=past.get("negative", "") if negative is None else negative,
        seed=int(past.get("seed", 0)) if seed is None else seed,
        steps=steps or int(past.get("steps", 0)) or usual,
        guidance=guidance if guidance is not None else past.get("guidance", painter.default("guidance", opened.guidance)),
        width_px=width, height_px=height, loras=uses, base=painter.base.folder.path.name,
        base_sha256=painter.base.folder.digest(painter.base.component), dtype=str(painter.dtype).removeprefix("torch."),
        device=painter.device.type, sampler=drawn_by,
    )  # fmt: skip
    _same_base(past, recipe, tell)
    tell(Note(f"{painter.base.folder.path.name} on {painter.device}, {recipe.dtype}; seed {recipe.seed}, {recipe.steps} steps "
              f"by {solvers.SPOKEN[recipe.sampler]}, guidance {recipe.guidance:g}"))  # fmt: skip
    singles = [replace(recipe, prompt=p, seed=recipe.seed + i) for p in wanted or [""] for i in range(count)]
    if grid:
        return [_write_grid(painter, singles, deltas_of, grid, out, tell)]
    return _write_singles(painter, singles, deltas_of, out, tell)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe in a PNG made by `generate`.

    Raises:
        InputError: the file is no picture or holds no recipe.
    """
    try:
        with Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(CHUNK)
    except OSError as error:
        raise InputError(
            f"cannot be read as a picture ({error})", where=path, expected="a PNG by `deltaw generate`"
        ) from error
    if text is None:
        raise InputError(
            "holds no recipe", where=path, expected="a PNG by `deltaw generate`", advice="re-saving a picture drops it"
        )
    recipe = json.loads(text)
    return {**recipe, "size": f"{recipe['width_px']}x{recipe['height_px']}"}


def _lora_path(entry: str | Path | tuple[str | Path, float]) -> tuple[Path, float]:
    if isinstance(entry, tuple):
        return Path(entry[0]), float(entry[1])
    return weighted(str(entry))


def _loaded(
    paths: Sequence[tuple[Path, float]], past: Mapping[str, Any], like: str | Path | None, base: Base, strict: bool,
    tell: Tell,
) -> tuple[tuple[Use, ...], list[tuple[Delta, float]]]:  # fmt: skip
    """The LoRAs given, or with `like` the ones that its recipe names, found by their SHA-256."""
    if past and not paths:
        paths = [(_find(use, Path(str(like)).parent), use["strength"]) for use in past["loras"]]
    uses, deltas, shapes = [], [], formats.shapes_of(base.folder.path)
    for path, strength in paths:
        delta, match = formats.load(path, strict=strict, shapes=shapes)
        for line in match.losses():
            tell(Warn(f"{path.name}: {line}"))
        uses.append(Use(path.name, _sha256(path), strength))
        deltas.append((delta, strength))
    return tuple(uses), deltas


def _find(use: Mapping[str, Any], folder: Path) -> Path:
    for place in (folder, folder.parent, Path()):
        path = place / use["name"]
        if path.is_file() and _sha256(path) == use["sha256"]:
            return path
    raise InputError(
        f"the picture was drawn with {use['name']} (sha256 {use['sha256'][:12]}…), which is not here",
        where=folder, advice="give it with --lora",
    )  # fmt: skip


def _sha256(path: Path) -> str:
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _size(text: str, step_px: int) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and (height or width).isdigit()):
        raise UsageError(f"size {text!r} is not understood", where="--size", expected="e.g. 512 or 768x512")
    sides = int(width), int(height or width)
    if any(side % step_px or not side for side in sides):
        near = "x".join(str(max(1, round(side / step_px)) * step_px) for side in sides)
        raise UsageError(
            f"size {text} does not fit the base", where="--size", expected=f"multiples of {step_px}", advice=near
        )
    return sides


def _same_base(past: Mapping[str, Any], recipe: Recipe, tell: Tell) -> None:
    if past and past["base_sha256"] != recipe.base_sha256:
        tell(Note(f"the picture was drawn with another base ({past['base']}); give it with --base to repeat it"))


def _write_singles(
    painter: Painter,
    recipes: Sequence[Recipe],
    deltas: Sequence[tuple[Delta, float]],
    out: str | Path | None,
    tell: Tell,
) -> list[Path]:
    """One file each, drawn one by one, so that a picture does not depend on its neighbours."""
    target = Path(out) if out else Path()
    single_file = target.suffix.lower() == ".png"
    if single_file and len(recipes) > 1:
        raise UsageError(
            f"{len(recipes)} pictures do not fit in one file", where=target, advice="give a folder as --out"
        )
    tell(Phase("draw", len(recipes), "pictures"))
    files = []
    for i, recipe in enumerate(recipes):
        path = target if single_file else _free(target, recipe.prompt)
        files.append(_write_png(path, painter.draw([recipe], deltas)[0], recipe, tell))
        tell(Tick(i + 1, recipe.prompt))
    return files


def _free(folder: Path, prompt: str) -> Path:
    """A new name made of the prompt's letters; an existing file is never overwritten."""
    stem = "".join(c if c.isalnum() else "-" for c in prompt)[:60].strip("-") or "picture"
    names = (folder / f"{stem}-{i:03d}.png" for i in range(1, 1_000_000))
    return next(path for path in names if not path.exists())


def _write_png(path: Path, picture: Image.Image, recipe: Recipe | Mapping[str, Any], tell: Tell) -> Path:
    info = PngImagePlugin.PngInfo()
    content = asdict(recipe) if isinstance(recipe, Recipe) else dict(recipe)
    info.add_itxt(CHUNK, json.dumps(content, ensure_ascii=False, sort_keys=True))
    with tensorfile.replacing(path) as temporary:
        quick = {"compress_level": sheet.COMPRESSION} if sheet.is_large(picture) else {}
        picture.save(temporary, "PNG", pnginfo=info, **quick)
    tell(Saved(str(path), path.stat().st_size, "picture"))
    return path


def _write_grid(
    painter: Painter, recipes: Sequence[Recipe], deltas: Sequence[tuple[Delta, float]], grid: str, out: str | Path | None,
    tell: Tell,
) -> Path:  # fmt: skip
    """Rows: the prompts or pictures asked for; columns: the values of the grid's key."""
    key, values = parse_grid(grid)
    for sampler in values if key == "sampler" else ():
        solvers.chosen(painter.base, sampler)
    rows_of = [recipes[0]] if key == "prompt" else list(recipes)
    tell(Phase("draw", len(rows_of) * len(values), "pictures"))
    rows = []
    for recipe in rows_of:
        row = []
        for value in values:
            changed, strengths = _varied(recipe, deltas, key, value)
            row.append(painter.draw([changed], strengths)[0])
            tell(Tick(len(rows) * len(values) + len(row), f"{key} {value}"))
        rows.append(row)
    labels = [f"seed {r.seed}" if key == "prompt" else f"{r.prompt}\nseed {r.seed}" for r in rows_of]
    columns = [value if key == "prompt" else f"{key} {value}" for value in values]
    target = Path(out) if out else _free(Path(), f"grid {key}")
    if target.suffix.lower() != ".png":
        target = _free(target, f"grid {key}")
    return _write_png(target, sheet.grid(rows, labels, columns), {**asdict(recipes[0]), "grid": grid}, tell)


def parse_grid(grid: str) -> tuple[str, list[str]]:
    """`KEY=V1,V2,...` (prompts: `prompt=P1|P2|...`) as the key and its values.

    Raises:
        UsageError: an unknown key, no values, or a value that is no number where one is needed.
    """
    key, _, text = grid.partition("=")
    values = [v.strip() for v in text.split("|" if key == "prompt" else ",") if v.strip()]
    if key not in GRID_KEYS or not values:
        raise UsageError(f"grid {grid!r} is not understood", where="--grid", expected=f"one of {', '.join(GRID_KEYS)}, "
                         "e.g. strength=0,0.5,1 or prompt=a cat|a dog")  # fmt: skip
    try:
        [float(v) for v in values if GRID_KEYS[key] is not str]
    except ValueError as error:
        raise UsageError(f"grid {grid!r}: {error}", where="--grid", expected="numbers") from error
    return key, values


def _varied(
    recipe: Recipe, deltas: Sequence[tuple[Delta, float]], key: str, value: str
) -> tuple[Recipe, list[tuple[Delta, float]]]:
    if key == "strength":
        return recipe, [(delta, float(value) * strength) for delta, strength in deltas]
    return replace(recipe, **{key: GRID_KEYS[key](value)}), list(deltas)
