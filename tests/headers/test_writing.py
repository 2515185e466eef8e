"""Files that `tensorfile` writes: the same bytes for the same content, and readable by safetensors itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from deltaw import tensorfile
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
