"""Where the workers of a run go: on which GPUs or CPUs, together or apart, and how long the run waits for them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cardialign.cluster.cli.options import (
    DEVICES,
    GROW_MINUTES,
    HANG_MINUTES,
    LEAST_HANG,
    MOST_HANG,
    SPREADS,
    WAIT_MINUTES,
)
from cardialign.cluster.environment.nodes import Asked, Node, shortage
from cardialign.data_shards.errors import UsageError, UserError

LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9./_-]{0,251}[A-Za-z0-9])?")
VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
STRATEGIES = {"default": "PACK", "pack": "STRICT_PACK", "strict": "STRICT_SPREAD"}
"""Words of `--spread` -> Ray's: few nodes where possible, one node, a node for each worker."""


@dataclass(frozen=True)
class Placement:
    """What the user says about it.

    device: `cpu`, `gpu`, or `auto`: GPUs where the cluster has any. wait_minutes: how long the run may stand still
    (for resources, for a node, for a rank) before it ends with a message. grow_minutes: how long a worker group lives
    at least before it is ended for a larger one. hang_minutes: how long none of its ranks may move before it is ended
    for another. max_failures: worker groups that may die.
    gpu_kind: of the GPUs, in Ray's words (H100). labels: that a node must have. resources: of each worker beside CPUs
    and its GPU. cpus_per_worker: None for 1, of which the threads know nothing. spread: see STRATEGIES.
    """

    device: str = "auto"
    wait_minutes: float = WAIT_MINUTES
    grow_minutes: float = GROW_MINUTES
    hang_minutes: float = HANG_MINUTES
    max_failures: int = 3
    gpu_kind: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    cpus_per_worker: int | None = None
    spread: str = "default"

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UsageError(f"--device {self.device!r} is not known", f"take one of {', '.join(DEVICES)}")
        if not self.wait_minutes > 0:
            raise UsageError(f"--wait-minutes {self.wait_minutes:g} is not above 0", "give minutes, for example 30")
        if not self.grow_minutes >= 0:
            raise UsageError(f"--grow-minutes {self.grow_minutes:g} is below 0", "give minutes, for example 2")
        if not LEAST_HANG <= self.hang_minutes <= MOST_HANG:
            raise UsageError(
                f"--hang-minutes {self.hang_minutes:g} is not between {LEAST_HANG:g} and {MOST_HANG:g}",
                "give minutes, for example 10",
            )
        if self.gpu_kind is not None and self.device == "cpu":
            raise UsageError(f"--gpu-kind {self.gpu_kind} and --device cpu exclude each other", "leave out one of them")
        if self.spread not in SPREADS:
            raise UsageError(f"--spread {self.spread!r} is not known", f"take one of {', '.join(SPREADS)}")

    @property
    def strategy(self) -> str:
        return STRATEGIES[self.spread]

    @property
    def plain(self) -> bool:
        """Whether any node will do: nothing is said of kinds, labels, sizes or nodes."""
        return not (self.gpu_kind or self.labels or self.resources or self.cpus_per_worker) and self.spread == "default"


def placement_of(args: argparse.Namespace) -> Placement:
    """From the options of `add_placement`. Raises UsageError."""
    return Placement(
        device=args.device,
        wait_minutes=args.wait_minutes,
        grow_minutes=args.grow_minutes,
        hang_minutes=args.hang_minutes,
        max_failures=args.max_failures,
        gpu_kind=None if args.gpu_kind is None else _kind(args.gpu_kind),
        labels=_once("--label", map(_label, args.label)),
        resources=_once("--resource", map(_resource, args.resource)),
        cpus_per_worker=args.cpus_per_worker,
        spread=args.spread,
    )


def _once(option: str, given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """By name. Raises UsageError for one that has two values: one of them would be passed over."""
    found: dict[str, Any] = {}
    for name, value in given:
        if found.setdefault(name, value) != value:
            raise UsageError(f"{option} {name} is given as {found[name]} and as {value}", "give it once")
    return found


def _kind(text: str) -> str:
    """H100 of `h100`, `NVIDIA H100` and `nvidia-h100`: Ray's own words begin with what the vendor calls it."""
    kind = re.sub(r"^nvidia[\s_-]+", "", text.strip(), flags=re.IGNORECASE).replace(" ", "-")
    kind = kind if "-" in kind else kind.upper()
    if not VALUE.fullmatch(kind):
        raise UsageError(f"--gpu-kind {text!r} is no kind of GPU", "write for example H100, H200, A100 or L40S")
    return kind


def _label(text: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not LABEL.fullmatch(key) or not VALUE.fullmatch(value):
        raise UsageError(
            f"--label {text!r} is not KEY=VALUE", "write a label of the nodes, for example --label zone=eu-1a"
        )
    return key, value


def _resource(text: str) -> tuple[str, float]:
    name, equals, amount = (part.strip() for part in text.partition("="))
    number = float(amount) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,4})?", amount) else 0.0
    if not equals or not name or number <= 0 or name in ("CPU", "GPU"):
        raise UsageError(
            f"--resource {text!r} is not NAME=AMOUNT of a resource of your own",
            "write for example --resource fast_disk=1; CPUs are --cpus-per-worker, GPUs --device gpu",
        )
    return name, number


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


def per_worker(placement: Placement, gpu: bool) -> dict[str, float]:
    """Resources of each worker, without the mark of a kind of GPU: Ray adds that itself."""
    own = {"CPU": float(placement.cpus_per_worker or 1), **({"GPU": 1.0} if gpu else {})}
    return {**own, **placement.resources}


def wanted(workers: int, gpu: bool, placement: Placement | None = None) -> Asked:
    """What all workers together ask of the cluster."""
    placement = placement or Placement()
    return Asked(
        workers, per_worker(placement, gpu), placement.gpu_kind, placement.labels, placement.spread, placement.plain
    )


def scaling(asked: Asked, placement: Placement) -> dict[str, Any]:
    """Keywords of Ray Train's `ScalingConfig`."""
    return {
        "num_workers": asked.workers,
        "use_gpu": "GPU" in asked.each,
        "resources_per_worker": dict(asked.each),
        "placement_strategy": placement.strategy,
        **({"accelerator_type": placement.gpu_kind} if placement.gpu_kind else {}),
        **({"label_selector": dict(placement.labels)} if placement.labels else {}),
    }


def check_local(asked: Asked, nodes: list[Node]) -> None:
    """Raises UserError when the local Ray has no place for the workers: no further node can come.

    More workers than CPUs are a choice, unless the CPUs of each were named.
    """
    short = None if asked.plain else shortage(asked, nodes)
    if short is not None:
        raise UserError(
            f"this machine has no place for the workers: {short}",
            "ask for less, or join a cluster with --address"
            + ("" if asked.kind is None else f" that has {asked.kind}"),
        )


def threads_of_worker(placement: Placement, asked: int | None) -> int | None:
    """CPU threads that a worker may have: its CPUs where they were named, and no more than `asked`."""
    given = [number for number in (placement.cpus_per_worker, asked) if number is not None]
    return min(given, default=None)
