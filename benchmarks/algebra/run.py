"""Merge, shrink, extract, bake and inspect on true shapes, beside the ways that peers go. Prints a table of ratios.

    python -m benchmarks.algebra.run [--folder DIR] [--only merge,shrink,extract,bake,inspect]

The dense way is what `svd_merge_lora` and `resize_lora` of sd-scripts do: make the dense ΔW of every module and
take its whole SVD in float32. It takes minutes, so one module of each shape is timed and counted as often as the
shape occurs. Each verb runs in a process of its own, whose largest resident memory is read at its end.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.algebra import made
from deltaw.families import listing

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
Row = tuple[str, str, str, str, str]


def verb(code: str, n_tries: int = 3) -> tuple[float, float]:
    """The least seconds of the work itself, and the most MB of resident memory that its process ever had."""
    tries = [_verb_once(code) for _ in range(n_tries)]
    return min(seconds for seconds, _ in tries), max(megabytes for _, megabytes in tries)


def _verb_once(code: str) -> tuple[float, float]:
    program = (
        "import pathlib, re, time\nimport torch\nfrom deltaw.verbs.merge import merge\nfrom deltaw.verbs.shrink import shrink\n"
        "from deltaw.verbs.extract import extract\nfrom deltaw.verbs.bake import bake\n"
        "start = time.perf_counter()\n"
        f"{code}\n"
        "print(time.perf_counter() - start, int(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]) / 1000)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    seconds, megabytes = done.stdout.split()[-2:]
    return float(seconds), float(megabytes)


def dense_svd(shapes: list[tuple[int, ...]], n_terms: int, rank: int) -> float:
    """Seconds of the dense way over modules of these shapes, one of each timed."""
    total = 0.0
    for shape, count in collections.Counter((s[0], math.prod(s[1:])) for s in shapes).items():
        terms = [(torch.randn(shape[0], rank), torch.randn(rank, shape[1])) for _ in range(n_terms)]
        tries = []
        for _ in range(2 if max(shape) <= 2560 else 1):
            start = time.perf_counter()
            dense = torch.zeros(shape)
            for up, down in terms:
                dense += up @ down
            torch.linalg.svd(dense, full_matrices=False)
            tries.append(time.perf_counter() - start)
        total += count * min(tries)
    return total


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
        exact, _ = verb(f"merge([({str(a)!r}, 0.8), ({str(b)!r}, 0.5)], {str(out)!r})")
        cut, memory = verb(f"merge([({str(a)!r}, 0.8), ({str(b)!r}, 0.5)], {str(out)!r}, rank=16)")
        rows.append(
            (f"merge two, {name}, exact", f"{exact:.2f} s", f"{dense:.0f} s (dense SVD)", f"{dense / exact:.0f} x", "")
        )
        rows.append(
            (
                f"merge two, {name}, to rank 16",
                f"{cut:.2f} s",
                f"{dense:.0f} s (dense SVD)",
                f"{dense / cut:.0f} x",
                f"{memory:.0f} MB",
            )
        )
        small, memory = verb(f"shrink({str(a)!r}, {str(out)!r}, rank=16)")
        rows.append(
            (
                f"shrink 32 to 16, {name}",
                f"{small:.2f} s",
                f"{one:.0f} s (dense SVD)",
                f"{one / small:.0f} x",
                f"{memory:.0f} MB",
            )
        )
    return rows


def extracting(folder: Path) -> list[Row]:
    base, tuned = made.checkpoint(folder / "base"), made.checkpoint(folder / "tuned", made.decaying)
    shapes = [s for p, s in listing.modules("sd1").items() if p.startswith("unet.") and len(s) > 1 and min(s[:2]) > 4]
    dense = dense_svd(shapes, 1, 16)
    out = folder / "x.safetensors"
    seconds, memory = verb(f"extract({str(tuned)!r}, {str(base)!r}, {str(out)!r}, rank=32)", n_tries=1)
    worst = residual_ratio(tuned, base, out)
    shutil.rmtree(tuned)
    return [("extract rank 32, SD 1.5 pair", f"{seconds:.0f} s", f"{dense:.0f} s (dense SVD)", f"{dense / seconds:.0f} x", f"{memory:.0f} MB"),
            ("its residual beside the optimum's, worst of 6 layers", f"{worst:.4f}", "1", "", "")]  # fmt: skip


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
            start = time.perf_counter()
            _copy(base, folder / "copy")
            copied.append(time.perf_counter() - start)
            shutil.rmtree(folder / "copy")
            _forget(base) if state == "cold" else _touch(base)
            seconds, memory = verb(f"bake([({str(lora)!r}, 0.7)], {str(base)!r}, {str(folder / 'baked')!r})", n_tries=1)
            baked.append(seconds)
            shutil.rmtree(folder / "baked")
        copy, bake = min(copied), min(baked)
        rows.append(
            (
                f"bake into 1.9 GB, {state}",
                f"{bake:.1f} s",
                f"{copy:.1f} s (copy, synced)",
                f"{bake / copy:.2f} of it",
                f"{memory:.0f} MB",
            )
        )
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
    made.lora("sdxl", "sdxl", made.MORE, 52, path, 0)
    code = f"from deltaw.verbs.inspect import inspect; inspect({str(path)!r}); import sys; assert 'torch' not in sys.modules"
    seconds = min(_process([sys.executable, "-c", code]) for _ in range(5))
    torch_alone = min(_process([sys.executable, "-c", "import torch"]) for _ in range(2))
    size = path.stat().st_size / 1e6
    return [
        (
            f"inspect {size:.0f} MB, whole process, all numbers read",
            f"{seconds:.2f} s",
            f"{torch_alone:.2f} s (import torch)",
            f"{torch_alone / seconds:.1f} x",
            "",
        )
    ]


def _process(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


PARTS = {"merge": merging, "extract": extracting, "bake": baking, "inspect": inspecting}


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
