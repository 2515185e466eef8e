"""One file and its line: a family, algorithm, dialect, objective and optimizer are added so, and taken away so.

Done in a copy of the package, in a process of its own.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import deltaw

PACKAGE = Path(deltaw.__file__).parent

ALGORITHM = '''
"""A dummy: one number a row, the same for every column."""
import math
from deltaw.adapters import rows
NAME, TENSORS, OPTIONAL, SUFFIXES, RANKED, NEEDS_BASE = "dummy", ("v",), (), {"dummy_v": "v"}, (), False
cannot_split = rows.always
def fits(shapes, shape):
    return "" if shapes["v"] == shape[:1] else f"{shapes['v']} for {shape}"
def init(shape, rank, alpha, generator):
    import torch
    return {"v": torch.zeros(shape[0])}
def delta(tensors, shape, base=None):
    return tensors["v"].float().reshape(-1, *(1 for _ in shape[1:])).expand(shape)
def factors(tensors, shape):
    return tensors["v"].float()[:, None], tensors["v"].new_ones(1, math.prod(shape[1:])).float()
def split_rows(tensors, n_rows):
    return rows.split(tensors, n_rows, {"v": 0})
def join_rows(parts, n_rows):
    return rows.join(parts, n_rows, {"v": 0})
'''

DIALECT = '''
"""A dummy: `dummy/<path>/<suffix>`."""
from deltaw.formats import keys
NAME, ALGORITHMS, ALPHA_IN_FILE = "dummy", keys.LYCORIS, True
def split(key):
    first, *rest = key.split("/")
    return (f"dummy/{rest[0]}", keys.KOHYA_SUFFIXES[rest[1]]) if first == "dummy" and len(rest) == 2 and rest[1] in keys.KOHYA_SUFFIXES else None
def places(family, shapes, metadata):
    return names(family, shapes)
def names(family, shapes):
    return {f"dummy/{path}": keys.Place((path,)) for path in shapes}
def key(stem, tensor, ndim):
    return f"{stem}/{keys.kohya_suffix(tensor, ndim)}"
def original(family):
    return False
def describe(delta, shapes):
    return {}
'''

FAMILY = '''
"""A dummy with a network of its own."""
from deltaw.families.family import Component, Family
FAMILY = Family(name="dummy", title="Dummy", architecture="dummy-v1", kohya_version="dummy",
                components=(Component("unet", "lora_unet", "diffusion_model"),), variants=("dummy",))
'''
LISTING = {
    "unet.dummy_blocks.0.to_q": [24, 16],
    "unet.dummy_blocks.0.conv": [24, 16, 3, 3],
    "unet.dummy_blocks.1.to_q": [32, 16],
}

OBJECTIVE = """
DUMMY = Objective(
    "sample", target=lambda x0, e, a, s: x0, to_x0=lambda pred, x, a, s: pred, min_snr=lambda snr, gamma: torch.ones_like(snr)
)

"""

OPTIMIZER = '''
def dummy(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Plain gradient descent."""
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)


