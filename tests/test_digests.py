"""A remembered digest is never that of another file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from deltaw import digests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every file that is really read; files count as settled at once."""
    seen: list[str] = []
    original = digests._read

    def counting(path: Path) -> str:
        seen.append(path.name)
        return original(path)

    monkeypatch.setattr(digests, "_read", counting)
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    return seen


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    wanted = hashlib.sha256(b"weights").hexdigest()
    assert [digests.of_file(tmp_path / "w", tmp_path / "memory") for _ in range(3)] == [wanted] * 3
    assert len(reads) == 1
    assert str(tmp_path) not in next((tmp_path / "memory" / "digests").iterdir()).read_text(), "no path is kept"


def test_another_content_of_the_same_size_and_time_is_seen(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"one")
    times = path.stat().st_mtime_ns
    digests.of_file(path, tmp_path)
    path.write_bytes(b"two")
    os.utime(path, ns=(times, times))
    assert digests.of_file(path, tmp_path) == hashlib.sha256(b"two").hexdigest()
    (tmp_path / "new").write_bytes(b"six")
    os.utime(tmp_path / "new", ns=(times, times))
    (tmp_path / "new").replace(path)
    assert digests.of_file(path, tmp_path) == hashlib.sha256(b"six").hexdigest()
    assert len(reads) == 3


def test_a_young_file_is_not_remembered(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_S", 60.0)
    (tmp_path / "w").write_bytes(b"weights")
    digests.of_file(tmp_path / "w", tmp_path)
    digests.of_file(tmp_path / "w", tmp_path)
    assert len(reads) == 2
    assert not (tmp_path / "digests").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sha256": 3}', "null"])
def test_a_damaged_memory_is_made_again(tmp_path: Path, reads: list[str], damage: str) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    digests.of_file(tmp_path / "w", tmp_path)
    (entry,) = (tmp_path / "digests").iterdir()
    entry.write_text(damage)
    assert digests.of_file(tmp_path / "w", tmp_path) == hashlib.sha256(b"weights").hexdigest()
    assert len(reads) == 2


def test_a_memory_that_cannot_be_written_costs_time_only(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    assert digests.of_file(tmp_path / "w", tmp_path / "w") == hashlib.sha256(b"weights").hexdigest()


def test_a_base_is_hashed_once(
    tiny_base: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltaw.families import base_folder

    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path))
    first, second = (base_folder.read(tiny_base).digest("unet") for _ in range(2))
    assert first == second
    assert len(reads) == 1


def test_what_is_found_in_the_background_is_known_later(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "memory"))
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(file.name.encode() * 10_000_000)
    digests.ahead([*files, tmp_path / "missing"])
    assert [digests.of_file(file) for file in files] == [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    assert sorted(reads) == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        digests.of_file(tmp_path / "missing")
