"""What bases share that predict the velocity of a rectified flow: their noise, and T5 as a text encoder (Esser et al. 2024, arXiv 2403.03206)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltaw import int8
from deltaw.diffusion import objective, schedule
from deltaw.families import weights
from deltaw.families.base import Base
from deltaw.families.base_folder import BaseFolder
from deltaw.families.flow_check import PATCH

TEXT_DTYPE = torch.bfloat16
"""Of the text encoders: in float32 T5's weights take 19 GB, and in float16 some of its numbers overflow."""


class Flow(Base):
    """An opened base whose network is a transformer of patches."""

    text_dtype: ClassVar[torch.dtype] = TEXT_DTYPE
    dialect: ClassVar[tuple[str, str]] = ("diffusers", "every tool reads it; kohya's joins Q, K and V in one module")

    def __init__(self, folder: BaseFolder, family: str):
        super().__init__(folder, family)
        self.objective = objective.FLOW
        n_tok = (self.resolution_px // self.bucket_step_px) ** 2
        self.schedule = schedule.flow(shift(folder.configs["scheduler"], n_tok))
        self._noise: dict[torch.device, Tensor] = {}

    @property
    def bucket_step_px(self) -> int:
        """Sides of training pictures are multiples of this: a patch's side."""
        return self.factor * PATCH

    @property
    def drawn_step_px(self) -> int:
        """Sides of drawn pictures are multiples of this."""
        return self.bucket_step_px

    def denoiser(self, device: torch.device, dtype: torch.dtype, *, packed: bool = False) -> nn.Module:
        """As `Base.denoiser`; on an NVIDIA GPU `without_cudnn_attention`."""
        if device.type == "cuda":
            without_cudnn_attention()
        return super().denoiser(device, dtype, packed=packed)

    def noise(self, times: Tensor) -> Tensor:
        """The share of noise at integer times (n,), float32."""
        if times.device == self.schedule.s.device:
            return self.schedule.s[times]
        if times.device not in self._noise:  # sent once: a recorded step cannot send anything
            self._noise[times.device] = self.schedule.s.to(times.device)
        return self._noise[times.device][times]

    def t5(self, device: torch.device, dtype: torch.dtype, *, packed: bool) -> Any:
        """T5's encoder, in 8 bits where asked, which it is read in: in 16 it is larger than most networks."""
        from transformers import T5Config, T5EncoderModel

        part = self.packed_text_part
        if not packed:
            return self._load(T5EncoderModel, part, device, dtype)
        config = dict(self.folder.configs[part])
        read: Any = weights.load(
            lambda: T5EncoderModel(T5Config(**config)), self.folder.weights(part), device, dtype, packed=True
        )
        if read is None:
            read = self._load(T5EncoderModel, part, torch.device("cpu"), dtype)
            int8.pack_all(read)
        read.tie_weights()  # both of its modules that know the words share one table
        return read.to(device)

    def _packed_beside(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        return {self.packed_text_part: self.t5(device, dtype, packed=True)} if self.packed_text_part else {}

    def t5_tokenizer(self, part: str) -> Any:
        """The T5 tokenizer in a folder of the base."""
        from transformers import T5Tokenizer

        return T5Tokenizer.from_pretrained(self.folder.path / part, local_files_only=True)


def without_cudnn_attention() -> None:
    """Turns cuDNN's attention off in this process.

    Its backward pass reads memory that is not its own in FLUX.1's attention (torch 2.11, H200), which ends the process.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def shift(scheduler: Mapping[str, Any], n_tok: int) -> float:
    """How far the noise is shifted up for pictures of `n_tok` tokens: as diffusers' `calculate_shift` has it, or the fixed one.

    Larger pictures need more noise to be destroyed as far (section 5.3.2).
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift", 1.0))
    least, most = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    return math.exp(low + (high - low) * (n_tok - least) / (most - least))
