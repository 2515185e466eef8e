"""What the pictures show: emojibase's entries -> about 1,180 concepts with names and words; icon -> concept."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pretrain import words
from pretrain.sources import WORDS

COMPONENT, SYMBOLS, FLAGS = 2, 8, 9
"""emojibase's numbers of the groups that are left out; of the symbols plain coloured shapes stay."""
JOINER = "-200d"


@dataclass(frozen=True)
class Concept:
    """One thing that is drawn: its code points, CLDR name, other names, category and further words."""

    id: str
    name: str
    alt_names: tuple[str, ...]
    category: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


def concept_id(hexcode: str) -> str:
    """Code points without the presentation selector, as the art's file names have them."""
    return hexcode.lower().replace("-fe0f", "").lstrip("0")


def read(packages: Path) -> list[Concept]:
    """All concepts, in emojibase's order."""
    emojibase, emojilib = (packages / p.folder for p in WORDS)
    groups = json.loads((emojibase / "meta/groups.json").read_text("utf-8"))
    shortcodes = json.loads((emojibase / "en/shortcodes/github.json").read_text("utf-8"))
    agreed = json.loads((emojilib / "dist/emoji-en-US.json").read_text("utf-8"))
    found = []
    for entry in json.loads((emojibase / "en/data.json").read_text("utf-8")):
        if "group" not in entry:
            continue
        subgroup = groups["subgroups"][str(entry["subgroup"])]
        name = entry["label"].lower().replace("’", "'")
        if not drawable(entry["group"], subgroup, name, concept_id(entry["hexcode"])):
            continue
        category = words.CATEGORIES[subgroup]
        codes = shortcodes.get(entry["hexcode"], [])
        alt_names = other_names(name, [codes] if isinstance(codes, str) else codes)
        keywords = useful(entry.get("tags", ()), name, category, agreed.get(entry["emoji"], ()))
        group = groups["groups"][str(entry["group"])]
        found.append(Concept(concept_id(entry["hexcode"]), name, alt_names, category, keywords, group, subgroup))
    return found


def drawable(group: int, subgroup: str, name: str, code: str) -> bool:
    """Whether the entry is a thing that a small picture can show and a caption can name."""
    if group in (COMPONENT, FLAGS) or subgroup in words.DROPPED_SUBGROUPS or name in words.DROPPED_NAMES:
        return False
    if group == SYMBOLS and subgroup != "geometric":
        return False
    if name.endswith(words.DROPPED_ENDINGS):
        return False
    return JOINER not in code or code in words.KEPT_JOINED or _is_role(subgroup, code)


def _is_role(subgroup: str, code: str) -> bool:
    """A neutral person with a tool ("farmer"); the gendered variants are the same drawing."""
    parts = code.split(JOINER)
    return subgroup == "person-role" and parts[0] == "1f9d1" and len(parts) == 2


def other_names(name: str, shortcodes: list[str]) -> tuple[str, ...]:
    """Shortcodes ("car" for automobile) that are not the name again."""
    plain = re.sub(r"[^a-z0-9]", "", name)
    spoken = [code.replace("_", " ") for code in shortcodes]
    return tuple(s for s in spoken if re.fullmatch(r"[a-z][a-z -]+", s) and re.sub(r"[^a-z0-9]", "", s) != plain)


def useful(tags: Collection[str], name: str, category: str, agreed: Collection[str]) -> tuple[str, ...]:
    """CLDR's words that say something new, those first that emojilib has too: the tail is noisy."""
    known = {_stem(w) for w in re.findall(r"[a-z0-9]+", f"{name} {category}")}
    new = [t.lower() for t in tags if t.isalpha() and _stem(t.lower()) not in known]
    first = set(agreed)
    return tuple(dict.fromkeys(sorted(new, key=lambda w: w not in first)))


def _stem(word: str) -> str:
    return re.sub(r"(ing|es|s)$", "", word)


def icons(style: str, folder: Path, names: Collection[str], concepts: list[Concept]) -> dict[str, str]:
    """{concept id: icon name} for one unpacked package: by its code points where it lists them, else by names."""
    listed = json.loads((folder / "chars.json").read_text("utf-8"))
    if listed:
        by_code = {concept_id(code): icon for code, icon in listed.items()}
        return {c.id: by_code[c.id] for c in concepts if by_code.get(c.id) in names}
    found = {}
    for concept in concepts:
        if concept.name in words.OTHER_THING_IN_OLD_SETS:
            continue
        icon = next((n for n in spellings(concept.name, style) if n in names), None)
        if icon:
            found[concept.id] = icon
    return found


def spellings(name: str, style: str) -> list[str]:
    """What an icon of that name may be called: CLDR's or its former name, "-face" added, numbered by streamline."""
    stems = [slug(name), *map(slug, words.FORMER_NAMES.get(name, ()))]
    stems += [f"{slug(name)}-face"] if " face" not in name else []
    return [n for s in stems for n in ((s, f"{s}-1") if style == "streamline" else (s,))]


def slug(name: str) -> str:
    """An icon's name as iconify spells it."""
    plain = name.lower().replace("'", "").replace("ñ", "n").replace("é", "e")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
