"""Another number of steps at resume: what it would do to the learning rate, and the plan of a run that is extended."""

from __future__ import annotations

import logging
from pathlib import Path

from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.data import total_steps
from cardialign.pretrain.training.schedule import Plan, as_planned, learning_rate

log = logging.getLogger(__name__)


def continued_plan(
    state: TrainerState,
    config: RunConfig,
    asked: int,
    records: int,
    extend: bool,
    path: Path,
    level: int = logging.WARNING,
) -> Plan:
    """The plan of the run that goes on from this checkpoint to `asked` steps in all.

    level: of the line that says so. Raises UsageError when nothing is left of so few steps, and, unless `extend`, when
    another duration changes the learning rate of the steps to come.
    """
    plan = state.plan or as_planned(total_steps(parse_config(state.config, f"configuration of {path}"), records))
    planned = plan[-1][1]
    if asked == planned:
        return plan
    if asked <= state.step:
        raise UsageError(
            f"{asked} steps are asked for, the run has done {state.step} of {planned} ({path})",
            f"ask for {planned} steps to go on, or take the encoder as it is: `cardialign export`",
        )
    extended = (*(stretch for stretch in plan if stretch[0] < state.step), (state.step, asked))
    if not (extend or _harmless(plan, extended, state.step, config)):
        raise UsageError(*_refusal(plan, extended, state.step, config, path))
    log.log(
        level,
        "resume=%s action=extend step=%d steps_were=%d steps_now=%d learning_rate=%s",
        path, state.step, planned, asked, _from_to(extended, state.step, config),
    )  # fmt: skip
    return extended


def _rate(step: int, plan: Plan, config: RunConfig) -> float:
    return learning_rate(step, plan, config.optimizer.lr, config.schedule)


def _harmless(plan: Plan, extended: Plan, step: int, config: RunConfig) -> bool:
    """No step to come has another rate, whichever way the new duration is read: a constant one after its warm-up."""
    planned, asked = plan[-1][1], extended[-1][1]
    return all(
        _rate(later, as_planned(asked), config)
        == _rate(later, extended, config)
        == (_rate(later, plan, config) if later < planned else _rate(later, extended, config))
        for later in range(step, asked)
    )


def _from_to(plan: Plan, step: int, config: RunConfig) -> str:
    last = plan[-1][1]
    return f"{_rate(step, plan, config):.3g} at step {step + 1}, {_rate(last - 1, plan, config):.3g} at step {last}"


def _refusal(plan: Plan, extended: Plan, step: int, config: RunConfig, path: Path) -> tuple[str, str]:
    planned, asked = plan[-1][1], extended[-1][1]
    anew = _rate(step, as_planned(asked), config)
    was = (
        f"{_rate(step, plan, config):.3g} as planned"
        if step < planned
        else f"{_rate(step - 1, plan, config):.3g} at the last step"
    )
    return (
        f"the run was planned for {planned} steps, {asked} are asked for: a {config.schedule.name} schedule over "
        f"{asked} steps changes the learning rate of every later step "
        f"(step {step + 1}: {was}, {anew:.3g} then; {path})",
        f"ask for {planned} steps to go on as planned, or add --extend: the steps that are done stay as they are, and "
        f"the learning rate goes on from there ({_from_to(extended, step, config)}), without a second warm-up",
    )
