"""What is foretold of a run: from the real graph, in proportion, and refused with a change where it does not fit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltaw import device as devices
from deltaw import options
from deltaw.data.folder import scan
from deltaw.errors import DeltawError, InputError, UsageError
from deltaw.events import Event, Note, Phase, Step, Table, Warn
from deltaw.families import bases, sd
from deltaw.families.blueprint import Blueprint
from deltaw.families.networks import VARIANTS
from deltaw.training import forecast, graph, memory, outlook, pace, plan, room, run, trial
from deltaw.training.tracing import trace
from deltaw.zoo import bundled_base

PLENTY = (10**15, "free")


@pytest.fixture
def planned(pictures: Callable[..., Path], tiny_base: Path) -> tuple[sd.StableDiffusion, plan.Plan]:
    given = options.parse({"base": str(tiny_base), "rank": 8, "batch": 4}, ["device=cpu", "dtype=float32"])
    base = bases.open_base(tiny_base)
    return base, plan.make(given, base, scan(pictures(3)))


def test_a_trace_counts_what_is_alive_and_what_backward_keeps() -> None:
    x = torch.empty(1000, device="meta", requires_grad=True)
    one = 4000

    def work() -> torch.Tensor:
        y = x.exp()  # kept for its gradient
        z = y.sin()  # as is its input
        return z.sum()

    found = trace(work, [x])
    assert 2 * one <= found.peak_bytes < 3 * one + 100
    assert trace(lambda: x.detach().exp().sin().cos(), [x]).peak_bytes == 2 * one  # nothing is kept without a gradient
    a = torch.empty(8, 16, device="meta")
    assert trace(lambda: a @ a.t(), [a]).flops == 2 * 8 * 8 * 16


def test_attention_is_counted_as_it_is_fused() -> None:
    q = torch.empty(1, 1, 4096, 8, device="meta")
    found = trace(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), [q])
    assert found.peak_bytes < 4096 * 4096  # the matrix of all pairs would be 64 MB


def test_weights_are_counted_exactly_and_memory_grows_with_the_batch(
    planned: tuple[sd.StableDiffusion, plan.Plan],
) -> None:
    base, made = planned
    network = base.denoiser(torch.device("cpu"), torch.float32)
    small, large = (forecast.make(base, made, batch=n) for n in (2, 8))
    assert small.graph.network_bytes == sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    assert 3.5 < large.graph.step.peak_bytes / small.graph.step.peak_bytes < 4.1
    assert large.peak_bytes > small.peak_bytes
    half = forecast.make(base, made, dtype=torch.bfloat16)
    assert half.graph.network_bytes == small.graph.network_bytes // 2


def test_every_phase_has_its_reason(planned: tuple[sd.StableDiffusion, plan.Plan]) -> None:
    rows = forecast.make(*planned).rows()
    phases = {"program", "load", "encode pictures", "encode captions", "train", "judge", "save", "prove", "draw"}
    assert {what.removeprefix("memory: ") for what, _, _ in rows if what.startswith("memory")} == phases
    assert all(why for _, _, why in rows)
    assert {"disk: run", "disk: cache"} <= {what for what, _, _ in rows}


def test_sdxl_is_traced_without_its_weights() -> None:
    configs = {
        "unet": {"in_channels": 4, **VARIANTS["sdxl"]["unet"][1]},
        "vae": {"block_out_channels": (1, 2, 3, 4)},
        "text_encoder": {},
    }
    blueprint = Blueprint(configs)
    unet = blueprint.denoiser(torch.bfloat16)
    assert 5.1e9 < sum(p.nbytes for p in unet.parameters()) < 5.2e9
    with torch.no_grad():
        found = trace(lambda: unet(**blueprint.questions(1, (256, 256), torch.bfloat16)), unet.parameters())
    assert found.flops > 1e11
    assert found.peak_bytes < 1e8


def test_a_run_that_does_not_fit_is_refused_with_the_cheapest_change(
    planned: tuple[sd.StableDiffusion, plan.Plan],
) -> None:
    base, few = planned
    forecast_of_few = (forecast.make(base, few), base, few)
    made = replace(few, settings=replace(few.settings, batch=64, micro_batch=64))
    predicted = forecast.make(base, made)
    assert predicted.tightest.phase == "train"
    room.require(predicted, base, made, PLENTY, {})
    with pytest.raises(
        UsageError, match=r"take --set micro_batch=32: it needs .* try anyway with --set ignore_room=true"
    ) as told:
        room.require(predicted, base, made, (predicted.needed_bytes - 1, "free of this machine's 1 GB"), {})
    assert "free of this machine's 1 GB" in told.value.what
    assert "train: network" in told.value.where
    whole = plan.saving(replace(made, settings=replace(made.settings, batch=7)), "a prime number", micro_batch=7)
    least = forecast.make(base, whole, batch=1)
    with pytest.raises(UsageError, match=r"take --set micro_batch=1: it needs"):
        room.require(forecast.make(base, whole), base, whole, (least.needed_bytes, "free"), {})
    words = [text for kind in room._changes(base, few) for text, _ in kind]
    assert words[:3] == ["--set micro_batch=2", "--set micro_batch=1", "--set checkpointing=true"]
    with pytest.raises(UsageError, match=r"even with .*--resolution 32.* it needs"):
        room.require(*forecast_of_few, (1, "free"), {})


def test_checkpointing_holds_less_and_computes_more(planned: tuple[sd.StableDiffusion, plan.Plan]) -> None:
    base, made = planned
    kept, again = (forecast.make(base, made, checkpointing=c).graph for c in (False, True))
    assert again.step.peak_bytes < 0.7 * kept.step.peak_bytes
    assert 1.2 < again.step.flops / kept.step.flops < 1.5
    assert again.ask == kept.ask, "without gradients nothing is kept anyway"


@pytest.mark.parametrize(
    ("settings", "spare", "expected"),
    [
        ([], {"micro_batch": 32}, "32 of a step's pictures are computed at a time: the run then needs"),
        ([], {"micro_batch": 4}, "4 of a step's pictures are computed at a time: the run then needs"),
        (
            ["micro_batch=64"],
            {"checkpointing": True},
            "checkpointing is on, and a step takes about a third longer: the run then needs",
        ),
        (
            ["checkpointing=true"],
            {"micro_batch": 32},
            "32 of a step's pictures are computed at a time: the run then needs",
        ),
    ],
)
def test_a_plan_gets_what_makes_the_run_fit(
    settings: list[str], spare: dict[str, int], expected: str, pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given, base, made = _large(settings, pictures, tiny_base)
    least = forecast.make(base, replace(made, settings=replace(made.settings, **spare))).needed_bytes
    monkeypatch.setattr(devices, "available_bytes", lambda _: (least, "free"))
    heard: list[Event] = []
    predicted, changed = outlook.foretell(given, base, made, tmp_path, heard.append)
    assert {name: getattr(changed.settings, name) for name in spare} == spare
    assert predicted.needed_bytes == least
    assert any(e.text.startswith(expected) for e in heard if isinstance(e, Warn))
    assert changed.settings.batch == 64


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [([], "cpu", 16), ([], "cuda", 64), (["micro_batch=64"], "cpu", 64), (["micro_batch=2"], "cpu", 2)],
)
def test_a_cpu_computes_no_more_large_pictures_at_a_time_than_it_is_fast_at(
    settings: list[str], device: str, expected: int, pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given, base, made = _large(settings, pictures, tiny_base)
    whole = forecast.make(base, made, batch=64).graph.step.peak_bytes
    monkeypatch.setattr(memory, "STEP_BYTES", whole // 3)
    monkeypatch.setattr(devices, "available_bytes", lambda _: PLENTY)
    heard: list[Event] = []
    made = replace(made, settings=replace(made.settings, device=device))
    predicted, changed = outlook.foretell(given, base, made, tmp_path, heard.append)
    assert (predicted.job.batch, changed.settings.micro_batch, changed.settings.batch) == (expected, expected, 64)
    said = [e.text for e in heard if isinstance(e, Note)]
    assert any(t.startswith("16 of a step's pictures are computed at a time") for t in said) == (expected == 16)


def test_all_that_was_left_open_is_tried_the_fastest_first(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, base, made = _large(["ignore_room=true"], pictures, tiny_base)
    original, tried = forecast.make, []

    def noted(_: Any, asked: plan.Plan) -> forecast.Forecast:
        tried.append((asked.settings.micro_batch, asked.settings.checkpointing))
        return original(base, made)

    monkeypatch.setattr(forecast, "make", noted)
    monkeypatch.setattr(devices, "available_bytes", lambda _: (1, "free"))
    outlook.foretell(given, base, made, tmp_path, lambda _: None)
    assert tried == [(n, again) for again in (False, True) for n in (64, 32, 16, 8, 4, 2, 1)]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (["micro_batch=64", "checkpointing=false"], r"take --set micro_batch=32: it needs"),
        (["micro_batch=64", "checkpointing=true"], r"take --set micro_batch=32: it needs"),
    ],
)
def test_a_plan_keeps_what_the_user_chose(
    settings: list[str], advice: str, pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    given, base, made = _large(settings, pictures, tiny_base)
    least = forecast.make(base, made).needed_bytes
    monkeypatch.setattr(devices, "available_bytes", lambda _: (least - 1, "free"))
    with pytest.raises(UsageError, match=advice):
        outlook.foretell(given, base, made, tmp_path, lambda _: None)


def _large(
    settings: list[str], pictures: Callable[..., Path], tiny_base: Path
) -> tuple[options.Given, sd.StableDiffusion, plan.Plan]:
    """A plan of 64 pictures a step."""
    settings = ["device=cpu", "dtype=float32", *settings]
    given = options.parse({"base": str(tiny_base), "rank": 8, "batch": 64}, settings)
    base = bases.open_base(tiny_base)
    return given, base, plan.make(given, base, scan(pictures(3)))


def test_a_full_disk_is_foretold(
    planned: tuple[sd.StableDiffusion, plan.Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, made = planned
    predicted = forecast.make(base, made)
    places = forecast.places(tmp_path / "not" / "yet" / "there", tmp_path)
    assert places["run"] == tmp_path
    room.require(predicted, base, made, PLENTY, places)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match=r"the run writes .* MB and 0 MB are free") as told:
        room.require(predicted, base, made, PLENTY, places)
    assert told.value.where == str(tmp_path)
    with pytest.raises(DeltawError, match="the run does not fit"):
        room.require(predicted, base, made, (1, "free"), places)


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    membership, top = tmp_path / "cgroup", tmp_path / "sys"
    membership.write_text("0::/a/b\n")
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "memory.max").write_text("max\n")
    (top / "a" / "memory.max").write_text("4000\n")
    for folder in (top / "a", top / "a" / "b"):
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 1000\nfile 2000\n")
    assert devices._control_group(membership, top) == (4000, 1000)  # pages of files can be taken back
    (top / "a" / "memory.max").write_text("max\n")
    assert devices._control_group(membership, top) is None
    assert devices._control_group(tmp_path / "none", top) is None


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    membership, top = tmp_path / "cgroup", tmp_path / "sys"
    membership.write_text("5:memory:/box\n4:cpu,cpuacct:/\n")
    place = top / "memory" / "box"
    place.mkdir(parents=True)
    (place / "memory.limit_in_bytes").write_text("900\n")
    (place / "memory.usage_in_bytes").write_text("500\n")
    (place / "memory.stat").write_text("cache 9\ntotal_cache 100\n")
    assert devices._control_group(membership, top) == (900, 400)


def test_a_dry_run_says_memory_disk_and_time(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    given = options.parse({"base": str(tiny_base), "out": tmp_path / "out", "steps": 7}, ["device=cpu"])
    run.dry_run(pictures(3), given, strict=False, tell=events.append)
    tables = {e.title: e for e in events if isinstance(e, Table)}
    times = {row[0]: row for row in tables["how long it will take"].rows}
    assert times["train"][2].startswith("7 steps of ")
    assert set(times) == {"train", "judge and save", "write and prove", "draw", "all of these"}
    assert not (tmp_path / "out").exists()


def test_a_hopeless_run_spends_nothing(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda _: (1000, "free"))
    with pytest.raises(UsageError, match=r"the run needs .* of memory and 0.00 GB are free"):
        run.train(pictures(3), base=str(tiny_base), out=tmp_path / "out", steps=2)
    assert not (tmp_path / "out").exists()


def test_time_is_said_again_after_five_steps() -> None:
    events: list[Event] = []
    watch = pace.Watch(events.append)
    watch.expect(judge_s=10.0, after_s=20.0)
    for step in range(1, 9):
        watch(Step(step, 100, 0.1, 1e-4, 2.0, 0))
    notes = [e.text for e in events if isinstance(e, Note)]
    assert len(notes) == 1
    assert notes[0].startswith("after 5 steps of 0.50 s: 78 s in all")  # 95 steps of half a second, judging, the rest
    assert watch.total_s == pytest.approx(77.5, abs=0.5)


def test_a_resumed_run_is_told_what_is_left(planned: tuple[sd.StableDiffusion, plan.Plan]) -> None:
    base, made = planned  # 300 steps, judged at 60, 120, ...
    predicted = forecast.make(base, made)
    measured = trial.Measured(step_s=2.0, exact_s=0.5, draw_s=1.0, decode_s=0.1)
    whole, rest = (
        {p.phase: p.seconds for p in pace.parts(predicted.graph, predicted.job, made, measured, 8, done)}
        for done in (0, 120)
    )
    assert whole["train"] == 600
    assert rest["train"] == 360
    assert rest["judge and save"] < whole["judge and save"]
    assert rest["draw"] == whole["draw"]


def test_the_first_steps_of_each_size_are_foretold_beside_the_others(
    planned: tuple[sd.StableDiffusion, plan.Plan],
) -> None:
    base, made = planned
    predicted = forecast.make(base, made)
    measured = trial.Measured(step_s=2.0, exact_s=0.5, size_s=3.0)
    sizes = ((64, 64), (128, 64), (64, 128))
    several = replace(made, sizes_px=tuple(sizes[i % 3] for i in range(len(made.sizes_px))))
    on_gpu = {"settings": replace(made.settings, device="cuda")}
    found = {}
    for name, one in (("one", made), ("several", several), ("on a GPU", replace(several, **on_gpu))):
        part = pace.parts(predicted.graph, predicted.job, one, measured, 8)[0]
        found[name] = (part.seconds, part.reason)
    assert found["one"] == (600, "300 steps of 2.00 s, measured")
    assert found["several"] == (606, "300 steps of 2.00 s, and 3.00 s for 2 more sizes each, measured")
    assert found["on a GPU"][0] == 609, "what the trial recorded is forgotten"
    assert [pace.after_steps(m) for m in (made, several, replace(several, **on_gpu))] == [5, 8, 16]


def test_the_first_steps_of_every_size_do_not_foretell_the_rest() -> None:
    watch = pace.Watch(lambda _: None, after_steps=16)
    at = 0.0
    for step in range(1, 17):
        at += 5.0 if step < 7 else 0.5
        watch(Step(step, 100, 0.1, 1e-4, step / at, 0))
    assert watch.total_s == pytest.approx(84 * 0.5, abs=0.5)


def test_the_bundled_base_has_no_figure_without_its_graph() -> None:
    base = bases.open_base(bundled_base())
    job = graph.Job(torch.bfloat16, 1, 4, base.targets, (64, 64), 64, 1, True, 2)
    found = graph.measure(Blueprint(base.folder.configs), job)
    needs = memory.needs(found, job, "adamw", 0, memory.file_bytes(base))
    assert max(needs, key=lambda need: need.seen_bytes).n_bytes < 2e8
    assert found.draw == found.ask


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_a_network_that_was_drawn_with_can_be_trained(
    checkpointing: str, pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it is not read twice; here that is asked for, and the file is the same."""
    folder, loaded = pictures(3), []
    original = sd.StableDiffusion.denoiser
    monkeypatch.setattr(
        sd.StableDiffusion, "denoiser", lambda self, *args, **kw: loaded.append(1) or original(self, *args, **kw)
    )
    files, n_loaded = [], []
    for keeps in (False, True):
        monkeypatch.setattr(outlook, "may_keep", lambda *_, keeps=keeps: keeps)
        settings = ["prompts=['a']", "sample_steps=1", "snapshots=1", "device=cpu", f"checkpointing={checkpointing}"]
        made = run.train(folder, base=str(tiny_base), out=tmp_path / str(keeps), steps=3, rank=2, settings=settings)
        files.append(made.file.read_bytes())
        n_loaded.append(len(loaded))
    assert files[0] == files[1]
    assert n_loaded == [3, 3 + 2], "for the sample, the training and the sheet; then for the first two at once"


