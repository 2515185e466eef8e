"""`deltaw check BASE`: can this base be trained, and what is remarkable about it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltaw import families, tensorfile
from deltaw.errors import DeltawError, InputError
from deltaw.events import Note, Table, Tell, Warn, silent
from deltaw.families import base_folder, bases, single

PARTS_OF_A_BASE = ("model_index.json", "unet", "transformer", "vae")


@dataclass(frozen=True)
class BaseReport:
    """What was found.

    Args:
        problems: for which it cannot be trained, each with advice.
        remarks: what the user should know all the same.
    """

    problems: tuple[DeltawError, ...]
    remarks: tuple[str, ...]


def is_base(path: Path) -> bool:
    """A folder that looks like a diffusers base rather than like pictures, or a file that holds more than a LoRA."""
    if path.is_file():
        return single.is_base(path)
    return (path / "model_index.json").is_file() or sum((path / name).exists() for name in PARTS_OF_A_BASE) > 1


def check(path: str | Path, *, tell: Tell = silent) -> BaseReport:
    """Looks at a base's small files and headers; no weight is loaded, but where a single file does not tell what it predicts.

    Args:
        path: a diffusers folder, or a single file, which is unpacked.
        tell: hears what was found.
    """
    try:
        folder = base_folder.read(bases.find(path, tell))
    except InputError as error:
        return _told(BaseReport((error,), ()), tell)
    except DeltawError as error:  # several problems at once
        return _told(BaseReport(tuple(getattr(error, "errors", (error,))), ()), tell)
    base = bases.opened(folder)
    rows = [("family", families.named(base.family).title), ("predicts", base.objective.name),
            ("resolution", f"{base.resolution_px} px, sides in steps of {base.bucket_step_px}")]  # fmt: skip
    rows += [(part, _weights(folder, part)) for part in folder.parts]
    rows += [("recommends", ", ".join(folder.recommended) or "nothing of its own")]
    tell(Table(f"base {folder.path.resolve().name}", ("what", "found"), tuple(rows)))
    return _told(BaseReport((), folder.remarks), tell)


def _weights(folder: base_folder.BaseFolder, part: str) -> str:
    files = folder.weights(part)
    tensors = [tensor for file in files for tensor in tensorfile.read_header(file).tensors.values()]
    n_bytes = sum(tensor.end - tensor.begin for tensor in tensors)
    types = ", ".join(sorted({tensor.dtype for tensor in tensors}))
    shards = f", {len(files)} shards" if len(files) > 1 else ""
    return f"{folder.configs[part].get('_class_name') or folder.configs[part].get('architectures', ['?'])[0]}, {n_bytes / 1e6:.0f} MB, {types}{shards}"


def _told(report: BaseReport, tell: Tell) -> BaseReport:
    for problem in report.problems:
        expected = f" (expected: {problem.expected})" if problem.expected else ""
        tell(Warn(f"{problem.where}: {problem.what}{expected}; {problem.advice}"))
    for remark in report.remarks:
        tell(Warn(remark))
    if report.problems:
        tell(Note(f"it cannot be trained as it is: {len(report.problems)} "
                  f"{'problem' if len(report.problems) == 1 else 'problems'}"))  # fmt: skip
    else:
        tell(Note("it can be trained"))
    return report
