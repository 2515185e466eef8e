"""A base's networks on the meta device: the real graph, from the config files, with no memory and no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from deltaw import int8
from deltaw.families import kernels, sd_xl

META = torch.device("meta")


@dataclass(frozen=True)
class Blueprint:
    """What a Stable Diffusion's networks would do, for measuring it before anything is loaded.

    Args:
        configs: part name ("unet", "vae", "text_encoder", for SDXL "text_encoder_2") to its config, as in `BaseFolder.configs`.
    """

    configs: Mapping[str, Mapping[str, Any]]
    text_dtype: ClassVar[torch.dtype] = torch.float32
    """In which captions are encoded, see `Base.text_dtype`."""

    @property
    def factor(self) -> int:
        """How many pixels a latent's side stands for."""
        return 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)

    @property
    def n_tok(self) -> int:
        """Tokens that the text encoder reads."""
        return int(self.configs["text_encoder"].get("max_position_embeddings", 77))

    def denoiser(
        self, dtype: torch.dtype, device: torch.device = META, *, checkpointing: bool = False, packed: bool = False
    ) -> nn.Module:
        """The network, frozen, as `Base.denoiser` would load it onto a device."""
        network = self._network(dtype)
        if packed:
            int8.pack_all(network)
        if checkpointing:
            network.enable_gradient_checkpointing()
        kernels.speed_up(network, device, dtype)
        return network

    def autoencoder(self) -> Any:
        """The VAE, frozen, in float32 as it is used."""
        return self._made(AutoencoderKL, "vae", torch.float32)

    def text_encoders(self, *, packed: bool = False) -> nn.ModuleList:  # noqa: ARG002  # CLIPs are left as they are
        """The text encoders, frozen, as they are used: CLIP's one, or SDXL's two."""
        kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        with META:
            models = [kind(CLIPTextConfig(**self.configs[p])) for p, kind in kinds.items() if p in self.configs]
        return nn.ModuleList([frozen(model, self.text_dtype) for model in models])

    def encode(self, encoders: nn.ModuleList, n: int) -> list[Any]:
        """What `text_encoders` make of n texts; of two every layer's result is kept, since the last but one is read."""
        tokens = torch.empty(n, self.n_tok, dtype=torch.long, device=META)
        return [model(tokens, output_hidden_states=len(encoders) > 1) for model in encoders]

    def questions(self, n: int, size_px: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
        """The denoiser's arguments for n pictures of a size (width, height)."""
        unet = self.configs["unet"]
        width, height = (side // self.factor for side in size_px)
        arguments: dict[str, Any] = {
            "sample": torch.empty(n, unet["in_channels"], height, width, dtype=dtype, device=META),
            "timestep": torch.empty(n, dtype=torch.long, device=META),
            "encoder_hidden_states": torch.empty(n, self.n_tok, unet["cross_attention_dim"], dtype=dtype, device=META),
            "return_dict": False,
        }
        if unet.get("addition_embed_type") == "text_time":  # SDXL: pooled text and six sizes
            arguments["added_cond_kwargs"] = {
                "text_embeds": torch.empty(n, sd_xl.n_pooled(unet), dtype=dtype, device=META),
                "time_ids": torch.empty(n, sd_xl.N_SIZES, dtype=dtype, device=META),
            }
        return arguments

    def pixels(self, n: int, size_px: tuple[int, int]) -> Tensor:
        """n pictures of a size (width, height), float32 as the VAE reads them."""
        return torch.empty(n, 3, size_px[1], size_px[0], device=META)

    def latents(self, n: int, size_px: tuple[int, int]) -> Tensor:
        """The latents of n pictures of a size (width, height), float32 as the VAE reads them."""
        width, height = (side // self.factor for side in size_px)
        return torch.empty(n, self.configs["vae"]["latent_channels"], height, width, device=META)

    def _network(self, dtype: torch.dtype) -> Any:
        return self._made(UNet2DConditionModel, "unet", dtype)

    def _made(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        with META:
            model = kind.from_config(dict(self.configs[part]))
        return frozen(model, dtype)


def frozen(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model's floating-point weights in `dtype`; nn.Module.to, since diffusers' own warns of a cast it thinks unwise."""
    return nn.Module.to(model, dtype).eval().requires_grad_(False)


def of(configs: Mapping[str, Mapping[str, Any]]) -> Blueprint:
    """The blueprint of a base with these configs, whose family they tell."""
    if "transformer" in configs:
        from deltaw.families.flow_blueprint import FluxBlueprint, StableDiffusion3Blueprint

        is_sd3 = "pos_embed_max_size" in configs["transformer"]
        return (StableDiffusion3Blueprint if is_sd3 else FluxBlueprint)(configs)
    return Blueprint(configs)
