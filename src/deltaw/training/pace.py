"""How long a run will take: foretold from one measured step, refined after five, compared at the end."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from deltaw.events import Event, Note, Step, Tell
from deltaw.training import asking, replay, verify
from deltaw.training.graph import Graph, Job
from deltaw.training.plan import Plan
from deltaw.training.trial import Measured

REFINED_AFTER_STEPS = 5
REFINED_LATER = 10
"""The same on a GPU. Before them may come as many as take far longer than all others: the first of every size of pictures."""
N_PROOFS = 3
"""Rounds of questions in the proof: as trained, from the file, without."""


@dataclass(frozen=True)
class Part:
    """A phase's seconds and where the figure is from."""

    phase: str
    seconds: float
    reason: str


def parts(
    graph: Graph,
    job: Job,
    made: Plan,
    measured: Measured,
    n_questions: int,
    done: int = 0,
) -> tuple[Part, ...]:
    """What is still to come after a trial: training, judging, proof and drawing.

    Args:
        graph: FLOPs of each piece.
        job: of the run.
        made: the plan.
        measured: by the trial.
        n_questions: that every snapshot is asked.
        done: steps that the run has behind it.
    """
    settings = made.settings
    n_steps, marks = settings.steps - done, [mark for mark in made.marks if mark > done]
    per_flop = measured.step_s / (graph.step.flops * (settings.batch // settings.n_gpus // job.batch))
    asked_s = (
        n_questions * (measured.ask_s if measured.ask_s is not None else graph.ask.flops * per_flop) / settings.n_gpus
    )
    asked_before = len(made.marks) > len(marks)  # at the first mark, which is behind: the base was asked then
    rounds = asking.n_rounds(made) - len(made.marks) + len(marks) - asked_before
    drifts = (len(marks) + 1) * asking.N_DRIFT / n_questions
    n_rows, n_drawn = len(made.marks) + 1, job.n_drawn * (2 if job.guided else 1)
    draw_s = measured.draw_s if measured.draw_s is not None else n_drawn * graph.draw.flops * per_flop
    decode_s = (
        measured.decode_s if measured.decode_s is not None else graph.decode.flops * measured.exact_s / graph.ask.flops
    )
    pictures = (n_rows + 1) * job.n_drawn  # the nearest trained ones are shown too
    drawing = -(-n_rows // settings.n_gpus) * settings.sample_steps * draw_s + pictures * decode_s
    proofs = N_PROOFS * min(verify.N_QUESTIONS, n_questions)
    how = "measured" if measured.draw_s is not None else "by its FLOPs"
    n_sizes = (
        0 if done else len(made.trained_sizes_px) - (not _on_gpu(made))
    )  # a CPU's kernels of the tried size are there by then
    training = n_steps * measured.step_s + n_sizes * measured.size_s
    sizes = f", and {measured.size_s:.2f} s for {n_sizes} more sizes each" if n_sizes and measured.size_s else ""
    return (
        Part("train", training, f"{n_steps} steps of {measured.step_s:.2f} s{sizes}, measured"),
        Part("judge and save", (rounds + drifts) * asked_s,
             f"{rounds} × {n_questions} questions and drift, {'measured' if measured.ask_s is not None else 'by their FLOPs'}"),
        Part("write and prove", proofs * measured.exact_s, f"{proofs} predictions in float32 of {measured.exact_s:.2f} s, measured"),
        Part("draw", drawing, f"{n_rows} rows of {job.n_drawn} pictures, {settings.sample_steps} steps of {draw_s:.2f} s, {how}"),
    )  # fmt: skip


def span(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def after_steps(made: Plan) -> int:
    """After how many steps of a run its time is said again."""
    n_sizes, on_gpu = len(made.trained_sizes_px), _on_gpu(made)
    if n_sizes == 1 and not on_gpu:
        return REFINED_AFTER_STEPS
    first = n_sizes * (replay.n_first(torch.device(made.settings.device)) - on_gpu)
    later = REFINED_LATER if on_gpu else REFINED_AFTER_STEPS
    return max(REFINED_AFTER_STEPS, min(first + later, made.settings.steps // 2))


def _on_gpu(made: Plan) -> bool:
    return torch.device(made.settings.device).type == "cuda"


class Watch:
    """A listener that passes everything on and, after the first steps, says how long the whole run will take.

    Args:
        tell: the listener behind it.
        after_steps: how many those are.
    """

    def __init__(self, tell: Tell, after_steps: int = REFINED_AFTER_STEPS):
        self._tell, self._after_steps = tell, after_steps
        self._ends: list[float] = [0.0]
        self._started = time.perf_counter()
        self._after_s = 0.0
        self._judge_s = 0.0
        self.total_s: float | None = None
        """Seconds of the whole run as foretold after the first steps; None before."""

    def expect(self, judge_s: float, after_s: float) -> None:
        """Sets the seconds of one judged snapshot, and of all that comes after training."""
        self._judge_s, self._after_s = judge_s, after_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started

    def __call__(self, event: Event) -> None:
        """Passes the event on."""
        self._tell(event)
        if isinstance(event, Step) and len(self._ends) <= self._after_steps and event.steps_per_s > 0:
            self._ends.append(len(self._ends) / event.steps_per_s)
            if len(self._ends) == self._after_steps + 1:
                self._refine(event)

    def _refine(self, event: Step) -> None:
        seconds = [b - a for a, b in itertools.pairwise(self._ends)]
        step_s = statistics.median(seconds[-max(REFINED_AFTER_STEPS, len(seconds) // 2) :])
        left = (event.n_steps - event.step) * step_s
        elapsed = self.elapsed_s
        self.total_s = elapsed + left + self._judge_s + self._after_s
        rest = f"{span(left)} of training, {span(self._judge_s)} of judging, {span(self._after_s)} of proof and drawing"
        self._tell(Note(f"after {self._after_steps} steps of {step_s:.2f} s: {span(self.total_s)} in all "
                        f"({span(elapsed)} gone; {rest} to come)"))  # fmt: skip