def test_a_network_stays_on_a_gpu_where_it_is_not_in_the_way(planned: tuple[sd.StableDiffusion, plan.Plan]) -> None:
    predicted = forecast.make(*planned)
    large = replace(predicted.graph, decode=replace(predicted.graph.decode, peak_bytes=10**12))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [outlook.may_keep(predicted, device) for device in (cuda, cpu)] == [True, False]
    assert not outlook.may_keep(replace(predicted, graph=large), cuda)


@pytest.mark.parametrize("sizes_px", [((64, 64),), ((64, 64), (128, 64))], ids=["one bucket", "two buckets"])
def test_what_could_fail_late_is_tried_first_and_the_forecast_is_judged(
    sizes_px: tuple[tuple[int, int], ...], pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    for size in sizes_px:
        folder = pictures(3, size, name=f"of/{size[0]}")
    events: list[Event] = []
    settings = ["prompts=['a']", "sample_steps=1", "snapshots=1", "device=cpu"]
    run.train(
        folder.parent, base=str(tiny_base), out=tmp_path / "out", steps=6, rank=2, settings=settings,
        tell=events.append,
    )  # fmt: skip
    said = [e.name if isinstance(e, Phase) else e.title if isinstance(e, Table) else f"step {e.step}" for e in events
            if isinstance(e, Phase | Table | Step)]  # fmt: skip
    before, tried, times = (
        ["foretell memory and disk", "try one sample", "load the base"],
        "try one step of the largest bucket",
        "how long it will take",
    )
    if len(sizes_px) == 1:  # the first step is that trial, and the second is measured
        wanted = [*before, "train", "step 1", "step 2", times, "step 3"]
        assert tried not in said
    else:
        wanted = [*before, tried, times, "train", "step 1", "step 2", "step 3"]
    assert [name for name in said if name in wanted] == wanted
    assert sum(e.text.startswith("after 5 steps of") for e in events if isinstance(e, Note)) == 1
    cost = dict(next(e.rows for e in events if isinstance(e, Table) and e.title == "cost"))
    assert re.fullmatch(r"predicted \d\.\d\d GB, used \d\.\d\d GB: [+-]\d+ %", cost["peak memory, predicted"])
    assert "time, foretold after the first steps" in cost
    assert "try" in cost


def test_a_graph_is_recalled_for_the_same_base_job_and_code_only(
    planned: tuple[sd.StableDiffusion, plan.Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, made = planned
    blueprint, job = Blueprint(base.folder.configs), memory.job(base, made)
    found = graph.recalled(blueprint, job, tmp_path)
    assert found == graph.measure(blueprint, job)
    measured: list[graph.Job] = []

    def measure(_: Blueprint, job: graph.Job) -> graph.Graph:
        measured.append(job)
        return found

    monkeypatch.setattr(graph, "measure", measure)
    assert graph.recalled(blueprint, job, tmp_path) == found
    assert not measured
    graph.recalled(blueprint, replace(job, rank=3), tmp_path)
    graph.recalled(
        Blueprint({**base.folder.configs, "vae": {**base.folder.configs["vae"], "latent_channels": 5}}), job, tmp_path
    )
    assert len(measured) == 2
    for file in (tmp_path / "graphs").iterdir():
        file.write_text('{"step"')
    assert graph.recalled(blueprint, job, tmp_path) == found
    assert len(measured) == 3


def test_a_base_that_cannot_draw_ends_the_run_before_training(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.weight"].fill_(float("nan"))
    save_file(tensors, weights)
    phases: list[str] = []
    with pytest.raises(InputError, match="the base drew non-finite pixels"):
        run.train(pictures(2), base=str(broken), out=tmp_path / "out", steps=2, rank=2,
                  tell=lambda e: phases.append(e.name) if isinstance(e, Phase) else None)  # fmt: skip
    assert "train" not in phases


def test_no_more_is_asked_or_drawn_at_a_time_than_a_step_has_room_for(
    planned: tuple[sd.StableDiffusion, plan.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, made = planned
    found = forecast.make(base, made)
    assert (found.at_a_time, found.drawn_at_a_time) == (16, found.job.n_drawn), "small ones are not worth the time"
    room = found.graph.draw.peak_bytes * 10
    monkeypatch.setattr(memory, "SMALL_BYTES", room)  # a CPU takes no more, whatever a step needs
    _takes_what_fits(found.graph, found.job, room)
    on_gpu = replace(found.job, device=torch.device("cuda"))
    _takes_what_fits(found.graph, on_gpu, max(room, memory._scattered(found.graph.step.peak_bytes, on_gpu)))
    monkeypatch.setattr(memory, "SMALL_BYTES", 0)
    assert memory.at_a_time(found.graph, found.job) == memory.drawn_at_a_time(found.graph, found.job) == 1
    _takes_what_fits(found.graph, on_gpu, memory._scattered(found.graph.step.peak_bytes, on_gpu))
    tiny = replace(found.graph, step=replace(found.graph.step, peak_bytes=0))
    assert memory.at_a_time(tiny, on_gpu) == memory.drawn_at_a_time(tiny, on_gpu) == 1


def _takes_what_fits(made: graph.Graph, job: graph.Job, room: int) -> None:
    for n, most, need in (
        (memory.at_a_time(made, job), 16, memory._asked),
        (memory.drawn_at_a_time(made, job), job.n_drawn, memory._drawn),
    ):
        assert need(made, job, n) <= room or n == 1
        assert n == most or need(made, job, 2 * n) > room


@pytest.mark.parametrize(
    ("piece", "said"),
    [("drawing_text_bytes", "text encoder 9"), ("network_bytes", "network 9"), ("decode", "one picture decoded 9")],
)
def test_drawing_needs_one_network_at_a_time(
    planned: tuple[sd.StableDiffusion, plan.Plan], piece: str, said: str
) -> None:
    base, made = planned
    found = forecast.make(base, made)
    large = replace(found.graph.decode, peak_bytes=9 * 10**9) if piece == "decode" else 9 * 10**9
    graph = replace(found.graph, **{piece: large})
    [need] = [n for n in memory.needs(graph, found.job, "adamw", 0, memory.file_bytes(base)) if n.phase == "draw"]
    assert said in need.reason
    assert 9e9 < need.n_bytes < 9.1e9
