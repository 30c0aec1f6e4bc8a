"""Old checkpoints go by hand, too: what would go is said first, and a run that is driven is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.pretrain.run.lock import locked_run
from cardialign.pretrain.training.checkpoints.files import list_checkpoints
from tests.cluster.conftest import Answer
from tests.support.checkpoints import flip, nothing_changes, write_checkpoint

Call = Callable[..., Answer]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (3, 6, 9, 12, 15):
        write_checkpoint(tmp_path / "run", step)
    return tmp_path / "run"


def steps(run_dir: Path) -> list[int]:
    return [one.step for one in list_checkpoints(run_dir)]


def test_what_would_go_is_said_and_then_goes(cardialign: Call, run_dir: Path) -> None:
    flip(run_dir / "checkpoints" / "step-00000015" / "engine" / "model.pt")
    with nothing_changes(run_dir):
        planned = cardialign("checkpoints", "prune", run_dir, "--keep", 1, "--dry-run")
        told = cardialign("checkpoints", "prune", run_dir, "--keep", 1, "--dry-run", plain=True).out
    (run_dir / "checkpoints" / ".tmp-prune-step-00000001").mkdir()
    done = cardialign("checkpoints", "prune", run_dir, "--keep", 1)
    assert planned.json["checkpoints"] == done.json["checkpoints"] and done.json["freed_bytes"] > 3 * 700
    assert steps(run_dir) == [12, 15] and not list((run_dir / "checkpoints").glob(".tmp-*"))
    assert "step       12" in told and "stays (only sound)" in told and told.count("would be deleted") == 3


def test_without_a_number_the_recipe_says_how_many_stay(cardialign: Call, run_dir: Path) -> None:
    assert cardialign("checkpoints", "prune", run_dir, "--dry-run").json["keep"] == 3
    config = {"training": {"steps": 20, "keep_checkpoints": 2}}
    (run_dir / "config.resolved.json").write_text(json.dumps(config))
    assert cardialign("checkpoints", "prune", run_dir).json["keep"] == 2 and steps(run_dir) == [12, 15]


def test_a_run_that_is_driven_is_left_alone(cardialign: Call, run_dir: Path) -> None:
    with locked_run(run_dir):
        refused = cardialign("checkpoints", "prune", run_dir, "--keep", 1)
        assert cardialign("checkpoints", "prune", run_dir, "--keep", 1, "--dry-run").code == 0
    assert refused.code != 0 and "is in use by" in refused.json["problem"]
    assert "prunes by itself" in refused.json["remedy"] and steps(run_dir) == [3, 6, 9, 12, 15]


def test_words_that_make_no_sense_delete_nothing(cardialign: Call, run_dir: Path, tmp_path: Path) -> None:
    with nothing_changes(run_dir):
        for keep in ("0", "-1", "all", "1.5"):
            assert cardialign("checkpoints", "prune", run_dir, f"--keep={keep}").code == 2
    missing = cardialign("checkpoints", "prune", tmp_path / "nowhere")
    assert missing.code == 1 and "nowhere" in missing.json["problem"] and not (tmp_path / "nowhere").exists()


def test_what_is_no_checkpoint_of_ours_is_named_and_left_alone(cardialign: Call, run_dir: Path) -> None:
    folder = run_dir / "checkpoints"
    (folder / "step-00000003" / "engine" / "thesis.tex").write_text("years of work")
    (folder / ".tmp-prune-mine").mkdir()
    done = cardialign("checkpoints", "prune", run_dir, "--keep", 1)
    assert [(Path(each["path"]).name, each["why"]) for each in done.json["left_alone"]] == [
        ("step-00000003", "it holds files that are no part of it (engine/thesis.tex)")
    ]
    told = cardialign("checkpoints", "prune", run_dir, "--keep", 1, plain=True).out
    assert steps(run_dir) == [3, 15] and "left alone" in told and "thesis.tex" in told
    assert (folder / ".tmp-prune-mine").is_dir()
    (run_dir / "committed.json").unlink()
    with nothing_changes(run_dir):
        refused = cardialign("checkpoints", "prune", run_dir, "--keep", 1)
    assert refused.code == 1 and "is no run" in refused.json["problem"]
