"""Fixtures of the layers that compute in ways of their own."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def interpreter() -> None:
    """Triton's, for machines without a GPU; the test is skipped where it is not there."""
    pytest.importorskip("triton", reason="torch brings Triton where there are NVIDIA GPUs")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")


@pytest.fixture(params=[False, True], ids=["torch", "kernels"])
def fused(request: pytest.FixtureRequest) -> bool:
    """Whether the kernels compute, in the interpreter, or torch."""
    if request.param:
        request.getfixturevalue("interpreter")
    return request.param
