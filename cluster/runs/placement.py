"""Where the workers of a run go: on GPUs or on CPUs, how long the run waits for them, and what may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cardialign.cluster.cli.options import DEVICES, WAIT_MINUTES
from cardialign.data_shards.errors import UsageError, UserError


@dataclass(frozen=True)
class Placement:
    """What the user says about it.

    device: `cpu`, `gpu`, or `auto`: GPUs where the cluster has any. wait_minutes: how long the run may stand still
    (for resources, for a node, for a rank) before it ends with a message. max_failures: worker groups that may die.
    """

    device: str = "auto"
    wait_minutes: float = WAIT_MINUTES
    max_failures: int = 3

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UsageError(f"--device {self.device!r} is not known", f"take one of {', '.join(DEVICES)}")
        if not self.wait_minutes > 0:
            raise UsageError(f"--wait-minutes {self.wait_minutes:g} is not above 0", "give minutes, for example 30")


def on_gpus(resources: Mapping[str, float], workers: int, device: str, *, local: bool) -> bool:
    """Whether the workers go on GPUs. resources: what the whole cluster has now.

    Raises UserError when it has GPUs, but fewer than workers; with `gpu` a joined cluster is waited for.
    """
    gpus = resources.get("GPU", 0.0)
    if device == "cpu":
        return False
    if gpus >= workers:
        return True
    if device == "gpu" and not local:
        return True  # a node may be on its way: the run waits for it
    if gpus == 0 and device == "auto":
        return False
    fewer = f"start fewer workers (--workers {int(gpus)}), or " if gpus >= 1 else ""
    later = "" if local or device == "gpu" else "; with --device gpu the run waits for a node that is still starting"
    raise UserError(
        f"{workers} workers asked for, the Ray cluster has {gpus:g} {'GPU' if gpus == 1 else 'GPUs'}",
        f"{fewer}place them on CPUs on purpose (--device cpu){later}",
    )


def wanted(workers: int, gpu: bool) -> dict[str, float]:
    """Resources of all workers together."""
    return {"CPU": float(workers), **({"GPU": float(workers)} if gpu else {})}
