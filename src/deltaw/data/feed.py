"""What a step reads: latents and text embeddings, from the cache or made once and cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltaw import device as devices
from deltaw.data import image, reading
from deltaw.data.cache import Cache, Entries, key
from deltaw.data.folder import Picture
from deltaw.errors import InputError
from deltaw.events import Phase, Tell, Tick
from deltaw.families.base import Base

TEXT_BATCH = 32
HELD_BYTES = 1 << 30
"""Latents, and again texts, that stay in memory; what is beyond is read from the cache in every step that needs it."""


@dataclass(frozen=True)
class Feed:
    """Everything that training reads, on the CPU.

    Args:
        latents: per picture (c, h/f, w/f), float32.
        texts: caption or prompt to what the network reads of it (`Base.text_shape`), float32; "" is always there.
        captions: per picture the caption as trained.
    """

    latents: Sequence[Tensor]
    texts: Mapping[str, Tensor]
    captions: Sequence[str]


def fill(
    base: Base, pictures: Sequence[Picture], sizes_px: Sequence[tuple[int, int]], captions: Sequence[str],
    device: torch.device, cache: Cache, tell: Tell, prompts: Sequence[str] = (), dtype: torch.dtype = torch.float32,
    *, packed: bool = False,
) -> Feed:  # fmt: skip
    """Encodes what the cache lacks; each encoder is loaded only if needed and released at once.

    Args:
        base: the opened base.
        pictures: the accepted pictures.
        sizes_px: the bucket (width, height) of each.
        captions: the caption of each, trigger included.
        device: where the encoders run.
        cache: content-addressed, so that a changed picture, caption or encoder is encoded again.
        tell: listener.
        prompts: texts that are wanted beside the captions.
        dtype: of the network that reads it; for bfloat16 the VAE computes in it too (`Base.image_encoder`).
        packed: that network is kept in 8 bits, and a text encoder as large as it (`Base.packed_text_part`) too.
    """
    made_in = dtype if dtype is torch.bfloat16 else torch.float32
    latents = _latents(base, pictures, sizes_px, device, cache, tell, made_in)
    devices.give_back()  # the encoders' memory, which the next phase needs
    texts = _texts(base, sorted({"", *captions, *prompts}), device, cache, tell, packed=packed)
    devices.give_back()
    return Feed(latents, texts, captions)


def _latents(
    base: Base, pictures: Sequence[Picture], sizes_px: Sequence[tuple[int, int]], device: torch.device,
    cache: Cache, tell: Tell, dtype: torch.dtype,
) -> Entries:  # fmt: skip
    digest = base.folder.digest("vae")
    made_in = str(dtype).removeprefix("torch.")
    keys = [key("latent", digest, made_in, p.digest, f"{w}x{h}") for p, (w, h) in zip(pictures, sizes_px, strict=True)]
    found = Entries(cache, keys, "latent", HELD_BYTES)
    missing = found.check()
    if missing:
        tell(Phase("encode pictures", len(missing), "pictures"))
        encode = base.image_encoder(device, dtype)

        def fitted(i: int) -> np.ndarray:
            return image.fit(image.read(pictures[i].path, digest=pictures[i].digest), sizes_px[i])

        with closing(reading.ahead(fitted, missing, in_turns=device.type == "cpu")) as read:
            for n_done, (i, pixels) in enumerate(zip(missing, read, strict=True), start=1):
                latent = encode(pixels[np.newaxis])[0]
                if not torch.isfinite(latent).all():
                    raise InputError("the VAE made non-finite latents of this picture", where=pictures[i].name,
                                     advice="use a VAE that is sound in float32")  # fmt: skip
                cache.put(keys[i], {"latent": latent})
                found.hold(i, latent)
                tell(Tick(n_done, pictures[i].name))
    return found


def _texts(base: Base, texts: Sequence[str], device: torch.device, cache: Cache, tell: Tell, *, packed: bool) -> Texts:
    digest, words = base.folder.text_digest(), base.folder.tokenizer_digest()
    made_in = str(base.text_dtype).removeprefix("torch.") + " and 8 bits" * bool(packed and base.packed_text_part)
    keys = [key("text", digest, words, made_in, text) for text in texts]
    found = Entries(cache, keys, "embedding", HELD_BYTES)
    missing = found.check()
    if missing:
        tell(Phase("encode captions", len(missing), "captions"))
        encode = base.text_encoder(device, packed=packed)
        for start in range(0, len(missing), TEXT_BATCH):
            group = missing[start : start + TEXT_BATCH]
            for i, embedding in zip(group, encode([texts[i] for i in group]), strict=True):
                cache.put(keys[i], {"embedding": embedding.clone()})
                found.hold(i, embedding.clone())
            tell(Tick(min(start + TEXT_BATCH, len(missing))))
    return Texts(texts, found)


class Texts(Mapping[str, Tensor]):
    """Text to its embedding, of `Base.text_shape`."""

    def __init__(self, texts: Sequence[str], embeddings: Sequence[Tensor]):
        self._at = {text: i for i, text in enumerate(texts)}
        self._embeddings = embeddings

    def __getitem__(self, text: str) -> Tensor:
        return self._embeddings[self._at[text]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)