'''

KINDS = {"adapters": "algorithm", "formats": "dialect", "families": "family"}


def copied(folder: Path) -> Path:
    """The package without its bytes: the bundled base is a link."""
    shutil.copytree(PACKAGE, folder / "deltaw", ignore=shutil.ignore_patterns("zoo", "__pycache__"))
    (folder / "deltaw" / "zoo").symlink_to(PACKAGE / "zoo")
    return folder / "deltaw"


def texts(package: Path) -> dict[str, str]:
    return {
        str(p.relative_to(package)): p.read_text(encoding="utf-8")
        for p in package.rglob("*.py")
        if "zoo" not in p.parts
    }


def touched(before: dict[str, str], after: dict[str, str]) -> tuple[set[str], dict[str, int]]:
    """New files, and how many lines of which old ones were changed or added."""
    changed = {}
    for name in before:
        lines = difflib.ndiff(before[name].splitlines(), after[name].splitlines())
        if n := sum(line.startswith("+ ") for line in lines):
            changed[name] = n
    return set(after) - set(before), changed


def replaced(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in pairs:
        assert text.count(old) == 1, (path, old)
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def add_algorithm(package: Path) -> None:
    (package / "adapters" / "dummy.py").write_text(ALGORITHM)
    replaced(package / "adapters" / "__init__.py", ("from deltaw.adapters import dora,", "from deltaw.adapters import dora, dummy,"),
             (" = (lora, ", " = (lora, dummy, "))  # fmt: skip


def add_dialect(package: Path) -> None:
    (package / "formats" / "dummy.py").write_text(DIALECT)
    replaced(
        package / "formats" / "__init__.py",
        ("    diffusers_old,\n", "    diffusers_old,\n    dummy,\n"),
        ("    cloneofsimo, kohya,", "    dummy, cloneofsimo, kohya,"),
    )


def add_family(package: Path) -> None:
    (package / "families" / "dummy.py").write_text(FAMILY)
    (package / "families" / "modules" / "dummy.json.gz").write_bytes(gzip.compress(json.dumps(LISTING).encode()))
    replaced(package / "families" / "__init__.py", ("from deltaw.families import flux1,", "from deltaw.families import dummy, flux1,"),
             ("flux1.FAMILY)", "flux1.FAMILY, dummy.FAMILY)"))  # fmt: skip


def add_objective(package: Path) -> None:
    replaced(
        package / "diffusion" / "objective.py", ("ALL = (EPS, V, FLOW)\n", OBJECTIVE + "ALL = (EPS, V, FLOW, DUMMY)\n")
    )


def add_optimizer(package: Path) -> None:
    path = package / "training" / "optim.py"
    replaced(
        path,
        ("def adamw(", OPTIMIZER.lstrip("\n") + "def adamw("),
        ('    "adamw": Kind(adamw),\n', '    "dummy": Kind(dummy),\n    "adamw": Kind(adamw),\n'),
    )


WORKS = """
import pathlib, sys, torch
import deltaw
from deltaw import adapters, families, formats
from deltaw.delta import Delta, Update
from deltaw.errors import DeltawError
from deltaw.families import listing
import deltaw.cli, deltaw.verbs.merge, deltaw.verbs.inspect
folder = pathlib.Path(sys.argv[1])
assert pathlib.Path(deltaw.__file__).is_relative_to(folder)
held = 0
there = {dialect.NAME for dialect in formats.ALL}
READ_BY = {"kohya-diffusers": "kohya", "diffusers-middle": "diffusers"}  # two spellings that another dialect reads with its own
for family in (f for f in families.ALL if len(sys.argv) > 2 or f.name in ("sd1", "sd3", "dummy")):
    variant = family.variants[-1 if family.name == "sd1" else 0]
    shapes = listing.modules(variant)
    paths = [p for p in shapes if len(shapes[p]) in (2, 4) and max(shapes[p]) < 4000 and p.endswith(("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv"))][:3]
    for algorithm in adapters.ALL:
        g = torch.Generator().manual_seed(0)
        tensors = {p: algorithm.init(shapes[p], 2, 0.0 if algorithm.NAME == "oft" else 1.5, g) for p in paths}
        for p in paths:
            W = torch.rand(shapes[p], generator=g)
            assert algorithm.delta(tensors[p], shapes[p], W).abs().max() == 0
        tensors = {p: {n: torch.rand(t.shape, generator=g) if t.ndim and t.is_floating_point() else t for n, t in own.items()} for p, own in tensors.items()}
        delta = Delta(family.name, {p: Update(algorithm.NAME, own) for p, own in tensors.items()})
        for dialect in formats.ALL:
            out = folder / f"{family.name}-{algorithm.NAME}-{dialect.NAME}.safetensors"
            try:
                formats.save(delta, out, dialect.NAME)
            except DeltawError as error:
                assert dialect.NAME in str(error)
                continue
            if READ_BY.get(dialect.NAME, dialect.NAME) not in there:
                try:
                    formats.load(out)
                    raise AssertionError(f"{out} was read by whom?")
                except DeltawError as error:
                    assert out.name in str(error)
                continue
            back, match = formats.load(out)
            assert back.family == family.name, (out, back.family)
            assert set(back.updates) == set(paths), (out, match.losses())
            for p, own in tensors.items():
                assert all(back.updates[p].tensors[n].equal(t) for n, t in own.items()), (out, p)
            held += 1
print(held)
"""

NEW_WORKS = """
from deltaw.diffusion import objective
from deltaw.training import optim
assert "dummy" in {a.NAME for a in adapters.ALL} and "dummy" in {d.NAME for d in formats.ALL} and "dummy" in {f.name for f in families.ALL}
x0, e, a, s = torch.rand(2, 3), torch.rand(2, 3), torch.tensor(0.6), torch.tensor(0.8)
new = objective.named("sample")
assert new.to_x0(new.target(x0, e, a, s), objective.mix(x0, e, a, s), a, s).equal(x0)
p = torch.nn.Parameter(torch.tensor([3.0]))
made = optim.ALL["dummy"].make([p], 0.1, 0.0)
for _ in range(100):
    made.zero_grad(); p.pow(2).sum().backward(); made.step()
assert p.abs() < 1e-3
for algorithm in ("lora", "dummy"):
    assert (folder / f"dummy-{algorithm}-dummy.safetensors").exists() and (folder / f"dummy-{algorithm}-kohya.safetensors").exists()
"""


def run(folder: Path, code: str, *, whole: bool = False) -> int:
    """Runs code against the copy, on a few families or the `whole` of them; returns the number that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *(["whole"] if whole else [])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


ADDITIONS: dict[str, tuple[Callable[[Path], None], set[str], dict[str, int]]] = {
    "an algorithm": (add_algorithm, {"adapters/dummy.py"}, {"adapters/__init__.py": 2}),
    "a dialect": (add_dialect, {"formats/dummy.py"}, {"formats/__init__.py": 2}),
    "a family": (add_family, {"families/dummy.py"}, {"families/__init__.py": 2}),
    "an objective": (add_objective, set(), {"diffusion/objective.py": OBJECTIVE.count("\n") + 1}),
    "an optimizer": (add_optimizer, set(), {"training/optim.py": OPTIMIZER.lstrip("\n").count("\n") + 1}),
}
"""What is added, the new file, and the lines of the old one: its import and its place in `ALL`."""


def test_each_is_added_in_one_place_and_all_of_them_work(tmp_path: Path) -> None:
    package = copied(tmp_path)
    for name, (add, files, lines) in ADDITIONS.items():
        before = texts(package)
        add(package)
        new, changed = touched(before, texts(package))
        assert new == files, name
        assert changed.keys() == lines.keys(), name
        assert all(changed[path] <= n for path, n in lines.items()), (name, changed)
    assert run(tmp_path, WORKS + NEW_WORKS) > 40


def removable() -> Iterable[tuple[str, str]]:
    from deltaw import adapters, families, formats

    yield from (("adapters", own.__name__.rpartition(".")[2]) for own in adapters.ALL if own.NAME != "lora")  # type: ignore[attr-defined]
    yield from (("formats", own.__name__.rpartition(".")[2]) for own in formats.ALL)  # type: ignore[attr-defined]
    yield from (("families", family.name) for family in families.ALL)


def remove(package: Path, kind: str, name: str) -> None:
    (package / kind / f"{name}.py").unlink()
    path = package / kind / "__init__.py"
    text = path.read_text(encoding="utf-8")
    start, end = text.index(f"from deltaw.{kind} import "), text.index("ALL: tuple")
    end = text.index('"""', end)
    inside, n = re.subn(rf"(?<![\w.]){name}(\.FAMILY)?, ?|, {name}(\.FAMILY)?(?=[\n)])", "", text[start:end])
    assert n == 2, (kind, name, n)
    path.write_text(text[:start] + inside + text[end:], encoding="utf-8")


def without(tmp_path: Path, kind: str, name: str, *, whole: bool = False) -> None:
    remove(copied(tmp_path), kind, name)
    assert run(tmp_path, WORKS, whole=whole) > 20


@pytest.mark.parametrize(("kind", "name"), [("adapters", "loha"), ("formats", "comfy"), ("families", "sd2")])
def test_one_is_taken_away_and_the_others_work(kind: str, name: str, tmp_path: Path) -> None:
    without(tmp_path, kind, name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), list(removable()))
def test_any_is_taken_away_and_the_others_work(kind: str, name: str, tmp_path: Path) -> None:
    """All but LoRA, which is what training makes and every sum becomes."""
    without(tmp_path, kind, name, whole=True)
