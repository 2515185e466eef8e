"""The files that we write, read by unmodified diffusers on the bundled base: W + ΔW, also with alpha ≠ rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaw import adapters, formats
from deltaw.adapters import lora
from deltaw.delta import Delta, Update
from deltaw.families import listing
from tests.formats import made

BASE = Path(formats.__file__).parents[1] / "zoo" / "emoji"
STRENGTH = 0.5


def pipeline():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32, local_files_only=True)


def change(alphas: tuple[float | None, float | None], ranks: tuple[int, int]) -> Delta:
    """Attention of both networks and some convolutions; every other module has the second rank and alpha."""
    kinds = (".to_q", ".to_out.0", ".q_proj", ".v_proj", ".out_proj", ".fc1", ".proj_in", ".conv1")
    paths = [path for path in listing.modules("emoji") if path.endswith(kinds)]
    few = made.delta("sd1", "emoji", rank=ranks[0], alpha=alphas[0], among=paths, dtype=torch.float32)
    more = made.delta("sd1", "emoji", rank=ranks[1], alpha=alphas[1], among=paths[1::2], dtype=torch.float32, seed=1)
    return Delta("sd1", {**few.updates, **more.updates})


def outputs(pipe) -> list[torch.Tensor]:
    """Text embeddings and a noise prediction for fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        ids = torch.randint(0, 4000, (1, 77), generator=generator)
        text = pipe.text_encoder(ids)[0]
        x = torch.randn(1, 8, 16, 16, generator=generator)
        return [text, pipe.unet(x, 500, encoder_hidden_states=text).sample]


def by_hand(pipe, delta: Delta, strength: float) -> None:
    """Adds strength · ΔW to the pipeline's own weights."""
    for path, update in delta.updates.items():
        component, _, rest = path.partition(".")
        network = getattr(pipe, component)
        if not hasattr(network, "text_model"):
            rest = rest.removeprefix("text_model.")
        weight = network.get_submodule(rest).weight
        weight.data += strength * lora.delta(update.tensors, tuple(weight.shape))


@pytest.mark.filterwarnings("ignore")  # diffusers' and peft's own
@pytest.mark.parametrize(
    ("dialect", "alphas", "ranks"),
    [
        ("diffusers", (1.0, 3.0), (4, 2)),
        ("diffusers", (None, None), (4, 2)),
        ("diffusers-middle", (None, None), (4, 2)),
        ("kohya", (1.0, 1.0), (4, 4)),
        (
            "kohya",
            (None, None),
            (4, 2),
        ),  # what our verbs write: diffusers 0.42 mixes up a kohya file's differing alphas
    ],
)
def test_diffusers_applies_exactly_our_change(dialect: str, alphas, ranks, tmp_path: Path) -> None:
    delta = change(alphas, ranks)
    formats.save(delta, tmp_path / "x.safetensors", dialect)
    plain, loaded, added = outputs(pipeline()), pipeline(), pipeline()
    loaded.load_lora_weights(str(tmp_path), weight_name="x.safetensors", adapter_name="x")
    loaded.set_adapters(["x"], [STRENGTH])
    by_hand(added, delta, STRENGTH)
    for a, b, before in zip(outputs(loaded), outputs(added), plain, strict=True):
        assert (a - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max()))
        assert (b - before).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_applies_exactly_our_change(dora: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    delta = Delta("sd1", {p: u for p, u in change((1.0, 3.0), (4, 2)).updates.items() if p.startswith("unet.")})
    plain = pipeline().unet
    if dora:
        delta = with_norms(delta, plain)
    formats.save(delta, tmp_path / "adapter", "peft")
    loaded = PeftModel.from_pretrained(pipeline().unet, tmp_path / "adapter")
    for path, update in delta.updates.items():
        weight = plain.get_submodule(path.removeprefix("unet.")).weight
        weight.data += adapters.dense(update.algorithm, update.tensors, tuple(weight.shape), weight.data)
    generator = torch.Generator().manual_seed(5)
    x, text = torch.randn(1, 8, 16, 16, generator=generator), torch.randn(1, 77, 256, generator=generator)
    with torch.no_grad():
        a, b = (net(x, 500, encoder_hidden_states=text).sample for net in (loaded, plain))
    assert (a - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max()))


def with_norms(delta: Delta, network: torch.nn.Module) -> Delta:
    """The change as a DoRA whose norms are those of W + ΔW, stretched."""
    updates: dict[str, Update] = {}
    for path, update in delta.updates.items():
        weight = network.get_submodule(path.removeprefix("unet.")).weight.data
        whole = weight + lora.delta(update.tensors, tuple(weight.shape))
        norms = 1.2 * whole.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.ndim - 1))
        updates[path] = Update("lora", {**update.tensors, "magnitude": norms})
    return Delta(delta.family, updates)
