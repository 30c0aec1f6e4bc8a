"""A run that collapses, on a real Ray with two workers, ends with its own message and is not tried again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cardialign.cluster.runs.driver import train_on_ray
from cardialign.pretrain.config import load_config
from cardialign.pretrain.run.files import ATTEMPTS
from cardialign.pretrain.training.alarms import CollapseError
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(360)
def test_collapse_ends_the_run_with_its_own_message_and_without_another_try(
    banked_shards: Path, tmp_path: Path
) -> None:
    collapse = [
        "collapse.enabled=true",
        "collapse.min_rank=1000",
        "collapse.patience_steps=5",
        "schedule.warmup_steps=1",
    ]
    config = load_config("cardialign-demo", [*SMALL, f"data.shards={banked_shards}", *collapse])
    with pytest.raises(CollapseError) as raised:
        train_on_ray(config, tmp_path / "run", workers=2)
    assert not [each for each in threading.enumerate() if each.name == "ray-train-fit"], "it would outlive its Ray"
    assert "effective rank" in raised.value.problem and "warm-up" in raised.value.remedy
    assert len((tmp_path / "run" / ATTEMPTS).read_text().splitlines()) == 1
