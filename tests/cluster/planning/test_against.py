"""Predicted beside measured: real runs on this machine's CPU, planned before they are looked at.

What is compared is tensors: the C library is asked to give freed blocks back to the system at once, so that the most
anonymous memory of a step, libraries taken off, is the most that its tensors held.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.cluster.planning import report
from cardialign.cluster.planning.against import MEMORY_ROW
from cardialign.pretrain.config import load_config
from cardialign.pretrain.run.files import MEMORY
from cardialign.pretrain.run.observer import NullObserver
from tests.cluster.conftest import Answer
from tests.support.processes import run_ranks
from tests.support.tiny_set import SMALL

Call = Callable[..., Answer]
pytestmark = pytest.mark.processes
BLOCK = str(64 << 10)
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": BLOCK, "MALLOC_TRIM_THRESHOLD_": BLOCK}


def train_small(rank: int, world: int, shards: Path, run_dir: Path) -> None:
    from cardialign.pretrain.training.loop import train

    for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD: as GIVE_BACK, for a process that runs already
        ctypes.CDLL(None).mallopt(option, int(BLOCK))
    sets = [f"data.shards={shards}", "training.global_batch=32", "training.steps=2", "encoder.depth=1"]
    plain = ["training.precision=fp32", "training.zero_stage=2"]
    train(load_config("simclr-tiny", [*SMALL, *sets, *plain]), run_dir, NullObserver())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "run"
    run_ranks(1, train_small, shards, run_dir)
    return run_dir


def rows_of(answer: Answer) -> dict[str, dict]:
    assert answer.code == 0, answer.err
    return {row["what"]: row for row in answer.json["beside"]}


def test_a_run_is_planned_as_it_went(cardialign: Call, finished: Path) -> None:
    answer = cardialign("plan", "--against", finished)
    rows = rows_of(answer)
    assert rows["optimizer steps"]["predicted"] == rows["optimizer steps"]["measured"] == 2
    assert rows["memory of the fullest rank"]["ratio"] == pytest.approx(1, abs=0.15)
    assert rows["checkpoint"]["ratio"] == pytest.approx(1, abs=0.05)
    assert rows["sent by a rank per step"]["measured"] == rows["sent by a rank per step"]["predicted"] == 0
    assert answer.json["machine"] == "CPU" and answer.json["world_size"] == 1
    shown = cardialign("plan", "--against", finished, plain=True).out
    assert "predicted, not measured: simclr-tiny" in shown and "anonymous memory" in shown
    assert "and as much host memory, ranks together" in shown
    assert "MALLOC_MMAP_THRESHOLD_=65536" in shown, "what comes on top where a run was not asked to give back"


def test_memory_is_written_rank_by_rank(finished: Path) -> None:
    held = json.loads((finished / MEMORY).read_text())
    (rank,) = held["ranks"]
    trained = 4 * sum(np_size for np_size in _sizes(finished))
    assert (held["steps"], held["total_steps"], held["device"], rank["rank"]) == (2, 2, "cpu", 0)
    assert rank["engine_bytes"] == pytest.approx(
        2 * trained, rel=0.01
    )  # ZeRO 2: the weights, and one rank's share: all
    assert rank["peak_bytes"] > rank["engine_bytes"] + 2 * trained  # averages of Adam, and a step
    if platform.machine() == "x86_64":  # oneDNN: bf16 from AVX-512 (BW) on
        assert held["bf16_kernels"] == ("avx512bw" in Path("/proc/cpuinfo").read_text().split())


def _sizes(run_dir: Path) -> list[int]:
    """Numbers of each weight, read from the checkpoint's safetensors header."""
    (path,) = run_dir.glob("checkpoints/step-*/model.safetensors")
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    entries = json.loads(header[8 : 8 + length])
    return [(end - start) // 4 for start, end in (e["data_offsets"] for k, e in entries.items() if k != "__metadata__")]


def test_a_run_that_is_not_finished_or_of_another_recipe_is_refused(
    cardialign: Call, finished: Path, tmp_path: Path
) -> None:
    other = cardialign("plan", "--recipe", "cardialign-tiny", "--against", finished)
    assert other.code == 1 or other.code == 2
    assert "another recipe" in other.json["problem"] and "encoder.depth" in other.json["problem"]
    assert "leave --recipe" in other.json["problem"] + other.json["remedy"]
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut)
    trace = (cut / "metrics.jsonl").read_text().splitlines()
    (cut / "metrics.jsonl").write_text(trace[0] + "\n")
    unfinished = cardialign("plan", "--against", cut)
    assert unfinished.code != 0 and "step 1 of 2" in unfinished.json["problem"]
    nothing = cardialign("plan", "--against", tmp_path / "nowhere")
    assert nothing.code != 0 and "nowhere" in nothing.json["problem"]
    assert "kind of machine" not in nothing.json["problem"], "the run would have said it"


