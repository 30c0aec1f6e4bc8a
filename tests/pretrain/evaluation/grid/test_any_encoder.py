"""A grid of somebody else's encoder, and of a protocol that cuts records: what cannot be had is said first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.grid.grid import run_grid
from cardialign.pretrain.evaluation.grid.plan import GridPlan
from cardialign.pretrain.evaluation.probing.cells import ProbePlan
from cardialign.pretrain.evaluation.probing.linear_probe import probe
from cardialign.pretrain.evaluation.probing.report import ProbeOptions
from cardialign.pretrain.evaluation.probing.tasks import task_of_protocol
from cardialign.pretrain.export.loaded import untrained_encoder
from cardialign.pretrain.export.opening import open_encoder
from cardialign.pretrain.export.usable import UsableEncoder
from tests.support.like_ptb_xl import SPEC, LikePtbXl
from tests.support.outside_models import write_torchscript
from tests.support.small_encoder import small_config

QUICK = ProbeOptions((1.0,), bootstrap=0, neighbours=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("ptb")
    build_shards(LikePtbXl(folder, 240), folder / "set", SetPlan(SPEC), workers=1)
    return ShardSet.open(folder / "set")


@pytest.fixture
def outside(tmp_path: Path) -> UsableEncoder:
    return open_encoder(write_torchscript(tmp_path / "readout.pt"))


def test_pieces_of_a_protocol_reach_the_cells_of_somebody_elses_encoder(
    outside: UsableEncoder, shards: ShardSet, tmp_path: Path
) -> None:
    plan = GridPlan("benchmark-v1", {"ptb-xl": shards}, ProbePlan(QUICK, ()))
    found = run_grid(outside, plan, tmp_path / "grid").tasks["ptb-xl-super"]
    task = task_of_protocol("benchmark-v1:ptb-xl-super", shards)
    records = [shards.read_record(row) for row in task.rows]
    signal, mask = np.stack([each.millivolts() for each in records]), np.stack([each.lead_mask for each in records])
    read, length = outside.reader(SPEC), np.full(len(task.rows), 250)
    pieces = [read(np.ascontiguousarray(signal[..., at : at + 250]), mask, length) for at in (0, 250)]
    features = np.stack([each.features.numpy() for each in pieces], axis=1)
    scores = probe(features, task.truth, task.parts).scores
    truth = task.truth[task.parts.test]
    (row,) = found.rows
    assert row.macro == pytest.approx(roc_auc_score(truth, scores, average="macro"), abs=1e-9)
    alone = roc_auc_score(truth, probe(features[:, 0], task.truth, task.parts).scores, average="macro")
    assert abs(row.macro - alone) > 0.01, "the second piece has its say"


@pytest.mark.slow
def test_floors_that_an_encoder_cannot_have_are_left_out_and_said(
    outside: UsableEncoder, shards: ShardSet, tmp_path: Path
) -> None:
    found = run_grid(outside, GridPlan("clean-v2", {"ptb-xl": shards}, ProbePlan(QUICK)), tmp_path / "grid")
    assert [row.system for row in found.tasks["ptb-xl-super"].rows] == ["encoder", "random-kernels", "hand-features"]
    assert "no untrained encoder beside it: TorchScript does not say" in found.table()
    assert "unknown (its signal contract does not say what it was trained on" in found.table()
    again = run_grid(outside, GridPlan("clean-v2", {"ptb-xl": shards}, ProbePlan(QUICK)), tmp_path / "grid")
    assert again.to_dict() == found.to_dict()


def test_what_cannot_be_read_is_refused_before_the_folder_is_taken(
    outside: UsableEncoder, shards: ShardSet, tmp_path: Path
) -> None:
    ours = untrained_encoder(small_config(), SPEC, with_reports=False)
    for encoder, protocol, plan, problem in (
        (outside, "clean-v2", ProbePlan(QUICK, (), attention=True), "has no tokens, only features of whole records"),
        (outside, "clean-v2", ProbePlan(QUICK, ("untrained",)), "has no untrained counterpart"),
        (ours, "benchmark-v1", ProbePlan(QUICK, (), attention=True), "cuts records into pieces; the attention-pooled"),
    ):
        with pytest.raises(UserError, match=problem):
            run_grid(encoder, GridPlan(protocol, {"ptb-xl": shards}, plan), tmp_path / "grid")
        assert not (tmp_path / "grid").exists(), problem
    plan = GridPlan("clean-v2", {"ptb-xl": shards}, ProbePlan(QUICK, (), attention=True))
    readers = {row.reader for row in run_grid(ours, plan, tmp_path / "grid").tasks["ptb-xl-super"].rows}
    assert readers == {"linear probe", "attention probe"}
