"""Results are made module by module: the same bytes through the disk, and no more memory for more inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deltaw import formats, spool
from deltaw.families import listing
from deltaw.verbs.merge import merge
from deltaw.verbs.shrink import shrink
from tests.formats import made


@pytest.mark.parametrize("budget", [{}, {"energy": 0.9}, {"rank": 3}], ids=str)
@pytest.mark.parametrize(("family", "variant"), [("sd1", "sd1"), ("sdxl", "sdxl")])
def test_what_goes_through_the_disk_is_the_same(
    family: str, variant: str, budget: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    among = [path for path in made.paths(variant) if max(listing.modules(variant)[path]) <= 3072][:9]
    for i in range(2):
        formats.save(made.delta(family, variant, among=among, seed=i, rank=4), tmp_path / f"{i}.safetensors")
    files = [(tmp_path / "0.safetensors", 1.0), (tmp_path / "1.safetensors", -0.5)]
    merge(files, tmp_path / "memory.safetensors", **budget)
    shrink(files[0][0], tmp_path / "small.safetensors", rank=2)
    monkeypatch.setattr(spool, "ROOM_BYTES", 0)
    merge(files, tmp_path / "disk.safetensors", **budget)
    shrink(files[0][0], tmp_path / "small_too.safetensors", rank=2)
    assert (tmp_path / "disk.safetensors").read_bytes() == (tmp_path / "memory.safetensors").read_bytes()
    assert (tmp_path / "small_too.safetensors").read_bytes() == (tmp_path / "small.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 6


PEAK = """
import re, sys
from pathlib import Path
import torch
from deltaw import spool
from deltaw.verbs.merge import merge
spool.ROOM_BYTES = 0
files = [(sys.argv[1], 0.1)] * int(sys.argv[2])
merge(files[:1], sys.argv[3])
before = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
report = merge(files, sys.argv[3])
after = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(report.n_bytes / 1e6, (after - before) / 1e3)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the most memory held")
def test_memory_does_not_grow_with_the_inputs(tmp_path: Path) -> None:
    shapes = listing.modules("sdxl")
    among = [path for path in shapes if path.endswith(("attn1.to_q", "attn1.to_k")) and shapes[path][0] == 1280][:100]
    formats.save(made.delta("sdxl", "sdxl", among=among, rank=16, dtype=torch.float32), tmp_path / "a.safetensors")
    arguments = [str(tmp_path / "a.safetensors"), "8", str(tmp_path / "out.safetensors")]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    written, grown = map(float, done.stdout.split())
    assert written > 120
    assert grown < 60
