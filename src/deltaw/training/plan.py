"""The plan: every value of a run, chosen before it starts, with its origin and its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from deltaw import device as devices
from deltaw import formats
from deltaw.data import buckets as bucketing
from deltaw.data.folder import Dataset
from deltaw.errors import UsageError
from deltaw.families import solvers
from deltaw.families.base import Base
from deltaw.options import Given
from deltaw.training import optim, wording
from deltaw.training.sampler import Sampler, require_parts


@dataclass(frozen=True)
class Value:
    """A setting, where it comes from ("--lr", "my.toml", "plan", "default") and why."""

    value: Any
    origin: str
    reason: str


@dataclass(frozen=True)
class Settings:
    """The resolved options that the run reads; the names are those of `TrainOptions`."""

    steps: int
    rank: int
    alpha: float
    lr: float
    batch: int
    resolution: int
    seed: int
    dialect: str
    trigger: str
    targets: str
    warmup_steps: int
    schedule: str
    optimizer: str
    weight_decay: float
    clip: float
    caption_dropout: float
    min_snr_gamma: float
    duplicates: str
    held_out: int
    snapshots: int
    stop: bool
    until: int
    pick: str
    final_all: bool
    prompts: tuple[str, ...]
    sample_steps: int
    sampler: str
    guidance: float
    device: str
    dtype: str
    save_dtype: str
    checkpointing: bool
    micro_batch: int
    processes: int
    base_int8: bool

    @property
    def n_gpus(self) -> int:
        """GPUs that compute a step together; 1 on a CPU, whose cores processes share."""
        return self.processes if torch.device(self.device).type == "cuda" else 1


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is known before it.

    Args:
        settings: what the run reads.
        values: per option its value, origin and reason; what is printed and written to run.toml.
        captions: per picture the caption as trained, trigger included.
        sizes_px: per picture its bucket (width, height).
        training: indices of pictures to train on; `held_out`: those to measure with.
        sampler: who is seen when.
        marks: steps after which the run is saved and judged, the last step included.
        notes: what the user should know.
    """

    settings: Settings
    values: Mapping[str, Value]
    captions: tuple[str, ...]
    sizes_px: tuple[tuple[int, int], ...]
    training: tuple[int, ...]
    held_out: tuple[int, ...]
    sampler: Sampler
    marks: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def trained_sizes_px(self) -> frozenset[tuple[int, int]]:
        """Buckets of the pictures that are trained on."""
        return frozenset(self.sizes_px[i] for i in self.training)


class _Chooser:
    """Collects values: the user's where given, else the base's recommendation, else a rule's."""

    def __init__(self, given: Given, recommended: Mapping[str, Any]):
        self.given = given
        self.recommended = recommended
        self.values: dict[str, Value] = {}

    def pick(self, name: str, value: Any, reason: str, origin: str = "plan", *, recommended: bool = True) -> Any:
        asked = getattr(self.given.options, name)
        if asked is not None:
            self.values[name] = Value(asked, self.given.origin.get(name, "given"), "you asked for it")
        elif recommended and name in self.recommended:
            self.values[name] = Value(self.recommended[name], "base", "the base's deltaw.toml recommends it")
        else:
            self.values[name] = Value(value, origin, reason)
        return self.values[name].value


def make(given: Given, base: Base, dataset: Dataset, alike: Sequence[Sequence[int]] = ()) -> Plan:
    """Chooses every value of the run. Pure: it reads and writes no file.

    Args:
        given: what the user asked for.
        base: opened.
        dataset: the pictures.
        alike: groups of pictures of which only the first is used.

    Raises:
        UsageError: values that contradict each other or the base.
    """
    left_out = {index for group in alike for index in group[1:]}
    used = [i for i in range(len(dataset.pictures)) if i not in left_out]
    choose = _Chooser(given, base.folder.recommended.get("train", {}))
    trigger = choose.pick("trigger", "", "no trigger word was given; captions stay as they are", "default")
    captions = tuple(wording.with_trigger(p.caption, trigger) for p in dataset.pictures)
    _choose_model(choose, base)
    choose.pick("duplicates", "count", "every file is a picture of its own", "default")
    held_out = _held_out(choose.pick("held_out", *_held_out_default(len(used))), used, dataset)
    training = tuple(i for i in used if i not in held_out)
    sizes = _buckets(choose, base, dataset)
    device, _ = devices.choose(choose.values["device"].value if choose.values["device"].value != "auto" else None)
    _choose_length(choose, base, len(training), device)
    choose.pick("prompts", *wording.prompts(captions, training, base.folder.recommended.get("prompts", {})))
    settings = Settings(**{f.name: _plain(choose.values[f.name].value) for f in fields(Settings)})
    require_parts(settings.batch, settings.processes, settings.micro_batch)
    devices.several(device, settings.processes)  # refuses more than there are
    formats.named(settings.dialect)
    sampler = _sampler(sizes, training, settings)
    notes = [*_duplicate_notes(dataset, alike), *_caption_notes(captions), *_sampler_notes(sampler, settings)]
    return Plan(
        settings, choose.values, captions, sizes, training, held_out, sampler, marks(settings.steps, settings.snapshots),
        tuple(notes),
    )  # fmt: skip


