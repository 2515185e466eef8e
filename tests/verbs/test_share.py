"""Private entries of other trainers are shown and left out; what a reader needs stays, tensors byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deltaw import tensorfile
from deltaw.errors import UsageError
from deltaw.events import Event, Note, Table
from deltaw.verbs.share import find, share

KOHYA = {
    "ss_network_dim": "8",
    "ss_network_alpha": "4",
    "ss_learning_rate": "0.0001",
    "ss_num_train_images": "30",
    "ss_resolution": "(512, 512)",
    "ss_base_model_version": "sd_v1",
    "ss_session_id": "1234",
    "ss_training_started_at": "1700000000.0",
    "ss_training_comment": "my secret cat",
    "ss_sd_model_name": "C:\\Users\\anna\\models\\base.safetensors",
    "ss_dataset_dirs": json.dumps({"10_anna": {"n_repeats": 10, "img_count": 30}}),
    "ss_tag_frequency": json.dumps({"10_anna": {"anna in the garden": 3}}),
    "ss_lr_scheduler": "cosine",
    "modelspec.trigger_phrase": "zxq style",
    "modelspec.author": "Anna",
    "modelspec.description": "a style: soft light/dark contrast, 1/2 strength, w/o faces",
    "modelspec.usage_hint": "ask anna@example.org",
    "note": "trained from /home/anna/pictures",
    "token": "hf_abcdefghijklmnopqrstuvwx",
}
PRIVATE = {
    "ss_session_id", "ss_training_started_at", "ss_training_comment", "ss_sd_model_name", "ss_dataset_dirs",
    "ss_tag_frequency", "modelspec.author", "modelspec.usage_hint", "note", "token",
}  # fmt: skip


def written(path: Path, metadata: dict[str, str]) -> Path:
    tensors = {"lora_unet_x.lora_up.weight": torch.randn(4, 2), "lora_unet_x.lora_down.weight": torch.randn(2, 4)}
    tensorfile.write(path, tensors, metadata)
    return path


def test_private_entries_are_shown_and_left_out(tmp_path: Path) -> None:
    file = written(tmp_path / "a.safetensors", KOHYA)
    heard: list[Event] = []
    share(file, tmp_path / "b.safetensors", tell=heard.append)
    (table,) = [e for e in heard if isinstance(e, Table)]
    assert {row[0] for row in table.rows} == PRIVATE
    assert KOHYA["token"] not in str(table.rows), "a key is not shown again"
    raw = (tmp_path / "b.safetensors").read_bytes()
    for text in (b"anna", b"Anna", b"secret", b"hf_", b"1700000000"):
        assert text not in raw
    kept = tensorfile.read_header(tmp_path / "b.safetensors").metadata
    assert set(kept) == set(KOHYA) - PRIVATE
    old, new = (tensorfile.read_header(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert file.read_bytes()[old.data_start :] == raw[new.data_start :]


def test_looking_writes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path / "a.safetensors", KOHYA)
    assert {p.name for p in share(file)} == PRIVATE  # type: ignore[union-attr]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(UsageError):
        share(file, file)


def test_an_entry_that_a_reader_needs_is_only_emptied() -> None:
    config = {"unet.r": 8, "unet.base_model_name_or_path": "/home/anna/base", "unet.target_modules": ["to_q"]}
    (private,) = find({"lora_adapter_metadata": json.dumps(config)})
    assert json.loads(private.replacement or "") == {**config, "unet.base_model_name_or_path": ""}


@pytest.mark.parametrize(
    "text",
    ["cosine", "1e-4", "lora_unet_x", "a/b", "sd/xl", "stable-diffusion-v1/lora", "(512, 512)", "https://example.org/x",
     '{"conv_dim": "4"}', "w/o", "and/or", "C: major", "2/3", "data:image/jpeg;base64,/9j/4AAQSk/ZJ/Rg=="],
)  # fmt: skip
def test_harmless_entries_stay(text: str) -> None:
    assert not find({"some": text})


@pytest.mark.parametrize(
    "text",
    ["/home/anna/x", "D:\\pictures", "D:/pictures", "~/x", "\\\\server\\share", "file:///x", '{"dir": "/mnt/data/x"}',
     "../pictures", "--dir=/workspace/x", "/datasets/cats/1.png", '["/a/b"]'],
)  # fmt: skip
def test_paths_are_found_wherever_they_are(text: str) -> None:
    assert [p.reason for p in find({"some": text})] == ["a path"]


def test_an_innocent_file_is_called_so(tmp_path: Path) -> None:
    heard: list[Event] = []
    assert share(written(tmp_path / "a.safetensors", {"ss_network_dim": "8"}), tell=heard.append) == []
    assert any("nothing private" in e.text for e in heard if isinstance(e, Note))
