"""The alarm sees the two signs of collapse, waits for warm-up and patience, and says what to do."""

import math

import pytest
import torch

from cardialign.pretrain.config import CollapseConfig
from cardialign.pretrain.methods.base import Chance
from cardialign.pretrain.training.alarms import CollapseAlarm, CollapseError, effective_rank
from tests.support.processes import run_ranks

CHANCE = math.log(1 + 31)
SEEN_NOTHING = Chance(CHANCE, "ln(1 + effective negatives)")


def alarm(**changes):
    return CollapseAlarm(CollapseConfig(**{"patience_steps": 5, "loss_margin": 0.02, **changes}), warmup=10)


def feed(watch, losses, start=1):
    for step, loss in enumerate(losses, start):
        watch.check_loss(step, loss, SEEN_NOTHING)


def test_a_loss_that_stays_at_chance_stops_the_run_with_remedies():
    with pytest.raises(CollapseError) as caught:
        feed(alarm(), [CHANCE - 0.01] * 40)
    message = str(caught.value)
    assert message.startswith("step 15:") and "for 5 steps" in message and f"{CHANCE:.4f}" in message
    for remedy in ("warm-up", "optimizer.lr", "temperature"):
        assert remedy in message


def test_learning_resets_the_count():
    feed(alarm(), [CHANCE] * 14 + [CHANCE - 0.5] + [CHANCE] * 4)


def test_an_improving_run_and_a_disabled_alarm_are_left_alone():
    feed(alarm(), [CHANCE - 0.02 * step for step in range(2, 60)])
    feed(alarm(enabled=False), [CHANCE] * 60)


def test_effective_rank_counts_directions():
    assert effective_rank(torch.eye(16)) == pytest.approx(16.0)
    assert effective_rank(torch.ones(32, 8)) == pytest.approx(1.0, abs=1e-3)
    torch.manual_seed(0)
    assert 3.0 < effective_rank(torch.randn(64, 4) @ torch.randn(4, 32)) <= 4.01


def test_a_rank_that_stays_low_after_warm_up_stops_the_run():
    watch = alarm(min_rank=3.0)
    watch.check_rank(10, 1.0)  # still warming up
    for step, rank in ((12, 1.5), (14, 3.5), (16, 1.5), (18, 1.4), (19, None), (20, 1.5)):
        watch.check_rank(step, rank)
    with pytest.raises(
        CollapseError, match=r"step 22: .* effective rank 1.30, and since step 16 .* collapse.min_rank 3"
    ):
        watch.check_rank(22, 1.3)


def rank_of_the_parts(rank: int, world: int) -> float:
    torch.manual_seed(1)
    rows = torch.randn(9, 5)
    return effective_rank(rows[:4] if rank == 0 else rows[4:])


@pytest.mark.slow
@pytest.mark.processes
def test_effective_rank_is_that_of_the_global_batch():
    torch.manual_seed(1)
    alone = effective_rank(torch.randn(9, 5))
    assert run_ranks(2, rank_of_the_parts) == pytest.approx([alone, alone])
