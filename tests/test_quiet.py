"""Nothing is fetched and nobody is told: every verb runs where no socket connects and no hub is configured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaw.errors import InputError
from deltaw.families import base_folder
from deltaw.zoo import bundled_base

GUARD = """
import socket, sys

def refuse(*args, **more):
    sys.stderr.write("A NETWORK WAS ASKED FOR\\n")
    raise OSError("no network here")

class Refused(socket.socket):
    connect = connect_ex = sendto = sendmsg = refuse

socket.socket = Refused
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
"""
"""What Python runs before all else (`sitecustomize`), so that no library escapes it."""

CODE = """
import os, pathlib, sys, deltaw
from deltaw.cli import main
base, folder, out = map(pathlib.Path, sys.argv[1:])

def run(*words):
    sys.argv = ["deltaw", *map(str, words)]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)

run("train", folder, "--out", out / "run", "--steps", "2", "--resolution", "64", "--rank", "2", "--lr", "1e-2",
    "--set", "sample_steps=1", "--set", "snapshots=1", "--set", 'prompts=["a house"]', "--set", "dtype=float32")
file = out / "run" / f"{folder.name}.safetensors"
run("generate", "a house", "--lora", file, "--steps", "1", "--size", "64", "--out", out / "a.png")
run("merge", f"{file}:0.5", f"{file}:0.5", "-o", out / "merged.safetensors")
run("merge", file, "--into", base, "-o", out / "tuned")
run("extract", out / "tuned", "--base", base, "--rank", "2", "-o", out / "extracted.safetensors")
run("convert", file, "--to", "diffusers", "-o", out / "converted.safetensors")
run("inspect", file)
run("share", file)
import diffusers.utils.hub_utils, huggingface_hub.constants
assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
assert "telemetry/off" in diffusers.utils.hub_utils.http_user_agent()
made = sorted(p.name for p in out.iterdir())
assert made == ["a.png", "converted.safetensors", "extracted.safetensors", "merged.safetensors", "run", "tuned"], made
"""


@pytest.fixture
def quiet(tmp_path: Path) -> dict[str, str]:
    """An environment whose sockets do not connect, with a home of its own and no word on any hub."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "DIFFUSERS_", "TRANSFORMERS_"))}
    (tmp_path / "home").mkdir()
    paths = os.pathsep.join([str(tmp_path / "guard"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**kept, "PYTHONPATH": paths, "HOME": str(tmp_path / "home"), "DELTAW_CACHE": str(tmp_path / "cache")}


def run(code: str, quiet: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, env=quiet, capture_output=True, text=True, check=False, cwd=quiet["HOME"])


def test_every_verb_works_without_a_network_and_asks_for_none(
    pictures: Callable[..., Path], tmp_path: Path, quiet: dict[str, str]
) -> None:
    (tmp_path / "out").mkdir()
    done = run(CODE, quiet, bundled_base(), pictures(3), tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A NETWORK WAS ASKED FOR" not in done.stderr


LOOKUP = """
import sys
from deltaw.cli import main
sys.argv = ["deltaw", "train", sys.argv[1], "--base", sys.argv[2], "--dry-run"]
main()
"""


def test_a_path_is_never_looked_up_as_a_hub_id(
    pictures: Callable[..., Path], tiny_base: Path, quiet: dict[str, str]
) -> None:
    """A folder called as a hub id could be called is the folder; a part of it that is missing is not fetched."""
    folder = Path(quiet["HOME"]) / "owner" / "name"
    shutil.copytree(tiny_base, folder)
    done = run(LOOKUP, quiet, pictures(3), "owner/name")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "tokenizer")
    broken = run(LOOKUP, quiet, pictures(3), "owner/name")
    assert "the tokenizer is missing" in broken.stderr
    assert "A NETWORK WAS ASKED FOR" not in done.stderr + broken.stderr


@pytest.mark.parametrize("where", ["./owner/name", "../owner/name", "/owner/name", "~/owner/name", "owner\\name"])
def test_what_can_only_be_a_path_is_no_hub_id(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_folder, "_from_hub", lambda repo: pytest.fail(f"{repo} was looked up"))
    with pytest.raises(InputError, match="no such base"):
        base_folder.find(where)
