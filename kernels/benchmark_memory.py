"""Peak memory of one forward and backward pass beside its operands: a process of its own on the CPU, the allocator's statistics on CUDA."""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

MIB = float(1 << 20)


def peak_memory(
    builder: str, implementation: str, device: torch.device, size: dict[str, Any], warm_size: dict[str, Any] | None = None
) -> float:
    """MiB above what was held before the pass; see `kernels.benchmark.measure` for the arguments."""
    if device.type == "cuda":
        return _peak_on_cuda(builder, implementation, device, size)
    return peak_memory_in_subprocess(builder, implementation, size, warm_size)


def peak_memory_in_subprocess(
    builder: str, implementation: str, size: dict[str, Any], warm_size: dict[str, Any] | None = None, timeout: float = 600.0
) -> float:
    """MiB by which one pass raises the high-water mark of a fresh one-threaded process that already holds the operands.

    builder: "package.module:function", called there as function(implementation, device, **size); `size` must be JSON. A pass at
    `warm_size`, small against `size`, runs first where given, and one at `size` where the mark can be reset, so that libraries, compilers and
    thread pools do not count.
    Raises RuntimeError with the process's last lines when it fails.
    """
    request = json.dumps({"builder": builder, "implementation": implementation, "size": size, "warm_size": warm_size})
    root = str(Path(__file__).resolve().parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
        # Blocks above 64 KiB are mapped and unmapped one by one: freed operands of the warm-up cannot hide what the pass takes.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "kernels.benchmark_memory"], input=request, capture_output=True, text=True, env=environment, timeout=timeout
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {implementation} in {builder} failed:\n" + "\n".join(done.stderr.splitlines()[-5:]))
    return float(json.loads(done.stdout.splitlines()[-1]))


def high_water_mark() -> float:
    """Largest resident set of this process so far, in MiB.

    On Linux VmHWM, which starts anew when a program is executed; `ru_maxrss` would begin at the size of the parent process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024.0


RESET = Path("/proc/self/clear_refs")


def _can_reset() -> bool:
    """Whether the system lets a process start its high-water mark anew (Linux, most containers)."""
    try:
        _reset()
    except OSError:
        return False
    return True


def _reset() -> None:
    RESET.write_text("5")


def _job(request: dict[str, Any], device: torch.device, size: dict[str, Any]) -> Any:
    module, _, name = request["builder"].partition(":")
    return getattr(importlib.import_module(module), name)(request["implementation"], device, **size)


def _pass(job: Any) -> None:
    made = job.run()
    if job.leaves:
        outputs = [made] if isinstance(made, torch.Tensor) else list(made)
        torch.autograd.grad(outputs, list(job.leaves), [torch.ones_like(output) for output in outputs], allow_unused=True)


def _peak_on_cuda(builder: str, implementation: str, device: torch.device, size: dict[str, Any]) -> float:
    job = _job({"builder": builder, "implementation": implementation}, device, size)
    _pass(job)  # compiles, and grows workspaces that stay
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _pass(job)
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def _main() -> None:
    request = json.loads(sys.stdin.read())
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if request["warm_size"] is not None:
        _pass(_job(request, device, request["warm_size"]))
    job = _job(request, device, request["size"])
    if _can_reset():
        _pass(job)  # compiles, and grows workspaces that stay
        _reset()
    before = high_water_mark()
    _pass(job)
    sys.stdout.write(json.dumps(high_water_mark() - before) + "\n")


if __name__ == "__main__":
    _main()