def test_a_memory_file_of_another_form_is_no_defect(cardialign: Call, finished: Path, tmp_path: Path) -> None:
    """A run without Ray has no other file that says how many steps it has; one with Ray has."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / MEMORY).write_text(json.dumps({"ranks": [{"peak": 1}]}))
    assert "is not finished" in cardialign("plan", "--against", run).json["problem"]
    (run / "result.json").write_text(json.dumps({"steps": 2, "total_steps": 2}))
    row = rows_of(cardialign("plan", "--against", run, "--kind", "CPU"))[MEMORY_ROW]
    assert row["measured"] is None and row["predicted"] > 0


@pytest.fixture(scope="module")
def long_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s at 500 Hz, as the recipes expect them, with their text bank."""
    folder = tmp_path_factory.mktemp("long")
    for words in (
        ["cohort", folder / "patients", "--patients", 50, "--workers", 1],
        ["shards", "build", "mimic-iv-ecg", "--root", folder / "patients", "--out", folder / "set", "--workers", 1],
        ["text-bank", "build", folder / "set"],
    ):
        subprocess.run([sys.executable, "-m", "cardialign", *map(str, words)], check=True, capture_output=True)
    return folder / "set"


CACHED = ["training.global_batch=64", "training.micro_batch=32"]
WHOLE = ["training.global_batch=96"]
WIDE = ["training.global_batch=2", "encoder.width=384", "encoder.depth=2", "training.precision=fp32"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("recipe", "sets", "stage"),
    [
        pytest.param("cardialign-tiny", CACHED, 0, marks=pytest.mark.deployment),
        ("cardialign-tiny", CACHED, 2),
        ("cardialign-demo", WHOLE, 0),
        pytest.param("cardialign-demo", WHOLE, 2, marks=pytest.mark.deployment),
        ("cardialign-tiny", WIDE, 0),
        ("cardialign-tiny", WIDE, 2),
    ],
    ids=[f"{what}-{stage}" for what in ("tiny in bf16 and micro-batches", "activations dominate", "weights dominate")
         for stage in (0, 2)],
)  # fmt: skip
def test_memory_within_15_percent_and_steps_exactly(
    cardialign: Call, long_shards: Path, tmp_path: Path, recipe: str, sets: list[str], stage: int
) -> None:
    run = tmp_path / "run"
    words = [f"data.shards={long_shards}", "training.epochs=1", f"training.zero_stage={stage}", *sets]
    if sets is WIDE:
        words += ["training.epochs=null", "training.steps=2"]
    given = [part for each in words for part in ("--set", each)]
    command = [sys.executable, "-m", "cardialign.pretrain", "--recipe", recipe, "--run-dir", str(run), *given]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **GIVE_BACK}, timeout=900)
    rows = rows_of(cardialign("plan", "--against", run))
    assert rows["optimizer steps"]["predicted"] == rows["optimizer steps"]["measured"]
    assert rows["memory of the fullest rank"]["ratio"] == pytest.approx(1, abs=0.15)
    assert rows["checkpoint"]["ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("machine", "ratio", "told"), [("CPU", 0.7, True), ("CPU", 0.9, False), ("H100", 0.7, False)])
def test_memory_that_a_c_library_keeps_is_told_beside_a_small_run(machine: str, ratio: float, told: bool) -> None:
    row = {"what": MEMORY_ROW, "unit": "MiB", "predicted": ratio * 100, "measured": 100.0, "ratio": ratio}
    plan = {"against": "run", "beside": [row], "measured_as": "anonymous memory", "machine": machine}
    assert any("MALLOC_MMAP_THRESHOLD_=65536" in line for line in report._beside(plan)) == told
