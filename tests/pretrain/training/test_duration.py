"""Another number of steps at resume changes the learning rate only where it is asked for, and then by the rule."""

import math
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.training.checkpoints.judge import Facts, judge
from cardialign.pretrain.training.schedule import Plan, as_planned, learning_rate
from tests.support.checkpoints import SELECTION, nothing_changes, write_checkpoint

PEAK, FLOOR = 1e-3, 1e-5


def config(steps: int | None = 100, name: str = "cosine", **training: Any) -> RunConfig:
    return RunConfig(
        optimizer={"lr": PEAK},
        schedule={"name": name, "warmup_fraction": 0.1, "min_lr_ratio": 0.01},
        training={"steps": steps, "global_batch": 10, **training},
    )


def plan_of(run_dir: Path, asked: RunConfig, extend: bool = False) -> Plan:
    with nothing_changes(run_dir):
        return judge(run_dir, asked, Facts(SELECTION, 200, 1), "extend" if extend else "same").plan


def rates(plan: Plan, config: RunConfig) -> list[float]:
    return [learning_rate(step, plan, config.optimizer.lr, config.schedule) for step in range(plan[-1][1])]


def test_more_steps_under_a_cosine_are_refused_with_the_rate_before_and_after(tmp_path):
    write_checkpoint(tmp_path, 60, config())
    with pytest.raises(UsageError) as caught:
        plan_of(tmp_path, config(200))
    assert caught.value.exit_code == 2, "wrong usage, as the README of the command line has it"
    # by hand, step index 60: ramp 10 of 100, progress 51/90; ramp 20 of 200, progress 41/180
    before = FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * 51 / 90))
    after = FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * 41 / 180))
    assert f"step 61: {before:.3g} as planned, {after:.3g} then" in caught.value.problem
    assert "planned for 100 steps, 200 are asked for" in caught.value.problem and "--extend" in caught.value.remedy


@pytest.mark.parametrize("asked", [80, 101])
def test_fewer_steps_and_one_more_change_the_rate_too(tmp_path, asked):
    write_checkpoint(tmp_path, 60, config())
    with pytest.raises(UserError, match="changes the learning rate"):
        plan_of(tmp_path, config(asked))


def test_epochs_that_make_as_many_steps_change_nothing(tmp_path):
    write_checkpoint(tmp_path, 60, config())
    assert plan_of(tmp_path, config(None, epochs=5)) == ((0, 100),)  # 5 x 200 records / 10
    with pytest.raises(UserError, match="200 are asked for"):
        plan_of(tmp_path, config(None, epochs=10))


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize("asked", [50, 60])
def test_fewer_steps_than_are_done_are_a_sentence(tmp_path, asked, extend):
    write_checkpoint(tmp_path, 60, config())
    with pytest.raises(UserError, match=f"{asked} steps are asked for, the run has done 60 of 100") as caught:
        plan_of(tmp_path, config(asked), extend)
    assert "cardialign export" in caught.value.remedy


def test_an_extended_cosine_falls_from_where_it_is_to_the_floor_and_never_rises(tmp_path):
    write_checkpoint(tmp_path, 60, config())
    asked = config(200)
    plan = plan_of(tmp_path, asked, extend=True)
    assert plan == ((0, 100), (60, 200))
    before, after = rates(as_planned(100), config()), rates(plan, asked)
    assert after[:60] == before[:60], "steps that are done keep their rate, bit for bit"
    last = FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * 50 / 90))  # of step index 59, by hand
    assert after[59] == pytest.approx(last, rel=1e-12)
    for step in (60, 100, 199):
        by_hand = FLOOR + (last - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - 59) / 140))
        assert after[step] == pytest.approx(by_hand, rel=1e-12)
    assert after[10:] == sorted(after[10:], reverse=True)
    assert after[-1] == pytest.approx(FLOOR, rel=1e-12)


def test_a_shortened_cosine_reaches_the_floor_at_the_new_end(tmp_path):
    write_checkpoint(tmp_path, 60, config())
    plan = plan_of(tmp_path, config(80), extend=True)
    after = rates(plan, config(80))
    assert len(after) == 80 and after[-1] == pytest.approx(FLOOR, rel=1e-12)
    assert after[10:] == sorted(after[10:], reverse=True)


def test_a_finished_cosine_goes_on_at_its_lowest_rate(tmp_path):
    write_checkpoint(tmp_path, 100, config())
    plan = plan_of(tmp_path, config(150), extend=True)
    assert rates(plan, config(150))[100:] == pytest.approx([FLOOR] * 50, rel=1e-12)


def test_a_warm_up_that_is_not_over_goes_on_as_it_was(tmp_path):
    write_checkpoint(tmp_path, 5, config())
    plan = plan_of(tmp_path, config(200), extend=True)
    after = rates(plan, config(200))
    assert after[:10] == pytest.approx([PEAK * (step + 1) / 10 for step in range(10)], rel=1e-12)
    assert after[10] == pytest.approx(FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi / 190)), rel=1e-12)
    assert after[-1] == pytest.approx(FLOOR, rel=1e-12)


def test_a_second_resume_needs_no_word_and_keeps_the_plan_and_a_second_extension_goes_on_from_it(tmp_path):
    plan = ((0, 100), (60, 200))
    write_checkpoint(tmp_path, 120, config(200), plan=plan)
    assert plan_of(tmp_path, config(200)) == plan_of(tmp_path, config(200), extend=True) == plan
    with pytest.raises(UserError, match="has done 120 of 200"):
        plan_of(tmp_path, config(100))
    third = plan_of(tmp_path, config(300), extend=True)
    assert third == ((0, 100), (60, 200), (120, 300))
    after = rates(third, config(300))
    assert after[:120] == rates(plan, config(200))[:120]
    assert after[10:] == sorted(after[10:], reverse=True) and after[-1] == pytest.approx(FLOOR, rel=1e-12)


def test_two_extensions_at_the_same_step_are_the_last_one(tmp_path):
    write_checkpoint(tmp_path, 60, config(200), plan=((0, 100), (60, 200)))
    assert plan_of(tmp_path, config(300), extend=True) == ((0, 100), (60, 300))


def test_under_a_constant_rate_duration_is_harmless_once_the_warm_up_is_over(tmp_path):
    write_checkpoint(tmp_path, 60, config(name="constant"))
    plan = plan_of(tmp_path, config(200, "constant"))
    assert rates(plan, config(200, "constant"))[10:] == [PEAK] * 190


def test_under_a_constant_rate_a_longer_warm_up_is_not_harmless(tmp_path):
    write_checkpoint(tmp_path, 8, config(name="constant"))
    with pytest.raises(UserError, match=r"step 9: 0\.0009 as planned, 0\.00045 then"):  # 9/10 and 9/20 of the peak
        plan_of(tmp_path, config(200, "constant"))


def test_a_finished_run_at_a_rate_that_no_schedule_changes_goes_on_without_a_word(tmp_path):
    still = RunConfig(schedule={"warmup_steps": 1, "min_lr_ratio": 1.0}, training={"steps": 100, "global_batch": 10})
    write_checkpoint(tmp_path, 100, still)
    longer = still.model_copy(update={"training": still.training.model_copy(update={"steps": 120})})
    assert plan_of(tmp_path, longer) == ((0, 100), (100, 120))
