"""kill -9 of a worker between two checkpoints, on a real Ray: the other one commits from its copies, and no step is
done twice but those since the last copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.cluster.drills.ground import make_shards
from cardialign.cluster.runs.planned import FOLDER, Fault, plan_of, stepped, write_plan
from cardialign.cluster.watching.decisions import read_decisions
from cardialign.data_shards.files import read_json
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.run.files import CHECKPOINTS, SURVIVORS
from cardialign.pretrain.run.trace import read_trace
from tests.support.processes import run_ranks

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, EVERY, KILLED_AT = 40, 50, 23


def config_for(shards: Path, stage: int, copies: int) -> RunConfig:
    """The tiny run of the drills; its first checkpoint by itself is the one at its end."""
    from cardialign.cluster.drills.ground import RECIPE

    training = {**RECIPE["training"], "steps": STEPS, "checkpoint_every": EVERY, "zero_stage": stage}
    training |= {"neighbour_copy_every": copies}
    return parse_config({**RECIPE, "data": {**RECIPE["data"], "shards": str(shards)}, "training": training})


def train_undisturbed(rank: int, world: int, config: RunConfig, run_dir: str) -> None:
    """The same loop without Ray, without copies."""
    from cardialign.pretrain.run.observer import NullObserver
    from cardialign.pretrain.training.loop import train

    train(config, Path(run_dir), NullObserver())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("stage", "copies", "rank"), [(1, 1, 1), pytest.param(2, 4, 0, marks=pytest.mark.deployment)])
def test_run_whose_worker_is_killed_goes_on_from_what_the_survivor_has_committed(
    stage: int, copies: int, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cardialign.cluster.runs.driver import train_on_ray

    shards, run_dir = make_shards(tmp_path / "ground"), tmp_path / "disturbed"
    config = config_for(shards, stage, copies)
    write_plan(plan_of(run_dir), (Fault("kill", KILLED_AT, rank, after=0.02),), 0.1)
    monkeypatch.setenv(FOLDER, str(plan_of(run_dir)))
    result = train_on_ray(config, run_dir, workers=2)
    assert result.steps == STEPS and result.restarts == 1 and not result.stopped

    told = read_json(run_dir / "result.json")
    assert told is not None
    resumed = told["resumed_from"]
    assert KILLED_AT - copies <= resumed <= KILLED_AT + 1, f"at most {copies} steps are lost, it went on from {resumed}"
    done = [step for _, step in stepped(plan_of(run_dir), 1 - rank)]
    assert len(done) - STEPS <= copies, "no step is done twice but those since the last copy"
    (decision,) = read_decisions(run_dir)
    assert decision.kind == "retry" and decision.cause.startswith(
        f"survivors committed step {resumed} (rank {rank}'s part from rank {1 - rank})"
    )
    assert f"rank {rank}: its process was killed" in decision.cause
    assert not (run_dir / SURVIVORS).exists()
    assert not [path.name for path in (run_dir / CHECKPOINTS).iterdir() if path.name.startswith(".")]

    plain = config_for(shards, stage, 0)
    run_ranks(2, train_undisturbed, plain, str(tmp_path / "undisturbed"), deadline=120, init=False)
    keys = ("step", "loss", "digest", "grad_norm")
    disturbed, undisturbed = (
        [{key: line[key] for key in keys} for line in read_trace(tmp_path / name)]
        for name in ("disturbed", "undisturbed")
    )
    assert len(disturbed) == STEPS and disturbed == undisturbed, "the trace is the same, bit for bit"
