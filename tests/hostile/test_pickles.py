"""Hostile pickles: nothing is executed, memory and time stay bounded, and each is refused with its name and advice."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltaw import formats
from deltaw.errors import InputError
from deltaw.verbs.check import check
from deltaw.verbs.inspect import inspect


class Bomb:
    """An object whose unpickling makes a folder."""

    def __init__(self, canary: Path, how: str = "mkdir"):
        self.canary, self.how = canary, how

    def __reduce__(self):
        return {
            "mkdir": (os.mkdir, (str(self.canary),)),
            "eval": (builtins.eval, (f"__import__('os').mkdir({str(self.canary)!r})",)),
            "getattr": (getattr, (str(self.canary), "strip")),
            "subprocess": (subprocess.run, (["mkdir", str(self.canary)],)),
        }[self.how]


class Stateful:
    """An object that runs its own code when its state is set."""

    def __init__(self, canary: Path):
        self.__dict__["canary"] = str(canary)

    def __setstate__(self, state):
        Path(state["canary"]).mkdir()


def in_zip(path: Path, content: bytes, *, compress: bool = False, more: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", b"little")
        for name, data in (more or {"data/0": bytes(64)}).items():
            archive.writestr(f"archive/{name}", data)


def tensor(
    shape: str, strides: str, *, n: str = "J\x40\0\0\0", kind: str = "FloatStorage", offset: str = "K\0", key: str = "0"
) -> bytes:
    """The opcodes of a tensor as torch writes them; arguments are opcodes too."""
    storage = f"(X\7\0\0\0storagectorch\n{kind}\nX\1\0\0\0{key}X\3\0\0\0cpu{n}tQ"
    return f"ctorch._utils\n_rebuild_tensor_v2\n({storage}{offset}{shape}{strides}\x89ccollections\nOrderedDict\n)RtR".encode(
        "latin-1"
    )


def state(value: bytes) -> bytes:
    return b"\x80\2}X\3\0\0\0<a>" + value + b"s."


def long(n: int) -> str:
    raw = n.to_bytes((n.bit_length() + 8) // 8, "little", signed=True)
    return (b"\x8a" + bytes([len(raw)]) + raw).decode("latin-1")


def pickled(value: Callable[[Path], object], protocol: int = 2) -> Callable[[Path], None]:
    return lambda path: in_zip(path, pickle.dumps(value(path.parent / "canary"), protocol=protocol))


def legacy(path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Bomb(path.parent / "canary")}, path, _use_new_zipfile_serialization=False)


def optimizer(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "optimizer": {"state": Bomb(path.parent / "canary")}}, path)


def beside_tensors(path: Path) -> None:
    torch.save(
        {"lora_unet_x.lora_up.weight": torch.ones(2, 2), "z": [[({"deep": Bomb(path.parent / "canary", "eval")},)]]},
        path,
    )


def bomb_in_zip(path: Path) -> None:
    in_zip(path, state(tensor("(K\1J\0\0\0\x10t", "(K\1K\1t")), compress=True, more={"data/0": bytes(200_000_000)})


def big_directory(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
    end = path.read_bytes()
    at = end.rindex(b"PK\5\6")
    path.write_bytes(
        end[:at] + bytes(20_000_000) + end[at : at + 12] + (20_000_000).to_bytes(4, "little") + end[at + 16 :]
    )


def nested(n: int) -> bytes:
    """A tuple of two that are the same tuple of two, and so on: 2ⁿ leaves in n steps."""
    return b"\x80\2" + b"N" + b"q\0h\0\x86" * n


ENDLESS = b"\x80\2" + b"N0" * 3_000_000 + b"N."
HUGE = {
    "impossible numbers": state(tensor(f"({long(2**40)}{long(2**40)}t", "(K\1K\1t")),
    "one number for a trillion": state(tensor(f"({long(2**40)}K\1t", "(K\0K\0t", n=long(2**60))),
    "beyond the storage": state(tensor("(J\0\0\0\x10K\1t", "(K\1K\1t")),
    "beyond the file": state(tensor("(J\0\0\0\x10K\1t", "(K\1K\1t", n=long(2**40))),
    "negative": state(tensor("(J\xff\xff\xff\xffK\1t", "(K\1K\1t")),
    "negative offset": state(tensor("(K\1K\1t", "(K\1K\1t", offset="J\xff\xff\xff\xff")),
    "strides beyond": state(tensor("(K\2K\2t", f"({long(2**40)}K\1t")),
    "a shape that is no tuple": state(tensor("X\3\0\0\0abc", "(K\1t")),
    "no such storage": state(tensor("(K\1K\1t", "(K\1K\1t", key="7")),
    "complex": state(tensor("(K\1K\1t", "(K\1K\1t", kind="ComplexFloatStorage")),
    "a memo at two billion": b"\x80\2}r\xff\xff\xff\x7f.",
    "a string of four gigabytes": b"\x80\2X\xff\xff\xff\xffabc.",
    "bytes of an exabyte": b"\x80\4\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc.",
    "a number of a million digits": b"\x80\2\x8b" + (500_000).to_bytes(4, "little") + b"\x7f" * 500_000 + b".",
    "digits": b"\x80\2L" + b"9" * 100_000 + b"L\n.",
    "a key that takes forever to hash": b"\x80\2}" + nested(60)[2:] + b"Ns.",
    "a value that takes forever to walk": nested(200) + b".",
    "deep": b"\x80\2" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "endless": ENDLESS,
    "a name that is a tuple": b"\x80\4" + nested(60)[2:] + b"q\1h\1\x93.",
    "calls of calls": b"\x80\2" + b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nN)Nt" + b"R.",
    "marks": b"\x80\2" + b"(" * 100_000 + b".",
    "too few": b"\x80\2s.",
    "nothing to get": b"\x80\2h\7.",
    "cut": b"\x80\2}X\3\0",
    "out of band": b"\x80\5\x97.",
    "an extension": b"\x80\2\x82\1.",
    "an instance": b"\x80\2(ios\nmkdir\n.",
    "a script": b"\x80\2}X\1\0\0\0acos\nsystem\n(X\4\0\0\0trueRs.",
}  # fmt: skip
BOMBS: dict[str, Callable[[Path], object]] = {
    "reduce": pickled(Bomb),
    "reduce, protocol 0": pickled(Bomb, 0),
    "reduce, protocol 5": pickled(Bomb, 5),
    "eval": pickled(lambda canary: Bomb(canary, "eval")),
    "getattr": pickled(lambda canary: Bomb(canary, "getattr")),
    "subprocess": pickled(lambda canary: Bomb(canary, "subprocess")),
    "state": pickled(Stateful),
    "nested": pickled(lambda canary: {"a": [OrderedDict(b=({"c": Bomb(canary)},))]}),
    "as a key": pickled(lambda canary: {Bomb(canary): 1}),
    "older form": legacy,
    "optimizer": optimizer,
    "beside tensors": beside_tensors,
    "bare": lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "canary"))),
    "in the system's place": lambda path: path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps(Bomb(path.parent / "canary"), 2)
    ),
    "compressed": bomb_in_zip,
    "a huge directory": big_directory,
    **{name: (lambda path, content=content: in_zip(path, content)) for name, content in HUGE.items()},
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_hostile_pickle_is_refused_and_does_nothing(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    BOMBS[name](path)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError) as caught:
        formats.load(path)
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert not (tmp_path / "canary").exists()
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert caught.value.advice
    with pytest.raises(InputError):
        inspect(path)
    assert not check(path).fits
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["reduce", "eval", "nested", "older form", "optimizer", "beside tensors", "state", "a script"]
)
def test_the_refusal_names_what_was_asked_for(name: str, tmp_path: Path) -> None:
    BOMBS[name](tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"it asks for '[\w.]+'; nothing was executed"):
        formats.load(tmp_path / "x.pt")


def test_the_canary_sings_where_a_pickle_is_opened(tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    code = "import sys, pickle, zipfile; pickle.loads(zipfile.ZipFile(sys.argv[1]).read('archive/data.pkl'))"
    for name in ("reduce", "eval", "subprocess"):
        canary = tmp_path / name / "canary"
        canary.parent.mkdir()
        BOMBS[name](tmp_path / name / "x.pt")
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name / "x.pt")], check=True)
        assert canary.exists()


def test_a_base_that_is_a_pickle_stays_closed(tmp_path: Path) -> None:
    from deltaw import tensorfile

    BOMBS["reduce"](tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="pickle"):
        tensorfile.read_header(tmp_path / "model.ckpt")
    buffer = io.BytesIO((tmp_path / "model.ckpt").read_bytes())
    assert zipfile.is_zipfile(buffer)
    assert not (tmp_path / "canary").exists()
