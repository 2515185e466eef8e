from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from deltaw.data.folder import Dataset, Picture
from deltaw.data.lint import lint, lint_looks, repeated_phrases
from deltaw.data.looks import THUMB_PX, Looks, blur, looks


def dataset(*captions: str, size=(512, 512)) -> Dataset:
    pictures = tuple(
        Picture(Path(f"{i}.png"), f"{i}.png", f"digest {i}", size, caption, "a.txt", ())
        for i, caption in enumerate(captions)
    )
    return Dataset(Path(), pictures, (), 0, ())


def strokes(seed: int, size=(256, 256)) -> Image.Image:
    """Sharp random rectangles."""
    draw = np.random.default_rng(seed)
    pixels = np.full((*size, 3), 255, np.uint8)
    for _ in range(12):
        (top, left), (h, w) = draw.integers(0, 220, 2), draw.integers(10, 90, 2)
        pixels[top : top + h, left : left + w] = draw.integers(0, 256, 3)
    return Image.fromarray(pixels)


# Captions


def test_phrase_in_most_captions_is_found_once_and_longest():
    captions = [f"a photo of a {animal}, in ink style" for animal in ("fox", "cat", "dog", "cow", "hen")]
    assert repeated_phrases(captions) == [("a photo of a", 5), ("in ink style", 5)]


def test_phrase_in_few_captions_is_none():
    assert repeated_phrases(["a red fox", "a cat", "the red dog", "one red cow", "a red hen", "an ape"]) == []


@pytest.mark.parametrize(("n", "found"), [(8, []), (9, [("ink", 9)])])
def test_more_than_four_fifths_is_most(n, found):
    assert repeated_phrases([f"ink {i}" for i in range(n)] + [f"oil {i}" for i in range(10 - n)]) == found


def test_phrase_does_not_cross_a_comma_and_grammar_is_none():
    assert repeated_phrases([f"in the {i}, of ink" for i in "abcde"]) == [("of ink", 5)]


def test_trigger_is_no_repetition_but_what_stands_beside_it_is():
    captions = [f"sks dog {where}" for where in ("running", "asleep", "eating", "at sea", "in snow")]
    assert repeated_phrases(captions, "sks dog") == []
    assert repeated_phrases(captions, "SKS") == [("dog", 5)]
    assert repeated_phrases(captions, "s") == [("sks dog", 5)]


def test_four_captions_always_repeat():
    assert repeated_phrases(["ink"] * 4) == []


def test_megabyte_of_one_word_takes_a_moment():
    assert repeated_phrases(["ink " * 50_000] * 5) == [("ink ink ink ink ink ink ink ink", 5)]


def test_repetition_advises_by_trigger():
    captions = [f"ink {i}" for i in range(6)]
    (without,) = lint(dataset(*captions), 512)
    (with_one,) = lint(dataset(*captions), 512, trigger="zwx")
    assert without.kind == with_one.kind == "repeated phrase"
    assert without.text == "“ink” stands in 6 of 6 captions"
    assert "--trigger" in without.advice
    assert "'zwx'" in with_one.advice


def test_trigger_of_ordinary_words():
    def count(text: str) -> tuple[int, str]:
        return sum(1 if word in ("red", "fox") else 3 for word in text.split()), ""

    assert [f.kind for f in lint(dataset("a cat"), 512, trigger="red fox", count_tokens=count)] == ["common trigger"]
    assert not lint(dataset("a cat"), 512, trigger="zwx fox", count_tokens=count)


# Pictures


def test_good_pictures_have_no_findings():
    data = dataset("a red fox", "two cats", "some dogs")
    assert lint(data, 512) == ()
    assert lint_looks(data, [looks(strokes(seed)) for seed in range(3)]) == ()


def test_cut_off_share_is_said():
    (finding,) = lint(dataset("a fox", size=(900, 300)), 512)
    assert (finding.kind, finding.names) == ("cropped", ("0.png",))
    assert finding.text == "1 picture: 44.4 % cut off to fit their bucket"


def test_blur_is_found_and_sharpness_is_not():
    sharp = strokes(0)
    small = sharp.resize((64, 64), Image.Resampling.LANCZOS).resize((512, 512), Image.Resampling.BICUBIC)
    seen = [looks(image) for image in (sharp, sharp.filter(ImageFilter.GaussianBlur(3)), small)]
    (finding,) = (f for f in lint_looks(dataset("a", "b", "c"), seen) if f.kind == "blur")
    assert finding.names == ("1.png", "2.png")


def test_what_shows_nothing_is_not_called_blurred_too():
    flat = Looks(spread=1, blur=0.9, hash=0, mirrored=0, thumb=bytes(THUMB_PX**2))
    assert [finding.kind for finding in lint_looks(dataset("a"), [flat])] == ["one colour"]


def test_blur_grows_with_blur():
    sharp = strokes(1).convert("L")
    found = [blur(np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius)), np.float32)) for radius in (0, 1, 2, 4, 8)]
    assert found == sorted(found)
    assert 0 < found[0] < 0.3 < 0.8 < found[-1] < 1


def test_blur_of_nothing_is_none():
    assert blur(np.full((64, 64), 7, np.float32)) == 0
    assert blur(np.zeros((5, 5), np.float32)) == 0


def test_mirrored_and_scaled_copies_are_one_group_each():
    a, b = strokes(2), strokes(3)
    mirrored = a.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    seen = [looks(image) for image in (b, a, a.resize((200, 200)), strokes(4), mirrored, b.resize((170, 170)))]
    found = lint_looks(dataset(*"abcdef"), seen)
    assert [(f.kind, f.names) for f in found] == [
        ("look alike", ("0.png", "5.png")),
        ("look alike", ("1.png", "2.png", "4.png")),
    ]


def test_pictures_of_one_kind_do_not_look_alike():
    seen = [looks(strokes(seed)) for seed in range(40)]
    assert not [f for f in lint_looks(dataset(*["x"] * 40), seen) if f.kind == "look alike"]
