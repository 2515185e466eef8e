"""Training with its network at hand: load, train, judge at every mark, choose, write, prove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from deltaw import device as devices
from deltaw import formats
from deltaw.data.feed import Feed
from deltaw.errors import Interrupted
from deltaw.events import Note, Phase, Tick, Warn
from deltaw.families import predicts
from deltaw.judge.choice import Candidate, Choice
from deltaw.training import asking, averaging, diagnose, keeping, loading, loop, optim, plan, verify
from deltaw.training.judging import Judge
from deltaw.training.loop import Run
from deltaw.training.session import Session
from deltaw.training.state import State
from deltaw.training.stepping import Work
from deltaw.training.team import Team
from deltaw.training.verify import Proof


@dataclass(frozen=True)
class Learnt:
    """What came of the training.

    Args:
        choice: what the file holds, and why.
        stopped: the step at which further ones had stopped paying, 0 if none.
        proof: of the file.
        losses: per step, as trained.
        retrained: pictures that the file was trained anew on, the held out ones among them; 0 if it was not.
        n_skipped: steps without a finite loss or gradient.
        steps_per_s: of the training loop alone.
    """

    choice: Choice
    stopped: int
    proof: Proof
    losses: tuple[float, ...]
    retrained: int
    n_skipped: int
    steps_per_s: float

    @property
    def name(self) -> str:
        """Of what the file holds."""
        return f"all {self.retrained} pictures" if self.retrained else self.choice.best.name


class _Kept:
    """The adapters in float32, as trained, of the last mark and of the one that is recommended so far.

    The proof compares the file with them, so that it tells what rounding to the file's precision cost.
    """

    def __init__(self) -> None:
        self.adapters: dict[int, dict[str, Tensor]] = {}

    def take(self, work: Work, step: int, recommended: int) -> None:
        """Keeps those of `step` and forgets all but the recommended ones."""
        self.adapters[step] = {name: p.detach().cpu().clone() for name, p in work.wrapped.parameters().items()}
        self.adapters = {s: tensors for s, tensors in self.adapters.items() if s in (step, recommended)}


def learn(
    session: Session, data: Feed, judge: Judge, saved: State | None, stop_asked: Callable[[], bool], team: Team | None
) -> Learnt:
    """Trains, chooses among the snapshots and their means, writes the choice and proves it.

    Args:
        session: of the run.
        data: what training reads.
        judge: takes the answers.
        saved: the state to go on from.
        stop_asked: polled after every step.
        team: the other processes, just started; None where there are none.

    Raises:
        Interrupted: `stop_asked` said so; everything is saved.
        DeltawError: no finite loss, another process failed, or a file that fails the proof.
    """
    clock, n_steps = session.clock, session.plan.settings.steps
    with clock.phase("load"):
        work, run = _load(session, data, team)
        initial = {name: p.detach().clone() for name, p in work.wrapped.parameters().items()}
    with clock.phase("try"):
        session.outlook.try_step(work, session.tell)
    if saved is not None:
        keeping.restore(session, work, run, saved)
        run.ended = judge.wants_to_stop(run.step)
    session.outlook.say(session.plan, judge.n_questions, session.tell, done=run.step)
    first, kept = run.step, _Kept()
    _train(session, work, run, judge, kept, stop_asked)
    clock.seconds["train"] = run.seconds
    if (rate := optim.found_rate(run.optimizer)) is not None and run.step > first:
        session.tell(Note(f"the learning rate that {session.plan.settings.optimizer} found: {rate:.2g}"))
    speed = (run.step - first) / run.seconds if run.seconds else 0.0
    if run.step < n_steps and not run.ended:
        raise _interrupted(session, work, run, judge)
    with clock.phase("judge and save"):
        _ask_means(session, work, judge, kept)
    chosen = judge.choose()
    written = session
    if session.plan.settings.final_all and session.plan.held_out:
        with clock.phase("train on all"):
            verify.put(work.wrapped, initial)
            written = _retrain(session, work, chosen.best.step, stop_asked)
    else:
        _hold(session, work, chosen.best, kept)
    with clock.phase("write and prove"):
        proof = keeping.finish(written, work, judge.questions, chosen.best.step)
    retrained = len(written.plan.training) if written is not session else 0
    return Learnt(chosen, run.step if run.ended else 0, proof, tuple(run.losses), retrained, run.n_skipped, speed)


def _interrupted(session: Session, work: Work, run: Run, judge: Judge) -> Interrupted:
    """Saves what was learnt, if anything was; what to say of it."""
    path, n_steps = session.folder.path, session.plan.settings.steps
    if not run.step:
        return Interrupted("stopped before the first step: there is nothing to save", where=path,
                           advice="start again with the same command")  # fmt: skip
    keeping.save(session, work, run, judge.history())
    return Interrupted(f"stopped after step {run.step} of {n_steps}; everything is saved", where=path,
                       advice=f"go on with the same command and --resume --out {path}")  # fmt: skip


def _load(session: Session, data: Feed, team: Team | None) -> tuple[Work, Run]:
    """The network with its adapters, and the run at its start; the other processes have theirs by then."""
    settings = session.plan.settings
    session.tell(Phase("load the base"))
    network = session.outlook.take_network()
    if network is None:
        network = session.base.denoiser(session.device, session.dtype, packed=settings.base_int8)
    shape = (settings.micro_batch, *data.latents[session.plan.training[0]].shape)
    if doubt := predicts.doubt(session.base, network, session.device, session.dtype, shape):
        session.tell(Warn(doubt))
    work, why = loading.prepared(session.base, network, data, session.plan, session.device, session.dtype, team)
    if why:
        session.tell(Note(f"adapters are computed by torch's own kernels, DeltaW's cannot be used here: {why}"))
    n_modules, n_params = len(work.wrapped.modules), work.flat.values.numel()
    session.tell(Note(f"{n_modules} modules get a LoRA of rank {settings.rank}: {n_params:,} numbers to train"))
    keeping.rehearse(session, work)
    if team is not None:
        team.join()
        session.tell(
            Note(f"{team.n} processes share out every step, the questions and the sheet: on {', '.join(team.places)}")
        )
    return work, _beginning(work)


def _beginning(work: Work) -> Run:
    settings = work.plan.settings
    make = optim.ALL[settings.optimizer].make
    return Run(0, [], make([work.flat.values], settings.lr, settings.weight_decay))


def _train(
    session: Session, work: Work, run: Run, judge: Judge, kept: _Kept, stop_asked: Callable[[], bool]
) -> None:  # fmt: skip
    """All steps up to the plan's last, or to where they have stopped paying."""

    def mark(run: Run) -> None:
        with session.clock.phase("judge and save"):
            devices.trim()  # the steps' memory, which the questions' would lie beside
            judge.tell(judge.ask(work, run.step))
            keeping.save(session, work, run, judge.history())
            kept.take(work, run.step, judge.choose().best.step)
            run.ended = judge.wants_to_stop(run.step)
            devices.trim()

    session.tell(Phase("train", session.plan.settings.steps, "steps"))
    try:
        loop.train(work, run, mark, stop_asked, session.outlook.following(work, judge.n_questions, session.tell))
    except loop.NotFiniteError as error:
        raise diagnose.explain(work, error, _save_what_is_sound(session, work, run, judge)) from error
    if run.ended:
        session.tell(Note(f"stopped at step {run.step} of {session.plan.settings.steps}: further steps have stopped paying "
                          "(--no-stop goes on all the same)"))  # fmt: skip


