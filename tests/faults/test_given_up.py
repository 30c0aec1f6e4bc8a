"""A worker group that was given up trains on beside its successor, and the run is none the worse for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cardialign.data_shards.files import write_json
from cardialign.pretrain.config import load_config
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.checkpoints.condition import examine
from cardialign.pretrain.training.checkpoints.files import list_checkpoints
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]

TRAIN = """
import json, sys
from pathlib import Path
import torch
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training.loop import train

torch.set_num_threads(1)
print(train(parse_config(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]), NullObserver()).steps)
"""


@pytest.mark.parametrize("paused", [False, True], ids=["running", "stopped-and-continued"])
def test_a_group_that_was_given_up_cannot_disturb_its_successor(
    banked_shards: Path, tmp_path: Path, paused: bool
) -> None:
    more = ["training.checkpoint_every=2", "training.keep_checkpoints=2", "training.steps=80"]
    config = load_config("cardialign-demo", [*SMALL, f"data.shards={banked_shards}", *more])
    write_json(tmp_path / "config.json", config.resolved())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(run_dir: Path) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", TRAIN, str(tmp_path / "config.json"), str(run_dir)]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    run_dir = tmp_path / "run"
    old = start(run_dir)
    new = None
    try:
        while len(list((run_dir / "checkpoints").glob("step-*"))) < 2:
            assert old.poll() is None, old.communicate()[1]
            time.sleep(0.02)
        if paused:
            os.kill(old.pid, signal.SIGSTOP)
        new = start(run_dir)
        if paused:
            while (
                not (run_dir / "attempt.json").is_file()
                or json.loads((run_dir / "attempt.json").read_text())["pid"] != new.pid
            ):
                assert new.poll() is None, new.communicate()[1]
                time.sleep(0.02)
            os.kill(old.pid, signal.SIGCONT)
        _, told = old.communicate(timeout=200)
        printed, said = new.communicate(timeout=200)
    finally:
        old.kill()
        if new is not None:
            new.kill()
    assert old.returncode != 0 and "has taken over" in told and f"process {new.pid} on" in told
    assert new.returncode == 0 and printed.split()[-1] == "80", said
    assert all(not examine(each.path).reasons for each in list_checkpoints(run_dir))
    assert not (run_dir / "checkpoints" / "quarantine").exists()
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))

    alone = start(tmp_path / "alone")
    assert alone.wait(timeout=200) == 0
    assert [line["step"] for line in read_trace(run_dir)] == list(range(1, 81))
    losses, undisturbed = ([line["loss"] for line in read_trace(path)] for path in (run_dir, tmp_path / "alone"))
    assert losses == undisturbed, "bit for bit"
