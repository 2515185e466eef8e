"""What is asked of the machine before anything is computed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from deltaw import device

COMPILED_AGAIN = """
import torch
from deltaw import device
device.choose("cpu")
x = torch.randn(64, 64, dtype=torch.bfloat16)
for _ in range(2):
    for rows in range(1100):
        torch.mm(torch.ones(rows + 1, 64, dtype=torch.bfloat16), x)
"""


def test_compiled_kernels_are_kept_unless_the_user_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    name, kept = device.KERNELS_KEPT
    monkeypatch.setenv(name, "77")
    device.choose("cpu")
    assert os.environ[name] == "77"
    monkeypatch.delenv(name)
    device.choose("cpu")
    assert os.environ[name] == kept


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="oneDNN multiplies bfloat16 only where the CPU can"
)
@pytest.mark.parametrize(("kept", "again"), [(None, False), ("1024", True)])
def test_more_kernels_than_onednn_keeps_by_itself_are_compiled_once(kept: str | None, again: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if k != device.KERNELS_KEPT[0]} | {"ONEDNN_VERBOSE": "2"}
    if kept is not None:
        environment[device.KERNELS_KEPT[0]] = kept
    said = subprocess.run(
        [sys.executable, "-c", COMPILED_AGAIN], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "cache_miss" in said, "oneDNN computes these products"
    assert (said.count("cache_miss") > 1150) == again
