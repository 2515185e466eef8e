"""What a run leaves on disk: snapshots, the state to resume from, the file itself with its proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deltaw import families, formats, inject
from deltaw.delta import Delta
from deltaw.errors import UsageError
from deltaw.events import Note, Phase, Saved, Warn
from deltaw.judge.questions import Questions
from deltaw.training import fingerprint, metadata, state, verify
from deltaw.training.exactly import exactly
from deltaw.training.loop import Run
from deltaw.training.session import Session
from deltaw.training.stepping import Work, answer


def rehearse(session: Session, work: Work) -> None:
    """Writes and reads an untrained file of the run's shapes, so that a dialect fails before the hours, not after."""
    untrained = inject.take(work.wrapped, session.base.family, session.base.component)
    path = session.folder.state.with_name("rehearsal.safetensors")
    verify.require_writable(path, untrained, session.plan.settings.dialect, session.shapes)


def save(session: Session, work: Work, run: Run, found: Mapping[str, Tensor]) -> None:
    """A snapshot and the state, each atomic; the snapshot first, so that the state never promises one that is absent.

    Args:
        session: of the run.
        work: holds the adapters.
        run: where it stands.
        found: by the judge, by name.
    """
    if not session.folder.path.is_dir():
        session.tell(Warn("the result folder was removed during the run; it is made again, without what was in it"))
    _write(session, session.folder.snapshot(run.step), _rounded(session, work, run.step), "snapshot")
    adapter = {name: p.detach() for name, p in work.wrapped.parameters().items()}
    history = {**found, "losses": torch.tensor(run.losses, dtype=torch.float64), "skipped": torch.tensor(run.n_skipped)}
    state.save(
        session.folder.state,
        state.State(
            run.step,
            adapter,
            state.optimizer_tensors(run.optimizer, work.flat),
            fingerprint.of_run(session.plan, session.dataset, session.base.folder),
            history,
        ),
    )


def reopen(session: Session, *, anyway: bool) -> tuple[state.State, bool]:
    """The saved run to go on with, and whether it is another one than this.

    Args:
        session: of the run that wants to go on.
        anyway: differences are said instead of refused.

    Raises:
        InputError: there is no state, or it cannot be read.
        UsageError: it is another run's; every difference is named.
    """
    saved = state.load(session.folder.state)
    found = state.differences(saved.fingerprint, fingerprint.of_run(session.plan, session.dataset, session.base.folder))
    found += fingerprint.changed_pictures(session.folder.pictures, session.plan, session.dataset)
    if found and not anyway:
        raise UsageError(
            f"the run in --out was another one ({'; '.join(found)})", where="--resume",
            expected="the same settings, pictures, base and versions",
            advice="undo the change, start anew with another --out, or go on all the same with --set resume_anyway=true",
        )  # fmt: skip
    for line in found:
        session.tell(Warn(f"resumed all the same: {line}"))
    return saved, bool(found)


def restore(session: Session, work: Work, run: Run, saved: state.State) -> None:
    """Puts the saved run back.

    Raises:
        UsageError: its adapter does not fit.
    """
    state.restore(saved, work.wrapped.parameters(), run.optimizer, work.flat)
    run.step, run.losses = saved.step, saved.history["losses"].tolist()
    run.n_skipped = int(saved.history["skipped"])
    session.tell(Note(f"resumed after step {saved.step}"))


def finish(session: Session, work: Work, questions: Questions, step: int) -> verify.Proof:
    """Writes what the adapters hold as the LoRA and proves it.

    Args:
        session: of the run.
        work: holds the adapters.
        questions: the proof asks some of them.
        step: that the adapters stem from.

    Raises:
        UnverifiedError: the file failed the proof.
    """
    session.tell(Phase("write and prove"))
    _write(session, session.folder.result, _rounded(session, work, step), "LoRA")
    asked = questions.groups[0]
    # in float32, or the rounding of bfloat16 layers would drown what the file's precision costs
    exact = replace(work, dtype=torch.float32)
    few = torch.arange(len(asked.x))[: verify.N_QUESTIONS].split(verify.BATCH)

    @torch.no_grad()
    def predict() -> Tensor:
        with exactly(work.network):
            return torch.cat([answer(exact, asked.x[i], asked.times[i], asked.text(i)).cpu() for i in few])

    trained = inject.take(work.wrapped, session.base.family, session.base.component)
    proof = verify.prove(session.folder.result, trained, work.wrapped, session.base.component, predict, session.shapes)
    session.tell(Note(f"proved: the file was read back, {proof.n_modules} modules, all finite; it changes the prediction by "
                      f"{proof.effect:.1%} and deviates from the trained effect by {proof.deviation:.3%}"))  # fmt: skip
    return proof


def _rounded(session: Session, work: Work, step: int) -> Delta:
    """The change after a step in the precision of the file."""
    base, made = session.base, session.plan
    trained = inject.take(work.wrapped, base.family, base.component)
    verify.require_sound(trained)
    rounded, lost = verify.in_precision(trained, getattr(torch, made.settings.save_dtype))
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        session.tell(Warn(f"{', '.join(lost[:3])}{more}: numbers too large for {made.settings.save_dtype}; the file is "
                          "written in float32. A lower --lr keeps them small"))  # fmt: skip
    about = metadata.describe(session.folder.name, families.named(base.family), made, session.dataset, base)
    about["ss_steps"] = str(step)
    words = metadata.trigger_words(made)
    return Delta(base.family, rounded.updates, (words,) if words else (), about)


def _write(session: Session, path: Path, delta: Delta, what: str) -> None:
    verify.require_sound(delta)
    n_bytes = formats.save(delta, path, dialect=session.plan.settings.dialect, shapes=session.shapes)
    session.tell(Saved(str(path), n_bytes, what))
