"""LyCORIS' own modules, filled with random numbers: their state dict and what their forward pass computes.

The forward pass is the oracle, since it is what files are trained through: LyCORIS 4.1.3's
`get_merged_weight` applies alpha / r twice for LoHa and for LoKr with factors.
"""

from __future__ import annotations

import pytest
import torch

from deltaw.formats.keys import KOHYA_SUFFIXES


def forward(algorithm: str, options: dict, kind: str):
    """The base layer, an input, LyCORIS' output for it and its state dict under canonical names."""
    modules = pytest.importorskip("lycoris.modules", exc_type=ImportError)
    names = {
        "locon": modules.locon.LoConModule, "loha": modules.loha.LohaModule, "lokr": modules.lokr.LokrModule,
        "ia3": modules.ia3.IA3Module, "diag-oft": modules.diag_oft.DiagOFTModule, "boft": modules.boft.ButterflyOFTModule,
        "glora": modules.glora.GLoRAModule, "full": modules.full.FullModule,
    }  # fmt: skip
    torch.manual_seed(3)
    n_out = 32 if algorithm == "boft" else 24
    base = torch.nn.Linear(16, n_out) if kind == "linear" else torch.nn.Conv2d(8, n_out, 3)
    options = {**options, **({"wd_on_out": True} if options == {"weight_decompose": True} else {})}
    module = names[algorithm]("x", base, lora_dim=4, alpha=2.5, **options)
    for parameter in module.parameters():
        if parameter.requires_grad:
            if "dora_scale" in dict(module.named_parameters()) and parameter is module.dora_scale:
                parameter.data *= 1.3
            else:
                parameter.data = torch.randn_like(parameter) * 0.2
    with torch.no_grad():
        state = module.custom_state_dict() if hasattr(module, "custom_state_dict") else None
        state = state if state is not None else module.state_dict()
        x = torch.randn(3, 16) if kind == "linear" else torch.randn(2, 8, 7, 7)
        y = module.eval()(x)
    if algorithm == "full":
        state = {
            "diff": module.weight.data,
            "diff_b": module.bias.data,
        }  # before `apply_to`, its weight is the change itself
    tensors = {
        KOHYA_SUFFIXES[name].partition(".")[2]: t.detach() for name, t in state.items() if name in KOHYA_SUFFIXES
    }
    return base, x, y, tensors
