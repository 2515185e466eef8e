"""The contact sheet of a run, drawn from its saved files as `generate` draws them, and what it shows of copying."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from deltaw import formats, sheet
from deltaw.data.feed import Feed
from deltaw.events import Phase, Saved, Tick
from deltaw.families.base import Base
from deltaw.judge.columns import Column
from deltaw.judge.nearness import Gallery, Limits, Nearest
from deltaw.training import asking
from deltaw.training.plan import Settings
from deltaw.training.session import Session
from deltaw.training.team import Team
from deltaw.verbs.painter import Painter, Recipe


@dataclass(frozen=True)
class Copies:
    """How near the sheet's pictures come to trained ones.

    Args:
        limits: what counts as close and as a copy.
        nearest: name of a row to the nearest trained picture of every drawn one that the result was called up for.
        pairs: of the recommended row, each drawn picture above its nearest trained one.
    """

    limits: Limits
    nearest: Mapping[str, tuple[Nearest, ...]]
    pairs: Image.Image

    def count(self, name: str, verdict: str) -> int:
        """How many pictures of a row have a verdict."""
        return sum(found.verdict == verdict for found in self.nearest[name])


@dataclass(frozen=True)
class Drawn:
    """The contact sheet, its file, and what it shows of copying."""

    picture: Image.Image
    sheet: Path
    copies: Copies


@dataclass(frozen=True)
class Row:
    """A row of the sheet before it is drawn.

    Args:
        file: the LoRA that it is drawn with; None is the base alone.
        recipes: of its pictures.
        at_a_time: of them.
    """

    file: Path | None
    recipes: Sequence[Recipe]
    at_a_time: int


@dataclass(frozen=True)
class _DrawnRow:
    name: str
    latents: Tensor
    pictures: Sequence[Image.Image]


def draw(session: Session, data: Feed, result: str, team: Team | None) -> Drawn:
    """Base, snapshots and, where it is none of them, the file itself, on the same prompts and seeds.

    Args:
        session: of the run.
        data: the latents of the trained pictures.
        result: the name of what the file holds.
        team: other processes, each of which draws some of the rows; None where there are none.
    """
    columns, folder, settings = asking.columns(session.plan), session.folder, session.plan.settings
    side = settings.resolution
    recipes = [
        Recipe(c.prompt, "", c.seed, settings.sample_steps, settings.guidance, side, side, sampler=settings.sampler)
        for c in columns
    ]
    drawn, painter = _latents(session, recipes, result, team)
    painter.let_go()
    rows = [_DrawnRow(name, latents, painter.decode(latents)) for name, latents in drawn.items()]
    word = "recommended" if settings.pick == "best" else "the file"
    labels = [f"{row.name}\n{word}" if row.name == result else row.name for row in rows]
    picture = sheet.grid([row.pictures for row in rows], labels, [c.label for c in columns])
    session.tell(Saved(str(folder.sheet), sheet.write(picture, folder.sheet), "contact sheet"))
    return Drawn(picture, folder.sheet, _copies(session, data, painter, columns, rows, result))


def opened(base: Base, device: torch.device, settings: Settings, recipes: Sequence[Recipe]) -> Painter:
    """What draws the sheet's recipes, and nothing else."""
    return Painter(base, str(device), settings.dtype, packed=settings.base_int8, read=recipes)


def latents(painter: Painter, row: Row, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """What a row shows, (n, c, h/f, w/f), not yet decoded: that needs much memory, and the network is in its way.

    Args:
        painter: `opened` for the row's recipes.
        row: what to draw.
        shapes: of the base's weights by canonical path.
    """
    deltas = [(formats.load(row.file, shapes=shapes)[0], 1.0)] if row.file else []
    return painter.latents(row.recipes, deltas, at_a_time=row.at_a_time)


def _latents(
    session: Session, recipes: Sequence[Recipe], result: str, team: Team | None
) -> tuple[dict[str, Tensor], Painter]:
    """What each row shows, by its name, and what drew them."""
    folder, settings = session.folder, session.plan.settings
    files = [("base", None)]
    files += [(f"step {s}", folder.snapshot(s)) for s in session.plan.marks if folder.snapshot(s).exists()]
    if result not in dict(files):
        files.append((result, folder.result))
    session.tell(Phase("draw the contact sheet", len(files) * len(recipes), "pictures"))
    rows = [Row(file, recipes, session.outlook.predicted.drawn_at_a_time) for _, file in files]
    n = 1 if team is None else team.n
    if team is not None:
        team.begin("draw", [rows[i::n] for i in range(1, n)])
    with contextlib.nullcontext() if team is None else team.cores():
        painter, found = opened(session.base, session.device, settings, recipes), []
        for row in rows[::n]:
            found.append(latents(painter, row, session.shapes))
            session.tell(Tick(len(found) * len(recipes)))
    drawn = dict(zip(range(0, len(rows), n), found, strict=True))
    if team is not None:
        for i, share in enumerate(team.replies(), 1):
            drawn |= dict(zip(range(i, len(rows), n), share, strict=True))
        session.tell(Tick(len(rows) * len(recipes)))
    return {name: drawn[i] for i, (name, _) in enumerate(files)}, painter


def _copies(
    session: Session, data: Feed, painter: Painter, columns: Sequence[Column], rows: Sequence[_DrawnRow], result: str
) -> Copies:  # fmt: skip
    """Of every row but the base's; the trained pictures are shown as the base's VAE sees them, as the drawn ones are."""
    h, w = rows[0].latents.shape[2:]
    gallery = Gallery(data.latents, (h, w), session.plan.training)
    called = [i for i, column in enumerate(columns) if column.called]
    limits = gallery.limits(rows[0].latents[called])
    of_rows = gallery.nearest_of_rows([row.latents[called] for row in rows[1:]], limits)
    found = dict(zip((row.name for row in rows[1:]), of_rows, strict=True))
    shown = next(row for row in rows if row.name == result)
    nearest = found[shown.name]
    trained = [gallery[n.index].flip(-1) if n.mirrored else gallery[n.index] for n in nearest]
    pictures = [[shown.pictures[i] for i in called], painter.decode(torch.stack(trained))]
    labels = [f"{n.verdict}, {n.distance:.2f}" for n in nearest]
    return Copies(limits, found, sheet.grid(pictures, ["drawn", "nearest\ntrained picture"], labels))
