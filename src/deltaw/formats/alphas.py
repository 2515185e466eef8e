"""Alphas that lie in a PEFT configuration instead of the file: reading and writing them.

PEFT looks for the first pattern that matches a path's end and else takes `lora_alpha`; with `use_rslora` it
divides alpha by √r instead of r (PEFT `LoraConfig`, Kalajdzievski 2023, arXiv 2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from deltaw import families
from deltaw.delta import Delta

HEADER = "lora_adapter_metadata"
"""diffusers' header key for the configurations: JSON with `component.field` keys (`loaders/lora_base.py`)."""

DTYPES = "deltaw.alpha_dtypes"
"""Header key: path to the dtype of its alpha tensor where that is not float32, "" where there was no alpha.
A configuration holds numbers only, so this is what makes the way there and back exact."""

_LITERAL = re.compile(r"\^?[\w.]+\$?")
_TAME = re.compile(r"(?:[\w^$|()\-]|\\.|\.\*?)*")


def configured(config: Mapping[str, Any], path: str, rank: int) -> float | None:
    """The alpha that a `LoraConfig` gives to the module at `path`, as if divided by r; None if it gives none.

    Raises:
        ValueError: a pattern is one that a search could hang on, or a value is not a number.
    """
    alpha = _by_pattern(config.get("alpha_pattern") or {}, path, config.get("lora_alpha"))
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"alpha {alpha!r} of {path} is not a number")
    return float(alpha) * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def _by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
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
    ranks = {_as_pattern(path): rank for path, rank in ranks.items()}
    alphas = {_as_pattern(path): alpha for path, alpha in alphas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: _number(a) for path, a in alphas.items() if a != alpha},
        "target_modules": sorted(path.removeprefix("^") for path in ranks),
        "use_dora": dora,
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
    }


def in_header(delta: Delta) -> dict[str, str]:
    """The header entries that hold a LoRA's alphas: a `LoraConfig` a component, and the alphas' dtypes."""
    packed: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for component in families.named(delta.family).components:
        prefix = f"{component.name}."
        own = {path.removeprefix(prefix): u.tensors for path, u in delta.updates.items() if path.startswith(prefix)}
        if not own:
            continue
        ranks = {path: tensors["down"].shape[0] for path, tensors in own.items()}
        given = {path: tensors["alpha"] for path, tensors in own.items() if "alpha" in tensors}
        numbers = {path: float(given[path]) if path in given else float(rank) for path, rank in ranks.items()}
        fields = config(ranks, numbers, dora=any("magnitude" in tensors for tensors in own.values()))
        packed |= {f"{prefix}{key}": value for key, value in fields.items()}
        for path in own:
            name = str(given[path].dtype).removeprefix("torch.") if path in given else ""
            if name != "float32":
                dtypes[f"{prefix}{path}"] = name
    found = {HEADER: json.dumps(packed, sort_keys=True)}
    return {**found, DTYPES: json.dumps(dtypes)} if dtypes else found


def _as_pattern(path: str) -> str:
    return path.removeprefix("text_model.") if path.startswith("text_model.") else f"^{path}"


def _number(x: float) -> float | int:
    return int(x) if float(x).is_integer() else x
