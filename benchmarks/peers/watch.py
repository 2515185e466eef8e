"""Runs a trainer's own script and writes down when its optimizer stepped, and its memory by then.

    PYTHON watch.py LOG SCRIPT [ARGUMENT ...]

The interpreter is the trainer's, so nothing but torch and the standard library is imported here. LOG gets one
JSON line a step: seconds of the monotonic clock, which all processes of a machine share, and the largest
resident memory so far. The script is not changed. Where the environment has WATCHED_STEPS, the process ends after so many.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The most memory that this process has taken so far: of a GPU, where one computes, else resident (VmHWM, Linux)."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def declare_torchvision_operators() -> object:
    """Lets a torchvision whose compiled operators do not fit this torch be imported; only its transforms are used.

    The library has to be kept by the caller: its declarations go with it.
    """
    if importlib.util.find_spec("torchvision") is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def main() -> None:
    log, script = Path(sys.argv[1]), sys.argv[2]
    kept = declare_torchvision_operators()
    n_steps, seen = int(os.environ.get("WATCHED_STEPS", "0")), itertools.count(1)
    with log.open("w", encoding="utf-8") as file:

        def note(*_: Any) -> None:
            print(json.dumps({"at_s": time.monotonic(), "peak_bytes": peak_bytes()}), file=file, flush=True)
            if next(seen) == n_steps:
                os._exit(0)

        register_optimizer_step_post_hook(note)
        sys.argv = sys.argv[2:]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")
    del kept


if __name__ == "__main__":
    main()
