"""What tests share: a tiny base of random weights, folders of pictures, a cache of their own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Networks as small as these lose more by handing work to a second thread than they gain, and the
# tests run in two processes; child processes inherit it, so that bits compare.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Runs are compared bit for bit, which sums on a GPU are not; on a GPU they are checked by `deltaw doctor` and every run's proof.
if not os.environ.get("DELTAW_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import pytest
import torch
from PIL import Image

from deltaw.zoo import bundled_base

if (
    not torch.cuda.is_available()
):  # where Triton is all the same, its kernels run in its interpreter; it asks when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves entries in the user's cache."""
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def interpreter() -> None:
    """Triton's, for machines without a GPU; the test is skipped where it is not there, or older than numpy."""
    triton = pytest.importorskip("triton", reason="torch brings Triton where there are NVIDIA GPUs")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    if _version(triton) < (3, 7) and _version(np) >= (2, 4):  # seen with Triton 3.6.0 and numpy 2.4.6
        pytest.skip("this Triton's interpreter asks numpy for numbers that numpy gives no more")


def _version(library: Any) -> tuple[int, ...]:
    return tuple(map(int, library.__version__.split(".")[:2]))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of SD 1's layout with random weights: 64 px, some 100 kB, epsilon prediction."""
    from transformers import CLIPTextModel

    return _write_base(tmp_path_factory.mktemp("tiny-base"), {"text_encoder": CLIPTextModel})


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Stable Diffusion XL's layout: two text encoders, and a UNet that is told their summary and the sizes."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return _write_base(
        tmp_path_factory.mktemp("tiny-xl"),
        {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection},
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
        use_linear_projection=True,
    )  # fmt: skip


def _write_base(path: Path, encoders: Mapping[str, type], **unet_config: object) -> Path:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16 * len(encoders), attention_head_dim=2, **unet_config,
    )  # fmt: skip
    unet.save_pretrained(path / "unet")
    _tiny_vae(latent_channels=4).save_pretrained(path / "vae")
    for name, kind in encoders.items():
        kind(_tiny_clip()).save_pretrained(path / name)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    ).save_pretrained(path / "scheduler")
    index = json.loads((bundled_base() / "model_index.json").read_text())
    for name in ("tokenizer", "tokenizer_2")[: len(encoders)]:
        shutil.copytree(bundled_base() / "tokenizer", path / name)
    if len(encoders) > 1:
        index["_class_name"] = "StableDiffusionXLPipeline"
        index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": index["tokenizer"]}
        for gone in ("safety_checker", "requires_safety_checker"):
            index.pop(gone, None)
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def _tiny_vae(**config: object) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1, norm_num_groups=2, sample_size=64, **config,
    )  # fmt: skip


def _tiny_clip() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=4096, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=16, bos_token_id=4094, eos_token_id=4095, pad_token_id=4095,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX.1 dev with random weights: 64 px, two double and two single blocks, a T5 of one layer."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    path = tmp_path_factory.mktemp("tiny-flux")
    torch.manual_seed(0)
    FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
        pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    ).save_pretrained(path / "transformer")  # fmt: skip
    _tiny_vae(latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611).save_pretrained(path / "vae")
    CLIPTextModel(_tiny_clip()).save_pretrained(path / "text_encoder")
    T5EncoderModel(_tiny_t5()).save_pretrained(path / "text_encoder_2")
    FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    ).save_pretrained(path / "scheduler")
    shutil.copytree(bundled_base() / "tokenizer", path / "tokenizer")
    _write_t5_tokenizer(path / "tokenizer_2")
    parts = {"transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
             "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
             "text_encoder_2": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "tokenizer_2": ["transformers", "T5TokenizerFast"]}  # fmt: skip
    (path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **parts}))
    return path


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 3.5 medium with random weights: 64 px, two blocks of which one has a second attention."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    path = tmp_path_factory.mktemp("tiny-sd3")
    torch.manual_seed(0)
    SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16,
        caption_projection_dim=32, joint_attention_dim=40, pooled_projection_dim=32, pos_embed_max_size=16, qk_norm="rms_norm",
        dual_attention_layers=(0,),
    ).save_pretrained(path / "transformer")  # fmt: skip
    _tiny_vae(latent_channels=4, shift_factor=0.0609, scaling_factor=1.5305).save_pretrained(path / "vae")
    for name in ("text_encoder", "text_encoder_2"):
        CLIPTextModelWithProjection(_tiny_clip()).save_pretrained(path / name)
    T5EncoderModel(_tiny_t5(d_model=40)).save_pretrained(path / "text_encoder_3")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(path / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(bundled_base() / "tokenizer", path / name)
    _write_t5_tokenizer(path / "tokenizer_3")
    clip, t5 = ["transformers", "CLIPTextModelWithProjection"], ["transformers", "T5EncoderModel"]
    parts = {"transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
             "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "text_encoder": clip, "text_encoder_2": clip,
             "text_encoder_3": t5, "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
             "tokenizer_3": ["transformers", "T5TokenizerFast"]}  # fmt: skip
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline", **parts}))
    return path


def _tiny_t5(d_model: int = 24) -> Any:
    from transformers import T5Config

    return T5Config(
        vocab_size=64, d_model=d_model, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )


def _write_t5_tokenizer(path: Path) -> None:
    """T5's kind of a tokenizer whose pieces are letters."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789,.-"]
    made = T5Tokenizer(vocab=[(piece, -float(i > 2)) for i, piece in enumerate(pieces)], extra_ids=0)
    made.model_max_length = 512
    made.save_pretrained(path)


@pytest.fixture
def paint() -> Callable[..., Path]:
    """`_paint` for tests that lay out a folder of their own."""
    return _paint


def _paint(path: Path, seed: int, size_px: tuple[int, int] = (64, 64), caption: str | None = None) -> Path:
    """Writes a picture of random coloured blocks, and its caption beside it."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize(size_px, Image.Resampling.NEAREST).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of `n` captioned pictures and returns it."""

    def make(n: int, size_px: tuple[int, int] = (64, 64), name: str = "blocks") -> Path:
        folder = tmp_path / name
        for i in range(n):
            _paint(folder / f"p{i:02d}.png", i, size_px, f"a thing number {i}, blocky style")
        return folder

    return make
