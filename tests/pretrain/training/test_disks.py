"""A disk that is full to the last byte, or read-only: a sentence, nothing is lost, and the same command goes on.

A small disk of its own is mounted for it, which takes root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.__main__ import main
from cardialign.pretrain.run.files import CONFIG
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.support.checkpoints import snapshot
from tests.support.processes import run_ranks
from tests.support.tiny_shards import config_for, make_shards

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = None if mount is None else subprocess.run([mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)])
    if done is None or done.returncode != 0:
        pytest.skip("no small disk can be mounted here (it takes root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes what is left, to the last byte."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**16, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return filler


def attempt(config: Any, run_dir: Path, fill_at: int | None = None) -> str:
    def on_step(step: int) -> None:
        if step == fill_at:
            fill(run_dir.parent)

    try:
        train(config, run_dir, NullObserver(), on_step=on_step)
    except UserError as error:
        return str(error)
    return "no error"


def on_disks(rank: int, world: int, shards: Path, disk: Path, root: Path) -> dict[str, Any]:
    config, found, run_dir = config_for(shards, steps=9), {}, disk / "run"
    recipe = root / "recipe.yaml"
    recipe.write_text(json.dumps(config.resolved()))
    train(config, root / "whole", NullObserver())
    found["while"] = attempt(config, run_dir, fill_at=4)  # steps 5 and 6 are written down nowhere, 6 has a checkpoint
    found["at start"] = attempt(config, run_dir)
    found["door"] = main(["--recipe", str(recipe), "--run-dir", str(run_dir)])
    found["left"] = sorted(p.name for p in (run_dir / "checkpoints").glob("step-*"))
    (disk / "filler").unlink()
    before = snapshot(run_dir)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    found["read-only"] = attempt(config, run_dir)
    found["read-only door"] = main(["--recipe", str(recipe), "--run-dir", str(run_dir)])
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    found["unchanged"] = snapshot(run_dir) == before
    train(config, run_dir, NullObserver())
    found["leftovers"] = [name for name in os.listdir(run_dir) if name.startswith(".") or name.endswith(".tmp")]
    return found


def test_a_run_over_a_full_and_a_read_only_disk_ends_with_the_trace_of_an_undisturbed_one(
    small_disk: Path, tmp_path: Path
) -> None:
    shards = make_shards(tmp_path / "shards")
    found = run_ranks(1, on_disks, shards, small_disk, tmp_path, init=False, deadline=200)[0]
    for name in ("while", "at start"):
        assert "(0 bytes free)" in found[name] or "; 0 bytes free" in found[name], found[name]
        assert "remedy: free space" in found[name]
    assert found["door"] == 1 and found["left"] == ["step-00000003"]
    assert "may not be written" in found["read-only"] or "Read-only" in found["read-only"]
    assert found["read-only door"] == 1 and found["unchanged"] and found["leftovers"] == []
    run, whole = small_disk / "run", tmp_path / "whole"
    for key in ("step", "loss", "digest"):
        assert [line[key] for line in read_trace(run)] == [line[key] for line in read_trace(whole)]
    assert (run / CONFIG).read_bytes() == (whole / CONFIG).read_bytes()
