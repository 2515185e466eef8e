"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206): a transformer of picture and text tokens, and three text encoders.

A text is the last layers but one of two CLIPs, side by side and filled up to T5's width, then T5's vectors, and the CLIPs'
summaries of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltaw.families.base import TOLD_FOUR, as_rows, counter, padded
from deltaw.families.base_folder import BaseFolder
from deltaw.families.flow import Flow
from deltaw.families.sd3_check import T5

N_T5_TOK = 256
"""T5's tokens that a text has, as in diffusers' pipeline; shorter ones are filled up, and the filling is read too."""


class StableDiffusion3(Flow):
    """An opened base of Stable Diffusion 3 or 3.5.

    An encoded text is the CLIPs' and T5's vectors and, as one more row, the CLIPs' summaries, filled up with zeros.
    """

    guidance: ClassVar[float] = 7.0
    drawn_in_steps: int = 28
    targets: ClassVar[str] = r"attn2?\.(to_(q|k|v|out\.0)|add_(q|k|v)_proj|to_add_out)$"

    def __init__(self, folder: BaseFolder, family: str):
        super().__init__(folder, family)
        if T5 in folder.configs:
            self.packed_text_part = T5

    @property
    def resolution_px(self) -> int:
        """The side of the pictures that the base was trained on."""
        return int(self.config["sample_size"]) * self.factor

    @property
    def text_shape(self) -> tuple[int, int]:
        """Rows and width of an encoded text: the vectors of CLIPs and T5, and the CLIPs' summaries."""
        n_tok = int(self.folder.configs["text_encoder"].get("max_position_embeddings", 77))
        return n_tok + N_T5_TOK + 1, int(self.config["joint_attention_dim"])

    def count_tokens(self) -> Callable[[str], tuple[int, str]]:
        """A text to its number of T5's tokens, the special one included, and the part that no encoder reads; of CLIP's without a T5."""
        if not self.packed_text_part:
            tokenizer = self.tokenizer()
            return counter(tokenizer, tokenizer.model_max_length)
        return counter(self.t5_tokenizer("tokenizer_3"), N_T5_TOK)

    def text_encoder(self, device: torch.device, *, packed: bool = False) -> Callable[[Sequence[str]], Tensor]:
        """Loads the tokenizers and text encoders; returns n captions -> (n, *`text_shape`), float32 on the CPU."""
        from transformers import CLIPTextModelWithProjection

        tokenizers = self.tokenizer(), self.tokenizer("tokenizer_2")
        clips = [
            self._load(CLIPTextModelWithProjection, part, device, self.text_dtype)
            for part in ("text_encoder", "text_encoder_2")
        ]
        read = self._t5_reader(device, packed=packed)

        @torch.no_grad()
        def encode(captions: Sequence[str]) -> Tensor:
            seen = [
                clip(padded(tokenizer, captions).to(device), output_hidden_states=True)
                for tokenizer, clip in zip(tokenizers, clips, strict=True)
            ]
            theirs = torch.cat([s.hidden_states[-2] for s in seen], -1)
            tokens = read(captions)
            rows = torch.cat([functional.pad(theirs, (0, tokens.shape[-1] - theirs.shape[-1])), tokens], 1)
            return as_rows(rows, torch.cat([s.text_embeds for s in seen], -1)).float().cpu()

        return encode

    def _t5_reader(self, device: torch.device, *, packed: bool) -> Callable[[Sequence[str]], Tensor]:
        """n captions -> T5's vectors (n, `N_T5_TOK`, width); zeros where there is no T5, as in diffusers' pipeline."""
        if not self.packed_text_part:
            width = self.text_shape[1]
            return lambda captions: torch.zeros(len(captions), N_T5_TOK, width, dtype=self.text_dtype, device=device)
        pieces, t5 = self.t5_tokenizer("tokenizer_3"), self.t5(device, self.text_dtype, packed=packed)
        return lambda captions: t5(padded(pieces, captions, N_T5_TOK).to(device))[0]

    def denoise(self, network: nn.Module, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """The velocity that the transformer predicts for x (n, c, h, w) at integer times (n,) and text (n, *`text_shape`)."""
        pooled = text[:, -1, : int(self.config["pooled_projection_dim"])]
        return network(**arguments(x, self.noise(times), text[:, :-1], pooled))[0]

    def embed(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """n texts as the text encoders of an opened pipeline read them: (n, *`text_shape`)."""
        tokens, _, pooled, _ = self._said(pipe, texts, guided=False)
        return as_rows(tokens, pooled)

    def told(self, pipe: Any, prompts: Sequence[str], guidance: float) -> dict[str, Tensor | None]:
        """What the pipeline can be called with instead of prompts."""
        return dict(zip(TOLD_FOUR, self._said(pipe, prompts, guided=guidance > 1), strict=True))

    def _said(self, pipe: Any, texts: Sequence[str], *, guided: bool) -> Sequence[Any]:
        """What the pipeline reads of texts; where it makes zeros for T5, it asks a network that may not be there how wide they are."""
        stands_in = pipe.transformer is None and not self.packed_text_part
        if stands_in:
            pipe.transformer = SimpleNamespace(config=SimpleNamespace(**self.config))
        try:
            return pipe.encode_prompt(list(texts), None, None, device=pipe.device, do_classifier_free_guidance=guided)
        finally:
            if stands_in:
                pipe.transformer = None

    def _kind(self) -> Any:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        return SD3Transformer2DModel

    def _pipeline(self) -> tuple[Any, dict[str, Any]]:
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

        absent = {} if self.packed_text_part else {T5: None, "tokenizer_3": None}
        return StableDiffusion3Pipeline, {"image_encoder": None, "feature_extractor": None, **absent}


def arguments(x: Tensor, noise: Tensor, tokens: Tensor, pooled: Tensor) -> dict[str, Any]:
    """What the transformer is called with.

    Args:
        x: latents (n, c, h, w).
        noise: the share of noise in each, (n,) float32; the transformer reads thousandths, which bfloat16 would round.
        tokens: of all encoders (n, n_tok, width).
        pooled: the CLIPs' (n, width).
    """
    return {"hidden_states": x, "encoder_hidden_states": tokens, "pooled_projections": pooled, "timestep": noise * 1000, "return_dict": False}  # fmt: skip
