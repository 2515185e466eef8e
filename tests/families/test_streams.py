"""Attention of two streams of tokens: what diffusers' is, by torch and by the kernels (in Triton's interpreter)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn

from deltaw.families import bases, streams
from deltaw.families.rotary import Turn

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADS, WIDTH, N_TEXT, N_PICTURE = 3, 16, 5, 7
HIDDEN = HEADS * WIDTH


def flux(*, double: bool) -> FluxAttention:
    added = HIDDEN if double else None
    return FluxAttention(HIDDEN, HEADS, WIDTH, bias=True, out_dim=HIDDEN, added_kv_proj_dim=added, pre_only=not double)


def joint(norm: str | None, *, double: bool = True, last: bool = False) -> Attention:
    added = {"added_kv_proj_dim": HIDDEN, "context_pre_only": last} if double else {}
    return Attention(HIDDEN, None, HEADS, None, WIDTH, bias=True, out_dim=HIDDEN, qk_norm=norm, eps=1e-6,
                     processor=JointAttnProcessor2_0(), **added)  # type: ignore[arg-type]  # fmt: skip


KINDS: dict[str, Callable[[], Any]] = {
    "FLUX.1, two streams": lambda: flux(double=True),
    "FLUX.1, one": lambda: flux(double=False),
    "SD 3.5, two streams": lambda: joint("rms_norm"),
    "SD 3.5, the last block": lambda: joint("rms_norm", last=True),
    "SD 3.5, the second attention": lambda: joint("rms_norm", double=False),
    "SD 3, two streams": lambda: joint(None),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Makes the same layer each time, with weights that were trained: not all 1."""

    def make() -> Any:
        torch.manual_seed(0)
        made = KINDS[request.param]()
        for name, parameter in made.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.3, 2.0)
        return made.requires_grad_(False)

    return make


def angles(n: int) -> tuple[Tensor, Tensor]:
    found = torch.randn(n, WIDTH // 2, generator=torch.Generator().manual_seed(1)).repeat_interleave(2, 1)
    return found.cos(), found.sin()


def asked(attn: Any, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    x, text = (torch.randn(2, n, HIDDEN, generator=generator).to(dtype) for n in (N_PICTURE, N_TEXT))
    told: dict[str, Any] = {"hidden_states": x.requires_grad_()}
    if attn.added_kv_proj_dim is not None:
        told["encoder_hidden_states"] = text.requires_grad_()
    if isinstance(attn, FluxAttention):
        told["image_rotary_emb"] = angles(N_PICTURE + (N_TEXT if len(told) == 2 else 0))
    return told


def answers(attn: Any, dtype: torch.dtype) -> list[Tensor]:
    """What a layer gives, and the gradients to what it reads."""
    told = asked(attn, dtype)
    made = attn.to(dtype)(**told)
    out = list(made) if isinstance(made, tuple) else [made]
    inputs = [t for t in told.values() if isinstance(t, Tensor)]
    loss = torch.stack([y.float().square().sum() for y in out]).sum()
    return [*(y.detach() for y in out), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_queries_and_keys_and_their_gradients_are_those_of_diffusers(fused: bool, normed: bool, turned: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    text, x = (torch.randn(2, n, 3 * HIDDEN, generator=generator).requires_grad_() for n in (N_TEXT, N_PICTURE))
    weights = [(torch.rand(WIDTH) + 0.3, torch.rand(WIDTH) + 0.3) for _ in range(2)]
    turns = angles(N_TEXT + N_PICTURE) if turned else None
    found = Turn(HEADS, weights if normed else None, 1e-5, turns, fused, by_head=not fused)(text, x)
    parts = [stream.unflatten(-1, (3, HEADS, WIDTH)).unbind(2) for stream in (text, x)]
    wanted: list[Tensor] = []
    for i in range(2):
        made = [part[i] for part in parts]
        if normed:
            made = [nn.functional.rms_norm(a, (WIDTH,), w[i], 1e-5) for a, w in zip(made, weights, strict=True)]
        whole = torch.cat(made, 1)
        wanted.append(apply_rotary_emb(whole, turns, sequence_dim=1) if turns else whole)  # type: ignore[arg-type]
    wanted.append(torch.cat([part[2] for part in parts], 1))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    given = torch.randn(3, *wanted[0].shape, generator=generator)
    ours, theirs = (torch.autograd.grad((torch.stack(list(made)) * given).sum(), [text, x]) for made in (found, wanted))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("device", [CPU, CUDA], ids=["cpu", "cuda"])
def test_a_layer_is_as_near_to_float32_as_diffusers_own(kind: Callable[[], Any], device: torch.device) -> None:
    exact, theirs, attn = answers(kind(), torch.float32), answers(kind(), torch.bfloat16), kind()
    streams.speed_up(attn, device, torch.bfloat16)
    assert isinstance(attn.processor, streams.FluxStreams | streams.JointStreams)
    for a, b, c in zip(answers(attn, torch.bfloat16), theirs, exact, strict=True):
        assert float((a - c).norm()) <= 1.5 * float((b - c).norm()), "the plain attention of a CPU rounds its weights"


def test_in_float32_a_layer_computes_as_diffusers_own(kind: Callable[[], Any]) -> None:
    attn = kind()
    streams.speed_up(attn, CPU, torch.bfloat16)
    assert all(map(torch.equal, answers(attn, torch.float32), answers(kind(), torch.float32)))


@pytest.mark.parametrize("double", [True, False])
def test_what_is_projected_is_not_kept(double: bool) -> None:
    """Of all tokens the backward pass needs q, k, v and what they give."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if t.dtype is torch.bfloat16 and t.ndim > 2:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    attn = flux(double=double).bfloat16().requires_grad_(False)
    streams.speed_up(attn, CUDA, torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        attn(**asked(attn, torch.bfloat16))
    of_tokens = 2 * (N_PICTURE + N_TEXT * double) * HIDDEN * 2
    assert 3 * of_tokens <= sum(kept.values()) <= 4 * of_tokens


@pytest.mark.parametrize("spoilt", [0.0, 1e-3])
def test_norms_that_cannot_be_undone_keep_diffusers_own(spoilt: float) -> None:
    for attn, theirs in ((flux(double=True), FluxAttnProcessor), (joint("rms_norm"), JointAttnProcessor2_0)):
        norm: Any = attn.norm_added_k
        norm.weight.data[4] = spoilt
        streams.speed_up(attn, CPU, torch.bfloat16)
        assert type(attn.processor) is theirs


def test_other_norms_keep_diffusers_own() -> None:
    attn = joint("layer_norm")
    streams.speed_up(attn, CPU, torch.bfloat16)
    assert type(attn.processor) is JointAttnProcessor2_0


@pytest.mark.parametrize(
    ("tiny", "ours", "theirs"),
    [("tiny_flux", streams.FluxStreams, FluxAttnProcessor), ("tiny_sd3", streams.JointStreams, JointAttnProcessor2_0)],
)
def test_a_base_uses_it_where_it_computes_in_bfloat16(
    tiny: str, ours: type, theirs: type, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(tiny)
    base = bases.open_base(path)
    for dtype, expected in ((torch.bfloat16, ours), (torch.float32, theirs)):
        network = base.denoiser(CPU, dtype)
        layers = [m for m in network.modules() if isinstance(m, FluxAttention | Attention)]
        assert {type(m.processor) for m in layers} == {expected}
