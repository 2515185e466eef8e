"""What was found in a picture is remembered for this very file and no other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import PIL
import pytest
from PIL import Image

from deltaw import digests, events
from deltaw.data import decode, examined
from deltaw.data.folder import scan


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    return tmp_path / "cache" / examined.KIND


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The names of the pictures that were decoded since it was last asked."""
    seen: list[str] = []

    def noting(path: Path) -> decode.Decoded:
        seen.append(Path(path).name)
        return decode.decode(path)

    def asked() -> list[str]:
        found = sorted(seen)
        seen.clear()
        return found

    monkeypatch.setattr(examined, "decode", noting)
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    (made / "more").mkdir(parents=True)
    for name, colour in (("red fox.png", "red"), ("blue.png", "blue"), ("more/green.png", "green")):
        Image.new("RGB", (32, 48), colour).save(made / name)
    Image.new("RGBA", (32, 48), (9, 9, 9, 99)).save(made / "clear.png")
    return made


def test_a_second_look_decodes_nothing_and_finds_the_same(
    folder: Path, cache: Path, decoded: Callable[[], list[str]]
) -> None:
    first = scan(folder)
    assert decoded() == ["blue.png", "clear.png", "green.png", "red fox.png"]
    assert scan(folder) == first
    assert decoded() == []
    assert next(p for p in first.pictures if p.name == "clear.png").notes, "notes are among what is remembered"
    (memory,) = cache.iterdir()
    assert not any(word in memory.read_text() for word in ("fox", "green", str(folder))), "no name and no path is kept"


def test_captions_are_read_anew(folder: Path, cache: Path, decoded: Callable[[], list[str]]) -> None:
    scan(folder)
    (folder / "blue.txt").write_text("the sea")
    decoded()
    assert next(p for p in scan(folder).pictures if p.name == "blue.png").caption == "the sea"
    assert decoded() == []


def test_another_content_of_the_same_size_and_time_is_seen(
    folder: Path, cache: Path, decoded: Callable[[], list[str]]
) -> None:
    scan(folder)
    path = folder / "blue.png"
    times, size = path.stat().st_mtime_ns, path.stat().st_size
    Image.new("RGB", (48, 32), "blue").save(path)
    os.truncate(path, size) if path.stat().st_size > size else path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(times, times))
    decoded()
    assert next(p for p in scan(folder).pictures if p.name == "blue.png").size_px == (48, 32)
    assert decoded() == ["blue.png"]


def test_a_picture_that_broke_since_is_skipped(folder: Path, cache: Path) -> None:
    scan(folder)
    (folder / "blue.png").write_bytes((folder / "blue.png").read_bytes()[:60])
    found = scan(folder)
    assert [s.name for s in found.skipped] == ["blue.png"]
    assert len(found.pictures) == 3
    (memory,) = cache.iterdir()
    assert len(json.loads(memory.read_text())["known"]) == 3


def test_a_young_file_is_not_remembered(
    folder: Path, cache: Path, decoded: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_S", 60.0)
    scan(folder)
    assert not cache.exists()
    decoded()
    scan(folder)
    assert len(decoded()) == 4


def test_other_decoders_look_again(
    folder: Path, cache: Path, decoded: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(folder)
    decoded()
    monkeypatch.setattr(PIL, "__version__", "1.1.7")
    scan(folder)
    assert len(decoded()) == 4


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"made_by": 1, "known": 2}', "[" * 100_000, '{"known": {}, "made_by": null}', "\0"]
)
def test_a_damaged_memory_is_no_memory(
    content: str, folder: Path, cache: Path, decoded: Callable[[], list[str]]
) -> None:
    first = scan(folder)
    (memory,) = cache.iterdir()
    memory.write_text(content)
    decoded()
    assert scan(folder) == first
    assert len(decoded()) == 4
    assert scan(folder) == first
    assert decoded() == []


@pytest.mark.parametrize("entry", [None, [], 3, [[1, 2]], ["same"], ["same", "d", "x", 3, []], ["same", "d", 3, 3, 4]])
def test_a_damaged_entry_is_looked_at_again(
    entry: object, folder: Path, cache: Path, decoded: Callable[[], list[str]]
) -> None:
    first = scan(folder)
    (memory,) = cache.iterdir()
    kept = json.loads(memory.read_text())
    for name, (identity, *_) in kept["known"].items():
        kept["known"][name] = [identity, *entry[1:]] if isinstance(entry, list) and entry[:1] == ["same"] else entry
    memory.write_text(json.dumps(kept))
    decoded()
    assert scan(folder) == first
    assert len(decoded()) == 4


def test_what_was_seen_before_an_interruption_is_kept_and_the_rest_not_forgotten(
    folder: Path, cache: Path, decoded: Callable[[], list[str]]
) -> None:
    def interrupt(event: events.Event) -> None:
        if isinstance(event, events.Tick) and event.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(folder, tell=interrupt)
    seen = decoded()
    assert seen
    scan(folder)
    assert not set(decoded()) & set(seen)
    os.utime(folder / "blue.png", ns=(1, 1))
    with pytest.raises(KeyboardInterrupt):
        scan(folder, tell=interrupt)
    decoded()
    scan(folder)
    assert set(decoded()) <= {"blue.png"}


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "file"))
    assert len(scan(folder).pictures) == 4
