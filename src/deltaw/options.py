"""Every option, declared once: from here come the flags, the TOML keys, the checks and the docs.

A value that the user does not give is None; the plan (or the verb) chooses it and says why.
Parsing is strict: an unknown key, a wrong type or a value out of range is refused with the
nearest name, and all mistakes are reported at once.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError
from pydantic.fields import FieldInfo

from deltaw.errors import DeltawError, InputError, UsageError, refuse_all

MOST_RATE = 0.1
"""Of AdamW, whose steps are as long as the rate, whatever the gradient; a LoRA's own numbers are about that large."""
MOST_FACTOR = 10.0
"""Of another optimizer, which may find its rate by itself and take a factor of it."""
MOST_STEPS = 1_000_000
MOST_SEED = 2**63 - 1
AnyPath = Annotated[Path, Strict(False)]


def _option(help_text: str, *, visible: bool = False, flag: bool = False, **limits: Any) -> Any:
    """An option that the user may leave out. `visible` ones are flags in the help; the others go through --set.

    `flag`: it is a flag too, but not one of the few that the help shows.
    """
    extra: Any = {"visible": visible, "flag": flag or visible}
    return Field(default=None, description=help_text, json_schema_extra=extra, **limits)


class TrainOptions(BaseModel):
    """The options of `deltaw train`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    base: str | None = _option(
        "Base model: a diffusers folder, a single safetensors file or a hub id. Default: the bundled one.", visible=True
    )
    out: AnyPath | None = _option("Result folder. Default: runs/NAME, NAME being the picture folder's.", visible=True)
    trigger: str | None = _option("Word put before every caption that lacks it; it calls the result up.", visible=True)
    steps: int | None = _option(
        "Optimizer steps. More learn more, and then learn by heart.", visible=True, ge=1, le=MOST_STEPS
    )
    rank: int | None = _option(
        "Rank r of ΔW = B·A: the room for what is learnt, and the file size.", visible=True, ge=1
    )
    alpha: float | None = _option("ΔW is scaled by alpha / rank. Default: alpha = rank.", visible=True, gt=0)
    lr: float | None = _option("Peak learning rate. Twice as much learns faster, then breaks.", visible=True, gt=0)
    batch: int | None = _option("Pictures per step. Costs memory in proportion; steadier learning.", visible=True, ge=1)
    resolution: int | None = _option(
        "Side of a square picture in pixels; others get its area.", visible=True, ge=32, multiple_of=8
    )
    seed: int | None = _option(
        "Seed of everything random; the same one gives the same file.", visible=True, ge=0, le=MOST_SEED
    )
    dialect: str | None = _option(
        "Key names of the result: kohya (every tool reads it), diffusers, peft.", visible=True
    )
    resume: bool | None = _option("Go on with the run in --out where it stopped.", visible=True)

    targets: str | None = _option("Regular expression; modules whose path it is found in get an adapter.")
    warmup_steps: int | None = _option("Steps over which the rate climbs from 0.", ge=0)
    schedule: Literal["cosine", "linear", "constant"] | None = _option("How the rate falls after the warm-up.")
    optimizer: str | None = _option(
        "adamw, or prodigy, which finds the learning rate by itself: lr is a factor of it then, by default 1. Needs the extra deltaw[optim]."
    )
    weight_decay: float | None = _option("Decoupled weight decay of the adapter.", ge=0)
    clip: float | None = _option("Largest gradient norm; 0 does not clip.", ge=0)
    caption_dropout: float | None = _option("Share of captions replaced by the empty one.", ge=0, lt=1)
    min_snr_gamma: float | None = _option("min-SNR weighting (arXiv 2303.09556); 0 is off.", ge=0)
    held_out: int | None = _option("Pictures kept out of training to measure with.", ge=0)
    duplicates: Literal["count", "once"] | None = _option(
        "Pictures that look alike: each counts, or of every group only the first is used."
    )
    snapshots: int | None = _option("How many times the run is saved and judged, the end included.", ge=1)
    stop: bool | None = _option("End the run early where further steps have stopped paying.", flag=True)
    until: int | None = _option(
        "Step that is reached whatever the curve says; no early stop before it.", flag=True, ge=0
    )
    pick: Literal["best", "last"] | None = _option(
        "Snapshot that becomes the file: the best by its loss, or the last, which may show more of a style and hold worse."
    )
    final_all: bool | None = _option("At the end train anew on all pictures for the picked number of steps.", flag=True)
    prompts: list[str] | None = _option("Prompts of the contact sheet.", min_length=1)
    sample_steps: int | None = _option("Denoising steps of the contact sheet.", ge=1)
    sampler: Literal["base", "dpm++"] | None = _option(
        "What draws the contact sheet: the base's own scheduler, or DPM-Solver++, which needs half its steps."
    )
    guidance: float | None = _option("Classifier-free guidance of the contact sheet.", ge=0)
    caption_encoding: str | None = _option("Encoding of caption files that are not UTF-8, e.g. cp1252.")
    device: str | None = _option("cpu, cuda, cuda:1, mps. Default: the fastest that works.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = _option("Precision of the frozen base.")
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = _option("Precision of the written file.")
    checkpointing: bool | None = _option(
        "Compute activations again in the backward pass: less memory, up to half more time. Default: where nothing else fits."
    )
    micro_batch: int | None = _option(
        "Pictures of a step that are computed at a time, a divisor of batch; their gradients are added up (gradient accumulation). "
        "Less memory, the same step but for rounding. Default: as many as fit, on a CPU as are fast.", ge=1
    )  # fmt: skip
    processes: int | None = _option(
        "Processes that share out every step's pictures and the questions, one a GPU (on a CPU its cores); a divisor of batch. The same "
        "step but for rounding.", ge=1
    )  # fmt: skip
    base_int8: bool | None = _option(
        "Keep the frozen base's linear layers, T5's too, in 8 bits: half of bfloat16's memory, off by some 0.8 %, steps a little longer."
    )
    ignore_room: bool | None = _option("Start although memory or disk will not suffice, as far as can be foretold.")
    resume_anyway: bool | None = _option("With --resume: go on although settings or pictures changed; says which.")


@dataclass(frozen=True)
class Given:
    """What the user gave: the checked options, and where each value came from ("--lr", "my.toml", ...)."""

    options: TrainOptions
    origin: Mapping[str, str]


def fields(model: type[BaseModel], *, visible: bool) -> dict[str, tuple[Any, str]]:
    """Option name to (type without None, help) for the visible or for the other options."""
    return {
        name: (_without_none(info.annotation), info.description or "")
        for name, info in model.model_fields.items()
        if _extra(info)["visible"] == visible
    }


def flags(model: type[BaseModel]) -> dict[str, tuple[Any, str, bool]]:
    """Option name to (type without None, help, whether the help shows it) for the options that are flags."""
    return {
        name: (_without_none(info.annotation), info.description or "", _extra(info)["visible"])
        for name, info in model.model_fields.items()
        if _extra(info)["flag"]
    }


def _extra(info: FieldInfo) -> dict[str, Any]:
    return typing.cast("dict[str, Any]", info.json_schema_extra)


def parse(flags: Mapping[str, Any], settings: Sequence[str] = (), config: str | Path | None = None) -> Given:
    """Merges a TOML file, `--set key=value` and flags, the later winning, and checks everything.

    Args:
        flags: option name to value; strings are read as the option's type, None means not given.
        settings: `key=value` words.
        config: path of a TOML file with option names as keys.

    Raises:
        UsageError: or ManyErrors, one per unknown key, wrong type or value out of range.
        InputError: the TOML file cannot be read.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems: list[DeltawError] = []
    if config is not None:
        for key, value in read_toml(config).items():
            values[key], origin[key] = value, str(config)
    for word in settings:
        key, equals, text = word.partition("=")
        if not equals:
            problems.append(UsageError("--set needs key=value", where=word, advice="e.g. --set clip=0.5"))
            continue
        values[key.strip()], origin[key.strip()] = _typed(key.strip(), text), f"--set {key.strip()}"
    for key, value in flags.items():
        if value is not None:
            typed = _typed(key, value) if isinstance(value, str) else value
            values[key], origin[key] = typed, f"--{key.replace('_', '-')}"
    try:
        options = TrainOptions.model_validate(values)
    except ValidationError as error:
        problems += [_explained(detail, origin) for detail in error.errors()]
        options = TrainOptions()
    problems += _too_fast(values, origin)
    refuse_all("several options are wrong", problems)
    return Given(options, origin)


