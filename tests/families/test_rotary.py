"""FLUX.1's normalised and turned queries and keys: what diffusers' are, by torch and by the kernels (in Triton's interpreter)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn

from deltaw.families import bases, rotary

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADS, WIDTH, N_TEXT, N_PICTURE = 3, 16, 5, 7
HIDDEN = HEADS * WIDTH


@pytest.fixture(params=[False, True], ids=["torch", "kernels"])
def fused(request: pytest.FixtureRequest) -> bool:
    if request.param:
        pytest.importorskip("triton", reason="torch brings Triton where there are NVIDIA GPUs")
        if torch.cuda.is_available():
            pytest.skip("the interpreter is for machines without a GPU")
    return request.param


def layer(*, double: bool) -> FluxAttention:
    """A layer with weights that were trained: not all 1."""
    torch.manual_seed(0)
    made = FluxAttention(
        HIDDEN,
        HEADS,
        WIDTH,
        bias=True,
        out_dim=HIDDEN,
        added_kv_proj_dim=HIDDEN if double else None,
        pre_only=not double,
    )
    for name, parameter in made.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.3, 2.0)
    return made.requires_grad_(False)


def angles(n: int) -> tuple[Tensor, Tensor]:
    found = torch.randn(n, WIDTH // 2, generator=torch.Generator().manual_seed(1)).repeat_interleave(2, 1)
    return found.cos(), found.sin()


def asked(*, double: bool, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, N_PICTURE, HIDDEN, generator=generator).to(dtype).requires_grad_()
    text = torch.randn(2, N_TEXT, HIDDEN, generator=generator).to(dtype).requires_grad_()
    if not double:
        return {"hidden_states": x, "image_rotary_emb": angles(N_PICTURE)}
    return {"hidden_states": x, "encoder_hidden_states": text, "image_rotary_emb": angles(N_TEXT + N_PICTURE)}


def test_queries_and_keys_and_their_gradients_are_those_of_diffusers(fused: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    text, x = (torch.randn(2, n, 3 * HEADS * WIDTH, generator=generator).requires_grad_() for n in (N_TEXT, N_PICTURE))
    weights = [(torch.rand(WIDTH) + 0.3, torch.rand(WIDTH) + 0.3) for _ in range(2)]
    cos, sin = angles(N_TEXT + N_PICTURE)
    found = rotary._Turned.apply(rotary._Turn(weights, 1e-5, cos, sin, fused, False), text, x)
    parts = [stream.unflatten(-1, (3, HEADS, WIDTH)).unbind(2) for stream in (text, x)]
    wanted = []
    for i in range(2):
        normed = [
            nn.functional.rms_norm(part[i], (WIDTH,), weight[i], 1e-5)
            for part, weight in zip(parts, weights, strict=True)
        ]
        wanted.append(apply_rotary_emb(torch.cat(normed, 1), (cos, sin), sequence_dim=1))
    wanted.append(torch.cat([part[2] for part in parts], 1))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    given = torch.randn(3, *wanted[0].shape, generator=generator)
    ours, theirs = (torch.autograd.grad((torch.stack(list(made)) * given).sum(), [text, x]) for made in (found, wanted))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=["cpu", "cuda"])
def test_a_layer_is_as_near_to_float32_as_diffusers_own(double: bool, device: torch.device) -> None:
    def answers(attn: FluxAttention, dtype: torch.dtype) -> list[Tensor]:
        told = asked(double=double, dtype=dtype)
        made = attn.to(dtype)(**told)
        out = list(made) if double else [made]
        inputs = [t for t in told.values() if isinstance(t, Tensor)]
        return [*(y.detach() for y in out), *torch.autograd.grad(torch.cat(out, 1).float().square().sum(), inputs)]

    exact, theirs = answers(layer(double=double), torch.float32), answers(layer(double=double), torch.bfloat16)
    attn = layer(double=double)
    rotary.speed_up(attn, device, torch.bfloat16)
    assert isinstance(attn.processor, rotary.RotaryAttention)
    for a, b, c in zip(answers(attn, torch.bfloat16), theirs, exact, strict=True):
        assert float((a - c).norm()) <= 1.3 * float((b - c).norm())


def test_in_float32_a_layer_computes_as_diffusers_own() -> None:
    told = asked(double=True, dtype=torch.float32)
    wanted = layer(double=True)(**told)
    attn = layer(double=True)
    rotary.speed_up(attn, CPU, torch.bfloat16)
    assert all(map(torch.equal, attn(**told), wanted))


def test_what_is_projected_is_not_kept() -> None:
    """Of a layer's tokens that the backward pass needs: x where an adapter reads it, q, k, v and what they give."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if t.dtype is torch.bfloat16 and t.numel() >= N_PICTURE * HEADS * WIDTH:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    attn = layer(double=False).bfloat16()
    rotary.speed_up(attn, CUDA, torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        attn(**asked(double=False, dtype=torch.bfloat16))
    of_tokens = 2 * N_PICTURE * HEADS * WIDTH * 2
    weights = sum(p.nbytes for p in attn.parameters() if p.ndim == 2)
    assert sum(kept.values()) <= 4 * of_tokens + weights


def test_norms_that_cannot_be_undone_keep_diffusers_own() -> None:
    for spoilt in (0.0, 1e-3):
        attn = layer(double=True)
        attn.norm_added_k.weight[4] = spoilt
        rotary.speed_up(attn, CPU, torch.bfloat16)
        assert type(attn.processor) is FluxAttnProcessor


def test_a_base_uses_it_where_it_computes_in_bfloat16(tiny_flux: Path) -> None:
    base = bases.open_base(tiny_flux)
    for dtype, expected in ((torch.bfloat16, rotary.RotaryAttention), (torch.float32, FluxAttnProcessor)):
        network = base.denoiser(CPU, dtype)
        assert {type(m.processor) for m in network.modules() if isinstance(m, FluxAttention)} == {expected}
