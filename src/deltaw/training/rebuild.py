"""`deltaw rebuild`: a LoRA is made again from what its own header says, and compared bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw import formats, options, tensorfile, zoo
from deltaw.errors import InputError, UsageError
from deltaw.events import Note, Table, Tell, Warn, silent
from deltaw.families import bases
from deltaw.options import TrainOptions
from deltaw.training import fingerprint, run, state, verify
from deltaw.training.metadata import RECIPE, RECIPE_FORMAT


@dataclass(frozen=True)
class Rebuilt:
    """What came of repeating a run.

    Args:
        file: the new file.
        identical: "file" (every byte), "tensors" (every tensor, but not the header) or "" (neither).
        deviation: ‖ΔW new - ΔW old‖ / ‖ΔW old‖ over all modules, 0 where the tensors are identical.
        differences: between then and now, in words.
    """

    file: Path
    identical: str
    deviation: float
    differences: tuple[str, ...]


def rebuild(
    file: str | Path, folder: str | Path, *, out: str | Path, base: str | None = None, settings: Sequence[str] = (),
    stop_asked: Callable[[], bool] = lambda: False, tell: Tell = silent,
) -> Rebuilt:  # fmt: skip
    """Repeats the run that wrote a file.

    Args:
        file: a LoRA by `deltaw train`, in any dialect.
        folder: the pictures that it was trained on.
        out: result folder of the new run.
        base: the base it was trained on; default: the bundled one.
        settings: `key=value` words for what a header does not hold, such as `caption_encoding`, and for what this machine
            lacks, such as `device`: they win over the header, which is said.
        stop_asked: polled after every step.
        tell: hears every event.

    Raises:
        InputError: the file holds no recipe, or pictures or base are not the ones that it names.
        UsageError: `out` is not empty, or a setting is unknown.
        Interrupted: `stop_asked` said so.
    """
    file, folder = Path(file), Path(folder)
    recipe = read(file)
    known = {k: v for k, v in recipe["settings"].items() if k in TrainOptions.model_fields}
    if unknown := sorted(set(recipe["settings"]) - set(known)):
        raise InputError(f"its recipe has settings unknown here: {', '.join(unknown)}", where=file,
                         expected="a file of this version", advice="rebuild it with the DeltaW that wrote it")  # fmt: skip
    asked = {word.partition("=")[0].strip() for word in settings}
    changed = tuple(f"{name}: was {known[name]}, is what you asked for" for name in sorted(asked & set(known)))
    chosen = {**{k: v for k, v in known.items() if k not in asked}, "base": base, "out": str(out)}
    differences = changed + _compare(file, recipe, folder, chosen, settings)
    for line in differences:
        tell(Warn(f"not as it was: {line}"))
    if not differences:
        tell(Note("pictures, captions, base and versions are those of the file"))
    made = run.train(folder, settings=settings, stop_asked=stop_asked, tell=tell, **chosen)
    return _judged(file, made.file, differences, formats.shapes_of(bases.find(base or zoo.bundled_base())), tell)


def read(file: Path) -> dict[str, Any]:
    """The recipe in a file's header.

    Raises:
        InputError: there is none, it is damaged, or a newer version wrote it.
    """
    text = tensorfile.read_header(file).metadata.get(RECIPE)
    if text is None:
        raise InputError("its header holds no recipe", where=file, expected="a LoRA by `deltaw train`, not stripped")
    try:
        recipe = json.loads(text)
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict) or not all(
        isinstance(recipe.get(p), dict) for p in ("settings", "base", "versions")
    ):
        raise InputError("the recipe in its header is damaged", where=file, advice="take the original file")
    if recipe.get("format") != RECIPE_FORMAT:
        raise InputError(f"its recipe has format {recipe.get('format')}", where=file, expected=f"format {RECIPE_FORMAT}",
                         advice="rebuild it with the DeltaW that wrote it")  # fmt: skip
    return recipe


def _compare(
    file: Path, recipe: dict[str, Any], folder: Path, chosen: dict[str, Any], settings: Sequence[str]
) -> tuple[str, ...]:
    """What is other than then and may matter.

    Raises:
        InputError: pictures or base are others: that would be another run.
    """
    opened, dataset, plan = run.look(folder, options.parse(chosen, settings), strict=False, tell=silent)
    problems = []
    for part, digest in fingerprint.of_base(opened.folder).items():
        if recipe["base"].get(part) != digest:
            problems.append(f"{part}: was {str(recipe['base'].get(part))[:12]}…, is {digest[:12]}…")
    if recipe.get("pictures") != fingerprint.of_pictures(plan, dataset):
        n, now = recipe.get("n_pictures"), len(dataset.pictures)
        problems.append(f"pictures or captions: {n} then, {now} now" if n != now else "pictures or captions are others")
    if problems:
        raise InputError(
            f"cannot be rebuilt from these ({'; '.join(problems)})", where=file,
            expected="the pictures, captions and base that it was trained with",
            advice=f"give its own folder (not {folder}) and its --base",
        )  # fmt: skip
    return tuple(state.differences(recipe["versions"], fingerprint.versions()))


def _judged(
    old: Path, new: Path, differences: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]], tell: Tell
) -> Rebuilt:
    if old.read_bytes() == new.read_bytes():
        made = Rebuilt(new, "file", 0.0, differences)
        tell(Note(f"{new} is bit-identical to {old}"))
        return made
    before, _ = formats.load(old, shapes=shapes)
    after, _ = formats.load(new, shapes=shapes)
    if set(before.updates) != set(after.updates):
        raise UsageError("the file was changed after training: its modules are others", where=old,
                         expected=f"the {len(after.updates)} modules that were trained")  # fmt: skip
    deviation = verify.rounding(after, before)
    if rows := tuple(_other_entries(old, new)):
        tell(Table("header entries that differ", ("entry", "then, now"), rows))
    said = "its tensors are" if deviation == 0 else f"ΔW deviates by {deviation:.2e}; it is not"
    tell(Note(f"{new} and {old}: {said} bit-identical"))
    return Rebuilt(new, "" if deviation else "tensors", deviation, differences)


def _other_entries(old: Path, new: Path) -> list[tuple[str, str]]:
    then, now = tensorfile.read_header(old).metadata, tensorfile.read_header(new).metadata
    names = [n for n in sorted({*then, *now}) if then.get(n) != now.get(n)]
    return [(n, f"{then.get(n, 'absent')[:60]} → {now.get(n, 'absent')[:60]}") for n in names]
