"""Ranks that succeed or fail together.

What one rank learns, every rank learns, so that none is left waiting in a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from cardialign.data_shards.errors import UserError

T = TypeVar("T")


def on_rank_zero(work: Callable[[], T]) -> T:
    """Run `work` on rank 0; every rank gets its result, or its UserError or OSError.

    The result must be picklable and small.
    """
    outcome: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except (UserError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def all_or_none(work: Callable[[], None]) -> None:
    """Run `work` on every rank; when it raises a UserError on any, every rank raises that of the lowest one."""
    problem: UserError | None = None
    try:
        work()
    except UserError as error:
        problem = error
    everywhere: list[UserError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, problem)
    for found in everywhere:
        if found is not None:
            raise found


def first_problem(problem: str | None) -> str | None:
    """The problem of the lowest rank that has one, on every rank; None when all is well everywhere."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((f"rank {rank}: {text}" for rank, text in enumerate(problems) if text), None)


def fail_together(error: UserError | None) -> None:
    """Raise the UserError of the lowest rank that has one, on every rank; nothing happens when all is well."""
    errors: list[UserError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise found


def highest(values: Sequence[int], device: torch.device, group: dist.ProcessGroup | None = None) -> list[int]:
    """The largest of the ranks' numbers, place by place, on every rank: one small tensor is exchanged."""
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return [int(value) for value in tensor.tolist()]


def first_error(error: UserError | None) -> UserError:
    """The UserError of the lowest rank that has one, for every rank to raise;
    called by all ranks when one has failed.
    """
    errors: list[UserError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next(found for found in errors if found is not None)