def _save_what_is_sound(session: Session, work: Work, run: Run, judge: Judge) -> str:
    """Saves the adapter as it was before the steps that failed, which it took nothing from; says where it is."""
    if run.n_skipped == run.step:
        return "nothing was learnt before them"
    if bool(work.flat.values.isfinite().all()):
        keeping.save(session, work, run, judge.history())
        return f"the adapter before them is {session.folder.snapshot(run.step)}"
    kept = [session.folder.snapshot(step) for step in session.plan.marks if step < run.step]
    return f"the last sound adapter is {kept[-1]}" if kept else "no sound adapter was saved before"


def _retrain(session: Session, work: Work, n_steps: int, stop_asked: Callable[[], bool]) -> Session:
    """Trains anew with the held out pictures, for as long as the choice took; the session that the file belongs to.

    The rate goes the same way as before, so that only the pictures differ from what was judged.
    """
    everyone = plan.on_all(session.plan, n_steps)
    again = replace(work, plan=everyone)
    run = _beginning(again)

    def end(run: Run) -> None:
        run.ended = True

    session.tell(Phase(f"train anew on all {len(everyone.training)} pictures", n_steps, "steps"))
    loop.train(again, run, end, stop_asked, session.tell)
    if not run.ended:
        raise Interrupted(
            f"stopped after step {run.step} of {n_steps} on all pictures; the run before that is saved",
            where=session.folder.path, advice=f"go on with the same command and --resume --out {session.folder.path}",
        )  # fmt: skip
    return replace(session, plan=everyone)


def _ask_means(session: Session, work: Work, judge: Judge, kept: _Kept) -> None:
    """Asks the questions of the means of the last snapshots too, where their files are still there."""
    steps = [step for step in session.plan.marks if step in judge.probes]
    files = [session.folder.snapshot(step) for step in steps]
    rounds = [k for k in asking.MEANS if k <= len(files) and all(file.is_file() for file in files[-k:])]
    if not rounds or session.plan.settings.pick == "last":  # which is then the file, whatever is better
        return
    session.tell(Phase("judge means of snapshots", len(rounds), "means"))
    for n_done, k in enumerate(rounds, 1):
        candidate = Candidate(steps[-1], judge.probes[steps[-1]], k)
        _hold(session, work, candidate, kept)
        judge.means.append(Candidate(steps[-1], judge.losses(work), k))
        session.tell(Tick(n_done))


def _hold(session: Session, work: Work, candidate: Candidate, kept: _Kept) -> None:
    """Puts a candidate into the adapters: as trained where that is still known, else from the snapshots' files."""
    settings = session.plan.settings
    if candidate.n_averaged == 1 and candidate.step in kept.adapters:
        verify.put(work.wrapped, kept.adapters[candidate.step])
        return
    steps = [s for s in session.plan.marks if s <= candidate.step][-candidate.n_averaged :]
    deltas = [formats.load(session.folder.snapshot(s), shapes=session.shapes)[0] for s in steps]
    if len(deltas) == 1:
        averaging.take_up(work.wrapped, deltas[0], session.base.component)
        return
    mean, error = averaging.mean(deltas, settings.rank)
    session.tell(Note(f"{candidate.name}: its cut to rank {settings.rank} leaves out {error:.2%} of it"))
    averaging.take_up(work.wrapped, mean, session.base.component)
