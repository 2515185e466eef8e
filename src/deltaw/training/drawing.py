"""The contact sheet of a run, drawn from its saved files as `generate` draws them."""

from __future__ import annotations

from pathlib import Path

from deltaw import formats, sheet, tensorfile
from deltaw.events import Phase, Saved, Tick
from deltaw.training.session import Session
from deltaw.verbs.generate import Painter, Recipe


def draw(session: Session) -> Path:
    """Base and snapshots on the same prompts and seeds; returns the sheet's file."""
    settings, folder = session.plan.settings, session.folder
    files = [folder.snapshot(step) for step in session.plan.marks if folder.snapshot(step).is_file()]
    session.tell(Phase("draw the contact sheet", (len(files) + 1) * len(settings.prompts), "pictures"))
    painter = Painter(session.base, str(session.device), settings.dtype)
    recipes = [
        Recipe(p, "", settings.seed + i, settings.sample_steps, settings.guidance, settings.resolution,
               settings.resolution, (), session.base.folder.path.name, "", settings.dtype, session.device.type)
        for i, p in enumerate(settings.prompts)
    ]  # fmt: skip
    rows = []
    for deltas in ([], *([(formats.load(file, shapes=session.shapes)[0], 1.0)] for file in files)):
        rows.append(painter.draw(recipes, deltas))
        session.tell(Tick(len(rows) * len(recipes)))
    labels = ["base", *(f"step {step}" for step in session.plan.marks[-len(files):])]  # fmt: skip
    with tensorfile.replacing(folder.sheet) as temporary:
        sheet.grid(rows, labels, settings.prompts).save(temporary, "PNG")
    session.tell(Saved(str(folder.sheet), folder.sheet.stat().st_size, "contact sheet"))
    return folder.sheet
