"""What a LoRA file says of itself: enough to use and to repeat it, nothing of who made it or where."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from deltaw._version import VERSION
from deltaw.data.folder import Dataset
from deltaw.families.base import Base
from deltaw.families.family import Family
from deltaw.judge import seen
from deltaw.training import fingerprint
from deltaw.training.plan import Plan
from deltaw.training.wording import common_ending

RECIPE = "deltaw.recipe"
"""The header entry that `deltaw rebuild` repeats a run from."""
RECIPE_FORMAT = 1
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""modelspec's words for what is predicted; it has none for a flow's velocity."""


def trigger_words(plan: Plan) -> str:
    """The trigger, or else the words that the captions share."""
    return plan.settings.trigger or common_ending(plan.captions)


def describe(name: str, family: Family, plan: Plan, dataset: Dataset, base: Base) -> dict[str, str]:
    """kohya's minimal `ss_*` keys, modelspec's, and a recipe; no path, user name, caption or time of day.

    Times are left out so that the same run gives the same bytes.

    Args:
        name: of the file, without its ending.
        family: of the base.
        plan: of the run.
        dataset: its pictures.
        base: that it was trained on.
    """
    settings = plan.settings
    words = trigger_words(plan)
    found = {
        "ss_output_name": name,
        "ss_base_model_version": family.kohya_version,
        "ss_v2": str(family.name == "sd2"),
        "ss_new_sd_model_hash": base.folder.digest(base.component),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": f"{settings.alpha:g}",
        "ss_learning_rate": f"{settings.lr:g}",
        "ss_lr_scheduler": settings.schedule,
        "ss_optimizer": settings.optimizer,
        "ss_steps": str(settings.steps),
        "ss_max_train_steps": str(settings.steps),
        "ss_total_batch_size": str(settings.batch),
        "ss_gradient_accumulation_steps": str(settings.batch // settings.micro_batch // settings.processes),
        "ss_num_train_images": str(len(plan.training)),
        "ss_resolution": f"({settings.resolution}, {settings.resolution})",
        "ss_seed": str(settings.seed),
        "ss_mixed_precision": {"bfloat16": "bf16", "float16": "fp16"}.get(settings.dtype, "no"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": f"{settings.resolution}x{settings.resolution}",
        "deltaw.version": VERSION,
        seen.ENTRY: seen.pack([dataset.pictures[i].digest for i in plan.training]),
        RECIPE: json.dumps(recipe(plan, dataset, base), sort_keys=True),
    }
    if spoken := PREDICTIONS.get(base.objective.name):
        found["modelspec.prediction_type"] = spoken
    if words:
        found["modelspec.trigger_phrase"] = words
    return found


def recipe(plan: Plan, dataset: Dataset, base: Base) -> dict[str, Any]:
    """What repeats the run, given the same pictures and base: settings, digests, versions.

    Prompts of the contact sheet are left out: they quote captions and the weights do not depend on them.
    """
    settings = {k: v for k, v in asdict(plan.settings).items() if k != "prompts"}
    return {
        "format": RECIPE_FORMAT,
        "settings": settings,
        "pictures": fingerprint.of_pictures(plan, dataset),
        "n_pictures": len(dataset.pictures),
        "base": fingerprint.of_base(base.folder),
        "versions": fingerprint.versions(),
    }
