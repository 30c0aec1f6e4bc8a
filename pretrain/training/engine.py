"""The DeepSpeed engine of a run: processes, configuration, parameter groups, and the bookkeeping of uneven batches.

DeepSpeed is imported inside functions: it reads `DS_ACCELERATOR` once, at import, and takes two seconds.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import OptimizerConfig, RunConfig

log = logging.getLogger(__name__)

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
UNDECAYED_WORDS = ("bias", "norm", "ln_", "log_scale", "logit_scale", "missing")
MEETING_FILES = 12
"""Files that a process must be able to open to meet others: one alone opens 13 to 16."""


@dataclass(frozen=True)
class Workers:
    """Where this process stands: rank of world_size, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: rows per micro-batch (at most) and micro-batches per optimizer step.

    Their number is the same on every rank: a pure function of the three inputs, because ranks that run a different
    number of forwards wait for each other for ever (ZeRO-3).
    """

    global_batch: int
    world_size: int
    micro_batch: int
    micro_batches: int

    def slices(self, local_rows: int) -> list[slice]:
        """`micro_batches` consecutive slices of the local rows, sizes differing by at most one;
        some are empty when rows run out.
        """
        n = self.micro_batches
        return [slice(local_rows * k // n, local_rows * (k + 1) // n) for k in range(n)]


def plan_batches(global_batch: int, world_size: int, micro_batch: int | None) -> BatchPlan:
    """Cut a global batch over `world_size` ranks. Raises UserError when a rank would get no row."""
    if global_batch < world_size:
        raise UserError(
            f"training.global_batch {global_batch} is smaller than the {world_size} workers: some would get no sample",
            f"raise training.global_batch to at least {world_size}, or start fewer workers",
        )
    largest = -(-global_batch // world_size)
    micro = min(micro_batch or largest, largest)
    return BatchPlan(global_batch, world_size, micro, -(-largest // micro))


def start_workers(timeout_seconds: float = 1800.0) -> Workers:
    """Join the process group named by RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT (torchrun and Ray set them);
    alone, without a port, where WORLD_SIZE is 1 or absent.

    gloo on CPU, nccl on CUDA. A process group that exists already (Ray Train makes one) is used as it is. Raises
    UserError where the limit of open files leaves the group no sockets, and where the environment names half of these.
    """
    if _free_files() < MEETING_FILES:  # with two or six left its store ends the process, or says nothing of files
        raise _no_files()
    try:
        return _joined(timeout_seconds)
    except (OSError, RuntimeError) as error:  # gloo, its store and what DeepSpeed imports each say it in their own way
        if os.strerror(errno.EMFILE).lower() not in str(error).lower():
            raise
        raise _no_files() from error


def _free_files() -> float:
    """How many files this process may still open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        return math.inf if soft == resource.RLIM_INFINITY else soft - len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:  # not on Linux
        return math.inf
    except OSError:
        return 0


def _no_files() -> UserError:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UserError(
        f"the workers of the run cannot meet: this process may open {soft} files (hard limit {hard}), and all but a "
        "few are open",
        "raise the limit of open files (`ulimit -n 65536`; on a cluster in the service or container), then run the "
        "same command again",
    )


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Where the package `name` has not been imported so far, it is not there to whom imports it in here."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] # what Python's import takes for "there is none"
    try:
        yield
    finally:
        del sys.modules[name]


def _joined(timeout_seconds: float) -> Workers:
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _without("mlflow"):  # for a tuner that we do not use, DeepSpeed would import all of it in every worker
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # A shared-memory all-reduce for inference that DeepSpeed would compile for half a minute and training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 renames; one line per call would drown everything else.
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated", category=FutureWarning)
    backend, timeout = "nccl" if cuda else "gloo", timedelta(seconds=timeout_seconds)
    os.environ.setdefault("LOCAL_RANK", "0" if not dist.is_initialized() else str(dist.get_rank()))
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not dist.is_initialized() and _is_alone():
        # No port: one found free may be taken by the time it is used, and one left in the environment would be in use
        # for every process that is started from here.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return Workers(dist.get_rank(), dist.get_world_size(), device)


def _is_alone() -> bool:
    """Whether nobody is to be met. Raises UserError where others are and the environment does not say where."""
    if (os.environ.get("WORLD_SIZE") or "1") == "1":
        return True
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(
            f"the environment names {os.environ['WORLD_SIZE']} workers (WORLD_SIZE) but not {', '.join(missing)}: they "
            "cannot meet",
            "start the workers by torchrun, which sets all of these, or unset WORLD_SIZE to train alone",
        )
    return False


def parameter_groups(model: nn.Module, weight_decay: float, parts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Groups of weights that decay, and of what must not (biases, norms, logit scale, missing-lead embeddings).

    Frozen ones are in none.

    parts: parameter-name prefixes with a learning rate of their own; each has two such groups of its own, which carry
    it as `part`. The longest prefix that fits a name has it.
    """
    in_norms = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.rsplit(".", 1)[-1].lower()
        plain = parameter.ndim < 2 or name in in_norms or any(word in last for word in UNDECAYED_WORDS)
        part = max((prefix for prefix in parts if name.startswith(prefix)), key=len, default="")
        found.setdefault((part, plain), []).append(parameter)
    silent = sorted(set(parts) - {part for part, _ in found})
    assert not silent, f"no trained parameter begins with {silent}"
    return [
        {"params": found[part, plain], "weight_decay": 0.0 if plain else weight_decay, "part": part}
        for part in ("", *parts)
        for plain in (False, True)
        if (part, plain) in found
    ]


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, device: torch.device, parts: Sequence[str] = ()
) -> torch.optim.Optimizer:
    """torch's AdamW: the same arithmetic on CPU and CUDA, and nothing to compile on a machine without nvcc."""
    groups = parameter_groups(model, config.weight_decay, parts)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=device.type == "cuda")


