"""The learning rate is a pure function of the step."""

import pytest

from cardialign.pretrain.config import ScheduleConfig
from cardialign.pretrain.training.schedule import as_planned, learning_rate, warmup_steps


def test_warms_up_by_default_and_ends_at_the_floor():
    config = ScheduleConfig()
    rates = [learning_rate(step, as_planned(200), 1.0, config) for step in range(200)]
    assert warmup_steps(config, 200) == 20
    assert rates[0] == pytest.approx(1 / 20) and rates[19] == 1.0
    assert rates[:20] == sorted(rates[:20])
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert rates[-1] == pytest.approx(config.min_lr_ratio)


def test_constant_keeps_the_peak_after_the_ramp():
    config = ScheduleConfig(name="constant", warmup_steps=3)
    assert [learning_rate(step, as_planned(8), 0.5, config) for step in range(8)] == pytest.approx(
        [0.5 / 3, 1.0 / 3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    )


@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("warmup", [None, 0, 1, 50])
def test_short_runs_get_finite_positive_rates(total, warmup):
    config = ScheduleConfig(warmup_steps=warmup)
    assert all(0 < learning_rate(step, as_planned(total), 1.0, config) <= 1.0 for step in range(total))
