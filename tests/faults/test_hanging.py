"""A worker that hangs or is killed, on a real Ray with two workers: the run ends in words, and the logs are there."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.runs import driver, waiting
from cardialign.cluster.runs.driver import train_on_ray
from cardialign.cluster.runs.failure import StoppedError
from cardialign.cluster.runs.placement import Placement
from cardialign.data_shards.errors import STOPPED, UserError
from cardialign.data_shards.files import read_json
from cardialign.pretrain.config import load_config
from cardialign.pretrain.run.files import WORKERS
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_stopped_worker_is_named_sigterm_ends_the_run_and_a_killed_one_is_told_as_killed(
    banked_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "STOP_SECONDS", 25.0)
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 15.0)
    config = load_config("cardialign-demo", [*SMALL, f"data.shards={banked_shards}", "training.steps=100000"])
    run_dir = tmp_path / "run"
    sent: list[int] = []

    def signal_rank_1(number: int, after: int) -> Any:
        def act(line: dict[str, Any]) -> None:
            if line["step"] >= after and not sent:
                note = read_json(run_dir / WORKERS / "rank-1.json")
                assert note is not None
                os.kill(note["pid"], number)
                sent.append(note["pid"])
                if number == signal.SIGSTOP:
                    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

        return act

    started = time.monotonic()
    with pytest.raises(StoppedError) as stopped:
        train_on_ray(config, run_dir, workers=2, on_step=signal_rank_1(signal.SIGSTOP, 12))
    assert stopped.value.exit_code == STOPPED and time.monotonic() - started < 300
    assert f"rank 1 (process {sent[0]} on {os.uname().nodename}, silent for" in stopped.value.problem
    deadline = time.monotonic() + 60
    while Path(f"/proc/{sent[0]}").exists() and "Z" not in Path(f"/proc/{sent[0]}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the stopped worker has ended with the run"
        time.sleep(0.2)

    sent.clear()
    once = Placement(max_failures=0)
    with pytest.raises(UserError) as killed:
        train_on_ray(config, run_dir, workers=2, placement=once, on_step=signal_rank_1(signal.SIGKILL, 22))
    assert "rank 1: its process was killed by signal 9" in killed.value.problem and "memory" in killed.value.problem
    named = next(word for word in killed.value.remedy.split() if "/logs/" in word).rstrip(";,")
    log = Path(named) / "rank-1.log"
    assert log.is_file() and f"process {sent[0]} on" in log.read_text()
    kept = list((run_dir / "logs").glob("ray-*/gcs_server.out"))
    assert len(kept) == 2, "Ray's own logs of both failed starts are kept, too"