def deepspeed_config(config: RunConfig, plan: BatchPlan) -> dict[str, Any]:
    """RunConfig -> DeepSpeed's dictionary.

    The learning rate is set by the loop at every step, so no scheduler is named here.
    """
    training = config.training
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.micro_batches,
        "gradient_clipping": config.optimizer.grad_clip,
        "zero_optimization": {"stage": training.zero_stage},
        # Autocast keeps weights, optimizer and accumulated gradients in fp32: in bf16 the logit scale would move in
        # steps of 0.4 %.
        "torch_autocast": {"enabled": training.precision == "bf16", "dtype": "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def make_engine(
    config: RunConfig,
    model: nn.Module,
    plan: BatchPlan,
    device: torch.device,
    *,
    universal: bool = False,
    parts: Sequence[str] = (),
) -> Any:
    """Model -> DeepSpeed engine with its optimizer.

    `universal`: the next load reads a universal checkpoint (another world size); `parts`: as `parameter_groups`. The
    engine keeps the part of each optimizer group as `group_parts`: checkpoints may not carry it.
    """
    import deepspeed

    settings = deepspeed_config(config, plan)
    if universal:
        settings["checkpoint"] = {"load_universal": True}
    model = model.to(device)
    optimizer = make_optimizer(model, config.optimizer, device, parts)
    group_parts = [group.pop("part") for group in optimizer.param_groups]
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.group_parts = group_parts
    return engine


def set_learning_rate(engine: Any, lr: float, factors: Mapping[str, float] | None = None) -> None:
    """The learning rate of the next update; a part of the model (`parameter_groups`) has it times its factor."""
    for group, part in zip(engine.optimizer.param_groups, engine.group_parts, strict=True):
        group["lr"] = lr * (factors or {}).get(part, 1.0)


def optimizer_step(engine: Any, limit: float = math.inf) -> float:
    """Clip and update; returns the norm of the global gradient before clipping.

    The gradient is thrown away and nothing is updated when that norm is not finite or above `limit`, on all ranks.
    """
    if engine.zero_optimization_stage() == 0:
        # Without ZeRO, DeepSpeed clips by torch's rule and does not keep the norm; the gradients are averaged and whole
        # here.
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm) and norm <= limit:
            engine.step()
            return norm
        engine.module.zero_grad(set_to_none=True)
        engine.clip_fp32_gradients = lambda: None  # it cannot clip nothing; the optimizer updates nothing
        try:
            engine.step()
        finally:
            del engine.clip_fp32_gradients
        return norm
    with _refused_above(engine.optimizer, limit) as seen:
        engine.step()
    found = seen[0] if seen else engine.get_global_grad_norm()
    return float("nan") if found is None else float(found)


@contextmanager
def _refused_above(optimizer: Any, limit: float) -> Iterator[list[float]]:
    """Norms above `limit` are told to DeepSpeed's ZeRO as not finite: it then throws the gradient away, as it does with
    an overflow. Gives the list that the true one is put into."""
    seen: list[float] = []
    if limit == math.inf:
        yield seen
        return
    from deepspeed.runtime.utils import combine_grad_norm_groups

    name = "scaled_global_norm" if hasattr(optimizer, "scaled_global_norm") else "_get_norm_groups"
    real = getattr(optimizer, name)

    def refused(*words: Any, **more: Any) -> Any:
        found = real(*words, **more)
        norm = float(combine_grad_norm_groups(found) if isinstance(found, list) else found)
        if norm <= limit:
            return found
        seen.append(norm)
        infinite = torch.tensor(math.inf, device=_device_of(found))
        return [infinite] if isinstance(found, list) else infinite

    setattr(optimizer, name, refused)
    try:
        yield seen
    finally:
        delattr(optimizer, name)


def _device_of(found: Any) -> torch.device:
    first = found[0] if isinstance(found, list) else found
    return first.device if torch.is_tensor(first) else torch.device("cpu")


def part_weights(engine: Any, prefix: str) -> dict[str, torch.Tensor]:
    """The trained parameters whose names begin with `prefix`, which is left out.

    Whole, on the device and detached, whatever the ZeRO stage.

    A collective under ZeRO-3. Below it the tensors are the parameters themselves: read them, never write.
    """
    named = [(name.removeprefix(prefix), p) for name, p in engine.module.named_parameters() if name.startswith(prefix)]
    if engine.zero_optimization_stage() < 3:
        return {name: parameter.detach() for name, parameter in named}
    import deepspeed

    state = {}
    for name, parameter in named:
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = parameter.detach().clone()
    return state


def full_weights(engine: Any, copy: Callable[[torch.Tensor], torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The whole model's state on the CPU, on every rank, whatever the ZeRO stage (a collective under ZeRO-3).

    copy: makes the copies that are returned, of tensors on the device; default: fresh ones on the CPU.
    """
    copy = copy or _on_cpu
    if engine.zero_optimization_stage() < 3:
        return {name: copy(tensor) for name, tensor in engine.module.state_dict().items()}
    import deepspeed

    persistent = engine.module.state_dict().keys()
    state = {name: copy(buffer) for name, buffer in engine.module.named_buffers() if name in persistent}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = copy(parameter)
    return state


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone()
