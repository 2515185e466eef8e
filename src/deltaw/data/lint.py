"""What is likely to spoil a run although every file can be read: findings, each with what to do.

Pure: everything here is computed from a scanned folder and, for `lint_looks`, from its pictures' looks.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deltaw.data import buckets
from deltaw.data.folder import Dataset, Picture
from deltaw.data.looks import THUMB_PX, Looks

REPEATED_SHARE = 0.8
FEWEST_CAPTIONS = 5
"""Among fewer, everything repeats."""
LONGEST_PHRASE = 8
EXTREME_ASPECT = 4.0
MOST_BLUR = 0.5
"""Sharp drawings and photographs measured 0.15 to 0.34, Gaussian blur of 1 px 0.55, enlarging 4 times 0.67 (medians)."""
LEAST_SPREAD = 3.0
SAME_HASH_BITS = 10
SAME_THUMB_RMS = 10.0
"""Copies at 0.6 of the size, slightly blurred, brightened or recompressed stay below both; other drawings seldom do."""
MOST_CUT_SHOWN = 200

GRAMMAR = frozenset({
    "a", "an", "the", "of", "on", "in", "at", "to", "by", "with", "and", "or", "is", "are", "its", "it", "for", "from", "as",
    "this", "that", "there",
})  # fmt: skip
"""Words that say nothing of a picture by themselves."""

CountTokens = Callable[[str], tuple[int, str]]
"""A text to its number of tokens and the part of it beyond the encoder's limit ("" where all fits)."""


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Args:
        kind: "repeated phrase", "same file", ...; one word or two, the same for the same problem.
        names: the pictures that it is about.
        text: what was found.
        advice: what to do.
    """

    kind: str
    names: tuple[str, ...]
    text: str
    advice: str


def lint(
    dataset: Dataset, resolution_px: int, step_px: int = 64, trigger: str = "", count_tokens: CountTokens | None = None
) -> tuple[Finding, ...]:
    """Findings on captions, sizes and equal files; nothing is read."""
    pictures = dataset.pictures
    found = [*_sizes(pictures, resolution_px, step_px), *_same_files(pictures)]
    if mute := tuple(p.name for p in pictures if not p.caption):
        found.append(Finding("no caption", mute, f"{_n(mute)} without a caption", "write one, or set --trigger"))
    found += _repeated(pictures, trigger)
    if count_tokens:
        found += _lengths(pictures, trigger, count_tokens)
    return tuple(found)


def lint_looks(dataset: Dataset, looks: Sequence[Looks]) -> tuple[Finding, ...]:
    """Findings on what the pictures show: one colour, blur, and pictures that look alike.

    Args:
        dataset: a scanned folder.
        looks: of each of its pictures, in order (`looks.look_at`).
    """
    pairs = list(zip(dataset.pictures, looks, strict=True))
    found = []
    if flat := tuple(p.name for p, seen in pairs if seen.spread < LEAST_SPREAD):
        found.append(Finding("one colour", flat, f"{_n(flat)} of one colour", "leave out what shows nothing"))
    if soft := tuple(p.name for p, seen in pairs if seen.blur > MOST_BLUR and seen.spread >= LEAST_SPREAD):
        found.append(Finding("blur", soft, f"{_n(soft)} blurred or enlarged", "use sharper ones: blur is learned too"))
    first = {picture.digest: (picture, seen) for picture, seen in reversed(pairs)}
    found += _alike(list(reversed(first.values())))
    return tuple(found)


def _n(names: Sequence[str]) -> str:
    return "1 picture" if len(names) == 1 else f"{len(names)} pictures"


def _sizes(pictures: Sequence[Picture], resolution_px: int, step_px: int) -> Iterator[Finding]:
    grown: dict[str, float] = {}
    small: dict[str, float] = {}
    cut: dict[str, float] = {}
    long: dict[str, float] = {}
    for picture in pictures:
        shape = buckets.bucket(picture.size_px, resolution_px, step_px)
        if (factor := buckets.upscale(picture.size_px, shape)) > buckets.MAX_UPSCALE:
            grown[picture.name] = factor
        elif max(shape) < resolution_px:
            small[picture.name] = max(shape)
        if (aspect := max(picture.size_px) / min(picture.size_px)) > EXTREME_ASPECT:
            long[picture.name] = aspect
        elif (share := buckets.crop_share(picture.size_px, shape)) > buckets.CROP_WORTH_SAYING:
            cut[picture.name] = 100 * share
    for kind, by_name, text, advice in (
        (
            "upscaled",
            grown,
            "enlarged {} times",
            "use larger originals or a lower --resolution: enlarging teaches blur",
        ),
        ("small", small, "trained at {} px a side, for their size", "use larger originals or a lower --resolution"),
        ("extreme aspect", long, "{} times as long as wide; only the middle is seen", "cut the part that matters out"),
        ("cropped", cut, "{} % cut off to fit their bucket", "cut them yourself where the middle is not what matters"),
    ):
        if by_name:
            yield Finding(
                kind, tuple(by_name), f"{_n(tuple(by_name))}: {text.format(_range(by_name.values()))}", advice
            )


def _range(values: Collection[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _same_files(pictures: Sequence[Picture]) -> Iterator[Finding]:
    groups: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.digest].append(picture)
    for group in groups.values():
        if len(group) > 1:
            differ = ", with different captions" if len({p.caption for p in group}) > 1 else ""
            text = f"{len(group)} times the same file{differ}"
            yield Finding(
                "same file",
                tuple(p.name for p in group),
                text,
                "keep one, or --set duplicates=once: each counts as a picture of its own",
            )


def _alike(pairs: Sequence[tuple[Picture, Looks]]) -> Iterator[Finding]:
    """Groups of different files that show the same: resized, recompressed or mirrored copies."""
    for group in alike([seen for _, seen in pairs]):
        names = tuple(pairs[index][0].name for index in group)
        text = f"{len(names)} pictures look alike: resized, recompressed or mirrored copies?"
        advice = "keep the best one, or --set duplicates=once, unless they differ in what matters"
        yield Finding("look alike", names, text, advice)


def alike(looks: Sequence[Looks]) -> list[list[int]]:
    """Groups of positions that show the same, each in order; pictures like no other are in none."""
    leader = list(range(len(looks)))

    def lead(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    for i, j in _alike_pairs(looks):
        low, high = sorted((lead(i), lead(j)))
        leader[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(looks)):
        groups[lead(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _alike_pairs(looks: Sequence[Looks]) -> Iterator[tuple[int, int]]:
    """Positions whose hashes are near and whose thumbnails confirm it; as they are, or one mirrored."""
    hashes = np.array([seen.hash for seen in looks], dtype=np.uint64)
    thumbs = [np.frombuffer(seen.thumb, np.uint8).reshape(THUMB_PX, THUMB_PX).astype(np.float32) for seen in looks]
    for i, seen in enumerate(looks):
        for code, thumb in ((seen.hash, thumbs[i]), (seen.mirrored, thumbs[i][:, ::-1])):
            near = np.bitwise_count(hashes[i + 1 :] ^ np.uint64(code)) <= SAME_HASH_BITS
            for j in np.flatnonzero(near) + i + 1:
                if np.sqrt(np.mean((thumb - thumbs[j]) ** 2)) <= SAME_THUMB_RMS:
                    yield i, int(j)


def _repeated(pictures: Sequence[Picture], trigger: str) -> Iterator[Finding]:
    captions = [picture.caption for picture in pictures if picture.caption]
    for phrase, count in repeated_phrases(captions, trigger):
        advice = f"the change will answer to it as much as to {trigger!r}: vary it or leave it out"
        if not trigger:
            advice = "what all captions say calls the change up: give it as --trigger if it is meant so, else vary it"
        yield Finding("repeated phrase", (), f"“{phrase}” stands in {count} of {len(captions)} captions", advice)


def repeated_phrases(captions: Sequence[str], trigger: str = "") -> list[tuple[str, int]]:
    """The longest phrases in more than `REPEATED_SHARE` of the captions, and in how many; the trigger aside.

    A phrase is up to `LONGEST_PHRASE` words without a comma or other mark between them, in lower case.
    """
    enough = REPEATED_SHARE * len(captions)
    if len(captions) < FEWEST_CAPTIONS:
        return []
    texts = [_pieces(caption, trigger) for caption in captions]
    words = Counter(word for pieces in texts for word in {word for piece in pieces for word in piece})
    frequent = {word for word, count in words.items() if count > enough}
    counts = Counter(phrase for pieces in texts for phrase in set(_phrases(pieces, frequent)))
    kept = [phrase for phrase, count in counts.items() if count > enough and not GRAMMAR.issuperset(phrase)]
    spaced = {phrase: f" {' '.join(phrase)} " for phrase in kept}
    longest = [p for p in kept if not any(p != q and spaced[p] in spaced[q] for q in kept)]
    return sorted(((" ".join(p), counts[p]) for p in longest), key=lambda found: (-found[1], found[0]))


def _pieces(caption: str, trigger: str) -> list[list[str]]:
    """The words between the marks of a caption; the trigger is such a mark."""
    text = caption.lower()
    if trigger:
        text = re.sub(rf"(?<!\w){re.escape(trigger.lower())}(?!\w)", ",", text)
    return [re.findall(r"[\w'’<>-]+", piece) for piece in re.split(r"[,.;:|()\[\]{}!?\"]+", text)]


def _phrases(pieces: list[list[str]], frequent: set[str]) -> Iterator[tuple[str, ...]]:
    """Every run of frequent words, of every length up to `LONGEST_PHRASE`; a phrase holds no other word."""
    for piece in pieces:
        for start in range(len(piece)):
            for end in range(start + 1, min(start + LONGEST_PHRASE, len(piece)) + 1):
                if piece[end - 1] not in frequent:
                    break
                yield tuple(piece[start:end])


def _lengths(pictures: Sequence[Picture], trigger: str, count_tokens: CountTokens) -> Iterator[Finding]:
    for picture in pictures:
        n_tok, cut = count_tokens(picture.caption)
        if cut:
            shown = cut if len(cut) <= MOST_CUT_SHOWN else cut[:MOST_CUT_SHOWN] + "…"
            text = f"{n_tok} tokens are more than the text encoder reads; not seen: “{shown}”"
            yield Finding("long caption", (picture.name,), text, "put what matters first, or shorten it")
    if trigger and trigger.replace(" ", "").isalpha() and count_tokens(trigger)[0] <= len(trigger.split()):
        text = f"the trigger “{trigger}” is ordinary words to the text encoder, which has its own idea of them"
        yield Finding("common trigger", (), text, "choose a word that means nothing yet, unless this is what you want")
