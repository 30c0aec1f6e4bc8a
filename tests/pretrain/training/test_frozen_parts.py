"""Parts that do not train stay what they are when a run goes on with another number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support import two_towers
from tests.support.processes import run_ranks

FROZEN = ("text.0.", "ecg.0.")
"""The lowest layers of both towers, as `text.trainable: partial` leaves those of a report encoder."""
STAGES = (2, pytest.param(3, marks=pytest.mark.slow))
pytestmark = pytest.mark.processes


def leg(rank: int, world: int, run_dir: Path, stage: int, upto: int) -> dict:
    return two_towers.train_with_checkpoints(run_dir, stage, upto, 5, frozen=FROZEN)


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_weights_stay_and_the_others_go_on_as_undisturbed(tmp_path: Path, stage: int) -> None:
    half = run_ranks(2, leg, tmp_path / "run", stage, 2, init=False, deadline=120)[0]
    rest = run_ranks(1, leg, tmp_path / "run", stage, 4, init=False, deadline=120)[0]
    whole = run_ranks(1, leg, tmp_path / "whole", stage, 4, init=False, deadline=120)[0]
    torch.manual_seed(0)
    made = two_towers.TwoTowers().state_dict()
    before, after, right = (load_file(Path(each["path"]) / "model.safetensors") for each in (half, rest, whole))
    assert rest["start"] == 2 and set(after) == set(made)
    for name, weights in made.items():
        if name.startswith(FROZEN):
            assert torch.equal(before[name], weights) and torch.equal(after[name], weights), name
        else:
            assert not torch.equal(after[name], before[name]), f"{name} trains"
            torch.testing.assert_close(after[name], right[name], rtol=0, atol=2e-6, msg=name)
    np.testing.assert_allclose(half["losses"] + rest["losses"], whole["losses"], rtol=2e-6)
