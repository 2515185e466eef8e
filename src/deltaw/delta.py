"""`Delta`: a trained change of a base model as a value, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Update:
    """The change of one module's weight.

    Args:
        algorithm: a name in `adapters.ALL` ("lora", "loha", ...), which gives the tensors their meaning.
        tensors: the algorithm's canonical tensor names to tensors, e.g. LoRA's
            `up (out, r[, 1, 1])`, `down (r, in[, kh, kw])`, `alpha ()` (absent means alpha = r).
    """

    algorithm: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def n_params(self) -> int:
        """Numbers stored, alpha included."""
        return sum(t.numel() for t in self.tensors.values())


@dataclass(frozen=True)
class Delta:
    """Changes of a base model, by canonical module path.

    Args:
        family: a name in `families.ALL`.
        updates: canonical path to `Update`. A path is the component's attribute in the diffusers
            pipeline and the module's path in it: `unet.mid_block.attentions.0...attn1.to_q`,
            `text_encoder.text_model.encoder.layers.0.self_attn.q_proj`, `transformer....`.
        trigger: the words that call the change up.
        metadata: what the file said of itself (`ss_*`, `modelspec.*`, ...), kept as strings.
        embeddings: token to vectors `(n_tok, width)` for a component, as `{"<s1>": {"text_encoder": t}}`.
    """

    family: str
    updates: Mapping[str, Update]
    trigger: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    embeddings: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def n_params(self) -> int:
        """Numbers stored over all modules."""
        return sum(update.n_params for update in self.updates.values())

    def with_metadata(self, metadata: Mapping[str, str]) -> Delta:
        """The same change with other metadata."""
        return replace(self, metadata=dict(metadata))

    def save(self, path: str | Path, dialect: str = "kohya") -> int:
        """Writes the change as a file that other tools read; returns its size in bytes.

        Raises:
            UsageError: no dialect is called so.
            InputError: the dialect cannot hold this change; every reason is named.
        """
        from deltaw import formats  # the one import that points up: a value that can be kept is worth it

        return formats.save(self, path, dialect)
