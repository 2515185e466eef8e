"""The work of `compare`: the same questions, prompts and seeds for several LoRAs and the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltaw import device as devices
from deltaw import formats, inject
from deltaw.data import buckets, feed, folder
from deltaw.data.cache import Cache, default_root
from deltaw.delta import Delta
from deltaw.diffusion.objective import mix
from deltaw.events import Phase, Tell, Tick, Warn
from deltaw.families.base import Base
from deltaw.judge import drift, questions, seen
from deltaw.judge.columns import Column, without
from deltaw.judge.drift import Drift
from deltaw.judge.questions import Questions
from deltaw.options import weighted
from deltaw.verbs.painter import Painter, Recipe

MOST_PICTURES = 48
"""Reference pictures at most that are asked about, evenly spread."""
DRIFT_TIMES = (0.25, 0.5, 0.75)
"""Where in the schedule drift is measured."""


@dataclass(frozen=True)
class Entry:
    """A LoRA at a strength; the base itself has no deltas."""

    name: str
    path: Path
    strength: float
    deltas: Sequence[tuple[Delta, float]]


@dataclass(frozen=True)
class Reference:
    """The user's pictures: latents, each (c, h, w), captions, and SHA-256 of the files."""

    latents: Sequence[Tensor]
    captions: Sequence[str]
    digests: Sequence[str]


def load(files: Sequence[str | Path | tuple[str | Path, float]], base: Base, strict: bool,
         tell: Tell) -> list[Entry]:  # fmt: skip
    """Reads the files, each once, and tells what in them is not used.

    Raises:
        InputError: nothing in a file fits the base, or `strict` and something does not.
    """
    given = [(Path(f[0]), float(f[1])) if isinstance(f, tuple) else weighted(str(f)) for f in files]
    shapes, read = formats.shapes_of(base.folder.path), {}
    for path in dict.fromkeys(path for path, _ in given):
        read[path], match = formats.load(path, strict=strict, shapes=shapes)
        for line in match.losses():
            tell(Warn(f"{path.name}: {line}"))
    stems = [path.stem for path in read]
    several = {stem for stem in stems if stems.count(stem) > 1}
    entries = []
    for path, strength in given:
        stem = f"{path.parent.name}/{path.stem}" if path.stem in several else path.stem
        entries.append(
            Entry(stem if strength == 1 else f"{stem}:{strength:g}", path, strength, [(read[path], strength)])
        )
    return entries


