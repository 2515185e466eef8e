"""Where a step's time goes: measured in the run, said in a sentence, shown in the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

import deltaw
from deltaw.events import Event, Note
from deltaw.training import profiling

SETTINGS = ("sample_steps=1", "snapshots=1", 'prompts=["a house"]', "dtype=float32", "device=cpu")


def run(folder: Path, base: Path, out: Path, steps: int) -> tuple[deltaw.Report, list[str]]:
    heard: list[Event] = []
    report = deltaw.train(folder, base=str(base), out=out, settings=SETTINGS, steps=steps, batch=2, rank=2, lr=1e-2,
                          profile=True, tell=heard.append)  # fmt: skip
    return report, [e.text for e in heard if isinstance(e, Note)]


def test_a_run_says_where_its_time_goes(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    report, notes = run(pictures(3), tiny_base, tmp_path / "out", 6)
    (sentence,) = [text for text in notes if text.startswith("a step takes")]
    for part in ("% attention", "% adapters", "% waiting for data", "% convolutions"):
        assert part in sentence
    page = (report.folder / "report.html").read_text()
    assert "Where a step" in page
    assert sentence in page


def test_a_run_too_short_says_so(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    report, notes = run(pictures(3), tiny_base, tmp_path / "out", 3)
    assert "no profile: it takes 6 steps" in notes
    assert "Where a step" not in (report.folder / "report.html").read_text()


def event(*names: str, shapes: list[list[int]] | None = None, us: float = 1.0, at: float = 0.0) -> SimpleNamespace:
    """An operation called by others, innermost first."""
    parent = event(*names[1:]) if len(names) > 1 else None
    return SimpleNamespace(
        name=names[0], cpu_parent=parent, input_shapes=shapes, self_cpu_time_total=us, self_device_time_total=0.0,
        time_range=SimpleNamespace(start=at, end=at + us), device_type=DeviceType.CPU, kernels=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (event("aten::_scaled_dot_product_flash_attention_for_cpu_backward"), "attention"),
        (event("aten::mm", "_LowRankProductBackward", shapes=[[64, 8], [8, 320]]), "adapters"),
        (event("aten::addmm", "_LowRankProduct", shapes=[[320], [64, 320], [320, 320]]), "linear layers"),
        (event("aten::mm", "aten::linear", shapes=[[8, 320], [320, 1280]]), "linear layers"),
        (event("aten::mkldnn_convolution", "aten::conv2d"), "convolutions"),
        (event("aten::addmm", "_ConvolutionProduct", shapes=[[1280], [1280, 11520], [11520, 64]]), "convolutions"),
        (event("aten::bmm", shapes=[[8, 64, 64], [8, 64, 40]]), "attention"),
        (event("aten::native_group_norm"), "normalisation"),
        (event("aten::cat", "aten::stack"), "waiting for data"),
        (event("aten::cat"), "elementwise and copies"),
        (event("aten::_fused_adamw_", "Optimizer.step#AdamW.step"), "optimizer"),
    ],
)
def test_every_operation_has_its_part(found: SimpleNamespace, part: str) -> None:
    assert profiling.part_of(found, rank=8) == part


def kernel(name: str, us: float, at: float = 0.0, *, annotates: bool = False) -> SimpleNamespace:
    """What a GPU did."""
    return SimpleNamespace(
        name=name, self_device_time_total=us, time_range=SimpleNamespace(start=at, end=at + us),
        device_type=DeviceType.CUDA, is_user_annotation=annotates,
    )  # fmt: skip


def test_on_a_gpu_its_time_counts_once_whoever_launched_it() -> None:
    launching = event("aten::mm", "aten::linear", us=5.0)
    launching.self_device_time_total = 30.0
    launching.kernels = [SimpleNamespace(name="nvjet_128x80", duration=30.0)]
    recorded = [kernel("nvjet_128x80", 20.0, 30.0), kernel("cudnn_sdpa_flash_bprop", 25.0, 50.0),
                kernel("_back_through_down", 10.0, 75.0), kernel("at::native::elementwise_kernel", 5.0, 85.0)]  # fmt: skip
    whole = kernel("Optimizer.step#AdamW.step", 100.0, annotates=True)
    shares = profiling.shares_of([launching, kernel("nvjet_128x80", 30.0), *recorded, whole, event("wait", us=0.0, at=100.0)], 8)  # fmt: skip
    found = {part: round(100 * share) for part, share in shares.parts.items() if share}
    assert found == {"linear layers": 50, "attention": 25, "adapters": 10, "elementwise and copies": 5, "Python and waiting": 10}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16", "convolutions"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel", "convolutions"),
        ("void at::native::RowwiseMomentsCUDAKernel", "normalisation"),
        ("void at::native::vectorized_layer_norm_kernel", "normalisation"),
        ("_narrow", "adapters"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void at::native::gelu", "elementwise and copies"),
    ],
)
def test_a_kernel_has_its_part_by_name(name: str, part: str) -> None:
    assert profiling.part_of_kernel(name) == part


def test_shares_are_of_the_wall_clock() -> None:
    events = [event("aten::conv2d", us=30.0), event("aten::mm", us=30.0, at=70.0)]
    shares = profiling.shares_of(events, rank=4)
    assert shares.parts["convolutions"] == pytest.approx(0.3)
    assert shares.parts["Python and waiting"] == pytest.approx(0.4)
    assert sum(shares.parts.values()) == pytest.approx(1.0)
    assert "40 % Python and waiting, 30 % convolutions" in shares.sentence()
