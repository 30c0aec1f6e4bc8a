"""Ray Train's trainer whose controller asks our keeper, for every size of a group and after every death of one.

Ray's own elastic policy counts a dead node as one that is there, kills a group in the middle of its steps in order to
grow, and knows nothing of checkpoints (deploy/DRIVER.md says what ours promises).
"""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR,
)
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)

from cardialign.cluster.runs.deciding.hangs import START_TIMES
from cardialign.cluster.runs.deciding.keeper import KeeperSettings, keeper_of
from cardialign.cluster.runs.deciding.places import elsewhere
from cardialign.cluster.runs.diagnosis import what_happened

AFTER_HANG_SECONDS = 300.0
START_SECONDS = "15"
"""How long a group waits for its places before the cluster is looked at again, where the environment says nothing."""


class KeptSize(ScalingPolicy):
    """How many workers a group has."""

    def __init__(self, scaling_config: Any, settings: KeeperSettings) -> None:
        super().__init__(scaling_config)
        self.settings = settings

    def after_controller_start(self, train_run_context: Any) -> None:
        os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, START_SECONDS)
        os.environ.setdefault(WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR, str(_health_seconds(self.settings)))
        if not self.settings.local:
            super().after_controller_start(train_run_context)

    def _maybe_send_resource_request(self) -> None:
        """A local Ray has no autoscaler to ask: the actor that asks it would be one more process."""
        if not self.settings.local:
            super()._maybe_send_resource_request()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._maybe_send_resource_request()
        return self._of(keeper_of(self.settings).next_size())

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        self._maybe_send_resource_request()
        size = keeper_of(self.settings).running_size()
        return NoopDecision() if size is None else self._of(size)

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """Labels that keep a group off nodes which Ray still counts and nobody reaches."""
        return elsewhere(scaling_config.label_selector, keeper_of(self.settings).gone)

    def _get_num_workers_for_resource_request(self) -> int:
        return self.settings.rules.sizes.most  # an autoscaler is asked for all of them

    def _of(self, size: int) -> ResizeDecision:
        return ResizeDecision(size, self.scaling_config._resources_per_worker_not_none)


def _health_seconds(settings: KeeperSettings) -> float:
    """How long Ray waits for an answer of a worker, by itself: longer than we do, who ask for its stacks first."""
    return AFTER_HANG_SECONDS + START_TIMES * settings.rules.hang_seconds


class KeptRetries(DefaultFailurePolicy):
    """Whether a run goes on after a death."""

    def __init__(self, failure_config: Any, settings: KeeperSettings) -> None:
        super().__init__(failure_config)
        self.settings = settings

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        keeper = keeper_of(self.settings)
        inner = getattr(training_failed_error, "controller_failure", None)
        if inner is None:
            failures = dict(getattr(training_failed_error, "worker_failures", None) or {})
            cause = what_happened(failures) if failures else " ".join(str(training_failed_error).split())
            info = getattr(training_failed_error, "preemption_info", None)
            taken = info.preempted_node_ids if info is not None else []
            ends = keeper.died(cause, taken=taken if _is_preemption_failure(training_failed_error) else None)
            return FailureDecision.RAISE if ends else FailureDecision.RETRY
        decision = super().make_decision(training_failed_error)
        if decision is FailureDecision.RAISE:
            keeper.stop(str(inner))
        elif isinstance(inner, WorkerGroupStartupFailedError):
            keeper.decider.did_not_start(f"the group did not start: {' '.join(str(inner).split())[:200]}")
        return decision


class KeptTrainer(TorchTrainer):
    """A TorchTrainer with both."""

    def __init__(self, *words: Any, settings: KeeperSettings, **more: Any) -> None:
        super().__init__(*words, **more)
        self.settings = settings

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["scaling_policy"] = KeptSize(self.scaling_config, self.settings)
        parts["failure_policy"] = KeptRetries(self.run_config.failure_config, self.settings)
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if self.settings.local else (DatasetsCallback,)
        # Each starts an actor: for data sets of Ray's, which we have none of, and for a cluster that outlives the run
        parts["callbacks"] = [each for each in parts["callbacks"] if not isinstance(each, unused)]
        return super()._initialize_and_run_controller(**parts)  # type: ignore[misc] # of Ray Train v2, which runs
