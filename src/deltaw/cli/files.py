"""The commands that make files of files: merge, extract, shrink, convert, edit, strip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from deltaw.cli.shell import OUT_NAMES, AsJson, Strict, app, listening
from deltaw.errors import UsageError

Out = Annotated[Path, Parameter(name=OUT_NAMES, help="The file to write; never one of the inputs.")]
Rank = Annotated[int | None, Parameter(help="Keep this rank in every module, by the best approximation.")]
Energy = Annotated[float | None, Parameter(help="Keep this share of ‖ΔW‖², e.g. 0.99, a rank for each module.")]
Size = Annotated[str | None, Parameter(help="Keep what fits in this size, e.g. 4MB, a rank for each module.")]
Dtype = Annotated[str | None, Parameter(help="float32, float16 or bfloat16.")]
FileBase = Annotated[
    Path | None, Parameter(help="The base's diffusers folder or single file, for changes that depend on W.")
]


def block_weights(file: Path | None) -> dict[str, Mapping[str, float]]:
    """The tables of a TOML file: file stem (or "*") to glob patterns of module paths to factors.

    Raises:
        UsageError: something in it is no table of numbers.
    """
    from deltaw.options import read_toml  # with pydantic, which takes longer to load than all else here

    tables = read_toml(file) if file else {}
    for name, table in tables.items():
        if not isinstance(table, dict) or not all(isinstance(v, int | float) for v in table.values()):
            raise UsageError(
                f"[{name}] is no table of pattern = number", where=file, advice='e.g. [style]\n"unet.up_blocks.*" = 0.5'
            )
    return tables


@app.command
def merge(
    files: Annotated[
        list[str], Parameter(help="FILE[:WEIGHT] each; 0 and negative weights work, a file may stand twice.")
    ],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(name=OUT_NAMES, help="The file to write; not needed for --conflicts.")
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    size: Size = None,
    method: Annotated[str, Parameter(help="sum (exact), ties or dare.")] = "sum",
    density: Annotated[float, Parameter(help="Share of entries that ties and dare keep.")] = 0.5,
    weights: Annotated[Path | None, Parameter(help="TOML: per file, patterns of module paths to factors.")] = None,
    into: Annotated[Path | None, Parameter(help="Add the sum to this checkpoint instead, for good.")] = None,
    base: FileBase = None,
    conflicts: Annotated[bool, Parameter(help="Only say how the files get along.", negative="")] = False,
    report: Annotated[Path | None, Parameter(help="Write that as a page with a picture.")] = None,
    dialect: Annotated[str, Parameter(help="Key names of the result.")] = "kohya",
    dtype: Dtype = None,
    seed: Annotated[int, Parameter(help="Of dare's dropping.")] = 0,
    strict: Strict = False,
    json: AsJson = False,
) -> None:
    """Add LoRAs exactly: ΔW = Σ weight·ΔW of any ranks, alphas, dialects and algorithms."""
    from deltaw.options import weighted

    given, factors = [weighted(word) for word in files], block_weights(weights)
    with listening(as_json_lines=json) as show:
        if conflicts or report:
            from deltaw.verbs import conflicts as meeting
            from deltaw.verbs import picture

            found = meeting.conflicts(given, weights=factors, base=base, tell=show)
            if report:
                picture.of_conflicts(found, report)
        if out is None:
            if conflicts or report:
                return
            raise UsageError(
                "there is nothing to write to", where="--out", advice="add -o OUT, or --conflicts to only look"
            )
        if into is not None:
            from deltaw.verbs import bake

            bake.bake(given, into, out, weights=factors, strict=strict, tell=show)
            return
        from deltaw.verbs import merge as verb

        verb.merge(
            given, out, rank=rank, energy=energy, size=size, method=method, density=density, weights=factors, base=base,
            dialect=dialect, dtype=dtype, seed=seed, strict=strict, tell=show,
        )  # fmt: skip


@app.command
def extract(
    tuned: Annotated[Path, Parameter(help="The changed checkpoint: a diffusers folder or a single file.")],
    /,
    *,
    base: Annotated[Path, Parameter(help="The checkpoint it came from, in either form.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    size: Size = None,
    full_norms: Annotated[bool, Parameter(help="Keep changes of norms and biases whole.", negative="")] = False,
    dialect: Annotated[str, Parameter(help="Key names of the result.")] = "kohya",
    dtype: Dtype = None,
    seed: Annotated[int, Parameter(help="Of the random projections.")] = 0,
    force: Annotated[bool, Parameter(help="Go on although the two do not look related.", negative="")] = False,
    json: AsJson = False,
) -> None:
    """Turn the difference of two checkpoints into a LoRA, and say what could not be captured."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import extract as verb

        verb.extract(
            tuned, base, out, rank=rank, energy=energy, size=size, full_norms=full_norms, dialect=dialect, dtype=dtype,
            seed=seed, force=force, tell=show,
        )  # fmt: skip


@app.command
def shrink(
    file: Path,
    /,
    *,
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    size: Size = None,
    base: FileBase = None,
    dialect: Annotated[str | None, Parameter(help="Key names of the result. Default: as the input.")] = None,
    dtype: Dtype = None,
    strict: Strict = False,
    json: AsJson = False,
) -> None:
    """Cut a LoRA to a rank, an energy or a size by the best approximation, with the error."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import shrink as verb

        verb.shrink(file, out, rank=rank, energy=energy, size=size, base=base, dialect=dialect, dtype=dtype, strict=strict,
                    tell=show)  # fmt: skip


@app.command
def convert(
    file: Path,
    /,
    *,
    to: Annotated[str, Parameter(help="A dialect, or lora for plain LoRA of a budget.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    size: Size = None,
    base: FileBase = None,
    dialect: Annotated[str | None, Parameter(help="With --to lora: key names of the result.")] = None,
    strict: Strict = False,
    json: AsJson = False,
) -> None:
    """Write a LoRA in another dialect, every tensor bit for bit, or turn another algorithm into LoRA."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import convert as verb

        verb.convert(file, out, to=to, dialect=dialect, rank=rank, energy=energy, size=size, base=base, strict=strict,
                     tell=show)  # fmt: skip


@app.command
def strip(file: Path, /, *, out: Out, json: AsJson = False) -> None:
    """Copy a LoRA without metadata but for what a reader needs; tensors stay byte-identical."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import metadata

        metadata.strip(file, out, tell=show)


@app.command
def share(
    file: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=OUT_NAMES, help="Write a copy without it.")] = None,
    json: AsJson = False,
) -> None:
    """Show what a LoRA says of its maker: paths, names, captions, times; with -o a copy without it."""
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import share as verb

        verb.share(file, out, tell=show)


@app.command
def edit(
    file: Path,
    /,
    *,
    out: Out,
    put: Annotated[
        list[str] | None, Parameter(name="--set", help="key=value to put into the metadata.", negative="")
    ] = None,
    drop: Annotated[list[str] | None, Parameter(help="A key to drop.", negative="")] = None,
    json: AsJson = False,
) -> None:
    """Copy a LoRA with other metadata; tensors stay byte-identical."""
    words = [word.partition("=") for word in put or ()]
    if wrong := [key for key, equals, _ in words if not equals]:
        raise UsageError("--set needs key=value", where=wrong[0])
    with listening(as_json_lines=json) as show:
        from deltaw.verbs import metadata

        metadata.edit(file, out, put={key: value for key, _, value in words}, drop=tuple(drop or ()), tell=show)
