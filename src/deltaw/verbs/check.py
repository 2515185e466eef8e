"""`deltaw check`: does a LoRA fit a base, is anything wrong with it, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltaw import families, formats
from deltaw.errors import InputError
from deltaw.events import Note, Tell, Warn, silent
from deltaw.families import listing
from deltaw.families.checkpoint import open_checkpoint
from deltaw.verbs.inspect import InspectReport, inspect


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        is_error: the LoRA does not work as meant because of it.
        text: what it is.
        advice: what to do.
    """

    is_error: bool
    text: str
    advice: str = ""


@dataclass(frozen=True)
class CheckReport:
    """Whether a LoRA fits.

    Args:
        fits: no finding is an error.
        family: of the base that the file fits best, "" where it fits none.
        findings: errors first.
        report: of `inspect`, where the file could be read.
    """

    fits: bool
    family: str
    findings: tuple[Finding, ...]
    report: InspectReport | None


def check(file: str | Path, *, base: str | Path | None = None, tell: Tell = silent) -> CheckReport:
    """Judges a LoRA by itself, or against the base that it is to be used with.

    Args:
        file: a LoRA in any dialect.
        base: a diffusers folder or single-file checkpoint; only its headers are read.
        tell: hears the findings.

    Raises:
        InputError: the base cannot be read.
    """
    shapes = None if base is None else open_checkpoint(base).shapes
    try:
        own = inspect(file)
    except InputError as error:
        own, problem = None, error
    else:
        problem = None
    if base is None or shapes is None:
        findings = _findings(own) if own else [_unreadable(problem)]
        return _told(
            CheckReport(not any(f.is_error for f in findings), own.family if own else "", tuple(findings), own), tell
        )
    wanted = listing.family_of(shapes)
    try:
        _, reading = formats.understand(file, shapes=shapes)
    except InputError as error:
        text = f"nothing in it fits this {wanted.title}"
        better = families.named(own.family).title if own else ""
        advice = f"it was made for {better}: use it there" if own and own.family != wanted.name else error.advice
        findings = [Finding(True, f"{text} ({error.what})", advice), *(_findings(own) if own else [])]
        return _told(CheckReport(False, own.family if own else "", tuple(findings), own), tell)
    match = reading.match
    findings = (
        [Finding(True, line, "use the base it was trained on") for line in match.losses()] if match.partial else []
    )
    findings += [f for f in (_findings(own) if own else []) if f.text not in {x.text for x in findings}]
    findings.sort(key=lambda finding: not finding.is_error)
    return _told(CheckReport(not any(f.is_error for f in findings), wanted.name, tuple(findings), own), tell)


def _findings(report: InspectReport) -> list[Finding]:
    found = [Finding(True, f"{key}: {why}", "train it again with a lower rate, or leave the module out")
             for key, why in report.broken.items()]  # fmt: skip
    found += [Finding(True, line, "export it again, or name the right base") for line in report.match.losses()]
    if report.zero and len(report.zero) >= len(report.layers):
        found.append(Finding(True, "every module has a tensor that is zero, so it changes nothing", "train it first"))
    elif report.zero:
        found.append(Finding(False, f"{len(report.zero)} modules have a tensor that is zero and no effect"))
    if dead := [layer.key for layer in report.layers if layer.alpha == 0]:
        found.append(
            Finding(False, f"{len(dead)} modules have alpha 0 and no effect ({dead[0]})", "give alpha its rank")
        )
    if strange := [
        layer.key for layer in report.layers if layer.rank and layer.alpha and not 0 < layer.alpha <= 16 * layer.rank
    ]:
        found.append(
            Finding(False, f"{len(strange)} modules have an odd alpha ({strange[0]})", "check alpha against the rank")
        )
    found += [Finding(False, f"{program}: {line}", "`deltaw convert` to a dialect that it reads")
              for program, lines in report.concerns.items() for line in lines]  # fmt: skip
    found += [Finding(False, note) for note in report.match.notes]
    return sorted(found, key=lambda finding: not finding.is_error)


def _unreadable(error: InputError | None) -> Finding:
    return Finding(True, error.what, error.advice) if error else Finding(True, "it cannot be read")


def _told(report: CheckReport, tell: Tell) -> CheckReport:
    for finding in report.findings:
        text = finding.text + (f"; {finding.advice}" if finding.advice else "")
        tell(Warn(text) if finding.is_error else Note(text))
    tell(Note("it fits" if report.fits else "it does not fit as it is"))
    return report
