"""Imports point down only, nothing below the command prints, and heavy libraries load late."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "deltaw"

LAYERS = {
    0: ("_version", "errors", "options", "events"),
    1: ("atomic", "background", "digests", "tensorheader", "tensorfile", "spool", "device", "zoo"),
    2: ("adapters", "diffusion", "flat", "gate_kernels", "int8", "lowrank_kernels", "rotary_kernels"),
    3: ("delta", "inject", "joined"),
    4: ("families",),
    5: ("formats", "data", "sheet", "algebra", "judge"),
    6: ("verbs",),
    7: ("training",),
    8: ("cli",),
}
LEVEL = {name: level for level, names in LAYERS.items() for name in names}
UP_ALLOWED = {("delta", "formats")}
"""`Delta.save` alone: a value that can be kept is worth one import upward, inside the method."""
DIFFUSERS_USERS = ("families",)
PRINTERS = ("cli",)


def _modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Own parts that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "deltaw":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deltaw."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("deltaw.")}
    return found - {_part(path)}


def test_every_module_has_a_layer() -> None:
    assert {_part(path) for path in _modules()} <= set(LEVEL)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    mine = _part(path)
    upward = {other for other in _imports(path) if LEVEL[other] >= LEVEL[mine] and (mine, other) not in UP_ALLOWED}
    same = {other for other in upward if LEVEL[other] == LEVEL[mine]}
    assert not upward - same, f"{mine} imports from above"
    assert not {o for o in same if mine in _part_imports(o)}, "two parts of a layer import each other"


def _part_imports(part: str) -> set[str]:
    return {name for path in _modules() if _part(path) == part for name in _imports(path)}


def _names_used(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    return modules | {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_families_know_diffusers_and_only_the_command_prints(path: Path) -> None:
    if _part(path) not in DIFFUSERS_USERS:
        assert not _names_used(path) & {"diffusers", "transformers"}
    calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
    assert _part(path) in PRINTERS or not prints


def test_said_once() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in _modules())
    assert text.count(".backward(") == 1
    assert text.count("a * x0 + s * e\n") == 1, "one noising line"


@pytest.mark.parametrize("module", ["deltaw", "deltaw.cli"])
def test_import_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_help_loads_neither_options_nor_libraries() -> None:
    code = (
        "import sys; from deltaw.cli.shell import app; import deltaw.cli; app(['--help'], exit_on_error=False);"
        "sys.exit(', '.join({'torch', 'numpy', 'pydantic', 'markdown_it'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
