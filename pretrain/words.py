"""Hand-made tables of `pretrain.concepts`: categories, what is left out, and former names."""

CATEGORIES = {
    "face-smiling": "face", "face-affection": "face", "face-tongue": "face", "face-hand": "face",
    "face-neutral-skeptical": "face", "face-sleepy": "face", "face-unwell": "face", "face-hat": "face",
    "face-glasses": "face", "face-concerned": "face", "face-negative": "face", "face-costume": "creature",
    "cat-face": "cat face", "monkey-face": "monkey", "heart": "heart", "emotion": "symbol",
    "hand-fingers-open": "hand", "hand-fingers-partial": "hand", "hand-single-finger": "hand",
    "hand-fingers-closed": "hand", "hands": "hand", "hand-prop": "hand", "body-parts": "body part",
    "person": "person", "person-gesture": "person", "person-role": "person", "person-fantasy": "fantasy person",
    "person-activity": "person", "person-sport": "athlete", "person-resting": "person",
    "animal-mammal": "animal", "animal-bird": "bird", "animal-amphibian": "animal", "animal-reptile": "reptile",
    "animal-marine": "sea animal", "animal-bug": "insect", "plant-flower": "flower", "plant-other": "plant",
    "food-fruit": "fruit", "food-vegetable": "vegetable", "food-prepared": "food", "food-asian": "food",
    "food-sweet": "dessert", "drink": "drink", "dishware": "kitchen", "place-map": "map",
    "place-geographic": "landscape", "place-building": "building", "place-religious": "building",
    "place-other": "place", "transport-ground": "vehicle", "transport-water": "boat", "transport-air": "aircraft",
    "hotel": "travel", "time": "clock", "sky-weather": "sky", "event": "celebration", "award-medal": "medal",
    "sport": "sport", "game": "game", "arts-crafts": "craft", "clothing": "clothing", "sound": "sound",
    "music": "music", "musical-instrument": "instrument", "phone": "phone", "computer": "computer",
    "light-video": "camera and light", "book-paper": "paper", "money": "money", "mail": "mail",
    "writing": "writing tool", "office": "office", "lock": "lock", "tool": "tool", "science": "science",
    "medical": "medical", "household": "household", "other-object": "object", "geometric": "shape",
}  # fmt: skip

DROPPED_SUBGROUPS = frozenset({"family", "person-symbol"})

DROPPED_ENDINGS = (" o'clock", "-thirty", ": blond hair", ": beard")

DROPPED_NAMES = frozenset({
    "shaking face", "hundred points", "left speech bubble", "right anger bubble", "zzz", "middle finger", "map of japan",
    "love hotel", "kaaba", "joker", "mahjong red dragon", "flower playing cards",
    "black medium square", "white medium square", "black medium-small square", "white medium-small square",
    "black small square", "white small square", "small orange diamond", "small blue diamond", "diamond with a dot",
    "radio button", "white square button", "black square button",
})  # fmt: skip
"""Text, near copies of each other, or nothing that a caption could name."""

KEPT_JOINED = frozenset({
    "1f636-200d-1f32b", "1f62e-200d-1f4a8", "1f635-200d-1f4ab",  # faces: in clouds, exhaling, with spiral eyes
    "2764-200d-1f525", "2764-200d-1fa79", "1f441-200d-1f5e8",  # heart on fire, mending heart, eye in speech bubble
    "1f9d1-200d-1f384", "1f9dc-200d-2642", "1f9dc-200d-2640", "1f9d1-200d-1fa70",  # mx claus, merman, mermaid, ballet dancer
    "1f415-200d-1f9ba", "1f408-200d-2b1b", "1f43b-200d-2744",  # service dog, black cat, polar bear
    "1f426-200d-2b1b", "1f426-200d-1f525",  # black bird, phoenix
    "1f34b-200d-1f7e9", "1f344-200d-1f7eb", "26d3-200d-1f4a5",  # lime, brown mushroom, broken chain
})  # fmt: skip
"""Joined code points that are a thing of their own, no variant of a person."""

FORMER_NAMES: dict[str, tuple[str, ...]] = {
    "smiling face with open hands": ("hugging face",),
    "face with crossed-out eyes": ("dizzy face",),
    "enraged face": ("pouting face",),
    "zany face": ("crazy face",),
    "anxious face with sweat": ("anxious face",),
    "grinning cat": ("grinning cat face",),
    "grinning cat with smiling eyes": ("grinning cat face with smiling eyes",),
    "cat with tears of joy": ("cat face with tears of joy",),
    "cat with wry smile": ("cat face with wry smile",),
    "kissing cat": ("kissing cat face",),
    "weary cat": ("weary cat face",),
    "crying cat": ("crying cat face",),
    "pouting cat": ("pouting cat face",),
    "heart exclamation": ("heavy heart exclamation",),
    "person with skullcap": ("man with chinese cap",),
    "person with veil": ("bride with veil",),
    "person in suit levitating": ("man in suit levitating",),
    "bullseye": ("direct hit",),
    "laptop": ("laptop computer",),
}
"""What older sets call a concept."""

OTHER_THING_IN_OLD_SETS = frozenset({"cricket", "water pistol"})
"""Names that older sets give to something else: "cricket" is the game there, the pistol a revolver."""
