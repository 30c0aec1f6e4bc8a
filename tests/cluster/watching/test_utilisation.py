"""MFU: what a run reaches of the published peak of its devices, and nothing where nobody published one."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cardialign.cluster.jobs.standing import told
from cardialign.cluster.runs.reporting import read_state
from cardialign.cluster.watching.state import run_state
from cardialign.cluster.watching.terminal import facts
from cardialign.cluster.watching.utilisation import counted, flop_of, peak_of
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run.figures import RankFigures, write_figures
from cardialign.pretrain.run.files import COMPUTE, CONFIG, METRICS
from tests.support.tiny_shards import config_for, make_shards

H100 = "NVIDIA H100 80GB HBM3"
RANK = RankFigures(0, 2, "a", "s.1", 5.0, 40, 100, 64, device=H100, window_steps=10, window_seconds=5.0, own=5.0)


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        (H100, "bf16", 989e12),  # dense, data sheet of the SXM form
        (H100, "fp32", 67e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-PCIE-40GB", "bf16", 312e12),
        ("NVIDIA L40S", "bf16", 362.05e12),
        ("NVIDIA H100 PCIe", "bf16", None),  # 756e12: another data sheet
        ("NVIDIA H200 NVL", "bf16", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bf16", None),
        ("NVIDIA GH200 480GB", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_a_peak_is_known_where_a_data_sheet_says_it_of_this_form(
    device: str, precision: str, peak: float | None
) -> None:
    assert peak_of(device, precision) == peak


def test_it_is_flops_of_the_records_over_the_peak_of_all_devices(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"training": {"global_batch": 64}}')
    (tmp_path / METRICS).write_text('{"step": 40}\n')
    for rank in (0, 1):
        write_figures(tmp_path, replace(RANK, rank=rank))
    assert run_state(tmp_path).mfu is None and "MFU" not in facts(run_state(tmp_path))
    (tmp_path / COMPUTE).write_text(json.dumps({"device": H100, "peak_flop_s": 989e12, "flop_per_record": 720e9}))
    state = run_state(tmp_path)
    assert state.records_per_second == pytest.approx(128.0)  # 64 in half a second
    assert state.mfu == pytest.approx(128 * 720e9 / (2 * 989e12))
    assert facts(state)["MFU"] == "4.66 %"
    assert told({"job": None, "run_dir": "x", "run": read_state(tmp_path)})["MFU"] == "4.66 %"
    for device, flop in (("NVIDIA L40S", 720e9), (H100, None), (H100, "1"), (H100, float("inf"))):
        (tmp_path / COMPUTE).write_text(json.dumps({"device": device, "peak_flop_s": 989e12, "flop_per_record": flop}))
        assert run_state(tmp_path).mfu is None, "counted for another device, or not of our form"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return config_for(make_shards(tmp_path_factory.mktemp("set") / "shards"))


@pytest.mark.parametrize(("device", "given", "peak"), [("cpu", None, None), ("cpu", 0.05, 5e10), (H100, None, 67e12)])
def test_a_run_counts_itself_once_where_the_peak_is_known(
    config: RunConfig, tmp_path: Path, device: str, given: float | None, peak: float | None
) -> None:
    write_figures(tmp_path, replace(RANK, device=device))
    with counted(config, tmp_path, given):
        deadline = time.monotonic() + 120  # of a run that goes on meanwhile
        while peak is not None and not (tmp_path / COMPUTE).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    if peak is None:
        assert not (tmp_path / COMPUTE).exists()
        return
    note = json.loads((tmp_path / COMPUTE).read_text())
    assert (note["device"], note["peak_flop_s"]) == (device, peak)  # the recipe computes in float32
    assert note["flop_per_record"] == flop_of(config) > 0
