"""The command: exit codes, one message an error, the three displays, bases that are none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaw import cli
from deltaw.errors import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_USAGE


def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from deltaw.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, env=os.environ)


def fail(*words: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and standard error of a command that fails, run in this process."""
    monkeypatch.setattr(sys, "argv", ["deltaw", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0), capsys.readouterr().err


def test_help_and_version_answer() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert "train" in result.stdout
    assert "generate" in result.stdout
    assert run("--version").stdout.strip() == "0.1.0"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["trian"], EXIT_USAGE, "Did you mean"),
        (["train"], EXIT_USAGE, "FOLDER"),
        (["train", "x", "--stpes", "3"], EXIT_USAGE, "--steps"),
        (["train", "x", "--stpes", "3"], EXIT_USAGE, "see `deltaw train --help`"),
        (["train", "absent-folder"], EXIT_INPUT, "absent-folder"),
        (["train", "examples/inkline", "--base", "./nowhere"], EXIT_INPUT, "no such base"),
        (["train", "examples/inkline", "--resolution", "144"], EXIT_USAGE, "multiple of"),
        (["train", "examples/inkline", "--set", "held_out=28"], EXIT_USAGE, "leaves no picture"),
        (["train", "examples/inkline", "--set", "optimizer=sgd"], EXIT_USAGE, "adamw"),
        (["generate", "x", "--lora", "absent.safetensors"], EXIT_INPUT, "absent.safetensors"),
    ],
)
def test_failures_have_one_message_and_a_code(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    found, err = fail(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert found == code
    assert said in err
    assert "Traceback" not in err


def test_a_hub_id_without_network_is_explained(
    pictures: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, err = fail("train", pictures(3), "--base", "owner/name", capsys=capsys, monkeypatch=monkeypatch)
    assert code == EXIT_INPUT
    assert "the hub did not give it" in err
    assert "Traceback" not in err


def test_ctrl_c_finishes_the_step_saves_and_exits_130(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-c", "from deltaw.cli import main; main()", "train", str(pictures(3)), "--base", str(tiny_base),
        "--out", str(out), "--steps", "5000", "--rank", "2", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "step":
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert "--resume" in err
    assert (out / "state" / "state.safetensors").is_file()
    assert len(list((out / "snapshots").iterdir())) == 1


def test_check_of_nothing_says_what_it_takes(tmp_path: Path) -> None:
    done = run("check", tmp_path / "gone.safetensors")
    assert done.returncode == 3
    assert "there is nothing of this name" in done.stderr
    assert "a LoRA file, a folder of pictures, or a base" in done.stderr


def test_check_judges_a_folder(
    pictures: Callable[..., Path], tiny_base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(9)
    (folder / "p03.png").write_bytes((folder / "p02.png").read_bytes())
    monkeypatch.setattr(sys, "argv", ["deltaw", "check", str(folder), "--base", str(tiny_base)])
    cli.main()
    said = capsys.readouterr().out
    assert "9 found" in said
    assert "same file" in said
    code, _ = fail("check", folder, "--base", tiny_base, "--strict", capsys=capsys, monkeypatch=monkeypatch)
    assert code == EXIT_INPUT


def test_doctor_examines_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltaw.verbs.doctor.LEAST_MEMORY_BYTES", 1e18)
    monkeypatch.setattr(sys, "argv", ["deltaw", "doctor"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr().out
    assert caught.value.code == EXIT_INPUT
    assert "one kernel ran" in said
    assert "warning: memory: close programs" in said


def test_a_dry_run_writes_nothing(
    pictures: Callable[..., Path],
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["deltaw", "train", str(pictures(9)), "--base", str(tiny_base), "--dry-run", "--lr", "3e-4"]
    )
    monkeypatch.chdir(tmp_path)
    cli.main()
    said = capsys.readouterr().out
    assert "8 to train on, 1 held out" in said
    assert "you asked for it" in said
    assert [p.name for p in tmp_path.iterdir()] == ["blocks"]


def test_json_lines_are_json(
    pictures: Callable[..., Path], tiny_base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["deltaw", "train", str(pictures(3)), "--base", str(tiny_base), "--dry-run", "--json"]
    )
    cli.main()
    kinds = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert kinds[0] == "phase"
    assert "table" in kinds


def test_every_fault_of_a_base_is_said_at_once(
    pictures: Callable[..., Path],
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = tmp_path / "broken-base"
    shutil.copytree(tiny_base, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (broken / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    (broken / "scheduler" / "scheduler_config.json").write_text("{")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, err = fail("train", pictures(3), "--base", broken, capsys=capsys, monkeypatch=monkeypatch)
    assert code == EXIT_INPUT
    for said in ("only pickles are there", "scheduler_config.json", "incomplete"):
        assert said in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"addition_embed_type": "image"}, "not of a family"),
        ({"addition_embed_type": "text_time"}, "reads a second text encoder, and there is none"),
    ],
)
def test_other_bases_are_refused_by_name(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], said: str,
) -> None:  # fmt: skip
    other = tmp_path / "other-base"
    shutil.copytree(tiny_base, other)
    config = other / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    code, err = fail("train", pictures(3), "--base", other, capsys=capsys, monkeypatch=monkeypatch)
    assert code == EXIT_INPUT
    assert said in err
