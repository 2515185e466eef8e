"""Textual-inversion vectors: alone in a file, beside a LoRA, or bundled into one.

| form | keys | token from |
| --- | --- | --- |
| diffusers, cloneofsimo | `<token>` | the key |
| kohya SD 1/2 | `emb_params` | the file's name |
| SDXL, SD 3, FLUX | `clip_l`, `clip_g`, `t5` | the file's name |
| bundle (LyCORIS, A1111) | `bundle_emb.<token>.<one of the above, or string_to_param.*>` | the key |
| A1111's `.pt` | `string_to_param.*` (`pickled` reads it) | its `name`, or the file's |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw import families
from deltaw.delta import Delta
from deltaw.families import Family, listing
from deltaw.families.listing import Shapes
from deltaw.formats.pickled import EMBED, TOKEN
from deltaw.tensorfile import Header

if TYPE_CHECKING:
    import torch

BUNDLE = "bundle_emb."
_SINGLE = ("emb_params", "string_to_param.*", "string_to_param")
_PART = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "", "t5xxl": ""}
"""Named encoders; T5's component is the family's last."""


@dataclass(frozen=True)
class Claim:
    """A vector's key with what it means: the token, and the name of its encoder ("" for the only one)."""

    key: str
    token: str
    part: str


def claims(keys: Iterable[str], header: Header, stem: str) -> list[Claim]:
    """Which of these keys hold vectors of tokens.

    Args:
        keys: that no dialect has split.
        header: of the file.
        stem: its name without the suffix, the token of forms that have none.
    """
    keys = list(keys)
    alone = len(keys) == len(header.tensors)
    token = header.metadata.get(TOKEN, stem)
    found: list[Claim] = []
    for key in keys:
        shape = header.tensors[key].shape
        if len(shape) not in (1, 2) or header.tensors[key].dtype not in ("F16", "BF16", "F32", "F64"):
            continue
        if key.startswith(BUNDLE):
            name, _, part = key.removeprefix(BUNDLE).partition(".")
            if part in _SINGLE or part in _PART:
                found.append(Claim(key, name, "" if part in _SINGLE else part))
        elif alone and key in _SINGLE:
            found.append(Claim(key, token, ""))
        elif alone and key in _PART:
            found.append(Claim(key, token, key))
        elif header.metadata.get(key) == EMBED or (alone and len(keys) == 1 and key.strip() and "." not in key):
            found.append(Claim(key, key, ""))
    return found


def family_of(found: Iterable[Claim], header: Header) -> Family | None:
    """The family whose encoders have the vectors' widths."""
    found = list(found)
    for family in families.ALL:
        shapes = listing.modules(family.variants[0])
        parts = {claim.part for claim in found}
        if all(_fits(claim, family, shapes, header) for claim in found) and len(parts) >= len(_clips(family)):
            return family
    return None


def _clips(family: Family) -> list[str]:
    """Components that a file for this family has vectors for at least."""
    return [c.name for c in family.components if "clip_" in c.comfy]


def _fits(claim: Claim, family: Family, shapes: Shapes, header: Header) -> bool:
    width = header.tensors[claim.key].shape[-1]
    return width == width_of(component_of(claim.part, family), shapes)


def component_of(part: str, family: Family) -> str:
    """The component that an encoder's name means in a family."""
    if part in ("t5", "t5xxl"):
        return family.components[-1].name
    return _PART.get(part) or "text_encoder"


def width_of(component: str, shapes: Shapes) -> int:
    """The width of a text encoder's token vectors; 0 where it has none."""
    name = "shared" if f"{component}.shared" in shapes else "text_model.embeddings.token_embedding"
    shape = shapes.get(f"{component}.{name}", (0, 0))
    return shape[1]


def pack(delta: Delta, dialect: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and header entries that keep a change's vectors in a LoRA's file.

    Raises:
        ValueError: the dialect has no place for them.
    """
    if not delta.embeddings:
        return {}, {}
    if dialect == "cloneofsimo":
        if any(set(parts) != {"text_encoder"} for parts in delta.embeddings.values()):
            raise ValueError("it knows one text encoder")
        vectors = {token: parts["text_encoder"] for token, parts in delta.embeddings.items()}
        return vectors, dict.fromkeys(vectors, EMBED)
    if dialect not in ("kohya", "kohya-diffusers"):
        raise ValueError("it has no place for the vectors of tokens")
    if bad := [token for token in delta.embeddings if "." in token]:
        raise ValueError(f"a bundle cannot name the token {bad[0]!r}")
    return {
        f"{BUNDLE}{token}.{name}": vector
        for token, parts in delta.embeddings.items() for name, vector in _named(parts, delta.family).items()
    }, {}  # fmt: skip


def alone(delta: Delta) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and header entries of a file of one token's vectors.

    Raises:
        ValueError: there are several tokens, or modules change as well.
    """
    if delta.updates or len(delta.embeddings) != 1:
        raise ValueError("a file of vectors holds one token and nothing else")
    token, parts = next(iter(delta.embeddings.items()))
    named = _named(parts, delta.family)
    if set(named) == {"emb_params"} and "." not in token:
        return {token: named["emb_params"]}, dict(delta.metadata)
    return named, {**delta.metadata, TOKEN: token}


def _named(parts: Mapping[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    if family in ("sd1", "sd2"):
        return {"emb_params": parts["text_encoder"]}
    last = families.named(family).components[-1].name
    names = {
        "text_encoder": "clip_l",
        "text_encoder_2": "clip_g",
        **({last: "t5"} if family in ("sd3", "flux1") else {}),
    }
    return {names[component]: vector for component, vector in parts.items()}
