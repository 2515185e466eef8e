"""Fixtures of the layers that compute in ways of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[False, True], ids=["torch", "kernels"])
def fused(request: pytest.FixtureRequest) -> bool:
    """Whether the kernels compute, in the interpreter, or torch."""
    if request.param:
        request.getfixturevalue("interpreter")
    return request.param