def encode(base: Base, path: Path, device: torch.device, words: Sequence[str], tell: Tell) -> Reference:
    """The reference pictures as training would see them.

    Args:
        base: the opened base.
        path: the folder.
        device: where the VAE runs.
        words: that the files are called up by; a caption that lacks them all is told.
        tell: hears events.

    Raises:
        InputError: the folder has no usable picture.
    """
    dataset = folder.scan(path, tell=tell)
    for skipped in dataset.skipped:
        tell(Warn(f"skipped {skipped.name}: {skipped.reason}"))
    pictures = dataset.pictures[:: max(1, -(-len(dataset.pictures) // MOST_PICTURES))]
    captions = [p.caption for p in pictures]
    silent = [c for c in captions if words and not any(w.casefold() in c.casefold() for w in words)]
    if silent:
        tell(Warn(f"{len(silent)} of {len(captions)} captions of the reference do not hold {' or '.join(map(repr, words))}, "
                  f"which the files are called up by (e.g. {silent[0]!r}); their loss says little"))  # fmt: skip
    sizes = [buckets.bucket(p.size_px, base.resolution_px, base.bucket_step_px) for p in pictures]
    data = feed.fill(base, pictures, sizes, captions, device, Cache(default_root()), tell)
    return Reference(data.latents, captions, [p.digest for p in pictures])


def tell_seen(entries: Sequence[Entry], known: Reference, tell: Tell) -> None:
    """Says which files were trained on the reference pictures."""
    headers = {entry.path: delta.metadata for entry in entries for delta, _ in entry.deltas}
    for path, header in headers.items():
        if n_seen := seen.count(header, known.digests):
            tell(Warn(f"{path.name} was trained on {n_seen} of the {len(known.digests)} reference pictures, "
                      "which flatters its loss; other pictures would judge it fairly"))  # fmt: skip


def draw(painter: Painter, columns: Sequence[Column], entries: Sequence[Entry], how: tuple[str, int], guidance: float,
         tell: Tell) -> list[Tensor]:  # fmt: skip
    """Latents (m, c, h, w) of one row an entry, the same words and seeds in every one; `how`: sampler and steps."""
    (sampler, steps), side = how, painter.base.resolution_px
    recipes = [Recipe(c.prompt, "", c.seed, steps, guidance, side, side, sampler=sampler) for c in columns]
    tell(Phase("draw", len(entries) * len(columns), "pictures"))
    rows = []
    for entry in entries:
        rows.append(painter.latents(recipes, entry.deltas))
        tell(Tick(len(rows) * len(columns), entry.name))
    return rows


def ask(painter: Painter, known: Reference, entries: Sequence[Entry], seed: int, tell: Tell) -> list[Tensor]:
    """Every entry's errors (n, k), picture by question, on the same noise and times.

    Captions are encoded by each entry itself, since a LoRA may change the text encoder.
    """
    tell(Phase("judge on the reference", len(entries), "files"))
    found = []
    for entry in entries:
        with devices.kept(), inject.applied(painter.networks(), entry.deltas):
            asked = _about(painter, known, seed)
            found.append(asked.losses(lambda x, times, text: _predict(painter, x, times, text)))
        tell(Tick(len(found), entry.name))
    return found


def drifts(painter: Painter, drawn: Tensor, columns: Sequence[Column], entries: Sequence[Entry], words: str,
           seed: int) -> list[Drift]:  # fmt: skip
    """How far each entry's predictions moved from the first one's, on the base's own pictures with noise.

    Args:
        painter: holds the networks.
        drawn: (m, c, h, w) latents of the base's pictures.
        columns: what they were drawn of.
        entries: the base first.
        words: that the files are called up by.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    times = torch.tensor([int(t * painter.base.schedule.n_times) for t in DRIFT_TIMES]).repeat(len(drawn))
    x0 = drawn.cpu().repeat_interleave(len(DRIFT_TIMES), 0)
    x = mix(x0, torch.randn(x0.shape, generator=generator), *painter.base.schedule.at(times))
    prompts = [c.prompt for c in columns for _ in DRIFT_TIMES]
    plain = [without(p, words) if words else "" for p in prompts]
    answers = []
    for entry in entries:
        with inject.applied(painter.networks(), entry.deltas), torch.no_grad():
            pair = [_answers(painter, x, times, texts) for texts in (plain, prompts)]
        answers.append(pair)
    return [Drift(*(drift.relative(mine, its) for mine, its in zip(pair, answers[0], strict=True))) for pair in answers]


def _answers(painter: Painter, x: Tensor, times: Tensor, prompts: Sequence[str]) -> Tensor:
    parts = torch.arange(len(x)).split(questions.BATCH)
    texts = _embedded(painter, prompts)
    return torch.cat([_predict(painter, x[i], times[i], texts[i]).float().cpu() for i in parts])


def _about(painter: Painter, known: Reference, seed: int) -> Questions:
    base = painter.base
    return questions.about(known.latents, list(_embedded(painter, known.captions)), base.objective, base.schedule, seed)


@torch.no_grad()
def _embedded(painter: Painter, prompts: Sequence[str]) -> Tensor:
    """(n, n_tok, width), each text encoded once."""
    single = list(dict.fromkeys(prompts))
    made = [painter.base.embed(painter.pipe, part).float().cpu()
            for part in (single[i : i + questions.BATCH] for i in range(0, len(single), questions.BATCH))]  # fmt: skip
    by_prompt = dict(zip(single, torch.cat(made), strict=True))
    return torch.stack([by_prompt[p] for p in prompts])


def _predict(painter: Painter, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
    device, dtype = painter.device, painter.dtype
    parts = (
        t.split(painter.at_once(x[0, 0].numel()))
        for t in (x.to(device, dtype), times.to(device), text.to(device, dtype))
    )
    return torch.cat([painter.base.denoise(painter.network, *part) for part in zip(*parts, strict=True)])
