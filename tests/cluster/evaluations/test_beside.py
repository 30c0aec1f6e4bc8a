"""The worker beside a training looks at each checkpoint once, keeps the best, and is no reason for a run to fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from cardialign.cluster.evaluations.beside import better, look_beside, metric_of, waiting
from cardialign.cluster.runs.lifecycle import Tracking, prepare, run
from cardialign.cluster.tracking.names import safe_key
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.evaluation.probing.tasks import task_of_folds
from cardialign.pretrain.evaluation.selection.select import Validation, choose_encoder
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import BEST, BEST_NOTE, EVALUATIONS
from cardialign.pretrain.training.checkpoints.files import committed, committed_path
from tests.support.checkpoints import flip
from tests.support.planted_source import ThreeFolds
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC

SMALL = (
    "training.global_batch=16", "training.epochs=null", "training.steps=6", "training.checkpoint_every=2",
    "training.keep_checkpoints=4", "collapse.enabled=false", "data.threads=1", "data.folds=[1]",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    return build_shards(ThreeFolds(folder, 120), folder / "shards", SetPlan(SPEC, records_per_shard=80), workers=1).path


def config_of(shards: Path, evaluation: str, *more: str) -> RunConfig:
    return load_config("simclr-tiny", [*SMALL, f"data.shards={shards}", f"evaluation={evaluation}", *more])


def _train(rank: int, world: int, shards: str, run_dir: str) -> None:
    from cardialign.pretrain.run.observer import NullObserver
    from cardialign.pretrain.training.loop import train

    train(load_config("simclr-tiny", [*SMALL, f"data.shards={shards}"]), Path(run_dir), NullObserver())


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    run_ranks(1, _train, str(shards), str(run_dir), deadline=200)
    return run_dir


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / EVALUATIONS).read_text().splitlines()]


@pytest.mark.slow
def test_every_checkpoint_gets_the_figures_of_its_encoder_once_and_the_best_is_kept(
    shards: Path, run_dir: Path, tmp_path: Path
) -> None:
    config = config_of(shards, "{folds: [2], probe: [finding], criterion: rankme}")
    assert look_beside(run_dir, config, lambda: True) == 3
    found = lines(run_dir)
    assert [line["step"] for line in found] == [2, 4, 6]
    shard_set = ShardSet.open(shards)
    rows = shard_set.select(folds=[2]).rows
    task = task_of_folds(shard_set, "finding", [1], [2], ())
    ranks = []
    for line in found:
        export_run(run_dir, tmp_path / str(line["step"]), step=line["step"], program=False)
        encoder = load_encoder(tmp_path / str(line["step"]))
        records = [shard_set.read_record(int(row)) for row in rows]
        signal = np.stack([each.millivolts() for each in records])
        embedding = encoder.encode(signal, np.stack([each.lead_mask for each in records])).embedding.numpy()
        sizes = np.linalg.svd(embedding.astype(np.float64), compute_uv=False)
        share = sizes / sizes.sum()
        ranks.append(float(np.exp(-(share * np.log(share)).sum())))
        probed = choose_encoder([("x", encoder)], Validation(shard_set, rows, "", task), "probe").ranking[0]
        assert line["evaluation/probe/finding"] == probed.figures["probe"]
        assert "without reports" in line["reasons"]["retrieval"]
        assert line["evaluation/records"] == len(rows)
    assert [line["evaluation/rankme"] for line in found] == pytest.approx(ranks, rel=1e-4)
    note = json.loads((run_dir / BEST_NOTE).read_text())
    assert note["step"] == found[int(np.argmax(ranks))]["step"] and note["value"] == pytest.approx(max(ranks), rel=1e-4)
    assert load_encoder(run_dir / BEST).digest == load_encoder(tmp_path / str(note["step"])).digest
    assert look_beside(run_dir, config, lambda: True) == 0 and lines(run_dir) == found, (
        "each once, also after a restart"
    )


def test_a_checkpoint_that_is_damaged_or_gone_is_told_in_its_line_and_the_others_are_looked_at(
    shards: Path, run_dir: Path
) -> None:
    flip(committed_path(run_dir, 4) / "model.safetensors")
    look_beside(run_dir, config_of(shards, "{folds: [2], criterion: rankme}"), lambda: True)
    by_step = {line["step"]: line for line in lines(run_dir)}
    assert "model.safetensors" in by_step[4]["failed"] and "evaluation/rankme" not in by_step[4]
    assert by_step[2]["evaluation/rankme"] > 1 and by_step[6]["evaluation/rankme"] > 1


def test_what_waits_is_bounded_and_the_newest_stay(shards: Path, run_dir: Path) -> None:
    look_beside(run_dir, config_of(shards, "{folds: [2], criterion: rankme, most_waiting: 1}"), lambda: True)
    assert [(line["step"], "skipped" in line) for line in lines(run_dir)] == [(2, True), (4, True), (6, False)]


def test_each_so_many_th_is_looked_at_and_the_last_of_a_run_that_has_ended(run_dir: Path) -> None:
    assert [each.step for each in waiting(run_dir, 4)] == [4]
    assert [each.step for each in waiting(run_dir, 4, ended=True)] == [4, 6]
    assert [each.step for each in waiting(run_dir, 2)] == [step for step, _ in committed(run_dir)] == [2, 4, 6]


def test_a_worker_whose_run_has_a_new_owner_writes_nothing(shards: Path, run_dir: Path) -> None:
    fence.hold_start(run_dir, fence.take_start(run_dir))
    (run_dir / "attempt.json").write_text(json.dumps({"start": "another", "group": 1}))
    look_beside(run_dir, config_of(shards, "{folds: [2], criterion: rankme}"), lambda: True)
    assert not (run_dir / EVALUATIONS).exists() and not (run_dir / BEST).exists()


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ("{folds: [1], criterion: rankme}", r"40 of the 40 validation records are trained on"),
        ("{folds: [7], criterion: rankme}", r"fold"),
        ("{folds: [2], zero_shot: [no-such], criterion: rankme}", r"no-such"),
        ("{folds: [2], probe: [other], criterion: rankme}", r"other"),
        ("{shards: SHARDS, folds: [2], probe: [finding], criterion: rankme}", r"evaluation\.probe_folds"),
    ],
)
def test_what_cannot_be_asked_is_said_before_the_training(shards: Path, evaluation: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(config_of(shards, evaluation.replace("SHARDS", str(shards))))


def test_records_that_a_part_of_a_mixture_trains_on_judge_nothing(shards: Path) -> None:
    parts = f"data.mixture=[{{shards: {shards}, folds: [1], weight: 1}}, {{shards: {shards}, folds: [3], weight: 1}}]"
    more = ("data.shards=null", "data.folds=null", parts)
    evaluation = f"{{shards: {shards}, folds: [FOLD], criterion: rankme}}"
    with pytest.raises(UserError, match="40 of the 40 validation records are trained on"):
        prepare(config_of(shards, evaluation.replace("FOLD", "3"), *more))
    prepare(config_of(shards, evaluation.replace("FOLD", "2"), *more))


def test_every_mistake_of_the_section_is_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        load_config("simclr-tiny", ["evaluation={probe: [finding], split: val, criterion: accuracy}"])
    assert "a probe learns and is judged by folds" in caught.value.problem
    assert "criterion 'accuracy' is none of retrieval, rankme, probe:finding" in caught.value.problem


def test_what_nobody_asked_for_is_no_part_of_a_run(shards: Path) -> None:
    assert "evaluation" not in load_config("simclr-tiny").resolved()
    asked = config_of(shards, "{folds: [2], criterion: rankme}").resolved()["evaluation"]
    assert (asked["folds"], asked["criterion"], asked["most_waiting"]) == ([2], "rankme", 4)


def test_figures_are_named_by_what_was_asked() -> None:
    asked = ("rankme", "probe:super", "zero-shot:some-words", "zero-shot:/a/my words.yaml")
    names = ["evaluation/rankme", "evaluation/probe/super", "evaluation/zero-shot/some-words"]
    assert [metric_of(each) for each in asked] == [*names, "evaluation/zero-shot/my words"]
    assert [safe_key(name) for name in names] == names, "MLflow takes them as they are"


def test_of_equals_the_earlier_is_the_best_and_another_criterion_starts_anew() -> None:
    note = {"criterion": "rankme", "value": 3.0}
    assert better(3.1, note, "rankme") and not better(3.0, note, "rankme") and not better(2.0, note, "rankme")
    assert better(0.1, note, "retrieval") and better(0.1, None, "rankme") and better(0.1, {"value": "x"}, "rankme")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_on_ray_with_a_worker_beside_it_trains_as_one_without(shards: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = config_of(shards, "{folds: [2], probe: [finding], criterion: 'probe:finding', hand_over: best}")
    result = run(config, tmp_path / "with", Tracking(store), workers=1, register_as="beside")
    plain = load_config("simclr-tiny", [*SMALL, f"data.shards={shards}"])
    alone = run(plain, tmp_path / "without", Tracking(store), workers=1)
    assert result["digest"] == alone["digest"] and result["final_loss"] == alone["final_loss"]
    found = lines(tmp_path / "with")
    assert [line["step"] for line in found] == [2, 4, 6]
    client = MlflowClient(store)
    history = client.get_metric_history(result["run_id"], "evaluation/probe/finding")
    assert [(each.step, each.value) for each in history] == [
        (line["step"], line["evaluation/probe/finding"]) for line in found
    ]
    best = max(found, key=lambda line: (line["evaluation/probe/finding"], -line["step"]))
    assert result["best"]["step"] == best["step"]
    assert client.get_run(result["run_id"]).data.metrics["best/step"] == best["step"]
    version = client.get_model_version_by_alias("beside", "candidate")
    assert version.tags["digest"] == result["best"]["digest"]
    assert not [each for each in psutil.process_iter(["name"]) if "Worker.run" in (each.info["name"] or "")]
