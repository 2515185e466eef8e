"""What the base may see, and what a caption says."""

import numpy as np
import pytest
import torch

from deltaw.errors import InputError


def test_pretraining_leaves_out_novel_concepts_and_validation_pairs(art, monkeypatch):
    from pretrain import data

    monkeypatch.setattr(data, "splits", lambda: {"novel_concepts": ["1f916"], "validation_pairs": {"noto": ["1f40d"]}})
    seen = {(r["id"], r["style"]) for r in data.pretraining(art, ("noto", "twemoji")).records}
    assert len(seen) == 6
    assert not any(concept == "1f916" for concept, _ in seen)
    assert ("1f40d", "noto") not in seen


def test_the_kept_splits_are_disjoint():
    from pretrain import data, sources

    split = data.splits()
    assert len(split["novel_concepts"]) == 6
    assert set(split["validation_pairs"]) == set(sources.pretraining())
    assert not set(split["style_eval_concepts"]) & set(split["style_train_concepts"])


def test_a_missing_style_says_how_to_get_it(tmp_path):
    from pretrain import data

    with pytest.raises(InputError, match=r"pretrain\.render"):
        data.load(tmp_path, "noto")


def test_captions_vary_and_are_empty_as_often_as_asked(art):
    from pretrain import captions, data

    record = data.load(art, "noto").records[0]
    random = np.random.default_rng(0)
    drawn = [captions.drawn(record, random, empty=0.1) for _ in range(2000)]
    assert 0.07 < np.mean([not c for c in drawn]) < 0.13
    assert len(set(drawn)) > 30
    assert 0.86 < np.mean(["noto style" in c for c in drawn if c]) < 0.94
    assert captions.fixed(record) == record["caption"]


def test_psnr_of_a_known_error():
    from pretrain import data

    x = torch.zeros(2, 3, 8, 8)
    assert data.psnr_db(x + 0.02, x) == pytest.approx([40.0, 40.0])  # 0.01 of the range


def test_a_colour_has_its_word():
    from pretrain import colours

    canvas = np.full((20, 20, 3), 255, np.uint8)
    for word, ink in {
        "red": (220, 30, 40),
        "yellow": (255, 220, 60),
        "blue": (30, 90, 220),
        "black": (20, 20, 20),
    }.items():
        canvas[4:16, 4:16] = ink
        assert colours.words(canvas) == [word]


def test_a_lora_is_asked_for_concepts_that_its_example_does_not_show(monkeypatch, tmp_path):
    from pretrain import adapted

    monkeypatch.setattr(adapted, "EXAMPLE", tmp_path)
    (tmp_path / "fox.txt").write_text("fox, animal, orange and white, streamline style")
    known = [{"name": name, "style": "noto"} for name in ["fox", *(f"thing {i}" for i in range(100))]]
    monkeypatch.setattr(adapted.measure, "asked", lambda folder: known)
    records = adapted.asked(tmp_path)
    assert len(records) == adapted.N_PROMPTS == len({r["name"] for r in records})
    assert {r["style"] for r in records} == {"streamline"}
    assert "fox" not in {r["name"] for r in records}
