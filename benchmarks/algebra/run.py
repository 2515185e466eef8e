"""Merge, shrink, extract, bake and inspect on true shapes, beside the ways that peers go. Prints a table of ratios.

    python -m benchmarks.algebra.run [--folder DIR] [--only start,merge,extract,bake,inspect]

The dense way is what `svd_merge_lora` and `resize_lora` of sd-scripts do: make the dense ΔW of every module and
take its whole SVD in float32. It takes minutes, so one module of each shape is timed and counted as often as the
shape occurs. Each verb runs in a process of its own, whose largest resident memory (VmHWM: own pages, libraries and
mapped files; not the page cache) is read at its end. Its seconds are those of the verb from call to return: reading,
arithmetic, writing, reading back, comparing. Starting Python and importing torch is told by itself.

Every cost is seconds on the wall and seconds of the processor. Ratios are of processor time, which other work on the
machine hardly changes; only for baking, which waits for the disk, are they of time on the wall.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.algebra import made
from deltaw.families import listing

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Cost:
    """Seconds on the wall and of the processor."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} s, CPU {self.cpu:.2f} s"

    @classmethod
    def least(cls, tries: list[Cost]) -> Cost:
        """The least of each."""
        return cls(min(one.wall for one in tries), min(one.cpu for one in tries))

    @classmethod
    def of(cls, work: Callable[[], object]) -> Cost:
        """What this process and the children that it waits for take for something."""
        start, before = time.perf_counter(), _processor()
        work()
        return cls(time.perf_counter() - start, _processor() - before)


def _processor() -> float:
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def verb(code: str, n_tries: int = 3) -> tuple[Cost, float]:
    """The least cost of the work itself, and the most MB of resident memory that its process ever had."""
    tries = [_verb_once(code) for _ in range(n_tries)]
    return Cost.least([cost for cost, _ in tries]), max(megabytes for _, megabytes in tries)


