"""`deltaw compare`: which of some LoRAs, at which strength, does best on the user's own pictures, and at what cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from deltaw import device as devices
from deltaw import sheet, tensorfile, zoo
from deltaw.errors import InputError, UsageError
from deltaw.events import Note, Phase, Saved, Table, Tell, silent
from deltaw.families import bases, solvers
from deltaw.families.base import Base
from deltaw.judge import choice, scores
from deltaw.judge.choice import Candidate
from deltaw.judge.columns import GENERIC_SUBJECTS, Column, columns
from deltaw.judge.drift import Drift
from deltaw.judge.nearness import Gallery, Limits, Nearest
from deltaw.judge.scores import Interval, Score
from deltaw.verbs import compare_page, contest
from deltaw.verbs.contest import Entry, Reference
from deltaw.verbs.painter import Painter

N_SUBJECTS = 4
"""Prompts of the sheet where none are given."""


@dataclass(frozen=True)
class Contender:
    """A file at a strength, and what was found.

    Args:
        name: of the file, with its strength where that is not 1.
        strength: it was used with.
        score: against the base on the reference pictures; None without any.
        behind: its loss relative to the best contender's, the best's own being 0; None without reference.
        as_good: whether that is within noise.
        drift: how far predictions moved from the base's.
        nearest: for every drawn picture that calls it up the nearest reference picture; empty without any.
    """

    name: str
    strength: float
    score: Score | None
    behind: Interval | None
    as_good: bool
    drift: Drift
    nearest: tuple[Nearest, ...]

    def count(self, verdict: str) -> int:
        """How many drawn pictures have a verdict."""
        return sum(found.verdict == verdict for found in self.nearest)


@dataclass(frozen=True)
class Comparison:
    """What `compare` gives back.

    Args:
        contenders: in the order given.
        best: name of the recommended one, "" where nothing says.
        advice: one sentence.
        n_pictures: reference pictures that were asked about.
        limits: what counts as close to a reference picture and as a copy; None without any.
        folder: holds `report.html`, `compare.json` and `sheet.png`.
    """

    contenders: tuple[Contender, ...]
    best: str
    advice: str
    n_pictures: int
    limits: Limits | None
    folder: Path


def compare(
    files: Sequence[str | Path | tuple[str | Path, float]], *, prompts: Sequence[str] = (),
    reference: str | Path | None = None, base: str | Path | None = None, out: str | Path | None = None, seed: int = 0,
    seeds: int = 1, steps: int | None = None, sampler: str | None = None, guidance: float | None = None, device: str | None = None,
    dtype: str | None = None, strict: bool = False, tell: Tell = silent,
) -> Comparison:  # fmt: skip
    """Judges any LoRAs at any strengths by the same questions, prompts and seeds.

    Args:
        files: each a file, "FILE:STRENGTH" or (file, strength); one may stand several times.
        prompts: of the sheet; by default a few subjects with the first file's trigger words.
        reference: a folder of captioned pictures to judge by, best ones that nobody trained on.
        base: a diffusers folder, single file or hub id; the bundled base by default.
        out: the result folder, new or empty; `compare` by default.
        seed: of the first column; the next ones follow.
        seeds: pictures a prompt.
        steps, sampler, guidance: of drawing, as the base recommends by default.
        device, dtype: where and in which precision to compute.
        strict: a file that fits the base only partly is an error.
        tell: hears events.

    Raises:
        UsageError: no file, a result folder that is not empty, or a sampler that the base is not drawn with.
        InputError: a file, the base or the reference cannot be used.
    """
    target = _prepared(files, Path(out) if out else Path("compare"))
    opened = bases.open_base(base or zoo.bundled_base(), tell)
    sampler, usual = solvers.chosen(opened, sampler)
    entries = contest.load(files, opened, strict, tell)
    words = list(dict.fromkeys(word for e in entries for delta, _ in e.deltas for word in delta.trigger))
    on, _ = devices.choose(device)
    known = contest.encode(opened, Path(reference), on, words, tell) if reference else None
    if known:
        contest.tell_seen(entries, known, tell)
    tell(Phase("load base"))
    painter = Painter(opened, device, dtype)
    called_by = words[0] if words else ""
    asked = columns(list(prompts) or _prompts(opened, called_by), called_by, seed, seeds)
    everyone = [Entry("base", opened.folder.path, 1.0, ()), *entries]
    rows = contest.draw(
        painter, asked, everyone, (sampler, steps or usual),
        painter.default("guidance", opened.guidance) if guidance is None else guidance, tell,
    )  # fmt: skip
    moved = contest.drifts(painter, rows[0], asked, everyone, called_by, seed)
    losses = contest.ask(painter, known, everyone, seed, tell) if known else []
    painter.let_go()
    pictures = [painter.decode(latents) for latents in rows]
    limits, nearest = _nearest(known, rows, asked)
    made = _judged(entries, losses, moved[1:], limits, nearest, target)
    _write(made, asked, everyone, pictures, tell)
    return made


def _prepared(files: Sequence[object], path: Path) -> Path:
    if not files:
        raise UsageError("there is nothing to compare", expected="at least one FILE[:STRENGTH]")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError("the result folder is not empty", where=path, expected="a new or empty --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the result folder cannot be made ({error.strerror})", where=path, advice="give another --out"
        ) from error
    return path


def _prompts(base: Base, words: str) -> list[str]:
    subjects = base.folder.recommended.get("prompts", {}).get("subjects", GENERIC_SUBJECTS)[:N_SUBJECTS]
    return [f"{subject}, {words}" if words else subject for subject in subjects]


def _nearest(
    known: Reference | None, rows: Sequence[Tensor], asked: Sequence[Column]
) -> tuple[Limits | None, list[tuple[Nearest, ...]]]:
    """For every entry but the base its drawn pictures' nearest reference pictures."""
    if known is None:
        return None, [() for _ in rows[1:]]
    h, w = rows[0].shape[2:]
    gallery = Gallery(known.latents, (h, w))
    called = [i for i, column in enumerate(asked) if column.called]
    limits = gallery.limits(rows[0][called])
    return limits, gallery.nearest_of_rows([row[called] for row in rows[1:]], limits)


