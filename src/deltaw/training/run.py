"""`deltaw train`: a folder of pictures becomes a verified LoRA with a report."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaw import device as devices
from deltaw import families, formats, inject, options, sheet, tensorfile, zoo
from deltaw._version import VERSION
from deltaw.data import folder as pictures_folder
from deltaw.data.cache import Cache, default_root
from deltaw.data.folder import Dataset
from deltaw.delta import Delta, Update
from deltaw.errors import InputError, Interrupted
from deltaw.events import Note, Phase, Saved, Table, Tell, Tick, Warn, silent
from deltaw.families import sd
from deltaw.options import Given
from deltaw.training import evaluate, feed, loop, metadata, optim, plan, report, state, verify
from deltaw.training.folder import Diary, RunFolder, locked, prepare, write_config
from deltaw.training.plan import Plan
from deltaw.training.report import Report
from deltaw.verbs.generate import Painter, Recipe

DRAWING_ONLY = frozenset({"prompts", "sample_steps", "guidance", "snapshots", "save_dtype", "dialect"})
"""Settings that a resumed run may change, since the weights do not depend on them."""
PROBE_ITEMS = 16
"""Pictures at most that the fixed questions are asked about; more costs time and adds little."""


@dataclass
class Clock:
    """Wall-clock seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent in the context to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass
class History:
    """What the fixed questions were answered with: losses per picture by step, 0 being the base."""

    probes: dict[int, Tensor]


def train(
    folder: str | Path, *, config: str | Path | None = None, settings: Sequence[str] = (), strict: bool = False,
    stop_asked: Callable[[], bool] = lambda: False, tell: Tell = silent, **flags: Any,
) -> Report:  # fmt: skip
    """Trains a LoRA on a folder of pictures and proves that the written file works.

    Args:
        folder: pictures, flat or nested, with or without captions.
        config: a TOML file of options; `settings`: `key=value` words; `flags`: options by name
            (see `deltaw.options.TrainOptions`); the later wins.
        strict: a skipped picture is an error.
        stop_asked: polled after every step; True saves the run and raises `Interrupted`.
        tell: hears every event.

    Raises:
        InputError: pictures, base or the run to resume cannot be used.
        UsageError: options that are unknown, wrong or contradict each other.
        UnverifiedError: the written file failed the proof.
        Interrupted: `stop_asked` said so; the run can be resumed.
    """
    clock = Clock()
    with clock.phase("plan"):
        folder = Path(folder)
        given = _given(folder, config, settings, flags)
        out = plan.out_folder(given, folder)
        base, dataset, made = look(folder, given, strict=strict, tell=tell)
        run_folder = prepare(out, folder, resume=bool(given.options.resume))
    with locked(run_folder), run_folder.events.open("a", encoding="utf-8") as file:
        write_config(run_folder.config, made.values, given.options.base or str(zoo.bundled_base()))
        return _Session(base, dataset, made, run_folder, clock, Diary(file, tell)).run(
            bool(given.options.resume), stop_asked
        )


def look(folder: Path, given: Given, *, strict: bool, tell: Tell) -> tuple[sd.StableDiffusion, Dataset, Plan]:
    """Opens the base, scans the pictures and makes the plan, telling all three. Writes nothing."""
    tell(Phase("look at the pictures and the base"))
    base = sd.open_base(given.options.base or zoo.bundled_base())
    origin = "" if given.options.base else " (bundled; --base takes another)"
    tell(Note(f"base: {base.folder.path.name}, {families.named(base.family).title}, {base.objective.name}, "
              f"{base.resolution_px} px{origin}"))  # fmt: skip
    out = plan.out_folder(given, folder)
    dataset = pictures_folder.scan(folder, caption_encoding=given.options.caption_encoding, exclude=[out], tell=tell)
    skipped = [f"{s.name}: {s.reason}" for s in dataset.skipped]
    if skipped and strict:
        raise InputError(f"--strict: {len(skipped)} pictures cannot be used ({'; '.join(skipped[:5])})", where=folder)
    for line in skipped:
        tell(Warn(f"skipped {line}"))
    made = plan.make(given, base, dataset)
    _tell_plan(made, dataset, tell)
    return base, dataset, made


