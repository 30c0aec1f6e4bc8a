"""What Ray's controller asks while groups come, die, and could be larger: on a cluster that the test invents."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from cardialign.cluster.environment.nodes import Asked, Node
from cardialign.cluster.environment.sizes import Sizes
from cardialign.cluster.runs.deciding import keeper as module
from cardialign.cluster.runs.deciding.decider import Rules
from cardialign.cluster.runs.deciding.keeper import Keeper, KeeperSettings, entered, keeper_of
from cardialign.cluster.runs.deciding.places import LOST_SECONDS, NODE_ID, Door, Doors
from cardialign.cluster.runs.deciding.policies import KeptRetries
from cardialign.cluster.watching.decisions import read_decisions
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.files import DEATHS, DECISIONS, FAILURE, METRICS, NEXT_GROUP, RESIZE, STOP
from cardialign.pretrain.training.checkpoints.survivors import word


class Cluster:
    """Nodes with one CPU each. alive: whom Ray counts; answering: whose raylet does; used: whose CPU a worker has."""

    def __init__(self, *names: str) -> None:
        self.alive, self.answering, self.used = list(names), set(names), set[str]()
        self.seconds = 0.0

    def nodes(self) -> list[Node]:
        return [
            Node(f"host-{name}", {"CPU": 1.0}, {"CPU": 0.0 if name in self.used else 1.0}, {NODE_ID: name})
            for name in self.alive
        ]

    def doors(self) -> dict[str, Door]:
        return {name: (name, 1) for name in self.alive}

    def clock(self) -> float:
        return self.seconds


class Run:
    def __init__(self, run_dir: Path, cluster: Cluster, sizes: Sizes, max_failures: int = 3) -> None:
        self.run_dir, self.cluster = run_dir, cluster
        rules = Rules(sizes, max_failures, grow_seconds=60.0)
        self.settings = KeeperSettings(str(run_dir), f"start-of-{run_dir}", Asked(1, {"CPU": 1.0}), rules)
        self.keeper: Keeper = keeper_of(self.settings)
        self.keeper.doors = Doors(lambda door: door[0] in cluster.answering, cluster.clock)
        self.keeper.decider.now = cluster.clock

    def begin(self) -> int:
        """A group starts on the nodes that answer."""
        self.cluster.used.clear()
        size = self.keeper.next_size()
        there = [name for name in self.cluster.alive if name in self.cluster.answering][:size]
        self.cluster.used |= set(there)
        entered(self.settings.start, there)
        return size

    def look(self, seconds: float = 0.0) -> int | None:
        self.cluster.seconds += seconds
        self.keeper._looked = float("-inf")
        return self.keeper.running_size()

    @property
    def told(self) -> list[tuple[str, int, int]]:
        return [(each.kind, each.before, each.after) for each in read_decisions(self.run_dir)]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """That of a cluster, as systems set it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster("a", "b")
    monkeypatch.setattr(module, "cluster_nodes", found.nodes)
    monkeypatch.setattr(module, "_doors", found.doors)
    monkeypatch.setattr(module, "FREED_SECONDS", 0.0)
    return found


def test_a_group_shrinks_off_a_node_that_ray_still_counts_and_grows_at_a_checkpoint(
    tmp_path: Path, cluster: Cluster
) -> None:
    run = Run(tmp_path, cluster, Sizes(1, 2))
    assert run.begin() == 2 and run.look(1000) is None and run.told == []
    (tmp_path / METRICS).write_text('{"step": 21}\n{"step": 22}\n')
    cluster.answering.remove("b")
    assert run.keeper.died("rank 0: connection reset; rank 1: gone") is False
    assert run.keeper.gone == {"b"}, "the next group is kept off it"
    assert run.begin() == 1 and run.told == [("resize", 2, 1)]
    (shrunk,) = read_decisions(tmp_path)
    assert shrunk.cause.startswith("node host-b is gone; rank 0: connection reset") and shrunk.step == 22
    assert shrunk.failures == 0 and "room for 1 of up to 2" in shrunk.cause

    assert run.look(100) is None and not (tmp_path / RESIZE).exists(), "there is no room"
    cluster.answering.add("b")
    assert run.look(10) is None and run.look(6) is None
    assert json.loads((tmp_path / RESIZE).read_text()) == {"workers": 2}, "it is asked, not killed"
    assert run.look(60) is None, "it goes on until it says that it has stopped"
    (tmp_path / RESIZE).write_text('{"workers": 2, "step": 40}')
    assert run.look(1) == 2 and run.told[1:] == [("resize", 1, 2)] and not (tmp_path / RESIZE).exists()
    assert read_decisions(tmp_path)[1].planned


