"""Random and mutated pickles, archives and PEFT configurations: an answer or an `InputError`, never another exception or a hang.

A canary in every mutation: names that would make a folder are put in everywhere. 1,500 inputs by default; `pytest -m slow` runs the 100,000.
"""

from __future__ import annotations

import io
import json
import random
import resource
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from deltaw import formats, tensorfile
from deltaw.delta import Delta, Update
from deltaw.errors import DeltawError
from tests.formats import made
from tests.hostile.test_fuzz_headers import mutated

CANARY = Path("canary-of-the-fuzz")
OPCODES = (
    b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"}", b"]", b")", b"u", b"s", b"a", b"e", b"b", b"Q", b"0", b"1", b"2", b"N", b"\x88", b"\x89",
    b"q\0", b"h\0", b"q\1", b"h\1", b"r\xff\xff\xff\xff", b"K\1", b"K\0", b"J\xff\xff\xff\xff", b"J\0\0\0\x7f", b"\x8a\x08" + b"\x7f" * 8, b"\x8a\xff",
    b"M\xff\xff", b"X\1\0\0\0a", b"X\3\0\0\0<a>", b"X\xff\xff\xff\x7f", b"\x8c\1a", b"\x94", b"\x93", b"\x81", b"\x82\1", b"c", b"\x95" + bytes(8),
    b"cposix\nmkdir\n(X\x12\0\0\0" + str(CANARY).encode() + b"tR", b"ios\nmkdir\n", b"ccollections\nOrderedDict\n)R", b"(dp0\n", b"I01\n", b"L9L\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nHalfStorage\n", b"ctorch\nSize\n", b"X\7\0\0\0storage", b"X\1\0\0\x000", b"X\x06\0\0\0unet:0", b".",
    b"ctorch.nn.modules.container\nParameterDict\n)\x81", b"c__builtin__\nset\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\x10tQK\0K\4K\4\x86K\4K\1\x86\x89NtR",
)  # fmt: skip
VALUES = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    "x",
    "(a+)+$",
    "^",
    [],
    {},
    [1],
    {"to_q": 3},
    {"(": 1},
    {"x" * 50: "y"},
    "LORA",
    "OFT",
    "IA3",
    10**400,
)


@dataclass(frozen=True)
class Seeds:
    """Pickled files, the descriptions in them, and an adapter folder."""

    files: list[bytes]
    pickles: list[bytes]
    adapter: Path


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    folder = tmp_path_factory.mktemp("seeds")
    small = made.delta("sd1", "emoji", rank=1, among=made.paths("emoji")[:2])
    formats.save(small, folder / "k.safetensors", "kohya")
    values = {
        "kohya": tensorfile.read(folder / "k.safetensors"),
        "list": [torch.ones(4, 1), torch.ones(1, 4)],
        "ti": {"string_to_param": torch.nn.ParameterDict({"*": torch.ones(1, 768)}), "name": "x", "step": 1},
        "vectors": {"<a>": torch.ones(768), "<b>": torch.ones(768)},
    }
    files, pickles = [], []
    for value in values.values():
        for new in (True, False):
            torch.save(value, folder / "x.pt", _use_new_zipfile_serialization=new)
            files.append((folder / "x.pt").read_bytes())
            if new:
                with zipfile.ZipFile(folder / "x.pt") as archive:
                    pickles.append(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
    skew = {"skew": torch.ones(24, 28), "terms": torch.tensor(5)}
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    formats.save(Delta("sd1", {path: Update("oft-input", skew)}), folder / "oft", "peft")
    return Seeds(files, pickles, folder / "oft")


def archived(pickle: bytes) -> bytes:
    """A description in an archive as torch writes it, with a storage of 3 kB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle)
        archive.writestr("x/data/0", bytes(3072))
    return buffer.getvalue()


def mixed(pickle: bytes, rng: random.Random) -> bytes:
    """A description with opcodes put in, or one of opcodes alone."""
    if rng.random() < 0.3:
        return b"\x80\2" + b"".join(rng.choice(OPCODES) for _ in range(rng.randrange(1, 30))) + b"."
    content = bytearray(pickle)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(content) + 1)
        content[at : at + rng.choice((0, 0, 1, 6))] = rng.choice(OPCODES)
    return bytes(content)


def try_file(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    refusal = ""
    try:
        formats.load(path)
    except DeltawError as error:
        refusal = str(error)
    assert len(refusal) < 4000
    assert not refusal or path.name in refusal


def try_configuration(folder: Path, rng: random.Random) -> None:
    path = folder / "adapter_config.json"
    before = path.read_bytes()
    config = json.loads(before)
    for _ in range(rng.choice((1, 2, 4))):
        config[
            rng.choice([*config, "alpha", "lora_alpha", "r", "init_lora_weights", "rank_pattern", "alpha_pattern"])
        ] = rng.choice(VALUES)
    path.write_bytes(json.dumps(config).encode() if rng.random() < 0.8 else mutated(before, rng))
    try:
        formats.load(folder)
    except DeltawError:
        pass
    finally:
        path.write_bytes(before)


def run(seeds: Seeds, n: int, path: Path) -> None:
    rng = random.Random(11)
    began, slowest = time.monotonic(), 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(n):
        start = time.process_time()  # a busy machine is not a hang
        if i % 10 == 0:
            try_configuration(seeds.adapter, rng)
        elif i % 3 == 0:
            try_file(mutated(rng.choice(seeds.files), rng), path)
        else:
            pickle = rng.choice(seeds.pickles)
            try_file(archived(mixed(pickle, rng) if i % 2 else mutated(pickle, rng)), path)
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 5.0
    assert time.monotonic() - began < n  # nothing hangs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert not CANARY.exists()


def test_fifteen_hundred(seeds: Seeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for pickle in seeds.pickles:
        try_file(archived(pickle), tmp_path / "x.pt")
    run(seeds, 1500, tmp_path / "x.pt")


@pytest.mark.slow
def test_a_hundred_thousand(seeds: Seeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(seeds, 100_000, tmp_path / "x.pt")
