"""`deltaw train`: a folder of pictures becomes a verified LoRA with a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw import device as devices
from deltaw import families, options, zoo
from deltaw.data import feed, lint, looks
from deltaw.data import folder as pictures_folder
from deltaw.data.cache import Cache, default_root
from deltaw.data.folder import Dataset
from deltaw.errors import InputError
from deltaw.events import Note, Phase, Saved, Table, Tell, Warn, silent
from deltaw.families import bases
from deltaw.families.base import Base
from deltaw.options import Given
from deltaw.training import (
    asking,
    drawing,
    exhausted,
    fingerprint,
    keeping,
    learning,
    outlook,
    pace,
    page,
    plan,
    report,
)
from deltaw.training.drawing import Drawn
from deltaw.training.folder import Diary, RunFolder, locked, prepare, write_config
from deltaw.training.judging import Judge
from deltaw.training.learning import Learnt
from deltaw.training.plan import Plan
from deltaw.training.process import Peak
from deltaw.training.profiling import Profiler, Shares
from deltaw.training.report import Report
from deltaw.training.session import Clock, Session, begin
from deltaw.training.state import State
from deltaw.training.team import Team


def train(
    folder: str | Path, *, config: str | Path | None = None, settings: Sequence[str] = (), strict: bool = False,
    profile: bool = False, stop_asked: Callable[[], bool] = lambda: False, tell: Tell = silent, **flags: Any,
) -> Report:  # fmt: skip
    """Trains a LoRA on a folder of pictures and proves that the written file works.

    Args:
        folder: pictures, flat or nested, with or without captions.
        config: a TOML file of options; `settings`: `key=value` words; `flags`: options by name
            (see `deltaw.options.TrainOptions`); the later wins.
        strict: a skipped picture is an error.
        profile: measure on a few steps where the time goes, and show it in the report.
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
        if made.settings.device.startswith("cuda"):  # the processor has time then; where it trains, it has not
            base.folder.digest_ahead()
        predicted, made = outlook.foretell(given, base, made, out, tell)
        run_folder = prepare(out, folder, resume=bool(given.options.resume))
    with locked(run_folder), Diary(run_folder.events, tell) as diary:
        watch = pace.Watch(diary, pace.after_steps(made))
        profiler = Profiler(watch, made.settings.rank, outlook.n_tried(made) + 1) if profile else None
        session = begin(base, dataset, made, run_folder, clock, profiler or watch, outlook.Outlook(predicted, watch))
        saved, other = None, False
        if given.options.resume:
            saved, other = keeping.reopen(session, anyway=bool(given.options.resume_anyway))
        write_config(run_folder.config, made.values, given.options.base or str(zoo.bundled_base()))
        fingerprint.write_pictures(run_folder.pictures, made, dataset)
        with exhausted.named(made.settings, run_folder):
            return _run(session, saved, other, stop_asked, profiler)


def look(folder: Path, given: Given, *, strict: bool, tell: Tell) -> tuple[Base, Dataset, Plan]:
    """Opens the base, scans the pictures and makes the plan, telling all three. Writes nothing."""
    tell(Phase("look at the pictures and the base"))
    base = bases.open_base(given.options.base or zoo.bundled_base(), tell)
    origin = "" if given.options.base else " (bundled; --base takes another)"
    tell(Note(f"base: {base.folder.path.name}, {families.named(base.family).title}, {base.objective.name}, "
              f"{base.resolution_px} px{origin}"))  # fmt: skip
    for remark in base.folder.remarks:
        tell(Warn(remark))
    out = plan.out_folder(given, folder)
    dataset = pictures_folder.scan(folder, caption_encoding=given.options.caption_encoding, exclude=[out], tell=tell)
    skipped = [f"{s.name}: {s.reason}" for s in dataset.skipped]
    if skipped and strict:
        raise InputError(f"--strict: {len(skipped)} pictures cannot be used ({'; '.join(skipped[:5])})", where=folder)
    for line in skipped:
        tell(Warn(f"skipped {line}"))
    once = given.options.duplicates == "once"
    alike = lint.alike(tuple(looks.look_at(dataset, tell))) if once else ()
    made = plan.make(given, base, dataset, alike)
    _tell_plan(made, dataset, tell)
    return base, dataset, made


