"""Changes of fused weights: every algorithm is taken apart exactly or refused with the reason, and comes back as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltaw import adapters, formats, tensorfile
from deltaw.delta import Delta, Update
from deltaw.errors import InputError
from deltaw.families import listing
from tests.formats import made

BLOCK = "transformer.transformer_blocks.3.attn"
PATHS = {"sd3": [f"{BLOCK}.{name}" for name in ("to_q", "to_k", "to_v")]}
KEY = "lora_unet_joint_blocks_3_x_block_attn_qkv"
WIDTH = 1536


def numbers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(-8, 9, shape, generator=generator).float() / 16


def whole(kind: str) -> tuple[str, dict[str, torch.Tensor]]:
    """A change of the stacked q, k and v of SD 3, `(4608, 1536)`, as LyCORIS would write it."""
    g = torch.Generator().manual_seed(0)
    n, d = 3 * WIDTH, WIDTH
    alpha = {"alpha": torch.tensor(0.5)}
    half = {"lokr_w1": numbers(g, 48, 32)}
    kinds: dict[str, tuple[str, dict[str, torch.Tensor]]] = {
        "loha": ("loha", {"hada_w1_a": numbers(g, n, 2), "hada_w1_b": numbers(g, 2, d), "hada_w2_a": numbers(g, n, 2),
                          "hada_w2_b": numbers(g, 2, d), **alpha}),
        "lokr of whole blocks": ("lokr", {**half, "lokr_w2_a": numbers(g, 96, 2), "lokr_w2_b": numbers(g, 2, 48), **alpha}),
        "lokr of crossing blocks": ("lokr", {"lokr_w1": numbers(g, 8, 8), "lokr_w2": numbers(g, 576, 192), **alpha}),
        "lokr of factored halves": ("lokr", {"lokr_w1_a": numbers(g, 48, 2), "lokr_w1_b": numbers(g, 2, 32), "lokr_w2": numbers(g, 96, 48), **alpha}),
        "dora of a lokr": ("lokr", {**half, "lokr_w2": numbers(g, 96, 48), "dora_scale": numbers(g, n, 1) + 1}),
        "ia3 on the output": ("ia3", {"weight": numbers(g, n), "on_input": torch.tensor(False)}),
        "ia3 on the input": ("ia3", {"weight": numbers(g, d), "on_input": torch.tensor(True)}),
        "oft": ("oft", {"oft_blocks": numbers(g, n // 8, 8, 8) / 8, "alpha": torch.tensor(0.0), "rescale": numbers(g, n, 1) + 1}),
        "oft under a loose constraint": ("oft", {"oft_blocks": numbers(g, n // 8, 8, 8) / 8, "alpha": torch.tensor(1.0)}),
        "glora": ("glora", {"a1.weight": numbers(g, d, 2), "a2.weight": numbers(g, 2, d), "b1.weight": numbers(g, n, 2),
                            "b2.weight": numbers(g, 2, d), **alpha}),
        "full": ("full", {"diff": numbers(g, n, d), "diff_b": numbers(g, n)}),
    }  # fmt: skip
    return kinds[kind]


KINDS = (
    "loha", "lokr of whole blocks", "lokr of crossing blocks", "lokr of factored halves", "dora of a lokr", "ia3 on the output",
    "ia3 on the input", "oft", "oft under a loose constraint", "glora", "full",
)  # fmt: skip


def canonical(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from deltaw.formats.keys import KOHYA_SUFFIXES

    return {KOHYA_SUFFIXES[suffix].partition(".")[2]: tensor for suffix, tensor in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_change_is_its_modules_changes_and_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    algorithm, tensors = whole(kind)
    tensorfile.write(tmp_path / "x.safetensors", {f"{KEY}.{suffix}": t for suffix, t in tensors.items()})
    delta, match = formats.load(tmp_path / "x.safetensors", strict=True)
    assert (delta.family, list(delta.updates)) == ("sd3", PATHS["sd3"])
    assert match.matched == tuple(PATHS["sd3"])
    base = numbers(torch.Generator().manual_seed(5), 3 * WIDTH, WIDTH)
    wanted = adapters.dense(algorithm, canonical(tensors), (3 * WIDTH, WIDTH), base)
    found = torch.cat([
        adapters.dense(u.algorithm, u.tensors, (WIDTH, WIDTH), base[i * WIDTH : (i + 1) * WIDTH])
        for i, u in enumerate(delta.updates.values())
    ])  # fmt: skip
    assert (found - wanted).abs().max() <= 1e-6 * float(wanted.abs().max())
    formats.save(delta, tmp_path / "y.safetensors", "kohya")
    written = {key.removeprefix(f"{KEY}."): t for key, t in tensorfile.read(tmp_path / "y.safetensors").items()}
    without = {"alpha"} if "loose" in kind else set()  # it had no effect
    assert set(written) == set(tensors) - without
    assert all(written[name].equal(tensors[name]) for name in written)
    assert made.same(delta, formats.load(tmp_path / "y.safetensors", strict=True)[0]) == ""


REFUSED = {
    "butterfly": ({"oft_blocks": torch.zeros(2, 288, 16, 16)}, "butterfly"),
    "crossing blocks": ({"oft_blocks": torch.zeros(4, 1152, 1152)}, "blocks of 1152 rows"),
    "constraint": ({"oft_blocks": torch.ones(576, 8, 8).triu(), "alpha": torch.tensor(1e-9)}, "constraint"),
    "norms per input": ({"lora_up.weight": torch.ones(4608, 2), "lora_down.weight": torch.ones(2, 1536), "dora_scale": torch.ones(1, 1536)},
                        "per input"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_told_apart_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    tensors, words = REFUSED[kind]
    tensorfile.write(tmp_path / "x.safetensors", {f"{KEY}.{suffix}": t for suffix, t in tensors.items()})
    with pytest.raises(InputError, match=words) as caught:
        formats.load(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)


def lora(seed: int, rank: int = 3, down: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"up": numbers(g, WIDTH, rank), "down": numbers(g, rank, WIDTH) if down is None else down}


def _zero(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "up": torch.zeros_like(tensors["up"])}


def _groups() -> dict[str, list[dict[str, torch.Tensor] | None]]:
    shared = [lora(i, down=lora(0)["down"]) for i in range(3)]
    one, other = torch.zeros(WIDTH, 3), torch.zeros(WIDTH, 3)
    one[:, 0], other[:, 1] = 1.0, 1.0
    by_chance = [{**part, "up": up} for part, up in zip(shared, (one, other, torch.zeros(WIDTH, 3)), strict=True)]
    return {
        "one is zero, one is not there, of one factor": [shared[0], _zero(shared[1]), None],
        "one is zero, one is not there, of their own": [lora(0), _zero(lora(1)), None],
        "all are zero": [_zero(part) for part in shared],
        "zero and alone": [None, _zero(shared[1]), None],
        "shared, and block-diagonal by chance": list(by_chance),
        "own factors that are zero": [lora(0), {**lora(1), "down": torch.zeros(3, WIDTH)}, lora(2)],
    }


@pytest.mark.parametrize("dialect", ["kohya", "comfy"])
@pytest.mark.parametrize("name", _groups())
def test_modules_that_are_zero_are_there_and_those_that_are_not_are_not(
    name: str, dialect: str, tmp_path: Path
) -> None:
    parts = _groups()[name]
    updates = {path: Update("lora", part) for path, part in zip(PATHS["sd3"], parts, strict=True) if part is not None}
    delta = Delta("sd3", updates)
    formats.save(delta, tmp_path / "x.safetensors", dialect)
    back, match = formats.load(tmp_path / "x.safetensors", strict=True)
    assert made.same(delta, back) == ""
    assert set(match.matched) == set(updates)
    assert not any(key.startswith("deltaw.fused") for key in back.metadata)


@pytest.mark.parametrize("family", ["sd3", "flux1"])
@pytest.mark.parametrize("algorithm", [a.NAME for a in adapters.ALL if a.SUFFIXES])
def test_every_algorithm_of_fused_modules_is_held_or_refused_by_name(
    algorithm: str, family: str, tmp_path: Path
) -> None:
    """Parts with factors of their own, which only LoRA and what has one tensor alone can join."""
    variant = "flux1" if family == "flux1" else "sd3-medium"
    shapes = listing.modules(variant)
    g = torch.Generator().manual_seed(1)
    updates = {}
    for path in PATHS["sd3"]:
        tensors = adapters.named(algorithm).init(shapes[path], 2, 0.0 if algorithm == "oft" else 1.5, g)
        updates[path] = Update(algorithm, {n: torch.rand(t.shape, generator=g) if t.is_floating_point() and t.ndim else t
                                           for n, t in tensors.items()})  # fmt: skip
    delta = Delta(family, updates)
    holds = algorithm in ("lora", "full", "oft", "ia3")
    for dialect in ("kohya", "kohya-diffusers"):
        if dialect == "kohya" and not holds:
            with pytest.raises(InputError, match=r"kohya cannot hold.*differ"):
                formats.save(delta, tmp_path / dialect, dialect)
            continue
        formats.save(delta, tmp_path / dialect, dialect)
        assert made.same(delta, formats.load(tmp_path / dialect, strict=True)[0]) == ""


def test_a_swapped_weight_of_any_algorithm_means_the_same_rows(tmp_path: Path) -> None:
    """The last modulation: its two halves stand in the other order in the original code."""
    path = "transformer.norm_out.linear"
    shape = listing.modules("sd3-medium")[path]
    base = numbers(torch.Generator().manual_seed(5), *shape)
    swap: Callable[[torch.Tensor], torch.Tensor] = lambda t: torch.cat(t.chunk(2)[::-1])  # noqa: E731
    for algorithm in ("lora", "loha", "lokr", "ia3", "oft", "glora", "full"):
        g = torch.Generator().manual_seed(2)
        tensors = adapters.named(algorithm).init(shape, 2, 0.0 if algorithm == "oft" else 1.5, g)
        tensors = {n: numbers(g, *t.shape) if t.is_floating_point() and t.ndim else t for n, t in tensors.items()}
        delta = Delta("sd3", {path: Update(algorithm, tensors)})
        formats.save(delta, tmp_path / "x.safetensors", "kohya")
        written = {k.partition(".")[2]: t for k, t in tensorfile.read(tmp_path / "x.safetensors").items()}
        theirs = adapters.dense(algorithm, canonical(written), shape, swap(base))
        ours = adapters.dense(algorithm, tensors, shape, base)
        assert (swap(theirs) - ours).abs().max() <= 1e-6 * float(ours.abs().max()), algorithm
        assert made.same(delta, formats.load(tmp_path / "x.safetensors", strict=True)[0]) == ""
