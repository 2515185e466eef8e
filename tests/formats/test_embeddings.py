"""Token vectors: every form that is no pickle is read, and what we write reads back, by diffusers too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltaw import formats, tensorfile
from deltaw.delta import Delta
from deltaw.errors import InputError
from tests.formats import made

FORMS = {
    "diffusers": ({"<cat>": 768}, {}, "<cat>", "sd1"),
    "diffusers SD 2": ({"<cat>": 1024}, {}, "<cat>", "sd2"),
    "kohya": ({"emb_params": 768}, {}, "my-cat", "sd1"),
    "SDXL": ({"clip_l": 768, "clip_g": 1280}, {}, "my-cat", "sdxl"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_vectors_is_read(form: str, tmp_path: Path) -> None:
    widths, metadata, token, family = FORMS[form]
    tensors = {key: torch.randn(2, width) for key, width in widths.items()}
    tensorfile.write(tmp_path / "my-cat.safetensors", tensors, metadata)
    delta, match = formats.load(tmp_path / "my-cat.safetensors", strict=True)
    assert (delta.family, list(delta.embeddings), match.dialects) == (family, [token], {"embedding": len(widths)})
    assert all(any(t.equal(v) for v in tensors.values()) for t in delta.embeddings[token].values())
    formats.save(delta, tmp_path / "other.safetensors", "embedding")
    back, _ = formats.load(tmp_path / "other.safetensors", strict=True)
    assert {t: {c: v.tolist() for c, v in p.items()} for t, p in back.embeddings.items()} == {
        t: {c: v.tolist() for c, v in p.items()} for t, p in delta.embeddings.items()
    }


@pytest.mark.parametrize("dialect", ["kohya", "cloneofsimo"])
def test_vectors_go_with_a_lora_where_the_dialect_has_a_place(dialect: str, tmp_path: Path) -> None:
    shapes = formats.shapes_of(Path(formats.__file__).parents[1] / "zoo" / "emoji")
    paths = [
        p
        for p in shapes
        if p.endswith((".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj")) or ".self_attn." in p
    ]
    delta = made.delta("sd1", "emoji", among=paths, alpha=None)
    delta = replace(delta, embeddings={"<s1>": {"text_encoder": torch.randn(3, 256)}})
    formats.save(delta, tmp_path / "x.safetensors", dialect)
    back, _ = formats.load(tmp_path / "x.safetensors", strict=True)
    assert made.same(delta, back) == ""
    assert back.embeddings["<s1>"]["text_encoder"].equal(delta.embeddings["<s1>"]["text_encoder"])
    assert "<s1>" not in back.metadata
    with pytest.raises(InputError, match="no place for the vectors"):
        formats.save(delta, tmp_path / "y.safetensors", "diffusers")


def test_vectors_that_fit_nothing_are_named(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "x.safetensors", {"emb_params": torch.randn(1, 333)})
    with pytest.raises(InputError, match="fit no known text encoder"):
        formats.load(tmp_path / "x.safetensors")
    formats.save(made.delta("sd1", "emoji"), tmp_path / "l.safetensors")
    tensors = {**tensorfile.read(tmp_path / "l.safetensors"), "bundle_emb.cat.emb_params": torch.randn(1, 768)}
    tensorfile.write(tmp_path / "x.safetensors", tensors)
    _, match = formats.load(tmp_path / "x.safetensors")
    assert "width 768" in match.ignored["bundle_emb.cat.emb_params"]


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_diffusers_reads_the_vectors_that_we_write(tmp_path: Path) -> None:
    from tests.formats.test_read_by_diffusers import pipeline

    vectors = torch.randn(1, 256)
    formats.save(
        Delta("sd1", {}, embeddings={"<inkline>": {"text_encoder": vectors}}), tmp_path / "v.safetensors", "embedding"
    )
    pipe = pipeline()
    pipe.load_textual_inversion(str(tmp_path), weight_name="v.safetensors")
    index = pipe.tokenizer.convert_tokens_to_ids("<inkline>")
    assert pipe.text_encoder.get_input_embeddings().weight[index].equal(vectors[0])
