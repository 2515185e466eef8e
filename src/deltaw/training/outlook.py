"""What is said and tried before a run: what it will take, whether it fits, and the pieces that could fail late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw import device as devices
from deltaw.data.cache import default_root
from deltaw.events import Event, Note, Phase, Step, Table, Tell, Warn
from deltaw.families.base import Base
from deltaw.options import Given
from deltaw.training import forecast, memory, pace, plan, replay, room, sampler, trial
from deltaw.training.forecast import Forecast
from deltaw.training.plan import Plan
from deltaw.training.stepping import Work
from deltaw.training.trial import Measured

COLUMNS = ("what", "how much", "why")
_SAVED = {
    "micro_batch": "{} of a step's pictures are computed at a time",
    "checkpointing": "checkpointing is on, and a step takes about a third longer",
}
"""What is said of a setting that was changed to make a run fit."""


def foretell(given: Given, base: Base, made: Plan, out: Path, tell: Tell) -> tuple[Forecast, Plan]:
    """Predicts memory and disk, says them, and refuses a run that does not fit, unless `ignore_room` is set.

    Where the user left them open and nothing else is needed to make the run fit, the plan is given a smaller micro-batch, or checkpointing, or both.

    Raises:
        UsageError: or ManyErrors; the advice is the cheapest change that fits.
    """
    tell(Phase("foretell memory and disk"))
    used = devices.several(torch.device(made.settings.device), made.settings.processes)
    available = min(devices.available_bytes(device) for device in used)
    predicted = forecast.make(base, made)
    predicted, made = _made_brisk(given, base, made, predicted, tell)
    predicted, made = _made_to_fit(given, base, made, predicted, available[0], tell)
    tell(Table("what it will take at its peaks", COLUMNS, predicted.rows()))
    if given.options.ignore_room:
        tell(Warn("ignore_room: whether memory and disk suffice is not checked"))
    else:
        room.require(predicted, base, made, available, forecast.places(out, default_root()))
    return predicted, made


def _made_brisk(given: Given, base: Base, made: Plan, predicted: Forecast, tell: Tell) -> tuple[Forecast, Plan]:
    """With fewer pictures at a time where that is left open and the device is hardly slower for it, or faster."""
    share = made.settings.batch // made.settings.processes
    n = memory.brisk(predicted.graph, predicted.job, sampler.micro_batches(share))
    if given.options.micro_batch is not None or n == share:
        return predicted, made
    reason = "more of this size would take far more memory here, and little less time, if any"
    tell(Note(f"{_SAVED['micro_batch'].format(n)}: {reason}"))
    made = plan.saving(made, reason, micro_batch=n)
    return forecast.make(base, made), made


def _made_to_fit(
    given: Given, base: Base, made: Plan, predicted: Forecast, free_bytes: int, tell: Tell
) -> tuple[Forecast, Plan]:
    if predicted.needed_bytes <= free_bytes:
        return predicted, made
    for settings in _savings(given, made):
        smaller = forecast.make(base, replace(made, settings=replace(made.settings, **settings)))
        if smaller.needed_bytes <= free_bytes:
            reason = (f"the run then needs {smaller.needed_bytes / 1e9:.2f} instead of {predicted.needed_bytes / 1e9:.2f} GB, "
                      f"and {free_bytes / 1e9:.2f} GB are there")  # fmt: skip
            tell(Warn(f"{' and '.join(_SAVED[name].format(value) for name, value in settings.items())}: {reason}"))
            return smaller, plan.saving(made, reason, **settings)
    return predicted, made


def _savings(given: Given, made: Plan) -> Iterator[dict[str, Any]]:
    """What may be changed of the settings that the user left open, ever slower: fewer pictures at a time, activations computed again."""
    most = made.settings.micro_batch
    parts = sampler.micro_batches(most) if given.options.micro_batch is None else [most]
    for again in (False, True) if given.options.checkpointing is None else (made.settings.checkpointing,):
        for n in parts:
            wanted = {"micro_batch": n, "checkpointing": again}
            if changed := {name: value for name, value in wanted.items() if value != getattr(made.settings, name)}:
                yield changed


def foretell_time(
    base: Base, made: Plan, predicted: Forecast, device: torch.device, n_questions: int, tell: Tell
) -> None:
    """Loads the network, measures one step and says what each phase will take; the network is released."""
    tell(Phase("measure one step of the largest bucket"))
    measured = trial.load_and_step(base, made, predicted.job, device)
    _tell_time(pace.parts(predicted.graph, predicted.job, made, measured, n_questions), tell)


def n_tried(made: Plan) -> int:
    """Steps after which a run's time is said where no trial was made before; predictions are tried then."""
    return replay.n_first(torch.device(made.settings.device)) + 1


