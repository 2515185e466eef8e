"""The recommendation against the truth: real runs, judged on pictures that they did not see."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import recommendation

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("style", ["inkline", "streamline"])
def test_the_recommended_snapshot_is_within_two_percent_of_the_best(style: str, tmp_path: Path) -> None:
    found = recommendation.judge(style, tmp_path / style, recommendation.run(style, "default", tmp_path))
    assert found.behind < 0.02


@pytest.mark.parametrize("style", ["inkline", "streamline"])
def test_an_overfit_end_is_not_recommended(style: str, tmp_path: Path) -> None:
    found = recommendation.judge(style, tmp_path / style, recommendation.run(style, "overfit", tmp_path))
    assert found.recommended < max(found.true)
    assert found.behind < 0.02
    assert found.true[max(found.true)] > 1.05 * min(found.true.values()), "it was overfit indeed"
    assert "fewer steps" in found.verdict


@pytest.mark.parametrize("style", ["inkline", "streamline"])
def test_an_underfit_run_is_told_so(style: str, tmp_path: Path) -> None:
    found = recommendation.judge(style, tmp_path / style, recommendation.run(style, "underrun", tmp_path))
    assert "more steps would pay" in found.verdict
    assert found.behind < 0.02
