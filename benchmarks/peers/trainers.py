"""How each trainer is started on a job. Peers come from their own distributions and are not part of this repository."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import plain_peft as plain_peft_loop
from benchmarks.peers.jobs import Job
from deltaw.families import bases

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Start:
    """A script with its arguments and the interpreter that has its libraries; `cwd` where it wants to run."""

    python: str
    script: Path
    arguments: Sequence[str]
    cwd: Path | None = None

    def command(self, log: Path) -> list[str]:
        """The command under the watcher, which writes the steps to `log`."""
        return [self.python, str(HERE / "watch.py"), str(log), str(self.script), *self.arguments]


def environment(cache: Path) -> dict[str, str]:
    """For every trainer alike: no hub, a cache of its own, waiting threads that spin as briefly as DeltaW's own do."""
    spin = os.environ.get("GOMP_SPINCOUNT", "10000")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p),
        "HF_HUB_OFFLINE": "1",
        "DELTAW_CACHE": str(cache),
        "GOMP_SPINCOUNT": spin,
    }


def deltaw(python: str, job: Job, out: Path, more: Sequence[str] = ()) -> Start:
    """DeltaW with its defaults but for what the job fixes, and `more` settings; one snapshot and one prompt, since no peer draws.

    Targets are the peers' whatever the base recommends.
    """
    settings = {
        "snapshots": 1,
        "held_out": 0,
        "sample_steps": 1,
        "prompts": '["a cat"]',
        "targets": plain_peft_loop.trained(bases.open_base(job.base)),
    }
    words = [word for pair in (*(f"{k}={v}" for k, v in settings.items()), *more) for word in ("--set", pair)]
    return Start(python, HERE / "deltaw_command.py", [
        "train", str(job.pictures), "--base", str(job.base), "--out", str(out), "--steps", str(job.steps),
        "--batch", str(job.batch), "--rank", str(job.rank), "--resolution", str(job.px), *words,
    ])  # fmt: skip


def plain_peft(python: str, job: Job, out: Path, extra: Sequence[str] = ()) -> Start:
    """The loop of `benchmarks.plain_peft`."""
    return Start(python, HERE.parent / "plain_peft.py", [
        str(job.pictures), str(out / "peft.safetensors"), "--base", str(job.base), "--steps", str(job.steps),
        "--batch", str(job.batch), "--rank", str(job.rank), "--px", str(job.px), *extra,
    ])  # fmt: skip


def diffusers_script(python: str, script: Path, job: Job, out: Path, extra: Sequence[str] = ()) -> Start:
    """The official `examples/text_to_image/train_text_to_image_lora.py` in bfloat16."""
    return Start(python, script, [
        "--pretrained_model_name_or_path", str(job.base), "--train_data_dir", str(job.listed), "--caption_column", "text",
        "--image_column", "image", "--resolution", str(job.px), "--train_batch_size", str(job.batch), "--rank", str(job.rank),
        "--max_train_steps", str(job.steps), "--mixed_precision", "bf16", "--output_dir", str(out), "--seed", "0", *extra,
    ])  # fmt: skip


def slow_tokenizer(source: Path, out: Path) -> None:
    """The two files that older transformers read, from the one that newer write."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "tokenizer_config.json", out / "tokenizer_config.json")
    model = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]
    (out / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (out / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")


def kohya(python: str, folder: Path, job: Job, out: Path) -> Start:
    """sd-scripts' `train_network.py` with cached latents, the U-Net alone, in bfloat16. Only Stable Diffusion's own shapes."""
    tokenizers = out / "tokenizers"
    # it looks for the hub's tokenizer under this name in its cache; ours answers for it without a network
    slow_tokenizer(job.base / "tokenizer", tokenizers / "openai_clip-vit-large-patch14")
    return Start(python, folder / "train_network.py", [
        "--pretrained_model_name_or_path", str(job.base), "--train_data_dir", str(job.counted), "--output_dir", str(out),
        "--caption_extension", ".txt", "--resolution", f"{job.px},{job.px}", "--train_batch_size", str(job.batch),
        "--network_module", "networks.lora", "--network_dim", str(job.rank), "--network_alpha", str(job.rank),
        "--network_train_unet_only", "--cache_latents", "--mixed_precision", "bf16", "--sdpa", "--optimizer_type", "AdamW",
        "--learning_rate", "1e-4", "--max_train_steps", str(job.steps), "--save_precision", "fp16", "--seed", "0",
        "--save_model_as", "safetensors", "--max_data_loader_n_workers", "0", "--tokenizer_cache_dir", str(tokenizers),
    ], folder)  # fmt: skip