def may_keep(predicted: Forecast, device: torch.device) -> bool:
    """Whether the sample's network stays for the training: on a GPU, where that adds nothing to the run's peak.

    Reading FLUX.1's again takes ten seconds. On a CPU what is decoded meanwhile would lie scattered around it.
    """
    graph = predicted.graph
    beside = graph.network_bytes + graph.vae_bytes + graph.decode.peak_bytes
    return device.type == "cuda" and beside <= predicted.tightest.n_bytes


class Outlook:
    """A run's prediction, what was tried of it, and how right it was.

    Args:
        predicted: memory and disk.
        watch: refines the time after the first steps.
    """

    def __init__(self, predicted: Forecast, watch: pace.Watch):
        self.predicted = predicted
        self.watch = watch
        self._drawing: tuple[float, float] | None = None
        self._network: nn.Module | None = None
        self._measured: Measured | None = None

    def try_sample(self, base: Base, made: Plan, device: torch.device, tell: Tell) -> None:
        """Draws one row of the sheet, or as much of it as is drawn at a time, in one or two denoising steps.

        Raises:
            InputError: the base cannot draw.
        """
        keep, n = may_keep(self.predicted, device), self.predicted.drawn_at_a_time
        step_s, decode_s, self._network = trial.sample(base, made, device, n, tell, keep=keep)
        self._drawing = step_s, decode_s

    def take_network(self) -> nn.Module | None:
        """The network of the sample, as it was loaded, where it was kept; it can be had once."""
        network, self._network = self._network, None
        return network

    def try_step(self, work: Work, tell: Tell) -> None:
        """Runs one step of the largest bucket; what it needs is there, or the run ends here.

        Where there is one bucket alone the run's own first step is that trial.
        """
        if len(work.plan.trained_sizes_px) == 1:
            return
        tell(Phase("try one step of the largest bucket"))
        self._take(work, *trial.step(work, self.predicted.job))

    def following(self, work: Work, n_questions: int, tell: Tell) -> Tell:
        """A listener that says after the second step what each phase will take, where no trial could tell it before.

        The first step is not measured, on a GPU the first three: libraries choose their kernels in it.
        """
        seconds: list[float] = []
        last = n_tried(work.plan)

        def heard(event: Event) -> None:
            tell(event)
            if self._measured is None and isinstance(event, Step) and event.steps_per_s > 0:
                seconds.append((len(seconds) + 1) / event.steps_per_s)
                if len(seconds) == last:
                    self._take(work, seconds[-1] - seconds[-2])
                    self.say(work.plan, n_questions, tell, done=event.step)

        return heard

    def _take(self, work: Work, step_s: float, size_s: float = 0.0) -> None:
        exact_s = trial.exact(work.base, work.network, self.predicted.job, work.device)
        short = step_s < trial.SHORT_S  # a small step is slower for its arithmetic than many questions together
        job, n = self.predicted.job, self.predicted.at_a_time
        ask_s = trial.ask(work.base, work.network, job, work.device, n) if short else None
        draw_s, decode_s = self._drawing or (None, None)
        self._measured = Measured(step_s, exact_s, ask_s, draw_s, decode_s, size_s)

    def say(self, made: Plan, n_questions: int, tell: Tell, *, done: int = 0) -> None:
        """Says what each phase will take, where that was measured; `done` steps are behind the run."""
        if self._measured is not None:
            found = pace.parts(self.predicted.graph, self.predicted.job, made, self._measured, n_questions, done)
            _tell_time(found, tell)
            seconds = {part.phase: part.seconds for part in found}
            self.watch.expect(seconds["judge and save"], seconds["write and prove"] + seconds["draw"])

    def compare(self, peak_rss_bytes: int, peak_device_bytes: int, *, whole: bool) -> tuple[tuple[str, str], ...]:
        """(what, predicted and found) for the table of costs; time only of a run that took all its steps."""
        used, foretold = peak_device_bytes or peak_rss_bytes, self.predicted.peak_bytes
        rows = [
            ("peak memory, predicted", _against(f"{foretold / 1e9:.2f} GB", f"{used / 1e9:.2f} GB", used / foretold))
        ]
        if whole and self.watch.total_s is not None:
            took = self.watch.elapsed_s
            rows.append(("time, foretold after the first steps",
                         _against(pace.span(self.watch.total_s), pace.span(took), took / self.watch.total_s)))  # fmt: skip
        return tuple(rows)


def _against(foretold: str, found: str, ratio: float) -> str:
    return f"predicted {foretold}, used {found}: {100 * (ratio - 1):+.0f} %"


def _tell_time(parts: tuple[pace.Part, ...], tell: Tell) -> None:
    rows = [(part.phase, pace.span(part.seconds), part.reason) for part in parts]
    rows.append(("all of these", pace.span(sum(part.seconds for part in parts)), "said again after the first steps"))
    tell(Table("how long it will take", COLUMNS, tuple(rows)))
