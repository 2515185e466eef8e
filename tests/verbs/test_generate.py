"""Drawing on a tiny base: recipes, repetition, grids, strengths, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deltaw
from deltaw import inject
from deltaw.errors import InputError, UsageError
from deltaw.families import bases
from deltaw.verbs import generate as verb
from deltaw.verbs.painter import Painter, Recipe

FEW = {"steps": 2, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def lora(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = bases.open_base(tiny_base)
    generator = torch.Generator().manual_seed(0)
    wrapped = inject.wrap(base.denoiser(torch.device("cpu"), torch.float32), base.targets, 2, 2.0, generator)
    with torch.no_grad():
        for module in wrapped.modules.values():
            module.up.normal_(0, 0.5, generator=generator)
    file = tmp_path_factory.mktemp("loras") / "it.safetensors"
    inject.take(wrapped, base.family, "unet").save(file)
    return file


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_a_picture_holds_its_recipe_and_like_repeats_it(tiny_base: Path, lora: Path, tmp_path: Path) -> None:
    [one] = deltaw.generate("a house", base=tiny_base, loras=[f"{lora}:0.7"], seed=5, out=tmp_path / "one.png", **FEW)
    recipe = verb.read_recipe(one)
    assert (recipe["prompt"], recipe["seed"], recipe["steps"]) == ("a house", 5, 2)
    assert recipe["loras"][0]["strength"] == 0.7
    assert str(lora.parent) not in json.dumps(recipe)
    [two] = deltaw.generate(base=tiny_base, like=one, loras=[f"{lora}:0.7"], out=tmp_path / "two.png")
    assert one.read_bytes() == two.read_bytes()
    (tmp_path / "it.safetensors").write_bytes(lora.read_bytes())
    [three] = deltaw.generate(base=tiny_base, like=one, out=tmp_path / "three.png")
    assert one.read_bytes() == three.read_bytes(), "the LoRA is found beside the picture by its hash"


def test_like_says_which_lora_is_missing(tiny_base: Path, lora: Path, tmp_path: Path) -> None:
    [one] = deltaw.generate("a house", base=tiny_base, loras=[lora], out=tmp_path / "one.png", **FEW)
    with pytest.raises(InputError, match=r"it\.safetensors .*not here"):
        deltaw.generate(base=tiny_base, like=one, out=tmp_path / "two.png")


def test_strength_zero_is_the_base_and_minus_one_is_the_other_way(tiny_base: Path, lora: Path, tmp_path: Path) -> None:
    def draw(name: str, *loras: tuple[Path, float]) -> np.ndarray:
        return pixels(deltaw.generate("a house", base=tiny_base, loras=loras, out=tmp_path / f"{name}.png", **FEW)[0])

    plain, zero, plus, minus = draw("a"), draw("b", (lora, 0)), draw("c", (lora, 1)), draw("d", (lora, -1))
    assert (plain == zero).all()
    assert (plain != plus).any()
    assert (plus != minus).any()
    assert (draw("e", (lora, 1), (lora, -1)) == plain).mean() > 0.99, "two that cancel leave the base, up to rounding"


def test_count_and_prompts_give_one_file_each_and_overwrite_none(tiny_base: Path, tmp_path: Path) -> None:
    for _ in range(2):
        files = deltaw.generate(["a house", "a cat"], base=tiny_base, count=2, out=tmp_path, **FEW)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"{name}-{i:03d}.png" for name in ("a-house", "a-cat") for i in (1, 2, 3, 4)
    )
    assert [verb.read_recipe(f)["seed"] for f in files] == [0, 1, 0, 1]
    [alone] = deltaw.generate("a cat", base=tiny_base, seed=1, out=tmp_path / "alone.png", **FEW)
    assert (pixels(alone) == pixels(files[3])).all(), "a picture does not depend on its neighbours"


@pytest.mark.parametrize(
    ("grid", "columns"),
    [("strength=-1,0,1", 3), ("prompt=a cat|a dog, red", 2), ("seed=1,2", 2), ("guidance=1,7.5", 2)],
)
def test_grids_are_one_sheet(tiny_base: Path, lora: Path, tmp_path: Path, grid: str, columns: int) -> None:
    [file] = deltaw.generate("a house", base=tiny_base, loras=[lora], grid=grid, out=tmp_path / "g.png", **FEW)
    with Image.open(file) as sheet:
        assert columns * 144 < sheet.width < columns * 144 + 260


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to draw"),
        ({"prompts": "x", "size": "65"}, "does not fit"),
        ({"prompts": "x", "size": "big"}, "not understood"),
        ({"prompts": "x", "grid": "colour=1"}, "not understood"),
        ({"prompts": "x", "grid": "strength=a"}, "could not convert"),
        ({"prompts": ["x", "y"], "out": "one.png"}, "do not fit in one file"),
    ],
)
def test_bad_requests_are_refused(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        deltaw.generate(base=tiny_base, **{**FEW, **options})
    assert not list(tmp_path.glob("*.png"))


def test_a_picture_without_recipe_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="holds no recipe"):
        deltaw.generate(like=tmp_path / "plain.png")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        deltaw.generate(like=tmp_path / "absent.png")


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["tiny_base", "tiny_xl", "tiny_flux"])
def test_prompts_that_are_read_first_draw_the_same_and_leave_no_text_encoder(
    kind: str, guidance: float, request: pytest.FixtureRequest
) -> None:
    base = bases.open_base(request.getfixturevalue(kind))
    recipes = [Recipe(p, "", i, 2, guidance, 64, 64, (), "", "", "", "cpu") for i, p in enumerate(("a red apple", ""))]
    wanted = Painter(base, "cpu", "float32").draw(recipes)
    painter = Painter(base, "cpu", "float32", read=recipes)
    assert painter.pipe.text_encoder is None
    latents = painter.latents(recipes, [])
    with pytest.raises(ValueError, match="other prompts"):
        painter.latents(recipes[:1], [])
    painter.let_go()
    assert painter.network is None
    assert [p.tobytes() for p in painter.decode(latents)] == [p.tobytes() for p in wanted]


def test_pictures_drawn_in_parts_are_the_same_up_to_rounding(tiny_base: Path) -> None:
    recipes = [
        Recipe(f"a {p}", "", i, 2, 4.0, 64, 64, (), "", "", "", "cpu") for i, p in enumerate(("cat", "dog", "cow"))
    ]
    base = bases.open_base(tiny_base)
    whole = Painter(base, "cpu", "float32").latents(recipes, [])
    for read in (None, recipes):
        parts = Painter(base, "cpu", "float32", read=read).latents(recipes, [], at_a_time=2)
        assert torch.allclose(parts, whole, atol=1e-4)


@pytest.mark.parametrize(("side_px", "n_pictures"), [(64, 78), (256, 4), (384, 2), (512, 1), (1024, 1)])
def test_a_cpu_draws_large_pictures_one_after_the_other(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, side_px: int, n_pictures: int
) -> None:
    painter, drawn = Painter(bases.open_base(tiny_base), "cpu", "float32"), []
    monkeypatch.setattr(painter, "_drawn", lambda part, *_: drawn.append(len(part)) or torch.zeros(len(part), 4, 1, 1))
    for guidance in (4.0, 1.0):
        painter.latents([Recipe("a cat", "", i, 2, guidance, side_px, side_px) for i in range(2 * n_pictures)], [])
    assert drawn[:2] == [n_pictures] * 2, "guided: two predictions each"
    assert sum(drawn[2:]) == 2 * n_pictures
    assert drawn[2] >= n_pictures
