"""What a base model family is, as facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Component:
    """A network of the pipeline that a LoRA may change.

    Args:
        name: its attribute in the diffusers pipeline, and the first word of canonical module paths.
        kohya: its prefix in kohya's flattened keys.
        comfy: its prefix in ComfyUI's dotted keys.
        aliases: other prefixes of flattened keys that are read and never written.
    """

    name: str
    kohya: str
    comfy: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Original:
    """A module under the name it has in the code that the model was published with.

    Args:
        name: its dotted path there, without the component.
        parts: the canonical paths, without the component, whose weights' rows it stacks; mostly one.
        swapped: its two halves of rows are in the other order (shift before scale).
    """

    name: str
    parts: tuple[str, ...]
    swapped: bool = False


def unchanged(paths: Iterable[str]) -> list[Original]:
    """The original names of a component that diffusers and transformers did not rename."""
    return [Original(path, (path,)) for path in paths]


@dataclass(frozen=True)
class Family:
    """A base model family as data.

    Args:
        name: short and stable, as in file names and `Delta.family`.
        title: for people.
        architecture: `modelspec.architecture` of a base; a LoRA's adds "/lora".
        kohya_version: `ss_base_model_version`.
        components: what a LoRA of this family may hold, the denoiser first.
        variants: the listings in `families/modules/` of its networks, the usual one first; they share
            module names and differ in width or depth.
        original: the denoiser's original names, given its canonical paths without the component.
        kohya_original: kohya's files name the denoiser's modules as the original code does.
    """

    name: str
    title: str
    architecture: str
    kohya_version: str
    components: tuple[Component, ...]
    variants: tuple[str, ...]
    original: Callable[[Iterable[str]], list[Original]] = unchanged
    kohya_original: bool = True

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
