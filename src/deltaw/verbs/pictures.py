"""`deltaw check FOLDER`: is this folder of pictures fit to train on?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from deltaw import zoo
from deltaw.data import buckets, folder, lint, looks
from deltaw.data.captions import SUFFIXES
from deltaw.data.folder import Dataset
from deltaw.data.lint import Finding
from deltaw.events import Note, Table, Tell, Warn, silent
from deltaw.families import bases

NAMES_SHOWN = 4


@dataclass(frozen=True)
class PicturesReport:
    """What was found about a folder.

    Args:
        dataset: pictures, and what was skipped with its reason.
        sizes_px: per picture the bucket (width, height) that it would be trained in.
        findings: what is likely to spoil a run.
    """

    dataset: Dataset
    sizes_px: tuple[tuple[int, int], ...]
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """One sentence of what was found."""
        n, skipped = len(self.dataset.pictures), len(self.dataset.skipped)
        parts = [f"{n} {'picture' if n == 1 else 'pictures'} can be trained on"]
        if skipped:
            parts.append(f"{skipped} {'file is' if skipped == 1 else 'files are'} skipped")
        if self.findings:
            parts.append(f"{len(self.findings)} {'thing' if len(self.findings) == 1 else 'things'} to look at first")
        if not skipped and not self.findings:
            parts.append("nothing was found that is likely to spoil a run")
        return "; ".join(parts) + "."


def source_kind(source: str) -> str:
    """Where a caption comes from, without the file's name: ".txt", "metadata.jsonl", "file name", "none"."""
    kind = source.partition(":")[0]
    return Path(kind).suffix if kind.endswith(SUFFIXES) else kind


def is_adapter(path: Path) -> bool:
    """A file, or a folder that holds an adapter rather than pictures."""
    return path.is_file() or (path / "adapter_config.json").is_file()


def check(
    path: str | Path, *, base: str | Path | None = None, trigger: str = "", resolution: int | None = None,
    caption_encoding: str | None = None, each: bool = False, tell: Tell = silent,
) -> PicturesReport:  # fmt: skip
    """Scans a folder as `train` would and looks for what is likely to spoil a run.

    Args:
        path: the folder.
        base: what would be trained; its tokenizer and resolution count. The bundled one by default.
        trigger: the word that would be put before every caption.
        resolution: side of a square picture in px; the base's by default.
        caption_encoding: of caption files that are not UTF-8.
        each: tells a table of every picture too.
        tell: hears events.

    Raises:
        InputError: the folder has no usable picture, or the base cannot be used.
    """
    opened = bases.open_base(base or zoo.bundled_base(), tell)
    side, step = resolution or opened.resolution_px, opened.bucket_step_px
    dataset = folder.scan(path, caption_encoding=caption_encoding, tell=tell)
    sizes = tuple(buckets.bucket(p.size_px, side, step) for p in dataset.pictures)
    found = (
        *lint.lint(dataset, side, step, trigger, opened.count_tokens()),
        *lint.lint_looks(dataset, tuple(looks.look_at(dataset, tell))),
    )
    report = PicturesReport(dataset, sizes, found)
    _tell(report, tell)
    if each:
        rows = (
            (p.name, f"{p.size_px[0]}×{p.size_px[1]}", f"{w}×{h}", p.caption, p.caption_source, "; ".join(p.notes))
            for p, (w, h) in zip(dataset.pictures, sizes, strict=True)
        )
        tell(Table("pictures", ("file", "size", "trained at", "caption", "from", "notes"), tuple(rows)))
    return report


def _tell(report: PicturesReport, tell: Tell) -> None:
    dataset = report.dataset
    tell(
        Note(
            f"pictures: {len(dataset.pictures)} found, {len(dataset.skipped)} skipped, {dataset.n_ignored} files ignored"
        )
    )
    for skipped in dataset.skipped:
        tell(Warn(f"skipped {skipped.name}: {skipped.reason}"))
    for note in dataset.notes:
        tell(Note(note))
    rows = [
        (f"{w}×{h} px", str(report.sizes_px.count((w, h))))
        for w, h in sorted(set(report.sizes_px), key=lambda s: s[0] / s[1])
    ]
    tell(Table("trained at", ("size", "pictures"), tuple(rows)))
    sources = Counter(source_kind(picture.caption_source) for picture in dataset.pictures)
    tell(Table("captions", ("from", "pictures"), tuple((name, str(n)) for name, n in sorted(sources.items()))))
    for finding in report.findings:
        more = f" and {len(finding.names) - NAMES_SHOWN} more" if len(finding.names) > NAMES_SHOWN else ""
        names = f" ({', '.join(finding.names[:NAMES_SHOWN])}{more})" if finding.names else ""
        tell(Warn(f"{finding.kind}: {finding.text}{names}; {finding.advice}"))
    tell(Note(report.verdict))