def _too_fast(values: Mapping[str, Any], origin: Mapping[str, str]) -> list[UsageError]:
    """A rate that is a sound number and beyond its optimizer's; what is no such number is refused by its field."""
    lr, optimizer = values.get("lr"), values.get("optimizer") or "adamw"
    most = MOST_RATE if optimizer == "adamw" else MOST_FACTOR
    if not isinstance(lr, int | float) or isinstance(lr, bool) or not most < lr < math.inf:
        return []
    what = f"lr = {lr:g} is refused: that of {optimizer} should be less than or equal to {most:g}"
    expected = TrainOptions.model_fields["lr"].description or ""
    return [UsageError(what, where=origin["lr"], expected=expected, advice=f"take {most:g}")]


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        InputError: the file is missing, unreadable or not TOML (with line and column).
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, advice="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not TOML: {error}", where=path, advice="write it as key = value lines") from error


def weighted(word: str) -> tuple[Path, float]:
    """`FILE[:WEIGHT]` as a path and a weight, 1 where none is given; a colon may be part of the path."""
    path, colon, number = word.rpartition(":")
    if colon and not Path(word).exists():
        try:
            return Path(path), float(number)
        except ValueError:
            pass
    return Path(word), 1.0


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kept = [a for a in typing.get_args(annotation) if a is not type(None)]
        return _without_none(kept[0])
    return _without_none(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is Annotated else annotation


def _typed(name: str, text: str) -> Any:
    """Text from the command line as the value a TOML file would hold; text for text options."""
    info = TrainOptions.model_fields.get(name)
    kind = _without_none(info.annotation) if info else str
    if kind in (str, Path) or typing.get_origin(kind) is Literal:
        return text
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _explained(detail: Any, origin: Mapping[str, str]) -> UsageError:
    key = ".".join(str(part) for part in detail["loc"])
    where = origin.get(str(detail["loc"][0]), key)
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, TrainOptions.model_fields, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(TrainOptions.model_fields)}"
        return UsageError(f"unknown option {key!r}", where=where, advice=advice)
    info = TrainOptions.model_fields.get(str(detail["loc"][0]))
    return UsageError(
        f"{key} = {detail['input']!r} is refused: {detail['msg'].lower()}", where=where,
        expected=(info.description or "") if info else "", advice=_nearest(detail),
    )  # fmt: skip


def _nearest(detail: Any) -> str:
    """The valid value that is nearest to a refused one, or ""."""
    value, limits = detail["input"], detail.get("ctx", {})
    if detail["type"] == "multiple_of" and isinstance(value, int):
        step = limits["multiple_of"]
        return f"take {value // step * step} or {(value // step + 1) * step}"
    if detail["type"] in ("greater_than_equal", "less_than_equal"):
        return f"take {limits.get('ge', limits.get('le'))}"
    if detail["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", limits["expected"])
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.3)
        return f"did you mean {near[0]}?" if near else ""
    if isinstance(value, float) and value.is_integer():
        return f"take {value:.0f}"
    if isinstance(value, str) and detail["type"] in ("float_type", "int_type"):
        try:
            return f"write it without quotes: {float(value):g}"
        except ValueError:
            return ""
    return ""
