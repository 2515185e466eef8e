"""`load(save(d)) == d`, bit for bit, for every family × algorithm × dialect, or a refusal that names the dialect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaw import adapters, formats, tensorfile
from deltaw.delta import Delta, Update
from deltaw.errors import InputError, ManyErrors
from deltaw.families import listing
from deltaw.verbs.inspect import inspect
from tests.formats import made

LORAS = Path(__file__).parents[3] / "shared" / "loras"


def of_algorithm(name: str, family: str, variant: str) -> Delta:
    """A change of a few unfused modules by any algorithm, nothing left at zero."""
    shapes = listing.modules(variant)
    ends = (".to_out.0", ".ff.net.2", ".out_proj", ".conv2", ".proj_out", ".attn.to_out.0")
    generator = torch.Generator().manual_seed(0)
    updates: dict[str, Update] = {}
    for path in [p for p in shapes if p.endswith(ends) and max(shapes[p]) <= 3072][:3]:
        tensors = adapters.named(name).init(shapes[path], 2, 1.5, generator)
        tensors = {n: torch.rand(t.shape, generator=generator).half() if t.is_floating_point() and t.ndim else t
                   for n, t in tensors.items()}  # fmt: skip
        updates[path] = Update(name, tensors)
    return Delta(family, updates)


def check(delta: Delta, dialect: formats.Dialect, path: Path) -> None:
    refusal = ""
    try:
        formats.save(delta, path, dialect.NAME)
    except (InputError, ManyErrors) as error:
        refusal = str(error)
    if refusal:
        assert dialect.NAME in refusal
        return
    scaled = {update.algorithm for update in delta.updates.values()} == {
        "scale"
    }  # PEFT's (IA)³: its biases are left out
    back, match = formats.load(path, strict=not scaled)
    assert made.same(delta, back) == ""
    assert set(match.matched) == set(delta.updates)
    assert all("scales the bias as well" in why for why in match.ignored.values())


@pytest.mark.parametrize("alpha", [1.5, None], ids=["alpha", "no_alpha"])
@pytest.mark.parametrize("dialect", formats.ALL, ids=lambda d: d.NAME)
@pytest.mark.parametrize(("family", "variant"), made.VARIANTS)
def test_lora(family: str, variant: str, dialect: formats.Dialect, alpha: float | None, tmp_path: Path) -> None:
    check(made.delta(family, variant, alpha=alpha), dialect, tmp_path / "x.safetensors")


@pytest.mark.parametrize("algorithm", [a.NAME for a in adapters.ALL])
@pytest.mark.parametrize("dialect", formats.ALL, ids=lambda d: d.NAME)
@pytest.mark.parametrize(("family", "variant"), [v for v in made.VARIANTS if not v[1].startswith("sd35")])
def test_algorithms(family: str, variant: str, dialect: formats.Dialect, algorithm: str, tmp_path: Path) -> None:
    check(of_algorithm(algorithm, family, variant), dialect, tmp_path / "x.safetensors")


HOLDS_LORA = ("kohya", "kohya-diffusers", "diffusers", "peft", "comfy")


@pytest.mark.parametrize("dialect", HOLDS_LORA)
@pytest.mark.parametrize(("family", "variant"), made.VARIANTS)
def test_lora_is_held_and_not_refused(family: str, variant: str, dialect: str, tmp_path: Path) -> None:
    assert formats.save(made.delta(family, variant), tmp_path / "x", dialect) > 0


@pytest.mark.parametrize("apart", [False, True], ids=["one down", "a down each"])
def test_xlabs_means_the_same_to_diffusers(apart: bool, tmp_path: Path) -> None:
    """Through diffusers' own converter; q, k and v as one, with the absent `add_v_proj` as zero rows."""
    conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    ends = (".to_q", ".to_k", ".to_v", ".add_q_proj", ".add_k_proj", ".to_out.0", ".to_add_out", ".7.proj_out")
    blocks = ("transformer.transformer_blocks.4.attn.", "transformer.single_transformer_blocks.7.")
    among = [path for path in listing.modules("flux1") if path.startswith(blocks) and path.endswith(ends)]
    delta = made.delta("flux1", "flux1", among=among, alpha=None)
    if not apart:
        shared = {p: u if p.endswith(("out.0", "out")) else _with_down(u, 3072) for p, u in delta.updates.items()}
        delta = Delta("flux1", shared)
    formats.save(delta, tmp_path / "x.safetensors", "xlabs")
    back, match = formats.load(tmp_path / "x.safetensors", strict=True)
    assert made.same(delta, back) == ""
    assert match.dialects.keys() == {"xlabs"}
    converted = conversion._convert_xlabs_flux_lora_to_diffusers(tensorfile.read(tmp_path / "x.safetensors"))
    for path, update in delta.updates.items():
        up, down = (converted.pop(f"{path}.lora_{kind}.weight").float() for kind in "BA")
        wanted = update.tensors["up"].float() @ update.tensors["down"].float()
        assert (up @ down - wanted).abs().max() <= 1e-5 * float(wanted.abs().max()), path
    assert not any(tensor.any() for key, tensor in converted.items() if "lora_B" in key)
    assert "last double and the last single block" in inspect(tmp_path / "x.safetensors").concerns["ComfyUI"][0]
    outside = made.delta("flux1", "flux1", among=["transformer.transformer_blocks.4.ff.net.2"], alpha=None)
    with pytest.raises(InputError, match=r"xlabs cannot hold transformer\.transformer_blocks\.4\.ff"):
        formats.save(outside, tmp_path / "y.safetensors", "xlabs")


