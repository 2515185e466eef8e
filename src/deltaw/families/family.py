"""What a base model family is: facts, and where it can be trained, a way to open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Component:
    """A network of the pipeline that a LoRA may change.

    Args:
        name: its attribute in the diffusers pipeline, and the first word of canonical module paths.
        kohya: its prefix in kohya's flattened keys.
        comfy: its prefix in ComfyUI's dotted keys.
    """

    name: str
    kohya: str
    comfy: str


@dataclass(frozen=True)
class Family:
    """A base model family as data.

    Args:
        name: short and stable, as in file names and `Delta.family`.
        title: for people.
        architecture: `modelspec.architecture` of a base; a LoRA's adds "/lora".
        kohya_version: `ss_base_model_version`.
        components: what a LoRA of this family may hold, the denoiser first.
        open: makes a `Base` of a diffusers folder, or None where only files are handled so far.
    """

    name: str
    title: str
    architecture: str
    kohya_version: str
    components: tuple[Component, ...]
    open: Callable[..., Any] | None = None

    @property
    def denoiser(self) -> str:
        """The name of the component that predicts noise."""
        return self.components[0].name

    def component(self, name: str) -> Component:
        """The component of that name.

        Raises:
            KeyError: the family has none of that name.
        """
        return {component.name: component for component in self.components}[name]
