"""`inspect`, `check`, `convert`, `shrink`, `strip`, `edit` on files whose truth is known."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltaw import formats, tensorfile
from deltaw.delta import Delta, Update
from deltaw.errors import InputError, UsageError
from deltaw.events import Warn
from deltaw.verbs.check import check
from deltaw.verbs.convert import convert
from deltaw.verbs.inspect import inspect
from deltaw.verbs.metadata import edit, strip
from deltaw.verbs.shrink import shrink
from tests.algebra.dense import dense, relative_error
from tests.algebra.test_bake import EMOJI
from tests.formats import made
from tests.formats.test_round_trip import of_algorithm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    delta = replace(made.delta("sd1", "emoji", rank=4, alpha=2.0), trigger=("inkline", "drawing"))
    formats.save(delta, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_inspect_says_what_a_file_is(file: Path) -> None:
    report = inspect(file, spectra=True)
    delta, _ = formats.load(file)
    assert (report.family, report.variant, report.algorithms, report.dtypes) == (
        "sd1",
        "emoji",
        {"lora": len(delta.updates)},
        {"F16": len(delta.updates)},
    )
    assert {(layer.rank, layer.alpha) for layer in report.layers} == {(4, 2.0)}
    assert report.trigger == ("inkline", "drawing")
    assert (report.broken, report.zero, report.match.partial) == ({}, (), False)
    for layer in report.layers:
        wanted = dense(Delta("sd1", {layer.path: delta.updates[layer.path]}))[layer.path].flatten(1)
        s = torch.linalg.svdvals(wanted)[:4]
        assert layer.norm == pytest.approx(float(wanted.norm()), rel=1e-5)
        assert layer.spectrum[:4] == pytest.approx(s.tolist(), rel=1e-5)
        assert layer.effective_rank is not None
        assert 1 <= layer.effective_rank <= 4.001
    whole = sum(norm**2 for norm in report.blocks.values())
    assert whole == pytest.approx(sum(layer.norm**2 for layer in report.layers if layer.norm), rel=1e-9)


def test_inspect_reads_alphas_from_a_configuration_and_bfloat16(tmp_path: Path) -> None:
    formats.save(made.delta("sd1", "emoji", alpha=3.0, dtype=torch.bfloat16), tmp_path / "d.safetensors", "diffusers")
    assert {layer.alpha for layer in inspect(tmp_path / "d.safetensors").layers} == {3.0}
    delta = made.delta("sd1", "emoji", alpha=3.0, dtype=torch.bfloat16)
    half = {p: Update("lora", {**u.tensors, "alpha": torch.tensor(3.0).bfloat16()}) for p, u in delta.updates.items()}
    formats.save(Delta("sd1", half), tmp_path / "k.safetensors")
    assert {(layer.alpha, layer.dtype) for layer in inspect(tmp_path / "k.safetensors").layers} == {(3.0, "BF16")}


def test_inspect_and_help_import_no_tensor_library(file: Path) -> None:
    code = (
        "import sys; from deltaw.verbs.inspect import inspect; from deltaw.verbs.check import check;"
        f"inspect({str(file)!r}); check({str(file)!r}, base={str(EMOJI)!r});"
        "assert not {'torch', 'diffusers', 'transformers', 'safetensors'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numbers_that_are_not_finite_and_tensors_that_are_zero_are_named(file: Path) -> None:
    tensors = tensorfile.read(file)
    up, other = [key for key in tensors if key.endswith("lora_up.weight")][:2]
    tensors[up][0, 0] = float("nan")
    tensors[other].zero_()
    tensorfile.write(file, tensors)
    told: list[object] = []
    report = inspect(file, spectra=True, tell=told.append)
    assert list(report.broken) == [up]
    assert report.zero == (other,)
    assert any(isinstance(event, Warn) and up in event.text for event in told)
    assert not check(file).fits
    with pytest.raises(InputError, match="not finite"):
        formats.load(file)
    delta, match = formats.load(file, drop_broken=True)
    assert len(delta.updates) == len(report.layers) - 1
    assert len(match.ignored) == 1


def test_check_tells_the_right_base_from_the_wrong_one(file: Path, tmp_path: Path) -> None:
    assert check(file).fits
    assert check(file, base=EMOJI).fits
    formats.save(made.delta("sdxl", "sdxl"), tmp_path / "xl.safetensors")
    verdict = check(tmp_path / "xl.safetensors", base=EMOJI)
    assert not verdict.fits
    assert verdict.family == "sdxl"
    assert "Stable Diffusion XL" in verdict.findings[0].advice
    formats.save(made.delta("sd1", "sd1"), tmp_path / "wide.safetensors")
    assert not check(tmp_path / "wide.safetensors", base=EMOJI).fits


def test_concerns_name_the_programs(tmp_path: Path) -> None:
    delta = made.delta("sd1", "emoji")
    mixed = {
        p: Update("lora", {**u.tensors, "alpha": torch.tensor(float(i % 3 + 1))})
        for i, (p, u) in enumerate(delta.updates.items())
    }
    formats.save(Delta("sd1", mixed), tmp_path / "k.safetensors")
    formats.save(delta, tmp_path / "d.safetensors", "diffusers")
    assert "alphas differ" in str(inspect(tmp_path / "k.safetensors").concerns["diffusers"])
    assert "ComfyUI" in inspect(tmp_path / "d.safetensors").concerns


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft", "comfy"])
def test_convert_there_and_back_is_tensor_identical(to: str, file: Path, tmp_path: Path) -> None:
    report = convert(file, tmp_path / "x", to=to)
    assert report.dialect == to
    convert(tmp_path / "x", tmp_path / "back.safetensors", to="kohya")
    first, second = tensorfile.read(file), tensorfile.read(tmp_path / "back.safetensors")
    assert set(first) == set(second)
    assert all(second[k].dtype == t.dtype and second[k].equal(t) for k, t in first.items())


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "oft", "ia3", "glora", "full"])
def test_convert_to_lora_states_its_error(algorithm: str, tmp_path: Path) -> None:
    delta = of_algorithm(algorithm, "sd1", "emoji")
    formats.save(delta, tmp_path / "a.safetensors")
    if algorithm in ("oft", "ia3", "glora"):
        with pytest.raises(InputError, match="not given"):
            convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="lora")
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="lora", base=EMOJI, energy=0.95)
    got, _ = formats.load(tmp_path / "b.safetensors", strict=True)
    assert {update.algorithm for update in got.updates.values()} == {"lora"}
    assert 0 < report.error <= 0.05**0.5 * 1.3


def test_shrink_keeps_the_promised_energy_and_size(file: Path, tmp_path: Path) -> None:
    delta, _ = formats.load(file)
    report = shrink(file, tmp_path / "s.safetensors", energy=0.8)
    got, _ = formats.load(tmp_path / "s.safetensors", strict=True)
    error = relative_error(dense(got), dense(delta))
    assert report.energy >= 0.8
    assert error**2 == pytest.approx(1 - report.energy, rel=0.01)
    assert report.n_bytes < report.n_bytes_before
    same = shrink(file, tmp_path / "t.safetensors", rank=4, dtype="float32")
    assert same.energy == pytest.approx(1.0, abs=1e-9)
    assert relative_error(dense(formats.load(tmp_path / "t.safetensors")[0]), dense(delta)) <= 1e-5
    small = shrink(file, tmp_path / "u.safetensors", size="40kB")
    assert small.n_bytes <= 40_000
    assert formats.load(tmp_path / "u.safetensors", strict=True)[0].trigger == ("inkline", "drawing")


def test_metadata_changes_the_header_only(file: Path, tmp_path: Path) -> None:
    raw = tensorfile.read_header(file)
    edit(file, tmp_path / "e.safetensors", put={"ss_training_comment": "x", "ss_tag_frequency": "{}"})
    report = strip(tmp_path / "e.safetensors", tmp_path / "s.safetensors")
    assert set(report.removed) == {"ss_training_comment", "ss_tag_frequency"}
    after = tensorfile.read_header(tmp_path / "s.safetensors")
    assert file.read_bytes()[raw.data_start :] == (tmp_path / "s.safetensors").read_bytes()[after.data_start :]
    assert after.metadata == raw.metadata
    formats.save(formats.load(file)[0], tmp_path / "d.safetensors", "diffusers")
    strip(tmp_path / "d.safetensors", tmp_path / "ds.safetensors")
    assert made.same(formats.load(tmp_path / "ds.safetensors")[0], formats.load(file)[0]) == ""  # alphas stay
    with pytest.raises(UsageError, match="input"):
        strip(file, file)
    with pytest.raises(InputError, match="has no"):
        edit(file, tmp_path / "x", drop=("nothing",))
    with pytest.raises(UsageError, match="nothing is to be changed"):
        edit(file, tmp_path / "x")
    assert json.loads(json.dumps(raw.metadata))