def saving(plan: Plan, reason: str, **settings: Any) -> Plan:
    """The same plan with settings that hold less memory and leave what is learnt alone: `checkpointing`, `micro_batch`."""
    values = {**plan.values, **{name: Value(value, "plan", reason) for name, value in settings.items()}}
    return replace(plan, settings=replace(plan.settings, **settings), values=values)


def on_all(plan: Plan, n_steps: int) -> Plan:
    """The same plan with the held out pictures trained too, to be ended after `n_steps`."""
    everyone = tuple(sorted((*plan.training, *plan.held_out)))
    sampler = _sampler(plan.sizes_px, everyone, plan.settings)
    return replace(plan, training=everyone, held_out=(), sampler=sampler, marks=(n_steps,))


def _sampler(sizes_px: Sequence[tuple[int, int]], indices: Sequence[int], settings: Settings) -> Sampler:
    members: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        members.setdefault(sizes_px[index], []).append(index)
    return Sampler(members, settings.batch, settings.seed)


def marks(n_steps: int, n_snapshots: int) -> tuple[int, ...]:
    """Evenly spaced steps, the last one included; fewer where there are fewer steps."""
    count = min(n_snapshots, n_steps)
    return tuple(round(n_steps * (i + 1) / count) for i in range(count))


def _choose_model(choose: _Chooser, base: Base) -> None:
    device, why = devices.choose(choose.given.options.device)
    choose.pick("device", str(device), why)
    dtype, why = devices.compute_dtype(device)
    choose.pick("dtype", str(dtype).removeprefix("torch."), why)
    choose.pick("checkpointing", False, "activations are kept where memory suffices, which is faster", "default")
    choose.pick("base_int8", False, "the base is trained on as it is", "default")
    choose.pick("save_dtype", "float16", "half the size; its rounding is measured after the run", "default")
    rank = choose.pick("rank", 16, "enough for a style or a subject on a base of this size")
    choose.pick("alpha", float(rank), "equal to the rank, so that a change of rank alone keeps the strength")
    choose.pick("targets", base.targets, "Q, K, V and O of every attention layer", "default")
    choose.pick("dialect", *base.dialect, "default")
    choose.pick("seed", 0, "the same for every run unless asked otherwise", "default")
    _choose_rate(choose)
    choose.pick("weight_decay", 0.01, "AdamW's usual decay", "default")
    choose.pick("clip", 1.0, "no single batch can throw the adapter off", "default")
    dropout = (
        (0.05, "keeps classifier-free guidance working")
        if base.guided_twice
        else (0.0, "the base is guided by a number")
    )
    choose.pick("caption_dropout", *dropout, "default")
    gamma, why = (
        (5.0, "the base predicts noise") if base.objective.name == "epsilon" else (0.0, "the base predicts a velocity")
    )
    choose.pick("min_snr_gamma", gamma, why)
    drawing = base.folder.recommended.get("generate", {})
    sampler, usual = solvers.chosen(base, choose.given.options.sampler)
    choose.pick("sampler", sampler, "as `deltaw generate` draws", "default")
    choose.pick("sample_steps", usual, "as `deltaw generate` draws", "default")
    choose.pick("guidance", drawing.get("guidance", base.guidance), "as `deltaw generate` draws", "default")


def _choose_rate(choose: _Chooser) -> None:
    name = choose.pick("optimizer", "adamw", "sound at any batch size", "default")
    if name not in optim.ALL:
        raise UsageError(f"unknown optimizer {name!r}", where="optimizer", expected=", ".join(optim.ALL))
    optim.ALL[name].require()
    if own := optim.ALL[name].lr:  # what a base recommends are AdamW's
        choose.pick("lr", *own, recommended=False)
    else:
        choose.pick("lr", 1e-4, "the common ground of LoRAs with AdamW")


