"""Which entries become concepts, and how an old set's icon is found."""

import pytest


@pytest.mark.parametrize(
    ("name", "subgroup", "code", "group", "kept"),
    [
        ("red apple", "food-fruit", "1f34e", 4, True),
        ("farmer", "person-role", "1f9d1-200d-1f33e", 1, True),
        ("man farmer", "person-role", "1f468-200d-1f33e", 1, False),
        ("man surfing", "person-sport", "1f3c4-200d-2642", 1, False),
        ("mermaid", "person-fantasy", "1f9dc-200d-2640", 1, True),
        ("one o'clock", "time", "1f550", 5, False),
        ("blue circle", "geometric", "1f535", 8, True),
        ("plus", "math", "2795", 8, False),
        ("flag: france", "country-flag", "1f1eb-1f1f7", 9, False),
        ("middle finger", "hand-single-finger", "1f595", 1, False),
    ],
)
def test_drawable(name, subgroup, code, group, kept):
    from pretrain import concepts

    assert concepts.drawable(group, subgroup, name, code) is kept


def test_words_that_say_something_new():
    from pretrain import concepts

    found = concepts.useful(
        ["bar", "cocktail", "drinks", "mad", "martini", "143"], "cocktail glass", "drink", ["martini"]
    )
    assert found == ("martini", "bar", "mad")
    assert concepts.other_names("automobile", ["car", "red_car", "automobile", "+1", "1234"]) == ("car", "red car")


def test_spellings_of_old_and_numbered_sets():
    from pretrain import concepts

    assert "lion-face" in concepts.spellings("lion", "emojione")
    assert "penguin-1" in concepts.spellings("penguin", "streamline")
    assert "hugging-face" in concepts.spellings("smiling face with open hands", "noto-v1")
    assert "penguin-1" not in concepts.spellings("penguin", "noto-v1")
    assert concepts.slug("piñata's café") == "pinatas-cafe"