def test_what_the_controller_writes_is_closed_to_other_users(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(1, 2))
    run.begin()
    cluster.answering.remove("b")
    run.keeper.died("rank 1: gone")
    run.begin()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {DECISIONS, NEXT_GROUP} <= {path.name for path in written}
    assert all(path.stat().st_mode & 0o007 == 0 for path in written)


def test_a_node_that_falls_silent_under_a_group_that_says_nothing_ends_it(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(1, 2), max_failures=0)
    assert run.begin() == 2 and run.look(10) is None
    cluster.answering.remove("b")
    assert run.look(10) is None and run.look(LOST_SECONDS - 5) is None, "a cut of some seconds comes back"
    cluster.answering.add("b")
    assert run.look(1) is None
    cluster.answering.remove("b")
    assert run.look(1) is None and run.look(LOST_SECONDS) == 1
    assert run.told == [("resize", 2, 1)] and "node host-b is gone" in read_decisions(tmp_path)[0].cause
    entered(run.settings.start, ["a"])
    cluster.answering.clear()
    run.look(1)
    with pytest.raises(UserError, match=r"node host-a is gone, and 1 worker groups have died"):
        run.look(LOST_SECONDS)  # nothing was committed since the last one, and none may die


def test_a_fixed_number_goes_the_same_way_and_waits_for_its_node(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(2, 2))
    assert run.begin() == 2
    cluster.alive.remove("b")
    assert run.keeper.died("rank 1: its node died") is False
    assert run.begin() == 2 and run.told == [("retry", 2, 2)]
    assert run.keeper.next_size() == 2 and run.told == [("retry", 2, 2)], "to wait on is no decision"
    cluster.alive += ["b", "c"]
    run.begin()
    assert run.look(1000) is None and run.look(1000) is None and not (tmp_path / RESIZE).exists()


