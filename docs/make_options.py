"""Writes docs/options.md from the one declaration of every option: `python -m docs.make_options`."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from deltaw.options import TrainOptions, fields, flags

HEAD = """# Options of `deltaw train`

Made from `deltaw.options.TrainOptions` by `python -m docs.make_options`. What is not given is chosen by the plan,
which prints every value with its reason (`deltaw train FOLDER --dry-run`).
The same names work as keys of a `--config FILE.toml`; flags win over `--set`, and `--set` over the file.
"""


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for title, visible in (("Flags", True), ("Through `--set key=value`", False)):
        parts.append(f"## {title}\n\n| option | type | what it does |\n| --- | --- | --- |")
        for name, (kind, text) in fields(TrainOptions, visible=visible).items():
            flag = f"`--{'no-' * (name == 'stop')}{name.replace('_', '-')}`"
            shown = flag if visible else f"`{name}`" + f" or {flag}" * (name in flags(TrainOptions))
            parts.append(f"| {shown} | {_kind(kind)} | {text} |")
        parts.append("")
    return "\n".join(parts)


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    names = {str: "text", int: "whole number", float: "number", bool: "switch", Path: "path"}
    return names.get(kind, "list of text")


if __name__ == "__main__":
    Path(__file__).with_name("options.md").write_text(page(), encoding="utf-8")
