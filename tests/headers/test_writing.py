"""Files that `tensorfile` writes: the same bytes for the same content, and readable by safetensors itself."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from deltaw import spool, tensorfile
from deltaw.errors import DeltawError

TENSORS = {
    "z": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(7), "h": torch.randn(3).half(), "b": torch.randn(2, 2).bfloat16(),
    "empty": torch.zeros(0, 4), "f8": torch.randn(5).to(torch.float8_e4m3fn), "t": torch.randn(3, 4).t(), "yes": torch.tensor([True]),
}  # fmt: skip


def test_safetensors_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    n_bytes = tensorfile.write(path, TENSORS, {"b": "2", "ä": "日本"})
    assert n_bytes == path.stat().st_size
    back = safetensors.torch.load_file(path)
    assert all(
        back[k].view(torch.uint8).equal(t.contiguous().view(torch.uint8)) if t.ndim else back[k] == t
        for k, t in TENSORS.items()
    )
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"b": "2", "ä": "日本"}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "a", TENSORS, {"x": "1", "y": "2"})
    tensorfile.write(tmp_path / "b", dict(reversed(TENSORS.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tensor_that_is_not_as_described_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DeltawError, match="not F16"):
        tensorfile.stream(tmp_path / "x", {"a": ("F16", (2,))}, lambda _: torch.zeros(3).half())
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_may_come_in_blocks_of_rows_and_must_come_whole(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(6, 2)
    described = {"a": ("F32", (6, 2))}
    tensorfile.stream(tmp_path / "blocks.safetensors", described, lambda name: iter(whole.split(4)))
    tensorfile.write(tmp_path / "whole.safetensors", {"a": whole})
    assert (tmp_path / "blocks.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    for blocks in (whole[:5].split(4), [whole.half()], [whole.reshape(12, 1)]):
        with pytest.raises(DeltawError, match="a "):
            tensorfile.stream(tmp_path / "bad.safetensors", described, lambda name, blocks=blocks: iter(blocks))
    assert not (tmp_path / "bad.safetensors").exists()


def test_a_disk_that_refuses_while_more_is_written_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def slow(name: str) -> torch.Tensor:
        monkeypatch.setattr(tensorfile.os, "fsync", full)
        time.sleep(0.2)
        monkeypatch.undo()
        return torch.zeros(2)

    with pytest.raises(DeltawError, match="No space left"):
        tensorfile.stream(tmp_path / "a.safetensors", {"a": ("F32", (2,))}, slow)
    assert not list(tmp_path.iterdir())


def test_what_a_spool_has_no_room_for_lies_on_the_disk_and_comes_back_as_it_was(tmp_path: Path) -> None:
    with spool.opened(tmp_path, room_bytes=40) as kept:
        ones = {name: kept.keep(tensor) for name, tensor in TENSORS.items()}
        places = {type(one.held).__name__ for one in ones.values()}
        assert places == {"Tensor", "Region"}
        for name, tensor in TENSORS.items():
            back = ones[name].tensor()
            assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
            assert (
                back.contiguous().reshape(-1).view(torch.uint8).equal(tensor.contiguous().reshape(-1).view(torch.uint8))
            )
        spool.write(tmp_path / "spooled", ones, {"x": "1"})
    tensorfile.write(tmp_path / "plain", TENSORS, {"x": "1"})
    assert (tmp_path / "spooled").read_bytes() == (tmp_path / "plain").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "spooled"]


def test_a_spool_without_room_anywhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile, "append", full)
    with spool.opened(tmp_path, room_bytes=0) as kept, pytest.raises(DeltawError, match=r"set results aside.*No space"):
        kept.keep(torch.zeros(2))
