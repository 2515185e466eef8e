"""Where the time of a training step goes, measured by torch's profiler on a few steps of the run itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import profile, supported_activities

from deltaw.events import Event, Note, Step, Tell

PROFILED_STEPS = 3
PARTS: tuple[str, ...] = (
    "attention", "adapters", "convolutions", "linear layers", "normalisation", "elementwise and copies", "optimizer",
    "waiting for data", "Python and waiting",
)  # fmt: skip
"""In this order where shares are equal; the last is the time in which no operation ran."""


@dataclass(frozen=True)
class Shares:
    """What a training step's time is spent on.

    Args:
        parts: share of the wall-clock time by part (`PARTS`); they sum to 1.
        step_s: seconds of a step, while profiled.
    """

    parts: Mapping[str, float]
    step_s: float

    def sentence(self) -> str:
        """The shares in words, the largest first; adapters and data always, the rest from 1 % on."""
        always = ("adapters", "waiting for data")
        order = sorted(self.parts, key=lambda part: -self.parts[part])
        told = [p for p in order if p not in always and self.parts[p] >= 0.005] + list(always)
        shares = ", ".join(f"{100 * self.parts[part]:.0f} % {part}" for part in told)
        return f"a step takes {self.step_s:.2f} s: {shares}"


class Profiler:
    """A listener that profiles steps of the run it listens to and passes every event on.

    Args:
        tell: the listener behind it.
        rank: of the adapters, which tells their products from the base's.
        after_steps: that pass before: kernels are chosen in the first ones, recorded on a GPU, and predictions tried between them.
    """

    def __init__(self, tell: Tell, rank: int, after_steps: int):
        self._shares: Shares | None = None
        self._tell, self._rank, self._after_steps = tell, rank, after_steps
        self._heard = 0
        self._profile: profile | None = None

    def __call__(self, event: Event) -> None:
        """Begins and ends at steps, which are told as they end."""
        self._tell(event)
        if not isinstance(event, Step):
            return
        self._heard += 1
        if self._heard == self._after_steps:
            self._profile = profile(activities=supported_activities(), record_shapes=True, acc_events=True)
            self._profile.start()
        elif self._profile is not None and self._heard == self._after_steps + PROFILED_STEPS:
            self._profile.stop()
            self._shares = shares_of(self._profile.events(), self._rank)
            self._profile = None
            self._tell(Note(self._shares.sentence()))

    def close(self) -> Shares | None:
        """What was measured; None, said in words, where the run was too short."""
        if self._profile is not None:
            self._profile.stop()
        if self._shares is None:
            self._tell(Note(f"no profile: it takes {self._after_steps + PROFILED_STEPS} steps"))
        return self._shares


def shares_of(events: Any, rank: int) -> Shares:
    """Sums the events of `PROFILED_STEPS` steps by part: the device's time where one computes, else the CPU's.

    Args:
        events: of torch's profiler, with shapes.
        rank: of the adapters.
    """
    kernels = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    operations = [e for e in events if e.device_type == DeviceType.CPU]
    seconds = dict.fromkeys(PARTS, 0.0)
    begin, end = float("inf"), 0.0
    for event in (*operations, *kernels):
        begin, end = min(begin, event.time_range.start), max(end, event.time_range.end)
    for event in operations:
        spent_us = event.self_device_time_total if kernels else event.self_cpu_time_total
        if spent_us:
            seconds[part_of(event, rank)] += spent_us / 1e6
    for name, spent_us in _of_no_operation(operations, kernels).items():
        seconds[part_of_kernel(name)] += spent_us / 1e6
    whole_s = max((end - begin) / 1e6, sum(seconds.values()))
    seconds[PARTS[-1]] += whole_s - sum(seconds.values())
    return Shares({part: value / whole_s for part, value in seconds.items()}, whole_s / PROFILED_STEPS)


def _of_no_operation(operations: Sequence[Any], kernels: Sequence[Any]) -> dict[str, float]:
    """Microseconds, by name, of kernels that no operation launched: those of a recorded step, which starts as a whole."""
    spent: Counter[str] = Counter()
    for kernel in kernels:
        spent[kernel.name] += kernel.self_device_time_total
    for launched in (k for operation in operations for k in operation.kernels):
        spent[launched.name] -= launched.duration
    return {name: us for name, us in spent.items() if us > 0}


KERNELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("adapters", ("_narrow", "_widen", "_back_through")),
    ("optimizer", ("adam",)),
    ("attention", ("sdpa", "flash", "fmha", "attention", "softmax")),
    ("convolutions", ("conv", "fprop", "dgrad", "wgrad", "nchwtonhwc", "nhwctonchw", "cudnn")),
    ("linear layers", ("gemm", "nvjet", "cutlass", "cublas", "splitk")),
    ("normalisation", ("norm", "moments", "welford")),
)
"""What the names of a GPU's kernels contain, by part; the first that fits counts. A small product of an adapter that is not joined
has the name of any other product."""


def part_of_kernel(name: str) -> str:
    """The part that a kernel belongs to, by its name alone."""
    lower = name.lower()
    return next((part for part, signs in KERNELS if any(sign in lower for sign in signs)), "elementwise and copies")


def part_of(event: Any, rank: int) -> str:
    """The part that one operation belongs to, by its own name, its callers' names and its shapes."""
    names = list(_upwards(event))
    if _any(names, "Optimizer.", "_adam"):
        return "optimizer"
    if _any(names, "aten::stack"):  # a batch put together; the networks concatenate but do not stack
        return "waiting for data"
    if _any(names, "_LowRank") and any(rank in shape for shape in event.input_shapes or ()):
        return "adapters"
    if _any(names, "conv", "Convolution"):
        return "convolutions"
    if _any(names, "scaled_dot_product", "softmax", "bmm", "baddbmm", "flash", "efficient_attention"):
        return "attention"
    if _any(names, "aten::mm", "aten::addmm", "aten::linear"):
        return "linear layers"
    return "normalisation" if _any(names, "norm") else "elementwise and copies"


def _upwards(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def _any(names: list[str], *signs: str) -> bool:
    return any(sign in name for name in names for sign in signs)
