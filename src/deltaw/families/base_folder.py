"""A base model's diffusers folder: where it is, what it says of itself, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw import digests, tensorfile
from deltaw.errors import DeltawError, InputError, refuse_all
from deltaw.families import base_check, flux_check, sd3_check, unet_check
from deltaw.tensorheader import Header

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
PARTS = tuple(dict.fromkeys((*unet_check.PARTS, *flux_check.PARTS, *sd3_check.PARTS)))
"""Parts of any family's folder that hold weights."""


@dataclass(frozen=True)
class BaseFolder:
    """A checked diffusers folder.

    Args:
        path: the folder.
        configs: part name (of `PARTS`, "scheduler", "model_index") to its config.
        recommended: what the base's own `deltaw.toml` recommends, by verb; empty where there is none.
        remarks: what the user should know of it.
    """

    path: Path
    configs: Mapping[str, Mapping[str, Any]]
    recommended: Mapping[str, Mapping[str, Any]]
    remarks: tuple[str, ...] = ()
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that hold weights."""
        return tuple(part for part in PARTS if part in self.configs)

    def weights(self, part: str) -> list[Path]:
        """The safetensors files of a part: one, or the shards that its index names.

        Raises:
            InputError: none is there, or shards are missing.
        """
        folder = self.path / part
        indexes = sorted(folder.glob("*.safetensors.index.json"))
        if indexes:
            shards = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
            missing = [name for name in shards if not (folder / name).is_file()]
            if missing:
                raise InputError(
                    f"shards are missing: {', '.join(missing)}", where=folder, advice="download the base again"
                )
            return [folder / name for name in shards]
        plain = [f for f in sorted(folder.glob("*.safetensors")) if len(f.suffixes) == 1] or sorted(
            folder.glob("*.safetensors")
        )
        if not plain:
            pickles = [f.name for f in (*folder.glob("*.bin"), *folder.glob("*.ckpt"))]
            advice = (
                f"only pickles are there ({pickles[0]}); get the safetensors version"
                if pickles
                else "download it again"
            )
            raise InputError("no safetensors weights", where=folder, expected=f"{part}/*.safetensors", advice=advice)
        return plain[:1]

    def digest(self, part: str) -> str:
        """SHA-256 over a part's weight files and config: what a cache of its results depends on.

        Weights are read once and the digest is remembered (`deltaw.digests`), since a base holds gigabytes.
        """
        if part not in self._digests:
            total = hashlib.sha256(json.dumps(self.configs[part], sort_keys=True).encode())
            for file in self.weights(part):
                total.update(bytes.fromhex(digests.of_file(file)))
            self._digests[part] = total.hexdigest()
        return self._digests[part]

    def digest_ahead(self) -> None:
        """Has the weights' digests found in the background: those of a base of 30 GB take half a minute."""
        digests.ahead(file for part in self.parts for file in self.weights(part))

    def text_digest(self) -> str:
        """SHA-256 of the text encoder, or over those of both: what an encoded text depends on beside the tokenizer."""
        digests = [self.digest(part) for part in self.parts if part.startswith("text_encoder")]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def tokenizer_digest(self) -> str:
        """SHA-256 over the tokenizers' files: another one gives a caption other tokens."""
        total = hashlib.sha256()
        for file in (file for name in TOKENIZERS for file in sorted((self.path / name).glob("*"))):
            total.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        return total.hexdigest()

    def schedule_digest(self) -> str:
        """SHA-256 over the scheduler's config: what is predicted, and at which noise."""
        return hashlib.sha256(json.dumps(self.configs["scheduler"], sort_keys=True).encode()).hexdigest()


def find(base: str) -> Path:
    """The folder or single file of a base given as a path or as a hub id; a path is never looked up as an id.

    Raises:
        InputError: it is neither a folder here nor an id that can be had.
    """
    path = Path(base).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(base) or base.startswith("."):
        raise InputError(
            "no such base",
            where=base,
            expected="a diffusers folder, a safetensors file, or a hub id such as owner/name",
        )
    return _from_hub(base)


def _from_hub(repo: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["model_index.json", "scheduler/*", *(f"{name}/*" for name in TOKENIZERS)]
    wanted += [f"{part}/*.{kind}" for part in PARTS for kind in ("json", "safetensors")]
    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=wanted))
    except GatedRepoError as error:
        raise InputError(
            "the hub gives this base only to those who accepted its licence", where=repo, expected="a base that you may use",
            advice=f"accept it at https://huggingface.co/{repo}, run `hf auth login`, and start again",
        ) from error  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"no folder of that name is here, and the hub did not give it ({type(error).__name__})",
            where=repo, expected="a diffusers folder, or a hub id that can be reached",
            advice="check the spelling and the network, or download it and give its folder",
        ) from error  # fmt: skip


def read(path: Path) -> BaseFolder:
    """Reads and checks a diffusers folder, reporting every problem at once.

    Raises:
        InputError: or ManyErrors: configs or weights are missing or unreadable.
    """
    problems: list[DeltawError] = []
    if not (path / "model_index.json").is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        raise InputError(
            "is no diffusers folder: model_index.json is missing", where=path, expected="unet/, vae/, text_encoder/ …",
            advice=f"found here: {found}",
        )  # fmt: skip
    configs: dict[str, Mapping[str, Any]] = {}

    def read_config(part: str, name: str) -> None:
        try:
            configs[part] = _config(path / name)
        except (OSError, ValueError) as error:
            problems.append(InputError(f"{name} cannot be read ({error})", where=path, advice="download it again"))

    read_config("model_index", "model_index.json")
    if other := base_check.other_family(path, configs.get("model_index", {})):
        raise other
    read_config("scheduler", "scheduler/scheduler_config.json")
    parts = base_check.parts(path, configs.get("model_index", {}))
    for part in parts:
        read_config(part, f"{part}/config.json")
    folder = BaseFolder(path, configs, _recommended(path), tuple(base_check.remarks(path, configs)))
    headers: dict[str, list[Header]] = {}
    for part in parts:
        try:
            headers[part] = [tensorfile.read_header(file) for file in folder.weights(part)]
        except InputError as error:
            problems.append(error)
    refuse_all("the base cannot be trained as it is", [*problems, *base_check.problems(path, configs, headers)])
    return folder


def _config(file: Path) -> dict[str, Any]:
    """The file's JSON object.

    Raises:
        ValueError: it is something else.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _recommended(path: Path) -> dict[str, dict[str, Any]]:
    """What `deltaw.toml` in the folder recommends; a base may carry one, none need to."""
    from tomllib import loads

    file = path / "deltaw.toml"
    return loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
