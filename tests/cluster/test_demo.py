"""The demo's stages: the printed command is the one that runs, finished work is kept when it verifies.

Nobody's folder is lost.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from cardialign.cluster.demo import Demo, DemoSettings, _open, _run_stage, _shards_stage, mlflow_command, plan, run_demo
from cardialign.cluster.main import build_parser
from cardialign.data_shards.errors import UserError

SETTINGS = DemoSettings(patients=8, unseen_patients=4, overrides=["training.epochs=1"])


def opened(out: Path, said: list[str], overwrite: bool = False) -> Demo:
    return _open(out, SETTINGS, overwrite, said.append)


def test_every_stage_is_a_command_that_a_user_can_type(tmp_path: Path) -> None:
    stages = plan(tmp_path, "sqlite:///mlflow.db", SETTINGS)
    for stage in stages:
        command = " ".join(stage.words[:2]) if stage.words[0] not in ("cohort", "pretrain") else stage.words[0]
        args = build_parser(command).parse_args([*stage.words, *stage.again])
        assert args.command == command
    assert [stage.words[0] for stage in stages] == [
        "cohort",
        "cohort",
        "shards",
        "shards",
        "text-bank",
        "pretrain",
        "evaluate",
        "registry",
    ]


@pytest.mark.slow
def test_finished_stages_are_skipped_only_while_their_outputs_verify(tmp_path: Path, cohort: Path) -> None:
    said: list[str] = []
    demo = opened(tmp_path / "demo", said)
    stage = _shards_stage("shards", cohort, tmp_path / "demo" / "shards", 1)
    assert _run_stage(demo, stage, 1, 1, forced=False) is True
    assert shlex.join(["cardialign", *stage.words]) in said[0]
    made = demo.stages["shards"]["result"]["fingerprint"]

    again = opened(tmp_path / "demo", said)
    assert _run_stage(again, stage, 1, 1, forced=False) is False
    next((tmp_path / "demo" / "shards").glob("shard-*.tar")).unlink()
    assert _run_stage(again, stage, 1, 1, forced=False) is True
    assert again.stages["shards"]["result"]["fingerprint"] == made
    assert _run_stage(again, stage, 1, 1, forced=True) is True, "an earlier stage ran again"


def test_a_failing_stage_tells_its_own_problem(tmp_path: Path) -> None:
    demo = opened(tmp_path / "demo", [])
    stage = _shards_stage("shards", tmp_path / "nowhere", tmp_path / "demo" / "shards", 1)
    with pytest.raises(UserError, match="nowhere") as raised:
        _run_stage(demo, stage, 1, 1, forced=False)
    assert raised.value.problem.startswith("`cardialign shards build") and "shards" not in demo.stages


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds no demo"):
            run_demo(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_other_settings_need_overwrite(tmp_path: Path) -> None:
    demo = opened(tmp_path / "demo", [])
    demo.stages["shards"] = {"words": [], "seconds": 1.0, "result": {}}
    demo.save()
    with pytest.raises(UserError, match="patients 8 -> 9") as raised:
        _open(tmp_path / "demo", replace(SETTINGS, patients=9), False, lambda line: None)
    assert "--overwrite" in raised.value.remedy
    assert opened(tmp_path / "demo", []).stages
    assert _open(tmp_path / "demo", replace(SETTINGS, patients=9), True, lambda line: None).stages == {}


def test_the_mlflow_command_names_the_store() -> None:
    assert mlflow_command("sqlite:///demo/mlflow.db").endswith("mlflow ui --backend-store-uri sqlite:///demo/mlflow.db")


def test_overwrite_removes_a_demo_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    opened(tmp_path / "demo", [])
    (tmp_path / "demo" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"more than a demo \('thesis\.tex'\)"):
        opened(tmp_path / "demo", [], overwrite=True)
    assert (tmp_path / "demo" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("record", ["{}", '{"settings": 5, "stages": {}}', '{"settings": {}, "stages": []}'])
def test_a_record_that_no_demo_wrote_is_no_demo(tmp_path: Path, record: str) -> None:
    (tmp_path / "demo.json").write_text(record)
    with pytest.raises(UserError, match="holds no demo"):
        opened(tmp_path, [], overwrite=True)
