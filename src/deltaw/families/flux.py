"""FLUX.1 (Black Forest Labs 2024): a transformer of picture and text tokens that predicts the velocity of a rectified flow.

Latents are read in patches of 2 × 2. A text is T5's vectors of its tokens, and CLIP's summary of the whole. The published
bases were distilled: they are told how far to guide as a number (dev), or draw in a few steps without guidance (schnell).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltaw.families.base import as_rows, counter, padded
from deltaw.families.base_folder import BaseFolder
from deltaw.families.flow import Flow
from deltaw.families.flow_check import PATCH

N_TOK = 512
"""T5's tokens that a text has, as in diffusers' pipeline; shorter ones are filled up, and the filling is read too."""
FEW_STEPS = 4
"""In which a base that is told no guidance draws, as FLUX.1 schnell was distilled to."""
TRAINED_GUIDANCE = 1.0
"""What a base that is told a guidance is told in training: that of the data itself. At another one it would have to learn
to undo the guidance first."""


class Flux(Flow):
    """An opened base of FLUX.1.

    An encoded text is T5's vectors and, as one more row, CLIP's summary, filled up with zeros.
    """

    guidance: ClassVar[float] = 3.5
    drawn_in_steps: int = 28
    packed_text_part: str = "text_encoder_2"
    guided_twice: ClassVar[bool] = False
    targets: ClassVar[str] = r"attn\.(to_(q|k|v|out\.0)|add_(q|k|v)_proj|to_add_out)$"

    def __init__(self, folder: BaseFolder, family: str):
        super().__init__(folder, family)
        if not self.config.get("guidance_embeds"):
            self.drawn_in_steps = FEW_STEPS

    @property
    def resolution_px(self) -> int:
        """The side of the pictures that the base was trained on, as its VAE has it."""
        return int(self.folder.configs["vae"].get("sample_size", 1024))

    @property
    def text_shape(self) -> tuple[int, int]:
        """Rows and width of an encoded text: T5's vectors and CLIP's."""
        return N_TOK + 1, int(self.config["joint_attention_dim"])

    def count_tokens(self) -> Callable[[str], tuple[int, str]]:
        """A text to its number of T5's tokens, the special one included, and the part that T5 does not read."""
        return counter(self.t5_tokenizer("tokenizer_2"), N_TOK)

    def text_encoder(self, device: torch.device, *, packed: bool = False) -> Callable[[Sequence[str]], Tensor]:
        """Loads both tokenizers and text encoders; returns n captions -> (n, *`text_shape`), float32 on the CPU."""
        from transformers import CLIPTextModel

        words, pieces = self.tokenizer(), self.t5_tokenizer("tokenizer_2")
        clip = self._load(CLIPTextModel, "text_encoder", device, self.text_dtype)
        t5 = self.t5(device, self.text_dtype, packed=packed)

        @torch.no_grad()
        def encode(captions: Sequence[str]) -> Tensor:
            tokens = t5(padded(pieces, captions, N_TOK).to(device))[0]
            return as_rows(tokens, clip(padded(words, captions).to(device)).pooler_output).float().cpu()

        return encode

    def denoise(self, network: nn.Module, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """The velocity that the transformer predicts for x (n, c, h, w) at integer times (n,) and text (n, *`text_shape`)."""
        pooled = text[:, -1, : int(self.config["pooled_projection_dim"])]
        drawn = network(**arguments(self.config, x, self.noise(times).to(x.dtype), text[:, :-1], pooled))[0]
        return patched(drawn, (x.shape[2], x.shape[3]))

    def embed(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """n texts as the text encoders of an opened pipeline read them: (n, *`text_shape`)."""
        tokens, pooled, _ = pipe.encode_prompt(list(texts), device=pipe.device)
        return as_rows(tokens, pooled)

    def told(self, pipe: Any, prompts: Sequence[str], guidance: float) -> dict[str, Tensor | None]:  # noqa: ARG002
        """What the pipeline can be called with instead of prompts."""
        tokens, pooled, _ = pipe.encode_prompt(list(prompts), device=pipe.device)
        return {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}

    def steering(self, negative: Sequence[str], guidance: float) -> dict[str, Any]:  # noqa: ARG002
        """What the pipeline is called with to guide the drawing; nothing is steered away from."""
        return {"guidance_scale": guidance}

    def unpacked(self, drawn: Tensor, size_px: tuple[int, int]) -> Tensor:
        """The latents (n, c, h/f, w/f) of the pipeline's patches of pictures of a size (width, height)."""
        width, height = (side // self.factor for side in size_px)
        return patched(drawn, (height, width))

    def _kind(self) -> Any:
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        return FluxTransformer2DModel

    def _pipeline(self) -> tuple[Any, dict[str, Any]]:
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        return FluxPipeline, {"image_encoder": None, "feature_extractor": None}


def arguments(config: Mapping[str, Any], x: Tensor, noise: Tensor, tokens: Tensor, pooled: Tensor) -> dict[str, Any]:
    """What FLUX.1's transformer is called with.

    Args:
        config: of the transformer.
        x: latents (n, c, h, w).
        noise: the share of noise in each, (n,).
        tokens: T5's vectors (n, n_tok, width).
        pooled: CLIP's (n, width).
    """
    n, c, h, w = x.shape
    rows, columns = h // PATCH, w // PATCH
    patches = x.reshape(n, c, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1)
    places = torch.zeros(rows, columns, 3, dtype=x.dtype, device=x.device)
    places[..., 1] = torch.arange(rows, device=x.device)[:, None]
    places[..., 2] = torch.arange(columns, device=x.device)
    return {
        "hidden_states": patches,
        "encoder_hidden_states": tokens,
        "pooled_projections": pooled,
        "timestep": noise,
        "img_ids": places.flatten(0, 1),
        "txt_ids": torch.zeros(tokens.shape[1], 3, dtype=x.dtype, device=x.device),
        "guidance": torch.full_like(noise, TRAINED_GUIDANCE) if config.get("guidance_embeds") else None,
        "return_dict": False,
    }


def patched(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Patches (n, h/2·w/2, 4·c) put together to latents (n, c, h, w) of a size (h, w)."""
    rows, columns = (side // PATCH for side in size)
    apart = patches.view(len(patches), rows, columns, -1, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return apart.reshape(len(patches), -1, *size)