def _choose_length(choose: _Chooser, base: Base, n_training: int, device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    processes = choose.pick("processes", 1, _alone(device), "default")
    usual, why = (4, "a GPU is there") if on_gpu else (1, "the memory of a CPU run is kept low")
    batch = choose.pick("batch", -(-usual // processes) * processes, why)
    each = max(1, batch // processes)
    choose.pick("micro_batch", each, "a step's pictures are computed together where memory suffices", "default")
    advice = base.folder.recommended.get("length", {"visits": 100, "least": 300, "most": 2000})
    steps = round(advice["visits"] * n_training / batch)
    steps = min(max(steps, advice["least"]), advice["most"])
    rounds = steps * batch / n_training
    steps = choose.pick(
        "steps", steps, f"{steps} × {batch} ÷ {n_training} pictures = each seen {rounds:.0f} times "
        f"(aim {advice['visits']}, within {advice['least']}-{advice['most']} steps)",
    )  # fmt: skip
    until = choose.pick("until", 0, "a stop may come at any mark", "default")
    if until > steps:
        steps = until
        choose.values["steps"] = Value(steps, choose.values["until"].origin, "as many as `until` asks for")
    choose.pick("pick", "best", "the earliest snapshot within noise of the lowest loss becomes the file", "default")
    choose.pick("final_all", False, "what was judged is what is written", "default")
    choose.pick("stop", True, "ends the run at a mark where further steps have stopped paying", "default")
    choose.pick("warmup_steps", min(max(1, steps // 20), 100), "5 % of the run")
    choose.pick("schedule", "cosine", "ends on small steps, so the last snapshot is a settled one", "default")
    choose.pick("snapshots", 5, "enough to see where learning turns into memorising", "default")


def _alone(device: torch.device) -> str:
    n = torch.cuda.device_count() if device.type == "cuda" else 1
    return f"{n} GPUs are here; --set processes={n} shares every step out among them" if n > 1 else "one computes all"


def _held_out_default(n: int) -> tuple[int, str]:
    if n < 8:
        return 0, f"{n} pictures are too few to spare one; the loss is measured on trained ones, moved"
    return min(8, max(1, round(n / 10))), "a tenth, to see learning from memorising"


def _held_out(count: int, used: Sequence[int], dataset: Dataset) -> tuple[int, ...]:
    """Evenly spread over the sorted pictures, so that one folder's names do not decide; none whose copy is trained on."""
    if count >= len(used):
        raise UsageError(
            f"held_out = {count} leaves no picture to train on", where="held_out", expected=f"less than {len(used)}"
        )
    copies = Counter(dataset.pictures[i].digest for i in used)
    single = [i for i in used if copies[dataset.pictures[i].digest] == 1]
    among = single if len(single) > count else used
    return tuple(sorted({among[round((i + 0.5) * len(among) / count - 0.5)] for i in range(count)})) if count else ()


def _buckets(choose: _Chooser, base: Base, dataset: Dataset) -> tuple[tuple[int, int], ...]:
    side = choose.pick("resolution", base.resolution_px, "what the base was trained at")
    step = base.bucket_step_px
    if side % step:
        raise UsageError(f"resolution {side} does not fit the base", where="resolution", expected=f"a multiple of {step}",
                         advice=f"take {max(step, round(side / step) * step)}")  # fmt: skip
    return tuple(bucketing.bucket(p.size_px, side, step) for p in dataset.pictures)


def _duplicate_notes(dataset: Dataset, alike: Sequence[Sequence[int]]) -> list[str]:
    names = [[dataset.pictures[i].name for i in group] for group in alike]
    return [f"{', '.join(others)}: left out, since {first} shows the same" for first, *others in names]


def _caption_notes(captions: Sequence[str]) -> list[str]:
    empty = sum(not c for c in captions)
    return [f"{empty} of {len(captions)} pictures have no caption; they train the empty prompt"] if empty else []


def _sampler_notes(sampler: Sampler, settings: Settings) -> list[str]:
    visits = sampler.visits(settings.steps)
    least, most = min(visits.values()), max(visits.values())
    notes = []
    if settings.batch > min(len(m) for m in sampler.buckets.values()):
        notes.append(f"batch {settings.batch} is larger than a bucket; its pictures are seen more than once a step")
    if least == 0:
        unseen = sum(v == 0 for v in visits.values())
        notes.append(f"{unseen} pictures are never seen: {settings.steps} steps × {settings.batch} do not reach them")
    elif most - least > 1 + settings.batch:
        notes.append(f"pictures are seen {least} to {most} times")
    return notes


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def out_folder(given: Given, folder: Path) -> Path:
    """--out, or runs/NAME; with a number where that is taken and nothing is to be resumed."""
    if given.options.out is not None:
        return given.options.out
    name = folder.resolve().name or "run"
    first = Path("runs") / name
    if given.options.resume or not first.exists():
        return first
    taken = (Path("runs") / f"{name}-{i}" for i in range(2, 10_000))
    return next(path for path in taken if not path.exists())
