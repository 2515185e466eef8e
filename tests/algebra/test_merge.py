"""`merge`: Σ wᵢ·ΔWᵢ to float32 rounding on true layer shapes, whatever the ranks, alphas, dialects and algorithms."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from deltaw import formats
from deltaw.adapters import conflict
from deltaw.delta import Delta, Update
from deltaw.errors import DeltawError, InputError, UnverifiedError
from deltaw.events import Note
from deltaw.families import listing
from deltaw.verbs.merge import merge
from tests.algebra.dense import dense, relative_error, summed
from tests.formats import made
from tests.formats.test_round_trip import of_algorithm

BASES = [("sd1", "sd1"), ("sdxl", "sdxl"), ("flux1", "flux1")]


def sampled(variant: str) -> list[str]:
    """A dozen modules of each size that a variant has, small enough for dense references."""
    shapes = listing.modules(variant)
    kinds: dict[tuple[int, ...], str] = {}
    for path in made.paths(variant):
        if max(shapes[path]) <= 5120:
            kinds.setdefault(shapes[path], path)
    return list(kinds.values())[:6]


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """Of a dense float64 matrix of a rank below 40, through its range; a whole SVD would take minutes."""
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], 40, dtype=matrix.dtype))[0]
    return torch.linalg.svdvals(basis.mT @ matrix)


def three(family: str, variant: str, folder: Path) -> tuple[list[tuple[str | Path, float]], list[tuple[float, Delta]]]:
    among = sampled(variant)
    deltas = [
        made.delta(family, variant, rank=4, alpha=1.0, among=among),
        made.delta(family, variant, rank=16, alpha=None, among=among[::2], seed=1, dtype=torch.float32),
        made.delta(family, variant, rank=7, alpha=3.0, among=among[1:], seed=2, dtype=torch.bfloat16),
    ]
    weights = (0.8, -1.25, 0.0)
    for i, (delta, dialect) in enumerate(zip(deltas, ("kohya", "diffusers", "comfy"), strict=True)):
        formats.save(delta, folder / f"{i}.safetensors", dialect)
    files = [(folder / f"{i}.safetensors", w) for i, w in enumerate(weights)]
    return files, list(zip(weights, deltas, strict=True))


@pytest.mark.parametrize(("family", "variant"), BASES)
def test_the_sum_is_exact_to_float32(family: str, variant: str, tmp_path: Path) -> None:
    files, terms = three(family, variant, tmp_path)
    report = merge(files, tmp_path / "out.safetensors")
    wanted = summed(terms)
    got, _ = formats.load(tmp_path / "out.safetensors", strict=True)
    assert relative_error(dense(got), {p: w for p, w in wanted.items() if w.any()}) <= 1e-6
    assert report.error <= 1e-6
    assert report.energy == 1.0
    assert sum(layer.rank for layer in report.layers if layer.path in got.updates) > 0


@pytest.mark.parametrize("budget", [{"rank": 5}, {"energy": 0.9}, {"size": "300kB"}], ids=str)
@pytest.mark.parametrize(("family", "variant"), BASES)
def test_a_cut_is_the_optimum_and_says_what_it_costs(family: str, variant: str, budget: dict, tmp_path: Path) -> None:
    files, terms = three(family, variant, tmp_path)
    report = merge(files, tmp_path / "out.safetensors", **budget, dtype="float32")
    wanted = {p: w for p, w in summed(terms).items() if w.any()}
    got = dense(formats.load(tmp_path / "out.safetensors", strict=True)[0])
    for layer in report.layers:
        if layer.path in wanted:
            matrix = wanted[layer.path].flatten(1)
            s = singular_values(matrix)
            optimum = float(s[layer.rank :].norm())
            off = float((got.get(layer.path, torch.zeros_like(matrix)).flatten(1) - matrix).norm())
            assert abs(off - optimum) <= 1e-5 * float(s.norm())
            assert abs(layer.error - optimum) <= 1e-5 * float(s.norm())
    error = relative_error(got, wanted)
    assert abs((1 - report.energy) ** 0.5 - error) <= 1e-4
    assert abs(report.error - error) <= 0.25 * error  # measured on eight random probes
    if "size" in budget:
        assert report.n_bytes <= 300_000
    if "energy" in budget:
        assert 1 - error**2 >= 0.9 - 1e-6


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "full"])
def test_other_algorithms_become_their_change(algorithm: str, tmp_path: Path) -> None:
    other = of_algorithm(algorithm, "sd1", "sd1")
    plain = made.delta("sd1", "sd1", among=list(other.updates))
    formats.save(other, tmp_path / "a.safetensors")
    formats.save(plain, tmp_path / "b.safetensors")
    merge([(tmp_path / "a.safetensors", 0.5), (tmp_path / "b.safetensors", 2.0)], tmp_path / "c.safetensors")
    got, _ = formats.load(tmp_path / "c.safetensors", strict=True)
    assert relative_error(dense(got), summed([(0.5, other), (2.0, plain)])) <= 1e-6


def test_block_weights_multiply_where_the_pattern_fits(tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji")
    formats.save(delta, tmp_path / "a.safetensors")
    merge([(tmp_path / "a.safetensors", 2.0)], tmp_path / "b.safetensors", weights={"a": {"unet.*": 0.5, "*": 0.0}})
    got, _ = formats.load(tmp_path / "b.safetensors")
    wanted = {p: w for p, w in summed([(1.0, delta)]).items() if p.startswith("unet.")}
    assert set(got.updates) == set(wanted)
    assert relative_error(dense(got), wanted) <= 1e-6


def test_ties_and_dare_on_planted_conflicts(tmp_path: Path) -> None:
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    shape = listing.modules("emoji")[path]
    a, b = torch.zeros(shape), torch.zeros(shape)
    a[0, :8], b[0, :8] = 3.0, -1.0  # a conflict: the stronger sign is elected, the other does not dampen it
    a[1, :8], b[1, :8] = 2.0, 4.0  # agreement: the mean
    a[2, :8] = 5.0  # no rival: as it is
    for name, change in (("a", a), ("b", b)):
        formats.save(Delta("sd1", {path: Update("full", {"diff": change})}), tmp_path / f"{name}.safetensors")
    files = [(tmp_path / "a.safetensors", 1.0), (tmp_path / "b.safetensors", 1.0)]
    merge(files, tmp_path / "t.safetensors", method="ties", density=1.0, energy=1.0)
    got = dense(formats.load(tmp_path / "t.safetensors")[0])[path]
    assert torch.allclose(got[:3, 0], torch.tensor([3.0, 3.0, 5.0], dtype=torch.float64), atol=1e-5)
    assert float(dense(formats.load(tmp_path / "t.safetensors")[0])[path][3:].abs().max()) < 1e-5
    merge(files, tmp_path / "d.safetensors", method="dare", density=0.5, energy=1.0)
    dropped = dense(formats.load(tmp_path / "d.safetensors")[0])[path]
    assert set(dropped[2, :8].round(decimals=3).abs().tolist()) <= {0.0, 10.0}  # dropped, or rescaled by 1 / density


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_keeps_the_largest_entries_of_factors_as_of_the_dense_change(
    density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    factors = [(torch.randn(30, 4, generator=generator), torch.randn(4, 50, generator=generator)) for _ in range(3)]
    whole = [up @ down for up, down in factors]
    trimmed = torch.zeros(3, 30, 50)
    for kept, change in zip(trimmed, whole, strict=True):
        largest = change.abs().flatten().topk(round(density * 1500)).indices
        kept.view(-1)[largest] = change.flatten()[largest]
    agreeing = trimmed * (trimmed.sign() == trimmed.sum(0).sign())
    wanted = agreeing.sum(0) / (agreeing != 0).sum(0).clamp_min(1)
    monkeypatch.setattr(conflict, "BLOCK", 400)  # blocks of 8 rows, the last of 6
    assert torch.allclose(conflict.ties(whole, (30, 50), density), wanted, atol=1e-6)
    assert torch.allclose(conflict.ties(factors, (30, 50), density), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ([("a.safetensors", 1.0), ("x.safetensors", 1.0)], {}, "different bases"),
        ([("a.safetensors", 1.0)], {"out": "a.safetensors"}, "the output is an input"),
        ([("a.safetensors", 1.0)], {"out": "."}, "the output is a folder"),
        ([("a.safetensors", 1.0)], {"out": "a.safetensors/b.safetensors"}, "cannot write here"),
        ([("a.safetensors", 0.0)], {}, "nothing is left"),
        ([("a.safetensors", float("nan"))], {}, "no number"),
        ([("a.safetensors", 1.0)], {"rank": 2, "energy": 0.9}, "contradict"),
        ([("a.safetensors", 1.0)], {"rank": 0}, "keeps nothing"),
        ([("a.safetensors", 1.0)], {"size": "4 apples"}, "no size"),
        ([("a.safetensors", 1.0)], {"method": "ties"}, "full rank"),
        ([("a.safetensors", 1.0)], {"method": "magic", "rank": 1}, "no method"),
        ([("a.safetensors", 1.0)], {"weights": {"b": {}}}, "no file is called"),
        ([("a.safetensors", 1e9)], {"dtype": "float16"}, "too large for the dtype"),
        ([("e.safetensors", 1.0), ("a.safetensors", 1.0)], {}, "changes of one base"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_cannot_be_is_refused_with_a_reason(files, options: dict, words: str, tmp_path: Path) -> None:
    formats.save(made.delta("sd1", "sd1"), tmp_path / "a.safetensors")
    formats.save(made.delta("sdxl", "sdxl"), tmp_path / "x.safetensors")
    formats.save(made.delta("sd1", "emoji"), tmp_path / "e.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    out = tmp_path / options.pop("out", "out.safetensors")
    with pytest.raises(DeltawError, match=words):
        merge([(tmp_path / name, w) for name, w in files], out, **options)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "e.safetensors", "x.safetensors"]


def test_the_same_file_twice_adds_up_and_fifty_files_are_exact(tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji", among=made.paths("emoji")[:6])
    formats.save(delta, tmp_path / "a.safetensors")
    told: list[object] = []
    merge([(tmp_path / "a.safetensors", 0.1)] * 50, tmp_path / "b.safetensors", tell=told.append)
    got, _ = formats.load(tmp_path / "b.safetensors")
    assert relative_error(dense(got), summed([(5.0, delta)])) <= 1e-6
    assert any(isinstance(event, Note) and "more than once" in event.text for event in told)


@pytest.mark.parametrize("budget", [{}, {"energy": 0.9}, {"rank": 3}], ids=str)
def test_changes_that_cancel_leave_rounding_and_no_crash(budget: dict, tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji", among=made.paths("emoji")[:6])
    formats.save(delta, tmp_path / "a.safetensors")
    files = [(tmp_path / "a.safetensors", 1.0), (tmp_path / "a.safetensors", -1.0)]
    with contextlib.suppress(InputError):  # nothing is left to write, which is right as well
        merge(files, tmp_path / "b.safetensors", **budget)
    if not (tmp_path / "b.safetensors").exists():
        return
    left = dense(formats.load(tmp_path / "b.safetensors")[0])
    size = sum(float(change.norm()) for change in dense(delta).values())
    assert sum(float(change.norm()) for change in left.values()) <= 1e-6 * size


def test_a_file_that_does_something_else_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = made.delta("sd1", "emoji", among=made.paths("emoji")[:6])
    formats.save(delta, tmp_path / "a.safetensors")
    true_save = formats.save

    def halved(change: Delta, *args: object, **options: object) -> int:
        updates = {p: Update("lora", {**u.tensors, "up": u.tensors["up"] * 0.5}) for p, u in change.updates.items()}
        return true_save(Delta(change.family, updates), *args, **options)

    monkeypatch.setattr(formats, "save", halved)
    with pytest.raises(UnverifiedError, match="is off by"):
        merge([(tmp_path / "a.safetensors", 1.0)], tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def fused(folder: Path, rank: int, seed: int) -> Path:
    """A FLUX.1 LoRA in diffusers' names on q, k and v of one block, with seed 1 on a part of another; each with its own `down`."""
    among = [f"transformer.transformer_blocks.{i}.attn.to_{x}" for i in range(2) for x in "qkv"]
    delta = made.delta("flux1", "flux1", rank=rank, among=among[: 3 + 2 * seed], seed=seed)
    decay = {
        path: Update("lora", {**u.tensors, "down": u.tensors["down"] * torch.logspace(0, -i, rank)[:, None].half()})
        for i, (path, u) in enumerate(delta.updates.items())
    }
    formats.save(Delta("flux1", decay), folder / f"{seed}.safetensors", "diffusers")
    return folder / f"{seed}.safetensors"


@pytest.mark.parametrize("budget", [{}, {"energy": 0.9}, {"size": "200kB"}], ids=str)
def test_modules_that_share_a_weight_in_the_file_get_one_rank(budget: dict, tmp_path: Path) -> None:
    files = [(fused(tmp_path, 4, 0), 1.0), (fused(tmp_path, 2, 1), -0.5)]
    report = merge(files, tmp_path / "out.safetensors", **budget)
    terms = [(weight, formats.load(path)[0]) for path, weight in files]
    got, _ = formats.load(tmp_path / "out.safetensors", strict=True)
    error = relative_error(dense(got), summed(terms))
    assert abs((1 - report.energy) ** 0.5 - error) <= 1e-3
    assert error <= (1e-6 if not budget else 0.95)
    if "size" in budget:
        assert report.n_bytes <= 200_000
