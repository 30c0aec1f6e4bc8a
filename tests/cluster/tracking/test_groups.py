"""What MLflow shows of a run: grouped figures, data sets, an end, its files; again, later and of an earlier release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.groups import dataset, grouped, ungrouped
from cardialign.cluster.tracking.replay import sync
from cardialign.cluster.tracking.spool import append_line
from cardialign.cluster.tracking.tracker import RunTracker
from cardialign.pretrain.run.files import METRICS, PAGE, RESULT, TRACKING

FINGERPRINT = "0123456789abcdef" * 4
FIGURES = {
    "loss": "train/loss",
    "lr": "train/lr",
    "retrieval_top1": "train/retrieval_top1",
    "effective_rank": "train/effective_rank",
    "data_wait_share": "data/wait_share",
    "data_quarantined": "data/quarantined",
    "records_per_second": "speed/records_per_second",
    "step_seconds_p99": "speed/step_seconds_p99",
    "exchange_share": "speed/exchange_share",
    "checkpoint_pause_seconds": "speed/checkpoint_pause_seconds",
    "system/cpu_percent": "system/cpu_percent",
    "evaluation/probe/super": "evaluation/probe/super",
}


def shards(context: str = "training") -> dict[str, str]:
    return dataset("ptb-xl", FINGERPRINT, "/data/ptb-xl", {"records": 17418}, context)


def begun(run_dir: Path, uri: str, **how: Any) -> RunTracker:
    tracker = RunTracker(run_dir, uri, **how)
    tracker.start("trial", {}, {"data.fingerprint": FINGERPRINT}, [shards()])
    append_line(run_dir / METRICS, {"step": 1, **dict.fromkeys(FIGURES, 0.5)})
    return tracker


def inputs_of(uri: str, run_id: str) -> list[tuple[str, str, int, str]]:
    found = mlflow_store.open_client(uri).get_run(run_id).inputs.dataset_inputs
    return [
        (each.dataset.name, each.dataset.digest, json.loads(each.dataset.profile)["records"], each.tags[0].value)
        for each in found
    ]


def test_figures_stand_in_groups_and_the_data_set_by_name_and_fingerprint(tmp_path: Path, uri: str) -> None:
    tracker = begun(tmp_path / "run", uri)
    assert tracker.finish("FINISHED")
    run = mlflow_store.open_client(uri).get_run(tracker.run_id)
    assert set(FIGURES.values()) <= set(run.data.metrics)
    assert {name.split("/")[0] for name in run.data.metrics} == {"train", "data", "speed", "system", "evaluation"}
    assert inputs_of(uri, tracker.run_id) == [("ptb-xl", FINGERPRINT[:36], 17418, "training")]
    for key, name in FIGURES.items():
        assert grouped(key) == name and grouped(name) == name and ungrouped(name) == key


def test_a_run_has_an_end_and_an_experiment_that_is_one_of_training(tmp_path: Path, uri: str) -> None:
    tracker = begun(tmp_path / "run", uri)
    assert tracker.finish("FINISHED") and tracker.state is not None
    client = mlflow_store.open_client(uri)
    info = client.get_run(tracker.run_id).info
    assert info.status == "FINISHED" and info.end_time == int(1000 * tracker.state.finished_at) >= info.start_time
    sync(tmp_path / "run")
    assert client.get_run(tracker.run_id).info.end_time == info.end_time, "sent again it ends when it ended"
    assert client.get_experiment(info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"


def test_what_an_absent_store_missed_is_there_after_a_sync_and_once(tmp_path: Path, empty_store: Path) -> None:
    run_dir, folder = tmp_path / "run", tmp_path / "later"
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = begun(run_dir, uri, optional=True)
    (run_dir / RESULT).write_text('{"final_loss": 0.5}')
    (run_dir / PAGE).write_text("<p>the page</p>")
    assert tracker.finish("FINISHED") is False
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    run_id = sync(run_dir)["run_id"]
    assert sync(run_dir)["run_id"] == run_id
    client = mlflow_store.open_client(uri)
    assert {RESULT, PAGE} <= {item.path for item in client.list_artifacts(run_id)}
    assert Path(client.download_artifacts(run_id, PAGE)).read_text() == "<p>the page</p>"
    assert inputs_of(uri, run_id) == [("ptb-xl", FINGERPRINT[:36], 17418, "training")]
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "train/loss")] == [(1, 0.5)]


def test_a_resumed_run_names_its_data_set_once(tmp_path: Path, uri: str) -> None:
    first = begun(tmp_path / "run", uri)
    first.finish("KILLED")
    again = begun(tmp_path / "run", uri)
    again.finish("FINISHED")
    assert again.run_id == first.run_id and len(inputs_of(uri, again.run_id)) == 1


def test_a_run_of_an_earlier_release_goes_on_under_the_names_that_its_curves_have(tmp_path: Path, uri: str) -> None:
    run_dir = tmp_path / "run"
    tracker = begun(run_dir, uri)
    tracker.finish("KILLED")
    state = json.loads((run_dir / TRACKING).read_text())
    for key in ("grouped", "datasets"):  # as that release wrote it
        del state[key]
    (run_dir / TRACKING).write_text(json.dumps(state))
    append_line(run_dir / METRICS, {"step": 2, "loss": 0.25})
    sync(run_dir)
    client = mlflow_store.open_client(uri)
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "loss")] == [(2, 0.25)]
    anew = sync(run_dir, new_run=True)["run_id"]
    assert [m.step for m in client.get_metric_history(anew, "train/loss")] == [1, 2], "all of it goes there"


@pytest.mark.parametrize(
    "source", ["s3://key:secret@bucket/shards", "https://token@host/shards", "/data/ptb-xl", "https://h/x?sig=secret"]
)
def test_no_secret_of_an_address_and_no_odd_name_is_kept_of_a_data_set(source: str) -> None:
    kept = dataset("a\x1b[2J" + "n" * 900, FINGERPRINT, source, {}, "training")
    assert "secret" not in json.dumps(kept) and "token" not in json.dumps(kept)
    assert "\x1b" not in kept["name"] and len(kept["name"]) <= 500
    assert json.loads(kept["profile"])["fingerprint"] == FINGERPRINT
