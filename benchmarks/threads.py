"""How OpenMP's waiting threads cost: a step of the bundled base on an idle and on a busy machine.

    python -m benchmarks.threads

Each setting runs in a process of its own, alone and then beside as many busy processes as there are
cores; the figure is the mean of four steps of batch 16 after one that warms up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

SETTINGS = {
    "torch's default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "import torch\nx = torch.randn(1500, 1500)\nwhile True: x = (x @ x).clamp(-1, 1)"
N_STEPS = 4


def steps() -> float:
    """Seconds per step in this process."""
    import torch

    from benchmarks.step_time import contenders, inputs, step
    from deltaw import device as devices

    dtype, _ = devices.compute_dtype(torch.device("cpu"))
    model = contenders("bundled", torch.device("cpu"), dtype)["DeltaW"]
    asked = inputs(model.config, 128, 16, torch.device("cpu"), dtype)
    step(model, asked, to_inputs=False)
    start = time.perf_counter()
    for _ in range(N_STEPS):
        step(model, asked, to_inputs=False)
    return (time.perf_counter() - start) / N_STEPS


def measure(setting: dict[str, str]) -> float:
    """Seconds per step in a process with that environment."""
    code = "from benchmarks.threads import steps; print(steps())"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **setting}, check=True, capture_output=True, text=True
    )
    return float(found.stdout.split()[-1])


def main() -> None:
    idle = {name: measure(setting) for name, setting in SETTINGS.items()}
    busy = [
        subprocess.Popen([sys.executable, "-c", BUSY], env={**os.environ, "OMP_NUM_THREADS": "1"})
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        for name, setting in SETTINGS.items():
            print(f"{name:24} idle {idle[name]:6.2f} s   busy {measure(setting):6.2f} s", flush=True)
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
