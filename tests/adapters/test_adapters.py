"""Laws of every algorithm, and LyCORIS itself as the oracle of its algorithms where it is installed."""

from __future__ import annotations

import pytest
import torch

from deltaw import adapters
from deltaw.adapters import dora

SHAPES = [(24, 16), (12, 8, 3, 3), (16, 24, 1, 1)]


def filled(algorithm, shape: tuple[int, ...], rank: int = 4, alpha: float = 2.5) -> dict[str, torch.Tensor]:
    """Tensors of an algorithm with nothing left at zero."""
    generator = torch.Generator().manual_seed(1)
    made = algorithm.init(shape, rank, alpha, generator)
    return {
        name: torch.randn(t.shape, generator=generator) * 0.3 if t.is_floating_point() and name != "alpha" else t
        for name, t in made.items()
    }


def shapes_of(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("algorithm", adapters.ALL, ids=lambda a: a.NAME)
def test_a_new_update_changes_nothing_and_fits(algorithm, shape: tuple[int, ...]) -> None:
    tensors = algorithm.init(shape, 4, 2.0, torch.Generator().manual_seed(0))
    base = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert algorithm.delta(tensors, shape, base).abs().max() == 0
    assert adapters.fits(algorithm.NAME, shapes_of(tensors), shape) == ""
    wrong = (shape[0] + 1, *shape[1:])
    assert algorithm.NAME in ("ia3", "oft-input") or adapters.fits(algorithm.NAME, shapes_of(tensors), wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("algorithm", adapters.ALL, ids=lambda a: a.NAME)
def test_the_change_is_the_formula_in_every_dtype(algorithm, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Rounded tensors give the float64 formula of these tensors to float32 rounding."""
    tensors = {
        n: t.to(dtype) if t.is_floating_point() and n != "alpha" else t for n, t in filled(algorithm, shape).items()
    }
    base = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    exact = algorithm.delta(
        {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}, shape, base.double()
    )
    change = algorithm.delta(tensors, shape, base)
    assert change.shape == shape
    assert change.dtype == torch.promote_types(dtype, torch.float32)
    assert (change.double() - exact).abs().max() <= 3e-6 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_dora_leaves_the_norms_that_it_was_given(shape: tuple[int, ...], axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base, change = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    wanted = torch.rand(tuple(n if i == axis else 1 for i, n in enumerate(shape)), generator=generator) + 0.5
    whole = base + dora.delta(wanted, change, base)
    norms = whole.movedim(axis, 0).flatten(1).norm(dim=1)
    assert torch.allclose(norms, wanted.flatten(), rtol=1e-5)


def test_what_needs_the_base_says_so() -> None:
    for algorithm in adapters.ALL:
        tensors = filled(algorithm, (8, 4))
        if adapters.needs_base(algorithm.NAME, tensors):
            with pytest.raises(ValueError, match="not given"):
                adapters.dense(algorithm.NAME, tensors, (8, 4))
    with pytest.raises(ValueError, match="DoRA"):
        adapters.dense("lora", {**filled(adapters.named("lora"), (8, 4)), "magnitude": torch.ones(8, 1)}, (8, 4))


CASES = [
    ("locon", {}, "lora"), ("locon", {"use_tucker": True}, "lora"), ("locon", {"weight_decompose": True}, "lora"),
    ("locon", {"weight_decompose": True, "wd_on_out": False}, "lora"),
    ("loha", {}, "loha"), ("loha", {"use_tucker": True}, "loha"), ("loha", {"weight_decompose": True}, "loha"),
    ("lokr", {"factor": 4}, "lokr"), ("lokr", {"factor": 4, "decompose_both": True}, "lokr"),
    ("lokr", {"factor": 2, "use_tucker": True}, "lokr"), ("lokr", {"full_matrix": True}, "lokr"),
    ("ia3", {}, "ia3"), ("ia3", {"train_on_input": True}, "ia3"),
    ("diag-oft", {}, "oft"), ("diag-oft", {"rescaled": True, "constraint": 0.001}, "oft"), ("boft", {}, "oft"),
    ("glora", {}, "glora"), ("full", {}, "full"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # LyCORIS' own
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(("theirs", "options", "ours"), CASES, ids=lambda x: str(x))
def test_lycoris_computes_the_same_output(theirs: str, options: dict, ours: str, kind: str) -> None:
    from tests.adapters.lycoris_oracle import forward

    base, x, theirs_out, tensors = forward(theirs, options, kind)
    assert set(tensors) <= {*adapters.named(ours).TENSORS, *adapters.named(ours).OPTIONAL, *adapters.COMMON}, (
        tensors.keys()
    )
    weight = base.weight.detach().clone()
    assert adapters.fits(ours, shapes_of(tensors), tuple(weight.shape)) == ""
    before = base(x).detach()
    base.weight.data = weight + adapters.dense(ours, tensors, tuple(weight.shape), weight)
    base.bias.data += tensors.get("bias", 0.0)
    ours_out = base(x).detach()
    assert (ours_out - theirs_out).abs().max() <= 2e-5 * max(1.0, float(theirs_out.abs().max()))
    assert (theirs_out - before).abs().max() > 1e-2
