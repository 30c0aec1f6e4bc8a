"""`checkpoints audit` makes steps of a run again: equal, or the first difference, and the run itself is left alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cardialign.cluster.drills.audit import other_topologies
from cardialign.cluster.drills.ground import EVERY, Ground
from cardialign.cluster.drills.loop import Loop
from cardialign.cluster.main import main
from cardialign.data_shards.errors import DONE, FAILED
from cardialign.pretrain.run.files import METRICS

STEPS = 4 * EVERY


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_an_audit_says_equal_and_names_the_first_figure_that_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    ground = Ground(tmp_path / "ground")
    assert Loop(ground.config(f"training.steps={STEPS}"), run_dir, world=2).wait().done
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    assert main(["checkpoints", "audit", str(run_dir), "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["from_step"], told["to_step"], told["equal"]) == (STEPS - EVERY, STEPS, True)
    assert told["weights_compared"] and told["topology"].startswith("2 processes")

    trace = run_dir / METRICS
    lines = trace.read_text().splitlines()
    recorded = json.loads(lines[STEPS - 3])
    loss = recorded["loss"] + 2**-40  # one step whose loss somebody mended by hand
    lines[STEPS - 3] = json.dumps({**recorded, "loss": loss})
    trace.write_text("\n".join(lines) + "\n")
    assert main(["checkpoints", "audit", str(run_dir), "--from", str(STEPS - EVERY)]) == FAILED
    said = capsys.readouterr().out
    assert f"step {STEPS - 2}, loss: {recorded['loss']!r}, recorded {loss!r}" in said
    assert {path: path.read_bytes() for path in before if path != trace} == {
        path: content for path, content in before.items() if path != trace
    }

    assert main(["checkpoints", "audit", str(run_dir), "--from", "1"]) == 2
    assert re.search(rf"checkpoints of .*{STEPS - EVERY}, {STEPS}", capsys.readouterr().err)


def test_an_audit_without_a_checkpoint_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "audit", str(tmp_path)]) == FAILED
    assert "holds no committed checkpoint" in capsys.readouterr().err


def test_other_numbers_of_workers_and_other_hosts_are_said(tmp_path: Path) -> None:
    assert other_topologies(tmp_path, 2) is None
    (tmp_path / "attempts.jsonl").write_text('{"world_size": 2}\n{"world_size": 4}\n')
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "rank-0.json").write_text('{"host": "gpu-node-7"}')
    said = other_topologies(tmp_path, 2) or ""
    assert "4 workers" in said and "gpu-node-7" in said and "2 workers" not in said