def test_ranks_take_leave_of_each_other_unless_one_of_them_cannot_answer(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cardialign.cluster.runs.group import GroupBackend, GroupConfig, _TorchBackend

    waited: list[object] = []
    monkeypatch.setattr(_TorchBackend, "on_shutdown", lambda self, group, config: waited.append(group))
    run = Run(tmp_path, cluster, Sizes(1, 2))

    def ends() -> bool:
        """Whether Ray waits for all ranks of a group that ends now."""
        waited.clear()
        GroupBackend().on_shutdown("group", GroupConfig(run_dir=str(tmp_path), start=run.settings.start))
        return waited == ["group"]

    run.begin()
    assert ends(), "all of them are there"
    run.keeper.died("rank 1: killed")
    assert ends(), "one that died answers for its end at once"
    cluster.answering.remove("b")
    run.keeper.died("rank 0: connection reset")
    assert not ends(), "its node says nothing any more"
    run.begin()
    assert ends(), "the next group is whole"
    cluster.answering.clear()
    assert run.look(1) is None and run.look(LOST_SECONDS) is not None and not ends()
    cluster.answering |= {"a", "b"}
    monkeypatch.setattr(module.stacks, "take", lambda *_: "stacks")
    monkeypatch.setattr(run.keeper.hangs, "look", lambda: True)
    run.begin()
    assert ends() and run.look(2) is not None and not ends(), "a rank that does not move"


def test_a_stop_that_was_asked_for_comes_before_any_growth(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(1, 2))
    cluster.alive.remove("b")
    assert run.begin() == 1
    cluster.alive.append("b")
    (tmp_path / STOP).write_text("SIGTERM")
    assert run.look(1000) is None and run.look(1000) is None and not (tmp_path / RESIZE).exists()


def test_a_request_of_a_group_that_died_is_none_for_the_next(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(1, 2))
    run.begin()
    (tmp_path / RESIZE).write_text('{"workers": 2, "step": 9}')
    run.keeper.died("killed")
    run.begin()
    assert not (tmp_path / RESIZE).exists() and run.look(5) is None


def test_the_controllers_failures_are_decided_and_noted(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(2, 2), max_failures=1)
    policy = KeptRetries(FailureConfig(), run.settings)
    run.begin()
    died = WorkerGroupError("died", {1: ConnectionError("Connection reset by peer")})
    assert policy.make_decision(died) is FailureDecision.RETRY
    run.begin()
    assert policy.make_decision(ControllerError(WorkerGroupStartupTimeoutError(2))) is FailureDecision.RETRY
    run.begin()
    assert run.told == [("retry", 2, 2)], "to wait for places is no decision"
    assert policy.make_decision(ControllerError(WorkerGroupStartupFailedError("port"))) is FailureDecision.RETRY
    run.begin()
    assert run.told[1:] == [("retry", 2, 2)] and "did not start" in read_decisions(tmp_path)[1].cause
    assert policy.make_decision(died) is FailureDecision.RAISE
    last = read_decisions(tmp_path)[-1]
    assert (last.kind, last.after, last.failures, last.of) == ("stop", 0, 2, 1) and "rank 1" in last.cause


def test_what_cannot_be_cured_is_tried_no_second_time(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(2, 2))
    policy = KeptRetries(FailureConfig(), run.settings)
    run.begin()
    assert policy.make_decision(ControllerError(ZeroDivisionError("odd"))) is FailureDecision.RAISE
    assert run.told == [("stop", 2, 0)] and "odd" in read_decisions(tmp_path)[0].cause
    (tmp_path / FAILURE).write_text('{"type": "DataError"}')
    assert policy.make_decision(WorkerGroupError("died", {0: OSError()})) is FailureDecision.RAISE
    assert len((tmp_path / DECISIONS).read_text().splitlines()) == 1, "the driver, who knows the words, notes it"


def test_a_node_that_the_cluster_takes_back_is_no_failure_of_the_run(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(1, 2), max_failures=0)
    run.begin()
    preempted = PreemptionError(PreemptionInfo(None, {"b": [1]}), drain_timed_out=False)
    assert KeptRetries(FailureConfig(), run.settings).make_decision(preempted) is FailureDecision.RETRY
    assert run.begin() == 1 and run.keeper.gone == {"b"}, "it still answers, and is left alone all the same"
    assert run.told == [("resize", 2, 1)] and read_decisions(tmp_path)[0].failures == 0
    run.look(1000)
    assert run.look(1000) is None and not (tmp_path / RESIZE).exists()


def test_a_group_that_does_not_move_is_ended_as_one_that_died_and_counts_as_one(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    where = "rank 1 (process 7 on host-b) is stopped; stacks in logs/x"
    monkeypatch.setattr(module.stacks, "take", lambda _, nodes: asked.append(nodes) or where)
    run = Run(tmp_path, cluster, Sizes(2, 2), max_failures=1)
    run.keeper.hangs.now = cluster.clock
    trace = tmp_path / METRICS

    def hangs() -> int | None:
        trace.write_text("")
        assert run.begin() == 2 and run.look(2) is None
        trace.write_text('{"step": 22}\n')
        for _ in range(299):
            assert run.look(2) is None
        return next((size for _ in range(5) if (size := run.look(2)) is not None), None)

    assert hangs() == 2 and asked == [["a", "b"]], "after the ten minutes of the default"
    (decision,) = read_decisions(tmp_path)
    assert (decision.kind, decision.failures, decision.of, decision.step) == ("retry", 1, 1, 22)
    assert decision.cause.startswith("hang: nothing has moved for 60") and decision.cause.endswith(where)
    died = [json.loads(line) for line in (tmp_path / DEATHS).read_text().splitlines()]
    assert [each["cause"] for each in died] == [decision.cause], "`status` tells it as the reason of the restart"
    with pytest.raises(UserError, match=r"hang: .*rank 1 .*, and 2 worker groups have died") as ended:
        hangs()
    assert "--hang-minutes" in ended.value.remedy


@pytest.mark.parametrize("how", ["death", "node", "hang", "failure"])
def test_the_survivors_of_a_group_are_asked_once_however_it_was_lost_and_the_decision_tells_of_it(
    how: str, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    told = "survivors committed step 22 (rank 1's part from rank 0)"
    monkeypatch.setattr(word, "ask_survivors", lambda run_dir, start: asked.append(start) or told)
    monkeypatch.setattr(module.stacks, "take", lambda _, nodes: "rank 1 is stopped")
    run = Run(tmp_path, cluster, Sizes(1, 2))
    run.keeper.hangs.now = cluster.clock
    run.begin()
    policy, died = KeptRetries(FailureConfig(), run.settings), WorkerGroupError("died", {1: OSError("gone")})
    if how == "failure":  # which no restart cures
        (tmp_path / FAILURE).write_text('{"type": "DataError"}')
        assert policy.make_decision(died) is FailureDecision.RAISE
        assert asked == [] and read_decisions(tmp_path) == []
        return
    if how == "death":
        assert policy.make_decision(died) is FailureDecision.RETRY
        run.begin()
    if how == "node":
        cluster.answering.discard("b")
        assert run.look() is None and run.look(LOST_SECONDS + 1) == 1
    if how == "hang":
        assert any(run.look(2) is not None for _ in range(700))
    assert asked == [run.settings.start]
    assert told in read_decisions(tmp_path)[0].cause


def test_a_run_that_was_asked_to_stop_is_not_started_again_for_a_hang(tmp_path: Path, cluster: Cluster) -> None:
    run = Run(tmp_path, cluster, Sizes(2, 2))
    run.keeper.hangs.now = cluster.clock
    run.begin()
    (tmp_path / STOP).write_text("SIGTERM")
    assert all(run.look(2) is None for _ in range(1000)) and run.told == []