def dry_run(folder: Path, given: Given, *, strict: bool, tell: Tell) -> None:
    """Everything that can be said before a run: the plan, what it will take, and how long, by one measured step.

    Raises:
        InputError, UsageError: as `train` would.
    """
    base, _, made = look(folder, given, strict=strict, tell=tell)
    predicted, made = outlook.foretell(given, base, made, plan.out_folder(given, folder), tell)
    device, _ = devices.choose(made.settings.device)
    outlook.foretell_time(base, made, predicted, device, asking.n_questions(made), tell)


def _given(folder: Path, config: str | Path | None, settings: Sequence[str], flags: Mapping[str, Any]) -> Given:
    """The options; a resumed run starts from the ones in its own run.toml."""
    given = options.parse(flags, settings, config)
    if given.options.resume and config is None:
        saved = RunFolder(plan.out_folder(given, folder), "").config
        if saved.is_file():
            return options.parse(flags, settings, saved)
    return given


def _tell_plan(made: Plan, dataset: Dataset, tell: Tell) -> None:
    sizes = sorted(made.trained_sizes_px)
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


def _run(
    session: Session, saved: State | None, other: bool, stop_asked: Callable[[], bool], profiler: Profiler | None
) -> Report:
    """Feed, load, train, choose, write, prove, draw, report."""
    with session.clock.phase("encode"):
        data = feed.fill(session.base, session.dataset.pictures, session.plan.sizes_px, session.plan.captions,
                         session.device, Cache(default_root()), session.tell, asking.plain_prompts(session.plan),
                         session.dtype, packed=session.plan.settings.base_int8)  # fmt: skip
    with session.clock.phase("try"):
        session.outlook.try_sample(session.base, session.plan, session.device, session.tell)
    judge = Judge(session, data, {} if saved is None or other else saved.history)  # another run's questions were others
    with Team.of(session.base.folder.path, session.plan, session.device) as team:
        learnt = learning.learn(session, data, judge, saved, stop_asked, team)
        shares = profiler.close() if profiler else None
        devices.give_back()
        with session.clock.phase("draw"):  # the networks of training are gone by now: drawing needs the room
            drawn = drawing.draw(session, data, learnt.name, team)
        peaks = () if team is None else team.dismiss()
    return _report(session, judge, learnt, drawn, shares, peaks)


def _report(
    session: Session, judge: Judge, learnt: Learnt, drawn: Drawn, shares: Shares | None, peaks: tuple[Peak, ...]
) -> Report:
    folder, made, tell = session.folder, session.plan, session.tell
    peak, on_device = devices.peak_rss_bytes(), devices.peak_device_bytes(session.device)
    found = Report(
        folder.result, folder.path, drawn.sheet, folder.result.stat().st_size, learnt.choice, learnt.name, learnt.retrained, judge.score(learnt.choice.best),
        judge.scores(), made.settings.steps, learnt.stopped, asking.measured_on(made), bool(made.held_out),
        dict(judge.drifts), drawn.copies, learnt.proof, dict(session.clock.seconds), learnt.steps_per_s,
        peak, on_device, learnt.losses, learnt.n_skipped, session.outlook.compare(peak, on_device, whole=not learnt.stopped), peaks,
    )  # fmt: skip
    subtitle = (f"{len(session.plan.training)} pictures, {made.settings.steps} steps of {made.settings.batch}, rank "
                f"{made.settings.rank}, on {session.base.folder.path.name}")  # fmt: skip
    page.write(folder.report, found, drawn.picture, session.plan, session.dataset, subtitle, shares)
    tell(Saved(str(folder.report), folder.report.stat().st_size, "report"))
    tell(Table("cost", ("what", "spent"), tuple(report.cost(found))))
    tell(Note(found.verdict))
    return found