def _judged(
    entries: Sequence[Entry], losses: Sequence[Tensor], moved: Sequence[Drift], limits: Limits | None,
    nearest: Sequence[tuple[Nearest, ...]], target: Path,
) -> Comparison:  # fmt: skip
    """The contenders, the best of them and the advice."""
    tried = [Candidate(i, mine) for i, mine in enumerate(losses[1:])]
    lowest = min(tried, key=lambda c: c.loss) if tried else None
    contenders = []
    for i, entry in enumerate(entries):
        score = behind = None
        as_good = False
        if lowest is not None:
            score = scores.score(i, tried[i].losses, losses[0], torch.ones_like(losses[0]))
            behind = scores.interval((tried[i].losses - lowest.losses).mean(1) / lowest.loss)
            as_good = not choice.better(lowest, tried[i])
        contenders.append(Contender(entry.name, entry.strength, score, behind, as_good, moved[i], nearest[i]))
    best, advice = _advise(contenders)
    return Comparison(tuple(contenders), best, advice, len(losses[0]) if losses else 0, limits, target)


def _advise(contenders: Sequence[Contender]) -> tuple[str, str]:
    """The least drift among those that are as good as the best, and one sentence about it."""
    equals = [(c, c.score) for c in contenders if c.as_good and c.score is not None]
    if not equals:
        gentle, strong = (f(contenders, key=lambda c: c.drift.called) for f in (min, max))
        between = f", {gentle.name} least ({gentle.drift.called:.0%})" if gentle is not strong else ""
        return "", (f"{strong.name} moves predictions most ({strong.drift.called:.0%}){between}; give --reference a folder "
                    "of pictures to learn which of them does best")  # fmt: skip
    best, score = min(equals, key=lambda pair: pair[0].drift.plain)
    gain = f"loss {_percent(score.change.mean)} against the base{_reach(score)}"
    if score.change.mean >= 0:
        return "", f"None is better than the base on these pictures ({best.name}: {gain})"
    others = [c.name for c, _ in equals if c is not best]
    same = f"; as good within noise, but moving other prompts more: {', '.join(others)}" if others else ""
    return best.name, f"Use {best.name}: {gain}{same}"


COLUMNS = ("file", "loss", "against the base", "95 % interval", "better on", "behind the best", "moved, called up",
           "moved, not called", "copied", "close")  # fmt: skip


def _row(contender: Contender) -> tuple[str, ...]:
    """A contender as the cells of `COLUMNS`."""
    score, behind, moved = contender.score, contender.behind, contender.drift
    judged = ("",) * 5
    if score is not None and behind is not None:
        interval = f"{100 * score.change.low:+.1f} to {_percent(score.change.high)}" if score.n > 1 else "one picture"
        lag = "the best" if behind.mean == 0 else "within noise" if contender.as_good else _percent(behind.mean)
        judged = (f"{score.loss:.4f}", _percent(score.change.mean), interval, f"{score.n_better} of {score.n}", lag)
    near = tuple(
        f"{contender.count(v)} of {len(contender.nearest)}" if contender.nearest else "" for v in ("copied", "close")
    )
    return (contender.name, *judged, f"{100 * moved.called:.1f} %", f"{100 * moved.plain:.1f} %", *near)


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _reach(score: Score) -> str:
    return f" (95 % interval {100 * score.change.low:+.1f} to {_percent(score.change.high)})" if score.n > 1 else ""


def _write(
    made: Comparison,
    asked: Sequence[Column],
    everyone: Sequence[Entry],
    pictures: Sequence[Sequence[Image.Image]],
    tell: Tell,
) -> None:
    """The sheet, the page, the same as JSON, and a table for the listener."""
    labels = [f"{e.name}\nrecommended" if e.name == made.best else e.name for e in everyone]
    picture = sheet.grid(pictures, labels, [c.label for c in asked])
    table = [_row(contender) for contender in made.contenders]
    sheet.write(picture, made.folder / "sheet.png")
    found = {**asdict(made), "folder": made.folder.name, "columns": [asdict(c) for c in asked]}
    plain = json.loads(json.dumps(found), parse_constant=lambda _: None)  # JSON has no NaN: one picture has no interval
    tensorfile.write_text(made.folder / "compare.json", json.dumps(plain, indent=1, ensure_ascii=False))
    compare_page.write(
        made.folder / "report.html", made.advice, COLUMNS, table, made.best, made.n_pictures, made.limits, picture
    )
    for name, what in (("sheet.png", "contact sheet"), ("compare.json", "figures"), ("report.html", "report")):
        file = made.folder / name
        tell(Saved(str(file), file.stat().st_size, what))
    tell(Table("comparison", COLUMNS, tuple(table)))
    tell(Note(made.advice))