def _given(folder: Path, config: str | Path | None, settings: Sequence[str], flags: Mapping[str, Any]) -> Given:
    """The options; a resumed run starts from the ones in its own run.toml."""
    given = options.parse(flags, settings, config)
    if given.options.resume and config is None:
        saved = RunFolder(plan.out_folder(given, folder), "").config
        if saved.is_file():
            return options.parse(flags, settings, saved)
    return given


def _tell_plan(made: Plan, dataset: Dataset, tell: Tell) -> None:
    sizes = sorted({made.sizes_px[i] for i in made.training})
    tell(Note(f"pictures: {len(dataset.pictures)} found, {len(made.training)} to train on, {len(made.held_out)} held out, "
              f"{len(dataset.skipped)} skipped; seen at {', '.join(f'{w}×{h}' for w, h in sizes)} px"))  # fmt: skip
    for note in dataset.notes:
        tell(Note(note))
    for note in made.notes:
        tell(Warn(note))
    rows = tuple((name, _shown(v.value), v.origin, v.reason) for name, v in made.values.items() if v.value != "")
    tell(Table("plan", ("option", "value", "from", "why"), rows))


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return " | ".join(str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Session:
    """One run from a made plan to a report; the steps are its methods, in order."""

    def __init__(
        self, base: sd.StableDiffusion, dataset: Dataset, made: Plan, folder: RunFolder, clock: Clock, tell: Tell
    ):
        self.base, self.dataset, self.plan, self.folder, self.clock, self.tell = (
            base,
            dataset,
            made,
            folder,
            clock,
            tell,
        )
        self.device, _ = devices.choose(made.settings.device)
        self.dtype = getattr(torch, made.settings.dtype)
        self.shapes = formats.shapes_of(base.folder.path)
        self.history = History({})

    def run(self, resume: bool, stop_asked: Callable[[], bool]) -> Report:
        """Feed, load, train, write, prove, draw, report."""
        with self.clock.phase("encode"):
            data = feed.fill(self.base, self.dataset.pictures, self.plan.sizes_px, self.plan.captions, self.device,
                             Cache(default_root()), self.tell)  # fmt: skip
        proof, losses, speed = self._learn(data, resume, stop_asked)
        with self.clock.phase("draw"):  # the networks of training are gone by now: drawing needs the room
            drawn = self._draw()
        return self._report(proof, drawn, losses, speed)

    def _learn(
        self, data: feed.Feed, resume: bool, stop_asked: Callable[[], bool]
    ) -> tuple[verify.Proof, tuple[float, ...], float]:
        """Trains, writes the file and proves it; gives the proof, the losses and the steps per second."""
        with self.clock.phase("load"):
            work, progress, questions = self._load(data, resume)
        self.tell(Phase("train", self.plan.settings.steps, "steps"))
        first = progress.step
        loop.train(work, progress, lambda run: self._mark(work, run, questions), stop_asked, self.tell)
        self.clock.seconds["train"] = progress.seconds
        speed = (progress.step - first) / progress.seconds if progress.seconds else 0.0
        if progress.step < self.plan.settings.steps:
            self._interrupted(work, progress)
        with self.clock.phase("write and prove"):
            proof = self._write(work, questions)
        return proof, tuple(progress.losses), speed

    def _load(self, data: feed.Feed, resume: bool) -> tuple[loop.Work, loop.Run, evaluate.Probe]:
        settings = self.plan.settings
        self.tell(Phase("load the base"))
        unet = self.base.denoiser(self.device, self.dtype)
        wrapped = inject.wrap(
            unet, settings.targets, settings.rank, settings.alpha, loop.seeded(settings.seed, "init", 0)
        )
        parameters = wrapped.parameters()
        optimizer = optim.ALL[settings.optimizer](parameters.values(), settings.lr, settings.weight_decay)
        work = loop.Work(self.base, unet, wrapped, data, self.plan, self.device, self.dtype)
        run = loop.Run(0, [], optimizer)
        n_params = sum(p.numel() for p in parameters.values())
        self.tell(
            Note(f"{len(wrapped.modules)} modules get a LoRA of rank {settings.rank}: {n_params:,} numbers to train")
        )
        untrained = inject.take(wrapped, self.base.family, "unet")
        rehearsal = self.folder.state.with_name("rehearsal.safetensors")
        verify.require_writable(rehearsal, untrained, settings.dialect, self.shapes)
        asked = self.plan.held_out or self.plan.training
        asked = asked[:: max(1, -(-len(asked) // PROBE_ITEMS))]
        questions = evaluate.probe(
            [data.latents[i] for i in asked], [data.texts[data.captions[i]] for i in asked], self.base.objective,
            self.base.schedule, settings.seed,
        )  # fmt: skip
        if resume:
            self._restore(run, parameters)
        else:
            self.history.probes[0] = self._ask(work, questions)  # the adapter is still zero: the base's own answers
        return work, run, questions

    def _restore(self, run: loop.Run, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        saved = state.load(self.folder.state)
        state.require_same(saved.fingerprint, self._fingerprint())
        state.restore(saved, parameters, run.optimizer)
        run.step, run.losses = saved.step, saved.history["losses"].tolist()
        self.history.probes = {
            int(k.removeprefix("probe/")): v for k, v in saved.history.items() if k.startswith("probe/")
        }
        self.tell(Note(f"resumed after step {saved.step}"))

    def _ask(self, work: loop.Work, questions: evaluate.Probe) -> Tensor:
        return questions.losses(lambda x, times, text: loop.predict(work, x, times, text))

    def _mark(self, work: loop.Work, run: loop.Run, questions: evaluate.Probe) -> None:
        with self.clock.phase("judge and save"):
            self._judge(work, run, questions)
            self._save(work, run)

    def _judge(self, work: loop.Work, run: loop.Run, questions: evaluate.Probe) -> None:
        losses = self._ask(work, questions)
        self.history.probes[run.step] = losses
        score = evaluate.score(run.step, losses, self.history.probes[0])
        self.tell(Note(f"step {run.step}: {'held-out' if self.plan.held_out else 'fixed'} loss {score.loss:.4f}, "
                       f"{100 * score.change:+.1f} % against the base, better on {score.n_better} of {score.n}"))  # fmt: skip

    def _save(self, work: loop.Work, run: loop.Run) -> None:
        """A snapshot and the state, each atomic; the snapshot first, so that the state never promises one that is absent."""
        self._write_delta(self.folder.snapshot(run.step), self._delta(work), "snapshot")
        adapter = {name: p.detach() for name, p in work.wrapped.parameters().items()}
        history = {f"probe/{step}": losses for step, losses in self.history.probes.items()}
        history["losses"] = torch.tensor(run.losses, dtype=torch.float64)
        state.save(
            self.folder.state,
            state.State(run.step, adapter, state.optimizer_tensors(run.optimizer), self._fingerprint(), history),
        )

    def _delta(self, work: loop.Work) -> Delta:
        """The trained change in the precision of the file."""
        trained = inject.take(work.wrapped, self.base.family, "unet")
        verify.require_sound(trained)
        dtype = getattr(torch, self.plan.settings.save_dtype)
        rounded = {
            path: Update(u.algorithm, {k: t if k == "alpha" else t.to(dtype) for k, t in u.tensors.items()})
            for path, u in trained.updates.items()
        }
        name = self.folder.name
        about = metadata.describe(name, families.named(self.base.family), self.plan, self.base.objective.name,
                                  self.base.folder.digest("unet"), VERSION)  # fmt: skip
        words = metadata.trigger_words(self.plan)
        return Delta(self.base.family, rounded, (words,) if words else (), about)

    def _write_delta(self, path: Path, delta: Delta, what: str) -> None:
        verify.require_sound(delta)
        n_bytes = formats.save(delta, path, dialect=self.plan.settings.dialect, shapes=self.shapes)
        self.tell(Saved(str(path), n_bytes, what))

    def _interrupted(self, work: loop.Work, run: loop.Run) -> None:
        self._save(work, run)
        raise Interrupted(
            f"stopped after step {run.step} of {self.plan.settings.steps}; everything is saved", where=self.folder.path,
            advice="go on with the same command and --resume --out " + str(self.folder.path),
        )  # fmt: skip

    def _write(self, work: loop.Work, questions: evaluate.Probe) -> verify.Proof:
        self.tell(Phase("write and prove"))
        self._write_delta(self.folder.result, self._delta(work), "LoRA")
        x, times, text, _, _ = questions.groups[0]
        few = slice(0, verify.N_QUESTIONS)
        # in float32, or the rounding of bfloat16 layers would drown what the file's precision costs
        exact = replace(work, unet=work.unet.float(), dtype=torch.float32)

        @torch.no_grad()
        def predict() -> Tensor:
            return loop.predict(exact, x[few], times[few], text[few]).cpu()

        trained = inject.take(work.wrapped, self.base.family, "unet")
        proof = verify.prove(self.folder.result, trained, work.wrapped, "unet", predict, self.shapes)
        self.tell(Note(f"proved: the file was read back, {proof.n_modules} modules, all finite; it changes the prediction by "
                       f"{proof.effect:.1%} and deviates from the trained effect by {proof.deviation:.3%}"))  # fmt: skip
        return proof

    def _draw(self) -> Path:
        """Base and snapshots on the same prompts and seeds, from the saved files, as `generate` draws them."""
        settings = self.plan.settings
        files = [self.folder.snapshot(step) for step in self.plan.marks if self.folder.snapshot(step).is_file()]
        self.tell(Phase("draw the contact sheet", (len(files) + 1) * len(settings.prompts), "pictures"))
        painter = Painter(self.base, str(self.device), settings.dtype)
        recipes = [
            Recipe(p, "", settings.seed + i, settings.sample_steps, settings.guidance, settings.resolution,
                   settings.resolution, (), self.base.folder.path.name, "", settings.dtype, self.device.type)
            for i, p in enumerate(settings.prompts)
        ]  # fmt: skip
        rows = []
        for deltas in ([], *([(formats.load(file, shapes=self.shapes)[0], 1.0)] for file in files)):
            rows.append(painter.draw(recipes, deltas))
            self.tell(Tick(len(rows) * len(recipes)))
        labels = ["base", *(f"step {step}" for step in self.plan.marks[-len(files):])]  # fmt: skip
        with tensorfile.replacing(self.folder.sheet) as temporary:
            sheet.grid(rows, labels, settings.prompts).save(temporary, "PNG")
        self.tell(Saved(str(self.folder.sheet), self.folder.sheet.stat().st_size, "contact sheet"))
        return self.folder.sheet

    def _report(self, proof: verify.Proof, drawn: Path, losses: tuple[float, ...], speed: float) -> Report:
        kept = {step: probe for step, probe in self.history.probes.items() if step > 0}
        recommended, reason = evaluate.recommend(list(kept.items()))
        scores = tuple(evaluate.score(step, probe, self.history.probes[0]) for step, probe in kept.items())
        made = Report(
            self.folder.result, self.folder.path, drawn, self.folder.result.stat().st_size, recommended, reason, scores,
            proof, dict(self.clock.seconds), speed, devices.peak_rss_bytes(), devices.peak_device_bytes(self.device), losses,
        )  # fmt: skip
        subtitle = (f"{len(self.plan.training)} pictures, {self.plan.settings.steps} steps of {self.plan.settings.batch}, rank "
                    f"{self.plan.settings.rank}, on {self.base.folder.path.name}")  # fmt: skip
        report.write_html(self.folder.report, made, self.plan, self.dataset, subtitle)
        self.tell(Saved(str(self.folder.report), self.folder.report.stat().st_size, "report"))
        self.tell(Table("cost", ("what", "spent"), tuple(report.cost(made))))
        self.tell(Note(made.verdict))
        return made

    def _fingerprint(self) -> dict[str, str]:
        """All that the weights depend on, by name."""
        found = {k: str(v) for k, v in asdict(self.plan.settings).items() if k not in DRAWING_ONLY}
        seen = hashlib.sha256()
        for p, caption, size in zip(self.dataset.pictures, self.plan.captions, self.plan.sizes_px, strict=True):
            seen.update(f"{p.digest} {size} {len(caption)} {caption}\n".encode("utf-8", "surrogatepass"))
        base = {f"base {part}": self.base.folder.digest(part) for part in ("unet", "vae", "text_encoder")}
        return {**found, "pictures and captions": seen.hexdigest(), **base}
