"""The grid: every cell stands or says why not, what is finished is kept and verified, and a killed command goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.pretrain.evaluation.grid.grid import GridWork, run_grid
from cardialign.pretrain.evaluation.grid.plan import GridPlan
from cardialign.pretrain.evaluation.grid.result import COLUMNS, GridResult
from cardialign.pretrain.evaluation.probing.cells import CellJob, InThisProcess, Outcome, ProbePlan
from cardialign.pretrain.evaluation.probing.fine_tune import PRESETS, FineTuneOptions
from cardialign.pretrain.evaluation.probing.linear_probe import probe
from cardialign.pretrain.evaluation.probing.one_thread import one_thread
from cardialign.pretrain.evaluation.probing.report import ProbeOptions
from cardialign.pretrain.evaluation.probing.systems import of_task, read_systems
from cardialign.pretrain.evaluation.probing.tasks import Records, task_of_protocol
from cardialign.pretrain.evaluation.probing.tuned import Runs, tune
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from cardialign.pretrain.export.trained_on import TrainedOn, chosen, trained_set
from tests.support.planted_source import PlantedSource
from tests.support.small_encoder import SPEC, small_config

SUPER = {"UP": "MI", "DOWN": "CD", "FAST": "STTC"}
FLOORS = ("untrained",)


class PlantedPtbXl(PlantedSource):
    """The planted records under the name and folds of PTB-XL: super and rhythm classes, sub without positives in the
    test fold, and no form labels at all."""

    name = "ptb-xl"
    label_sets = ("super", "sub", "rhythm")

    def read(self, entry: Entry) -> EcgRecord:
        record = super().read(entry)
        fold = 1 + (entry.meta["k"] // 2) % 10
        codes = record.labels.get("finding")
        labels = {}
        if codes is not None:
            labels["super"] = tuple(SUPER[code] for code in codes)
            labels["sub"] = ("IMI",) if "UP" in codes and fold != 10 else ()
            labels["rhythm"] = ("STACH",) if "FAST" in codes else ("SR",)
        return dataclasses.replace(record, fold=fold, labels=labels)

    def describe(self) -> dict:
        return {"name": self.name, "count": self.count}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("grid")
    build_shards(PlantedPtbXl(folder, 160), folder / "shards", SetPlan(SPEC, records_per_shard=80), workers=1)
    return ShardSet.open(folder / "shards")


@pytest.fixture(scope="module")
def encoder() -> LoadedEncoder:
    return untrained_encoder(small_config(), SPEC, seed=1, with_reports=False)


def plan_of(shards: ShardSet, **changes: Any) -> GridPlan:
    probing = ProbePlan(ProbeOptions((0.005, 0.2, 1.0), seeds=2, bootstrap=20), FLOORS)
    return GridPlan("clean-v2", {"ptb-xl": shards}, dataclasses.replace(probing, **changes))


@pytest.fixture(scope="module")
def whole(encoder: LoadedEncoder, shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> GridResult:
    return run_grid(encoder, plan_of(shards), tmp_path_factory.mktemp("out") / "grid")


class Stops(InThisProcess):
    """Dies after so many cells."""

    def __init__(self, after: int) -> None:
        self.after = after

    def run(self, jobs: Sequence[CellJob]) -> Iterator[tuple[int, Outcome]]:
        for done, found in enumerate(super().run(jobs)):
            if done == self.after:
                raise KeyboardInterrupt
            yield found


class Counts(InThisProcess):
    jobs: Sequence[CellJob] = ()

    def run(self, jobs: Sequence[CellJob]) -> Iterator[tuple[int, Outcome]]:
        self.jobs = jobs
        return super().run(jobs)


def figures(result: GridResult) -> str:
    """Everything but when the test records were opened."""
    values = result.to_dict()
    for task in values["tasks"].values():
        del task["task"]["test_opened"]
    return json.dumps(values, sort_keys=True)


def test_every_cell_stands_or_says_why_it_does_not(whole: GridResult) -> None:
    assert list(whole.tasks) == ["ptb-xl-super", "ptb-xl-rhythm"]
    why = {(each["task"], each["share"]): each["reason"] for each in whole.missing}
    assert "form" in why["ptb-xl-form", None] and "does not have" in why["ptb-xl-form", None]
    assert "no class has both positives and negatives among" in why["ptb-xl-sub", None]
    assert "--sets cpsc2018=SHARDS" in why["cpsc2018", None] and "--sets csn=SHARDS" in why["csn", None]
    assert "no class has positives and negatives both" in why["ptb-xl-super", 0.005], "one record"
    assert len(whole.tasks) * 3 + 4 * 3 == 18, "six tasks at three shares"
    for result in whole.tasks.values():
        cells = {(row.system, row.reader, row.share) for row in result.rows}
        assert len(cells) == len(result.rows) == 2 * 2 * 2, "systems, ways of reading, shares"
        assert all(len(row.fits) == (1 if row.share == 1 else 2) for row in result.rows)
        assert all(row.interval[0] is not None and row.macro is not None for row in result.rows)
    table = whole.table()
    assert "no figure, ptb-xl-super at 0.5 %:" in table and "no figure, csn:" in table


def test_no_mean_is_taken_over_fewer_tasks_than_the_protocol_has(whole: GridResult) -> None:
    assert whole.means() == []
    alone = GridResult(whole.facts, whole.tasks, [])
    of = [result.rows for result in alone.tasks.values()]
    found = next(m for m in alone.means() if (m["system"], m["reader"], m["share"]) == ("encoder", "linear probe", 1))
    rows = [next(r for r in rows if (r.system, r.reader, r.share) == ("encoder", "linear probe", 1)) for rows in of]
    assert found["macro"] == pytest.approx(np.mean([row.macro for row in rows])) and found["tasks"] == 2


def test_a_cell_is_what_the_probe_alone_gives(whole: GridResult, encoder: LoadedEncoder, shards: ShardSet) -> None:
    task = task_of_protocol("clean-v2:ptb-xl-rhythm", shards)
    rows = np.unique(np.concatenate([task_of_protocol("clean-v2:ptb-xl-super", shards).rows, task.rows]))
    features = of_task(read_systems(encoder, Records(shards, rows), ()), task, np.searchsorted(rows, task.rows))[0]
    scores = [probe(features.features, task.truth, task.parts, 0.2, "random", seed).scores for seed in (0, 1)]
    truth = task.truth[task.parts.test]
    used = truth.any(axis=0) & ~truth.all(axis=0)
    expected = [roc_auc_score(truth[:, used], each[:, used], average="macro") for each in scores]
    row = next(r for r in whole.tasks["ptb-xl-rhythm"].rows if (r.system, r.share) == ("encoder", 0.2))
    assert [fit["macro"] for fit in row.fits] == pytest.approx(expected, abs=1e-12)
    assert row.macro == pytest.approx(np.mean(expected)) and row.spread == pytest.approx(np.std(expected, ddof=1))


@pytest.mark.slow
def test_a_killed_grid_goes_on_where_it_was_and_ends_with_the_same_figures(
    whole: GridResult, encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_grid(encoder, plan_of(shards), tmp_path / "grid", GridWork(Stops(2)))
    rest = Counts()
    found = run_grid(encoder, plan_of(shards), tmp_path / "grid", GridWork(rest))
    assert len(rest.jobs) == 2 * 3 - 2 and figures(found) == figures(whole)
    again = Counts()
    assert figures(run_grid(encoder, plan_of(shards), tmp_path / "grid", GridWork(again))) == figures(whole)
    assert not again.jobs, "everything was kept"
    shutil.rmtree(tmp_path / "grid/work")
    assert figures(run_grid(encoder, plan_of(shards), tmp_path / "grid", GridWork(again))) == figures(whole)
    assert not again.jobs and not (tmp_path / "grid/work").exists(), (
        "work/ is for cells that are to be made, and no more"
    )


@pytest.mark.slow
def test_a_damaged_cell_and_damaged_features_are_made_again(
    whole: GridResult, encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path
) -> None:
    run_grid(encoder, plan_of(shards), tmp_path / "grid")
    cell = tmp_path / "grid/cells/ptb-xl-super@20.json"
    values = json.loads(cell.read_text())
    values["content"]["result"]["rows"][0]["macro"] += 0.01
    cell.write_text(json.dumps(values))
    (tmp_path / "grid/cells/ptb-xl-rhythm@100.json").write_text("{")
    kept = tmp_path / "grid/work/ptb-xl/systems/encoder.npy"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(bytes(content))
    rest = Counts()
    found = run_grid(encoder, plan_of(shards), tmp_path / "grid", GridWork(rest))
    assert len(rest.jobs) == 2 and figures(found) == figures(whole)


def test_a_folder_of_another_grid_or_of_something_else_is_refused_and_left_as_it_is(
    encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_grid(encoder, plan_of(shards), tmp_path / "grid", GridWork(Stops(1)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "grid").rglob("*.json")}
    with pytest.raises(UsageError, match="holds a grid of another seeds: 2 there, 3 now"):
        run_grid(encoder, plan_of(shards, options=ProbeOptions(seeds=3, bootstrap=20)), tmp_path / "grid")
    with pytest.raises(UsageError, match="holds a grid of another encoder"):
        other = untrained_encoder(small_config(), SPEC, seed=2, with_reports=False)
        run_grid(other, plan_of(shards), tmp_path / "grid")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "grid").rglob("*.json")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(UsageError, match="holds something, and no grid"):
        run_grid(encoder, plan_of(shards), tmp_path / "mine")
    with pytest.raises(UsageError, match=r"no tasks on a set 'mitbih'(.|\n)*ptb-xl, cpsc2018, csn"):
        GridPlan("clean-v2", {"mitbih": shards}, ProbePlan())


def test_test_records_are_opened_once_for_a_grid_and_another_grid_of_the_run_is_counted(
    encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path
) -> None:
    known = untrained_encoder(small_config(), SPEC, seed=5, with_reports=False)
    small = plan_of(shards, options=ProbeOptions((1.0,), seeds=1, bootstrap=0), floors=())
    with pytest.raises(KeyboardInterrupt):
        run_grid(known, small, tmp_path / "one", GridWork(Stops(1)))
    first = run_grid(known, small, tmp_path / "one")
    assert [task.task["test_opened"]["times"] for task in first.tasks.values()] == [1, 1]
    assert "opened once for this run" in first.table()
    second = run_grid(known, small, tmp_path / "two")
    opening = second.tasks["ptb-xl-super"].task["test_opened"]
    assert opening["times"] == 2 and opening["earlier"][0]["what"] == "evaluate grid"
    assert "TEST RECORDS OF clean-v2:ptb-xl-super OPENED 2 TIMES" in second.table()
    assert {row["test_opened"] for row in second.flat() if row["missing"] is None} == {2}


def test_what_the_encoder_was_trained_on_is_refused_or_stands_with_every_figure(
    shards: ShardSet, tmp_path: Path
) -> None:
    seen = untrained_encoder(small_config(), SPEC, seed=6, with_reports=False)
    rows = shards.select(folds=[10]).rows[:6]
    seen.trained_on = TrainedOn((trained_set(shards, rows, chosen((10,), None)),))
    small = plan_of(shards, options=ProbeOptions((1.0,), seeds=1, bootstrap=0), floors=("hand-features",))
    with pytest.raises(UserError, match="--allow-trained"):
        run_grid(seen, small, tmp_path / "grid")
    assert not (tmp_path / "grid").exists(), "nothing was changed"
    found = run_grid(seen, small, tmp_path / "grid", allow_trained=True)
    test = task_of_protocol("clean-v2:ptb-xl-super", shards)
    scored = test.rows[test.parts.test]
    people = len(np.unique(shards.patients[scored]))
    shared = len(np.unique(shards.patients[np.intersect1d(scored, rows)]))
    twice = len(np.intersect1d(scored, rows))
    line = (
        f"ledger encoder x clean-v2:ptb-xl-super test, pretraining: shared patients {shared} of {people}, "
        f"shared recordings {twice} of {len(scored)}"
    )
    assert shared == 3 and line in found.table()
    of = {(row["task"], row["system"]): row["ledger"] for row in found.flat() if row["missing"] is None}
    assert line in of["ptb-xl-super", "encoder"] and "shared patients 0 of" in of["ptb-xl-super", "hand-features"]
    assert set(found.flat()[0]) == set(COLUMNS)


def test_a_grid_without_any_task_and_a_set_under_another_name_are_refused(
    encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="was built from ptb-xl, which is not csn of clean-v2"):
        GridPlan("clean-v2", {"csn": shards}, plan_of(shards).probe)
    without = dataclasses.replace(plan_of(shards), protocol="merl-v1")
    with pytest.raises(
        UserError, match=r"no task of merl-v1 can be probed:\n  - ptb-xl-super: .*label files(.|\n)*csn:"
    ):
        run_grid(encoder, without, tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


class Elsewhere(InThisProcess):
    """The same grid begun once more, while this one works."""

    def __init__(self, begin: Callable[[], object]) -> None:
        self.begin = begin

    def run(self, jobs: Sequence[CellJob]) -> Iterator[tuple[int, Outcome]]:
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
            self.begin()
        return super().run(jobs)


def test_two_at_once_do_not_work_in_one_folder(encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path) -> None:
    plan, out = plan_of(shards, options=ProbeOptions((1.0,), seeds=1, bootstrap=2), floors=()), tmp_path / "grid"
    found = run_grid(encoder, plan, out, GridWork(Elsewhere(lambda: run_grid(encoder, plan, out))))
    assert set(found.tasks) == {"ptb-xl-super", "ptb-xl-rhythm"}
    assert {path.name for path in out.iterdir()} == {"plan.json", "cells", "work"}


TINY_NET = ({"name": "resnet1d", "width": 4}, FineTuneOptions(epochs=2, batch_size=32))


@pytest.mark.slow
def test_a_network_from_scratch_stands_beside_the_floors_and_is_the_one_that_fine_tune_trains(
    encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "supervised-resnet1d", TINY_NET)
    options = ProbeOptions((0.2, 1.0), seeds=2, bootstrap=20)
    plain, more = (dataclasses.replace(options, supervised=each) for each in ((), ("supervised-resnet1d",)))
    found = run_grid(encoder, plan_of(shards, options=more), tmp_path / "grid")
    for name, result in found.tasks.items():
        rows = {row.share: row for row in result.rows if row.system == "supervised-resnet1d"}
        assert [len(rows[share].fits) for share in (0.2, 1.0)] == [2, 1]
        assert rows[1.0].less_encoder is not None and "from scratch" in result.table()
        ledger = {line["figure"] for line in result.task["ledger"]}
        assert ledger == {"every system"} or "supervised-resnet1d" in ledger
        task = task_of_protocol(f"clean-v2:{name}", shards)
        with one_thread():
            alone = tune(TINY_NET[0], shards, task, TINY_NET[1], Runs(bootstrap=0))
        assert rows[1.0].macro == pytest.approx(alone.macro, abs=1e-9)
    with pytest.raises(UsageError, match="holds a grid of another supervised"):
        run_grid(encoder, plan_of(shards, options=plain), tmp_path / "grid")
