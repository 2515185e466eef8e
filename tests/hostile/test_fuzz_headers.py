"""Random and mutated headers and keys: an answer or an `InputError`, never another exception, never a hang.

2,000 inputs by default; `pytest -m slow` runs the 100,000.
"""

from __future__ import annotations

import json
import random
import resource
import time
from pathlib import Path

import pytest

from deltaw import formats, tensorfile
from deltaw.errors import DeltawError
from deltaw.formats import reading
from tests.formats import made

TOKENS = ["lora_unet_", "lora_te1_", "unet.", "transformer.", "base_model.model.", "diffusion_model.", "model.", "down_blocks", "0", ".",
          "_", "attn1", "to_q", "processor", "lora_A", "lora.up", "weight", "alpha", "hada_w1_a", "oft_blocks", "unet:", "text_encoder:", ":up",
          "é", "\x00", "[", "(", "*", " ", "lora_up.weight", "diff", "dora_scale", "1" * 400]  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    for dialect in ("kohya", "diffusers", "comfy"):
        formats.save(made.delta("sd1", "emoji", rank=1, among=made.paths("emoji")[:3]), folder / dialect, dialect)
    return [path.read_bytes()[:6000] for path in sorted(folder.iterdir())]


def mutated(seed: bytes, rng: random.Random) -> bytes:
    content = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not content:
            break
        at = rng.randrange(len(content))
        kind = rng.randrange(5)
        if kind == 0:
            content[at] = rng.randrange(256)
        elif kind == 1:
            del content[at : at + rng.randrange(1, 40)]
        elif kind == 2:
            content[at:at] = rng.choice((b"[", b"{", b'"', b"-1", b"9" * 30, b"null", b"\xff", b"1e999", b"\\u0000"))
        elif kind == 3:
            content[:8] = rng.choice((0, 1, 2, len(seed), 2**31, 2**63 - 1, 2**64 - 1)).to_bytes(8, "little")
        else:
            content = content[: at + 1]
    return bytes(content)


def random_header(rng: random.Random) -> bytes:
    listing: dict[str, object] = {}
    at = 0
    for _ in range(rng.randrange(1, 12)):
        key = "".join(rng.choice(TOKENS) for _ in range(rng.randrange(1, 9)))
        shape = [rng.randrange(0, 5) for _ in range(rng.randrange(0, 5))]
        size = 4
        for n in shape:
            size *= n
        listing[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if rng.random() < 0.3:
        listing["__metadata__"] = {
            rng.choice(("unet", "lora_adapter_metadata", "x")): rng.choice(("[1]", "{", '["GEGLU"]', '{"unet.r": []}'))
        }
    raw = json.dumps(listing).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(at)


def try_out(content: bytes, path: Path) -> bool:
    """Whether the content was taken for a LoRA; raises only what must not be."""
    path.write_bytes(content)
    try:
        header = tensorfile.read_header(path)
        reading.resolve(header, formats.ALL, path)
        formats.load(path)
    except DeltawError:
        return False
    return True


def run(seeds: list[bytes], n: int, path: Path) -> None:
    rng = random.Random(7)
    began, slowest = time.monotonic(), 0.0
    for i in range(n):
        start = time.process_time()  # a busy machine is not a hang
        try_out(mutated(rng.choice(seeds), rng) if i % 3 else random_header(rng), path)
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 5.0
    assert time.monotonic() - began < n  # nothing hangs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4_000_000  # kB


def test_two_thousand(seeds: list[bytes], tmp_path: Path) -> None:
    assert try_out(seeds[0], tmp_path / "x") in (True, False)
    run(seeds, 2000, tmp_path / "x.safetensors")


@pytest.mark.slow
def test_a_hundred_thousand(seeds: list[bytes], tmp_path: Path) -> None:
    run(seeds, 100_000, tmp_path / "x.safetensors")
