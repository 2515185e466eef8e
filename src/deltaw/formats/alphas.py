"""Alphas that lie in a PEFT configuration instead of the file: reading and writing them.

PEFT looks for the first pattern that matches a path's end and else takes `lora_alpha`; with `use_rslora` it
divides alpha by √r instead of r (PEFT `LoraConfig`, Kalajdzievski 2023, arXiv 2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from deltaw import adapters, families
from deltaw.delta import Delta, Update

HEADER = "lora_adapter_metadata"
"""diffusers' header key for the configurations: JSON with `component.field` keys (`loaders/lora_base.py`)."""

DTYPES = "deltaw.alpha_dtypes"
"""Header key: path to the dtype of its alpha tensor where that is not float32, "" where there was no alpha.
A configuration holds numbers only, so this is what makes the way there and back exact."""

Configure = Callable[[str, Mapping[str, Update]], dict[str, Any]]

_LITERAL = re.compile(r"\^?[\w.]+\$?")
_TAME = re.compile(r"(?:[\w^$|()\-]|\\.|\.\*?)*")


def configured(config: Mapping[str, Any], path: str, rank: int) -> float | None:
    """The alpha that a configuration gives to the module at `path`, as if divided by r; None if it gives none.

    Raises:
        ValueError: a pattern is one that a search could hang on, or a value is not a number.
    """
    alpha = by_pattern(config.get("alpha_pattern") or {}, path, config.get("lora_alpha", config.get("alpha")))
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or abs(alpha) > 1e300:
        raise ValueError(f"alpha {str(alpha)[:40]!r} of {path} is not a number")
    return float(alpha) * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first pattern that a path's end matches, as PEFT looks for it.

    Raises:
        ValueError: a pattern is one that a search could hang on.
    """
    if not isinstance(patterns, Mapping):
        raise ValueError("patterns are no object")
    for exact in (path, f"^{path}"):
        if exact in patterns:
            return patterns[exact]
    for pattern, value in patterns.items():
        if _LITERAL.fullmatch(pattern):
            plain = pattern.strip("^$")
            if path == plain or (not pattern.startswith("^") and path.endswith(f".{plain}")):
                return value
        elif not _TAME.fullmatch(pattern) or pattern.count(".*") > 4:
            raise ValueError(f"the pattern {pattern[:80]!r} is not one that is searched for")
        elif _compiled(pattern).match(path):
            return value
    return default


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except re.error as error:
        raise ValueError(f"the pattern {pattern[:80]!r} is not one that is searched for ({error})") from error


def config(ranks: Mapping[str, int], alphas: Mapping[str, float], dora: bool = False) -> dict[str, Any]:
    """The `LoraConfig` fields that give every module its rank and alpha.

    Paths of CLIP lose their `text_model.`, so that the patterns fit the networks of every transformers version.

    Args:
        ranks: path in the network to r.
        alphas: path in the network to alpha.
        dora: the modules carry DoRA norms.
    """
    return {
        **patterns(ranks, alphas, "lora_alpha"),
        "target_modules": sorted(as_pattern(path).removeprefix("^") for path in ranks),
        "use_dora": dora,
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
    }


def patterns(ranks: Mapping[str, int], alphas: Mapping[str, float], name: str) -> dict[str, Any]:
    """The commonest rank and alpha (which the configuration calls `name`), and patterns for the others."""
    ranks = {as_pattern(path): rank for path, rank in ranks.items()}
    alphas = {as_pattern(path): alpha for path, alpha in alphas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        name: _number(alpha),
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: _number(a) for path, a in alphas.items() if a != alpha},
    }


def in_header(delta: Delta, configured: Configure) -> dict[str, str]:
    """The header entries that hold the alphas: a configuration a component, and the alphas' dtypes.

    Args:
        delta: the change.
        configured: component and its modules' updates (by path in the network) to the configuration's fields.

    Raises:
        ValueError: no configuration holds a component.
    """
    packed: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for component in families.named(delta.family).components:
        prefix = f"{component.name}."
        own = {path.removeprefix(prefix): u for path, u in delta.updates.items() if path.startswith(prefix)}
        if not own:
            continue
        packed |= {f"{prefix}{key}": value for key, value in configured(component.name, own).items()}
        for path, update in own.items():
            alpha = update.tensors.get("alpha")
            name = "" if alpha is None else str(alpha.dtype).removeprefix("torch.")
            ranked = adapters.rank(update.algorithm, {n: tuple(t.shape) for n, t in update.tensors.items()}) is not None
            if name != "float32" and ranked:
                dtypes[f"{prefix}{path}"] = name
    found = {HEADER: json.dumps(packed, sort_keys=True)}
    return {**found, DTYPES: json.dumps(dtypes)} if dtypes else found


def of_lora(component: str, own: Mapping[str, Update]) -> dict[str, Any]:
    """The `LoraConfig` of a component's modules; a `Configure`."""
    ranks = {path: update.tensors["down"].shape[0] for path, update in own.items()}
    given = {path: float(update.tensors["alpha"]) for path, update in own.items() if "alpha" in update.tensors}
    numbers = {path: given.get(path, float(rank)) for path, rank in ranks.items()}
    return config(ranks, numbers, dora=any("magnitude" in update.tensors for update in own.values()))


def as_pattern(path: str) -> str:
    """A path as a pattern for the whole of it; CLIP's without the `text_model.` that transformers 5 drops."""
    return path.removeprefix("text_model.") if path.startswith("text_model.") else f"^{path}"


def _number(x: float) -> float | int:
    return int(x) if float(x).is_integer() else x