def _verb_once(code: str) -> tuple[Cost, float]:
    program = (
        "import gc, pathlib, re, time\nimport torch\nfrom deltaw.verbs.merge import merge\n"
        "from deltaw.verbs.shrink import shrink\nfrom deltaw.verbs.extract import extract\nfrom deltaw.verbs.bake import bake\n"
        "gc.collect()  # what importing torch leaves to the collector is a part of importing it\n"
        "wall, cpu = time.perf_counter(), time.process_time()\n"
        f"{code}\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]) / 1000)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    wall, cpu, megabytes = map(float, done.stdout.split()[-3:])
    return Cost(wall, cpu), megabytes


def starting(_folder: Path) -> list[Row]:
    """What every command costs before its verb begins."""
    code = "import torch, deltaw.verbs.merge, deltaw.verbs.shrink"
    return [("start: Python, torch, the verbs", str(_process(code, 5)), "", "", "")]


def _process(code: str, n_tries: int) -> Cost:
    command = [sys.executable, "-c", code]
    return Cost.least([Cost.of(lambda: subprocess.run(command, check=True)) for _ in range(n_tries)])


def dense_svd(shapes: list[tuple[int, ...]], n_terms: int, rank: int) -> Cost:
    """What the dense way costs over modules of these shapes, one of each timed."""
    total = Cost(0.0, 0.0)
    for shape, count in collections.Counter((s[0], math.prod(s[1:])) for s in shapes).items():
        terms = [(torch.randn(shape[0], rank), torch.randn(rank, shape[1])) for _ in range(n_terms)]

        def work(shape: tuple[int, ...] = shape, terms: list[tuple[torch.Tensor, torch.Tensor]] = terms) -> None:
            dense = torch.zeros(shape)
            for up, down in terms:
                dense += up @ down
            torch.linalg.svd(dense, full_matrices=False)

        one = Cost.least([Cost.of(work) for _ in range(2 if max(shape) <= 2560 else 1)])
        total = Cost(total.wall + count * one.wall, total.cpu + count * one.cpu)
    return total


def _dense_row(what: str, ours: Cost, dense: Cost, memory: float | None) -> Row:
    return (
        what,
        str(ours),
        f"dense SVD: {dense}",
        f"{dense.cpu / ours.cpu:.0f} x",
        f"{memory:.0f} MB" if memory else "",
    )


def merging(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for name, family, variant, ends in (
        ("SD 1.5 attention", "sd1", "sd1", made.ATTENTION), ("SD 1.5 attention + ff + proj", "sd1", "sd1", made.MORE),
        ("SDXL attention", "sdxl", "sdxl", made.ATTENTION),
    ):  # fmt: skip
        a, b = folder / f"{variant}a.safetensors", folder / f"{variant}b.safetensors"
        made.lora(family, variant, ends, 32, a, 0)
        made.lora(family, variant, ends, 16, b, 1)
        shapes = [listing.modules(variant)[path] for path in made.modules(variant, ends)]
        dense, one = dense_svd(shapes, 2, 32), dense_svd(shapes, 1, 32)
        out = folder / "out.safetensors"
        exact, memory = verb(f"merge([({str(a)!r}, 0.8), ({str(b)!r}, 0.5)], {str(out)!r})")
        rows.append(_dense_row(f"merge two, {name}, exact", exact, dense, memory))
        cut, memory = verb(f"merge([({str(a)!r}, 0.8), ({str(b)!r}, 0.5)], {str(out)!r}, rank=16)")
        rows.append(_dense_row(f"merge two, {name}, to rank 16", cut, dense, memory))
        small, memory = verb(f"shrink({str(a)!r}, {str(out)!r}, rank=16)")
        rows.append(_dense_row(f"shrink 32 to 16, {name}", small, one, memory))
    rows.append(_many(folder))
    return rows


def _many(folder: Path) -> Row:
    """Ten SDXL LoRAs into an exact sum: what is written is twenty times an input, and more than is held."""
    a, out = folder / "sdxla.safetensors", folder / "out.safetensors"
    cost, memory = verb(f"merge([({str(a)!r}, 0.1 * (i + 1)) for i in range(10)], {str(out)!r})", n_tries=1)
    size = out.stat().st_size / 1e9
    return (f"merge ten, SDXL attention, exact, {size:.1f} GB written", str(cost), "", "", f"{memory:.0f} MB")


def extracting(folder: Path) -> list[Row]:
    base, tuned = made.checkpoint(folder / "base"), made.checkpoint(folder / "tuned", made.decaying)
    shapes = [s for p, s in listing.modules("sd1").items() if p.startswith("unet.") and len(s) > 1 and min(s[:2]) > 4]
    dense = dense_svd(shapes, 1, 16)
    out = folder / "x.safetensors"
    cost, memory = verb(f"extract({str(tuned)!r}, {str(base)!r}, {str(out)!r}, rank=32)", n_tries=1)
    worst = residual_ratio(tuned, base, out)
    shutil.rmtree(tuned)
    return [
        _dense_row("extract rank 32, SD 1.5 pair (float16, 2 × 1.9 GB)", cost, dense, memory),
        ("its residual beside the optimum's, worst of 6 layers", f"{worst:.4f}", "1", "", ""),
    ]


def residual_ratio(tuned: Path, base: Path, out: Path) -> float:
    """‖residual‖ / the optimum's at the same rank, the worst over a few layers of different shapes."""
    from deltaw import formats
    from deltaw.families.checkpoint import open_checkpoint

    delta, _ = formats.load(out)
    worst = 0.0
    with open_checkpoint(tuned).reader() as new, open_checkpoint(base).reader() as old:
        by_shape = {
            old.checkpoint.shapes[path]: path
            for path in delta.updates
            if min(old.checkpoint.shapes[path][:2]) >= 128 and max(old.checkpoint.shapes[path]) <= 1280
        }
        for path in list(by_shape.values())[:6]:
            change = (new.weight(path).float() - old.weight(path).float()).flatten(1).double()
            tensors = delta.updates[path].tensors
            made_of = tensors["up"].double().flatten(1) @ tensors["down"].double().flatten(1)
            optimum = torch.linalg.svdvals(change)[tensors["down"].shape[0] :].norm()
            worst = max(worst, float((change - made_of).norm() / optimum))
    return worst


def baking(folder: Path) -> list[Row]:
    base = folder / "base"
    if not base.exists():
        made.checkpoint(base)
    lora = folder / "lora.safetensors"
    made.lora("sd1", "sd1", made.MORE, 16, lora, 0)
    rows: list[Row] = []
    for state in ("cold", "warm"):
        copied, baked, memory = [], [], 0.0
        for _ in range(3):
            _forget(base) if state == "cold" else _touch(base)
            copied.append(Cost.of(lambda: _copy(base, folder / "copy")))
            shutil.rmtree(folder / "copy")
            _forget(base) if state == "cold" else _touch(base)
            cost, memory = verb(f"bake([({str(lora)!r}, 0.7)], {str(base)!r}, {str(folder / 'baked')!r})", n_tries=1)
            baked.append(cost)
            shutil.rmtree(folder / "baked")
        copy, bake = Cost.least(copied), Cost.least(baked)
        ratio = f"{bake.wall / copy.wall:.2f} of it (CPU {bake.cpu / copy.cpu:.2f})"
        rows.append((f"bake into 1.9 GB, {state}", str(bake), f"copy, synced: {copy}", ratio, f"{memory:.0f} MB"))
    return rows


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    for file in target.rglob("*.safetensors"):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _forget(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _touch(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        file.read_bytes()


def inspecting(folder: Path) -> list[Row]:
    path = folder / "big.safetensors"
    made.lora("sdxl", "sdxl", made.MORE, 28, path, 0)
    code = f"from deltaw.verbs.inspect import inspect; inspect({str(path)!r}); import sys; assert 'torch' not in sys.modules"
    cost, torch_alone = _process(code, 5), _process("import torch", 3)
    size = path.stat().st_size / 1e6
    what = f"inspect {size:.0f} MB, whole process, all numbers read"
    return [(what, str(cost), f"import torch: {torch_alone}", f"{torch_alone.cpu / cost.cpu:.1f} x", "")]


PARTS = {"start": starting, "merge": merging, "extract": extracting, "bake": baking, "inspect": inspecting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are made (6 GB); a temporary one by default")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        rows = [row for part in given.only.split(",") for row in PARTS[part](Path(name))]
    print(f"{THREADS} threads, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}\n")
    print("| what | DeltaW | the other way | ratio | largest resident memory |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
