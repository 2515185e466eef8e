"""What everything is made from: packages, versions, licences, and which style is for what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One npm package; `folder` is where `pretrain.fetch` unpacks it."""

    name: str
    version: str
    licence: str

    @property
    def folder(self) -> str:
        return self.name.replace("@", "").replace("/", "-")

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Style(Package):
    """A package of emoji art: the words that name the style in a caption, and whether the base may learn it."""

    word: str
    pretrain: bool


STYLES = {
    "noto": Style("@iconify-json/noto", "1.2.9", "Apache-2.0", "noto", True),
    "twemoji": Style("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "twemoji", True),
    "fluent-flat": Style("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "fluent flat", True),
    "emojione": Style("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "emojione", True),
    "noto-v1": Style("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "blob", True),
    "streamline": Style("@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0", "streamline", False),
    "fluent-mono": Style("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "fluent mono", False),
    "fluent-3d": Style("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "fluent 3d", False),
}

OUTLINED = "outlined"
"""The style that `pretrain.outlines` draws, and its word in a caption."""

LINE_ICONS = (
    Package("@iconify-json/tabler", "1.2.41", "MIT"),
    Package("@iconify-json/lucide", "1.2.137", "ISC"),
    Package("@iconify-json/ph", "1.2.2", "MIT"),
    Package("@iconify-json/mdi", "1.2.3", "Apache-2.0"),
)
"""Seen by the VAE's decoder alone."""

WORDS = (
    Package("emojibase-data", "17.0.0", "MIT"),
    Package("emojilib", "4.0.3", "MIT"),
)
"""Names and keywords; emojibase carries those of Unicode CLDR (Unicode-3.0)."""

PACKAGES = (*STYLES.values(), *LINE_ICONS, *WORDS)


def pretraining() -> tuple[str, ...]:
    """The styles that the text encoder and the U-Net learn."""
    return tuple(name for name, style in STYLES.items() if style.pretrain)


def held_out() -> tuple[str, ...]:
    """The styles kept for adaptation and for measuring."""
    return tuple(name for name, style in STYLES.items() if not style.pretrain)
