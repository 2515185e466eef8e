"""How OpenMP's waiting threads cost: a step of the bundled base on an idle and on a busy machine.

    python -m benchmarks.threads

Each setting runs in a process of its own, alone and then beside as many busy processes as there are
cores; the figure is the median of twelve steps of batch 16 after one that warms up.
"""

from __future__ import annotations

import os
import statistics
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
N_STEPS = 12


def steps() -> float:
    """Seconds per step in this process."""
    import torch

    from benchmarks.step_time import contenders, inputs, network
    from deltaw import device as devices
    from deltaw.families.sd import StableDiffusion

    cpu = torch.device("cpu")
    dtype, _ = devices.compute_dtype(cpu)
    limit = network("bundled", cpu, dtype)
    asked = inputs(limit.config, 128, 16, cpu, dtype)
    step = contenders(limit, asked, StableDiffusion.targets, cpu, dtype, packed=False)["DeltaW"]
    step()
    seconds = []
    for _ in range(N_STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(setting: dict[str, str]) -> float:
    """Seconds per step in a process with that setting and no other of its kind."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    code = "from benchmarks.threads import steps; print(steps())"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**plain, **setting}, check=True, capture_output=True, text=True
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
