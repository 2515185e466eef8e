"""`deltaw share`: what a file says of its maker, shown, and a copy without it; tensors byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw import tensorfile
from deltaw.events import Note, Table, Tell, silent
from deltaw.formats import loading
from deltaw.verbs.metadata import KEPT_BY_STRIP, MetadataReport, written

KEYS = {
    "the pictures and their captions": (
        "ss_datasets", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_tag_frequency", "ss_bucket_info",
        "ss_num_reg_images",
    ),
    "when and by whom it was made": (
        "ss_session_id", "ss_training_started_at", "ss_training_finished_at", "modelspec.date", "modelspec.author",
    ),
    "a note to oneself": ("ss_training_comment",),
    "the whole configuration of a trainer, with folders": ("ot_config", "training_info", "job_config"),
    "files of the trainer's machine": ("ss_sd_model_name", "ss_vae_name", "modelspec.merged_from"),
}  # fmt: skip
"""Header entries of kohya, OneTrainer, ai-toolkit and modelspec that are private whatever they hold, by reason."""

SECRET = "a key to an account"
VALUES = {
    "a path": re.compile(
        r"""(?:^|[\s"'=(\[{,])(?:file://|~[/\\]|\\\\\w|[A-Za-z]:[\\/]|\.{1,2}[\\/]|"""
        r"""/[^\s/"',;]+/)""",
    ),
    "an address": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}"),
    SECRET: re.compile(r"\b(?:hf_|sk-|ghp_|glpat-)[A-Za-z0-9_-]{16,}"),
}
"""What makes any other entry private, wherever in it: folders name users, keys open accounts."""


@dataclass(frozen=True)
class Private:
    """One private entry.

    Args:
        name: of the header entry.
        reason: why it is private.
        value: what it says.
        replacement: the entry without that, where a reader needs the rest of it; None where it can go.
    """

    name: str
    reason: str
    value: str
    replacement: str | None


def find(metadata: Mapping[str, str]) -> list[Private]:
    """What a header says that is nobody's business.

    Trigger words, ranks, rates, counts and digests are not private: they are what a file is used with.

    Args:
        metadata: the header's entries.
    """
    found = []
    for name, value in metadata.items():
        reason = next((why for why, names in KEYS.items() if name in names), "") or _reason(value)
        if reason:
            needed = name in KEPT_BY_STRIP or loading.is_dialects(name)
            found.append(Private(name, reason, value, _without(value) if needed else None))
    return found


def share(file: str | Path, out: str | Path | None = None, *, tell: Tell = silent) -> MetadataReport | list[Private]:
    """Says what is private in a file's header and, where `out` is given, writes a copy without it.

    Args:
        file: a safetensors file of any trainer.
        out: what to write; None only looks.
        tell: hears events.

    Returns:
        The private entries, or with `out` what was changed.

    Raises:
        InputError: the file cannot be read.
        UsageError: `out` is the input.
    """
    header = tensorfile.read_header(file)
    private = find(header.metadata)
    if private:
        rows = tuple((p.name, p.reason, _short(p.value, hidden=p.reason == SECRET)) for p in private)
        tell(Table("private in this file", ("entry", "it holds", "value"), rows))
    else:
        tell(Note("nothing private was found in the header"))
    if out is None:
        if private:
            tell(Note("add -o OUT for a copy without it"))
        return private
    gone = {p.name for p in private}
    kept = {name: value for name, value in header.metadata.items() if name not in gone}
    kept |= {p.name: p.replacement for p in private if p.replacement is not None}
    return written(file, out, header, kept, tell)


def _reason(text: str) -> str:
    if text.startswith("data:"):  # a thumbnail, whose letters mean nothing
        return ""
    return next((why for why, pattern in VALUES.items() if pattern.search(text)), "")


def _without(value: str) -> str:
    """A needed entry with every private text in it emptied, or all of it where it is not JSON."""
    try:
        return json.dumps(_emptied(json.loads(value)))
    except ValueError:
        return ""


def _emptied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _emptied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_emptied(inner) for inner in value]
    return "" if isinstance(value, str) and _reason(value) else value


def _short(text: str, *, hidden: bool) -> str:
    if hidden:
        return f"{text[:4]}… (not shown)"
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= 60 else f"{line[:57]}… ({len(text):,} characters)"