def _with_down(update: Update, width: int) -> Update:
    return Update("lora", {**update.tensors, "down": torch.ones(2, width).half() / 4})


@pytest.mark.skipif(not LORAS.is_dir(), reason="the real file is not part of the repository")
@pytest.mark.parametrize(
    "dialect", [d for d in formats.ALL if d.NAME != "xlabs"], ids=lambda d: d.NAME
)  # FLUX.1's alone
def test_a_real_file_goes_through_every_dialect(dialect: formats.Dialect, tmp_path: Path) -> None:
    real, match = formats.load(LORAS / "analog_svd_rank4.safetensors", strict=True)
    assert (match.family, match.variant, len(match.matched), match.dialects) == (
        "sd1",
        "sd1",
        192,
        {"cloneofsimo": 384},
    )
    held = real
    if dialect.NAME == "diffusers-old":  # it has names for the U-Net's attention only
        held = Delta("sd1", {p: u for p, u in real.updates.items() if p.startswith("unet.") and ".ff." not in p})
    formats.save(held, tmp_path / "x", dialect.NAME)
    there, _ = formats.load(tmp_path / "x", strict=True)
    assert made.same(held, there) == ""
    if held is real:
        formats.save(there, tmp_path / "back.safetensors", "cloneofsimo")
        assert made.same(real, formats.load(tmp_path / "back.safetensors", strict=True)[0]) == ""


def test_alphas_keep_value_and_dtype_where_a_configuration_holds_them(tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji")
    kinds = [torch.tensor(3), torch.tensor(0.1, dtype=torch.float16), torch.tensor(1 / 3), None]
    updates = {}
    for i, (path, update) in enumerate(delta.updates.items()):
        tensors = {name: tensor for name, tensor in update.tensors.items() if name != "alpha"}
        if (alpha := kinds[i % 4]) is not None:
            tensors["alpha"] = alpha
        updates[path] = Update("lora", tensors)
    delta = Delta("sd1", updates)
    for dialect in ("diffusers", "peft"):
        formats.save(delta, tmp_path / dialect, dialect)
        assert made.same(delta, formats.load(tmp_path / dialect)[0]) == ""


def test_fused_modules_do_not_triple_the_rank_on_the_way_back(tmp_path: Path) -> None:
    delta = made.delta("flux1", "flux1", rank=4)
    formats.save(delta, tmp_path / "k.safetensors", "kohya")
    back, _ = formats.load(tmp_path / "k.safetensors")
    assert {u.tensors["down"].shape[0] for u in back.updates.values()} == {4}


def test_numbered_names_of_an_unknown_depth_are_refused_without_the_bases_shapes(tmp_path: Path) -> None:
    """A base of SD 1's topology with one layer a block in other widths than any known one."""
    shapes = {path: tuple(n // 2 if n > 8 else n for n in shape) for path, shape in listing.modules("emoji").items()}
    path = "unet.up_blocks.1.attentions.1.proj_in"
    tensors = adapters.named("lora").init(shapes[path], 2, 2.0, torch.Generator().manual_seed(0))
    delta = Delta("sd1", {path: Update("lora", tensors)})
    with pytest.raises(InputError, match="depends on the base's depth"):
        formats.save(delta, tmp_path / "x.safetensors", "comfy")
    for dialect in HOLDS_LORA:
        formats.save(delta, tmp_path / dialect, dialect, shapes=shapes)
        assert made.same(delta, formats.load(tmp_path / dialect, shapes=shapes, strict=True)[0]) == ""
