import threading
from pathlib import Path

import pytest
import torch

from deltaw.data import cache
from deltaw.data.cache import Cache, default_root, key
from deltaw.errors import DeltawError


def entry(seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {"latent": torch.randn(4, 8, 8, generator=noise), "text": torch.randn(77, 16, generator=noise).bfloat16()}


def same(found: dict[str, torch.Tensor] | None, wanted: dict[str, torch.Tensor]) -> bool:
    assert found is not None
    return found.keys() == wanted.keys() and all(
        found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in wanted.items()
    )


def test_key_depends_on_every_part_and_its_limits():
    keys = [
        key(),
        key(""),
        key("", ""),
        key("ab", "c"),
        key("a", "bc"),
        key("abc"),
        key("c", "ab"),
        key("é"),
        key("e\u0301"),
    ]
    assert len(set(keys)) == len(keys)
    assert key("ab", "c") == key("ab", "c")
    assert key("\udcff")  # a name that is no text


def test_key_depends_on_the_code(monkeypatch):
    before = key("a")
    monkeypatch.setattr(cache, "CODE_VERSION", "next")
    assert key("a") != before


def test_what_was_put_is_got(tmp_path):
    store = Cache(tmp_path / "new" / "folder")
    assert store.get(key("a")) is None
    store.put(key("a"), entry())
    assert same(store.get(key("a")), entry())
    store.put(key("a"), entry(1))
    assert same(store.get(key("a")), entry(1))
    assert store.get(key("b")) is None


def test_views_and_gradients_are_stored_as_values(tmp_path):
    store = Cache(tmp_path)
    tensor = torch.arange(12.0).reshape(3, 4).requires_grad_()
    store.put(key("a"), {"turned": tensor.T})
    found = store.get(key("a"))
    assert found is not None
    assert torch.equal(found["turned"], tensor.detach().T)


def _file(root: Path) -> Path:
    (path,) = (path for path in root.rglob("*") if path.is_file())
    return path


@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "one bit", "foreign", "folder"])
def test_damaged_entry_is_absent_and_made_again(tmp_path, damage):
    store = Cache(tmp_path)
    store.put(key("a"), entry())
    path = _file(tmp_path)
    raw = path.read_bytes()
    flipped = raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]
    if damage == "folder":
        path.unlink()
        path.mkdir()
        assert store.get(key("a")) is None
        return
    damaged = {
        "empty": b"",
        "half": raw[: len(raw) // 2],
        "zeros": bytes(len(raw)),
        "one bit": flipped,
        "foreign": b"hello",
    }
    path.write_bytes(damaged[damage])
    assert store.get(key("a")) is None
    store.put(key("a"), entry())
    assert same(store.get(key("a")), entry())


def test_nothing_is_left_of_a_failed_put(tmp_path, monkeypatch):
    store = Cache(tmp_path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DeltawError, match="No space left on device") as caught:
        store.put(key("a"), entry())
    assert "DELTAW_CACHE" in caught.value.advice
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DeltawError, match="cache cannot be written"):
        Cache(tmp_path / "file").put(key("a"), entry())
    assert Cache(tmp_path / "file").get(key("a")) is None


def test_two_writers_of_one_entry(tmp_path):
    store = Cache(tmp_path)
    writers = [threading.Thread(target=store.put, args=(key("a"), entry())) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert same(store.get(key("a")), entry())
    assert _file(tmp_path)


def test_default_root(monkeypatch):
    monkeypatch.setenv("DELTAW_CACHE", "/somewhere/else")
    assert default_root() == Path("/somewhere/else")
    monkeypatch.delenv("DELTAW_CACHE")
    assert default_root().name == "deltaw"
    monkeypatch.setenv("DELTAW_CACHE", "")
    assert default_root().name == "deltaw"
