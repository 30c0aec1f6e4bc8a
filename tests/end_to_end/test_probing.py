"""The site's grid on virtual recordings in the layout of PTB-XL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.sources import open_source
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from tests.support.readme import EVALUATION, block_with, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]


def test_the_grid_of_the_four_tasks_of_ptb_xl(tmp_path: Path, shell: dict[str, str]) -> None:
    recordings = make_cohort(tmp_path / "ptb-xl", Cohort(patients=60, layout="ptb-xl", seed=5)).path
    spec = SignalSpec(100, 10)
    shards = build_shards(open_source("ptb-xl", recordings, sampling_rate="100"), tmp_path / "set", SetPlan(spec)).path
    torch.manual_seed(0)
    config = parse_config({"encoder": {"name": "resnet1d", "width": 8}, "method": {"name": "simclr"}})
    encoder = export_encoder(
        config, create_method(config, spec).state_dict(), tmp_path / "encoder", training={}, spec=spec, program=False
    )
    printed = run(
        block_with('"$SHARDS"', page=EVALUATION), tmp_path, {**shell, "SHARDS": str(shards), "ENCODER": str(encoder)}
    )
    assert "chosen by rankme (no labels) on folds 9" in printed
    for task in ("super", "sub", "form", "rhythm"):
        assert f"clean-v2:ptb-xl-{task}: macro AUROC over" in printed
    assert "no figure, csn: no set of it was given" in printed and "no figure, ptb-xl-form at 1 %" in printed
    for system in ("encoder", "untrained", "random-kernels", "hand-features"):
        assert f"100 %  {system}" in printed
    assert (tmp_path / "work/grid/grid.csv").is_file() and "ledger every system" in printed
