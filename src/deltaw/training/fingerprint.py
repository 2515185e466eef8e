"""What the weights of a run depend on, by name: a resumed or repeated run is compared by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from deltaw import tensorfile
from deltaw._version import VERSION
from deltaw.data.folder import Dataset
from deltaw.families.base_folder import BaseFolder
from deltaw.training.plan import Plan

FREE = frozenset({
    "prompts", "sample_steps", "sampler", "guidance", "snapshots", "stop", "until", "pick", "save_dtype", "dialect", "checkpointing",
})  # fmt: skip
"""Settings that a resumed run may change, since the weights do not depend on them."""
SHOWN = 5
"""Changed pictures that are named; the others are counted."""


def of_run(plan: Plan, dataset: Dataset, base: BaseFolder) -> dict[str, str]:
    """Settings, pictures and captions, base, versions: name to value or digest."""
    settings = {k: str(v) for k, v in asdict(plan.settings).items() if k not in FREE}
    return {**settings, "pictures and captions": of_pictures(plan, dataset), **of_base(base), **versions()}


def versions() -> dict[str, str]:
    """Of what computes: another one may round otherwise."""
    return {"version of deltaw": VERSION, "version of torch": torch.__version__}


def of_base(base: BaseFolder) -> dict[str, str]:
    """SHA-256 of the base's parts by name."""
    parts = {f"base {part}": base.digest(part) for part in base.parts}
    return {**parts, "base tokenizer": base.tokenizer_digest(), "base schedule": base.schedule_digest()}


def of_pictures(plan: Plan, dataset: Dataset) -> str:
    """One digest of all pictures, their captions as trained and their buckets; names do not count."""
    seen = hashlib.sha256()
    for p, caption, size in zip(dataset.pictures, plan.captions, plan.sizes_px, strict=True):
        seen.update(f"{p.digest} {size} {len(caption)} {caption}\n".encode("utf-8", "surrogatepass"))
    return seen.hexdigest()


def write_pictures(path: Path, plan: Plan, dataset: Dataset) -> None:
    """Keeps what each picture was, so that a later look can name those that changed."""
    tensorfile.write_text(path, json.dumps(_pictures(plan, dataset)))


def changed_pictures(path: Path, plan: Plan, dataset: Dataset) -> list[str]:
    """What changed since `write_pictures`, a few by name; empty where nothing did or nothing was kept."""
    try:
        before: Mapping[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    now = _pictures(plan, dataset)
    found = [f"{name} is gone" for name in before if name not in now]
    found += [f"{name} is new" for name in now if name not in before]
    for name in before:
        for what, old, new in zip(
            ("picture", "caption", "size"), before[name], now.get(name, before[name]), strict=True
        ):
            if old != new:
                found.append(f"the {what} of {name} is another")
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return found[:SHOWN] + more


def _pictures(plan: Plan, dataset: Dataset) -> dict[str, list[str]]:
    return {
        p.name: [p.digest, hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest(), f"{size[0]}×{size[1]}"]
        for p, caption, size in zip(dataset.pictures, plan.captions, plan.sizes_px, strict=True)
    }
