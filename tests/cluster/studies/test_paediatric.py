"""The paediatric study: ages kept out stay out, the table is arithmetic, and the command goes on where it stopped."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cardialign.cluster.commands.study import summary
from cardialign.cluster.evaluations.tasks import RayTasks
from cardialign.cluster.studies.budget import Budget
from cardialign.cluster.studies.design import Cell, Variant
from cardialign.cluster.studies.outcome import CELL, NotLearnt, Outcome, keep
from cardialign.cluster.studies.paediatric.cells import Study
from cardialign.cluster.studies.paediatric.command import run, tabled
from cardialign.cluster.studies.paediatric.design import ARMS, HELD_OUT, TINY, Arm, band_of
from cardialign.cluster.studies.paediatric.ray_cells import PaediatricJob, make_on_ray
from cardialign.cluster.studies.paediatric.records import split_by_age, virtual_children
from cardialign.cluster.studies.paediatric.table import lines_of, study_table
from cardialign.cluster.studies.work import OnRay
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.cluster.conftest import Answer

Call = Callable[..., Answer]
DAY = 1 / 365.25


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("children")
    return ShardSet.open(virtual_children(folder, dataclasses.replace(TINY, children=90, seconds=1)))


def test_nobody_of_an_age_kept_out_is_learnt_from_or_chosen_on(children: ShardSet) -> None:
    split = split_by_age(children, "finding")
    task, parts = split.task, split.task.parts
    ages = children.age_years[task.rows]

    def away(years: float) -> bool:
        """7-30 days, 3-6 months, 1-3 and 5-8 years."""
        spans = ((7 * DAY, 30 * DAY), (91 * DAY, 183 * DAY), (1, 3), (5, 8))
        return any(low <= years < high for low, high in spans)

    for part in (parts.train, parts.validation, parts.test[~split.held_out]):
        assert part.size and not any(away(years) for years in ages[part].tolist())
    assert all(away(years) for years in ages[parts.test[split.held_out]].tolist())
    people = [set(task.patients[part].tolist()) for part in (parts.train, parts.validation, parts.test)]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    assert sum(map(len, (parts.train, parts.validation, parts.test))) == len(task.rows) == 90
    assert len(HELD_OUT) == 4 and [band_of(years) for years in (0.5 * DAY, 2.0, 40.0)] == [0, 7, 12]


def outcome(arm: str, seed: int, quality: float) -> Outcome:
    draw = np.random.default_rng(5)
    truth = draw.random((80, 2)) < 0.4
    noise = np.random.default_rng([seed, len(arm)]).normal(size=(80, 2))
    scores, patients = quality * truth + noise, np.arange(80).astype(str)
    facts = {"parameters": 10, "cpu_seconds": 1.0, "choice": "all", "tried": {}}
    return Outcome(
        Cell(Variant(arm, "", {}), 0, seed),
        facts,
        {"held_out": scores[:50], "seen": scores[50:]},
        {"held_out": truth[:50], "seen": truth[50:]},
        {"held_out": patients[:50], "seen": patients[50:]},
        {"held_out": ["A", "B"], "seen": ["A", "B"]},
    )


def test_the_table_is_the_mean_over_classes_and_seeds_and_pairs_every_arm_with_b4() -> None:
    names = [arm.name for arm in ARMS]
    cells = [outcome(name, seed, 2.0 if name == "B4" else 0.7) for name in names for seed in (0, 1)]
    cells = [each for each in cells if (each.cell.variant.name, each.cell.seed) != ("B2", 1)]
    table = study_table(cells, 200)
    rows = {row["arm"]: row for row in table["rows"]}
    assert list(rows) == [name for name in names if name != "B2"], "an arm that lacks a seed waits"

    def by_hand(arm: str, measure: str) -> float:
        own = [each for each in cells if each.cell.variant.name == arm]
        areas = [roc_auc_score(each.truth[measure][:, c], each.scores[measure][:, c]) for each in own for c in range(2)]
        return float(np.mean(areas))

    for measure in ("held_out", "seen"):
        assert rows["B4"][measure]["auroc"] == pytest.approx(by_hand("B4", measure), abs=1e-9)
        ahead, low, high = rows["B3"][measure]["ahead"]
        assert ahead == pytest.approx(by_hand("B4", measure) - by_hand("B3", measure), abs=1e-9)
        assert 0 < low < ahead < high
    lines = lines_of(table)
    assert any("interval above 0" in line for line in lines) and lines[2].startswith("| B1 ")
    with pytest.raises(UserError, match="no seed has B3 and B4"):
        study_table([each for each in cells if each.cell.variant.name != "B4"], 10)


def test_options_of_other_studies_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    usual = {"shards": None, "recipe": None, "only": "", "workers": None, "address": None, "no_floors": False}
    args = argparse.Namespace(**usual, overrides=["seed=3"], out=tmp_path / "out")
    with pytest.raises(UsageError, match="has no use for --set"):
        run(args)
    args.overrides, args.recipe = [], "merl"
    with pytest.raises(UsageError, match="has no use for --recipe") as refused:
        run(args)
    assert refused.value.remedy == "leave --recipe out"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    args.recipe = None
    with pytest.raises(UsageError, match="holds something, and no study"):
        run(args)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_on_a_ray_encoders_come_once_and_first_and_a_budget_ends_it(
    children: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks one after the other, in place of a Ray; what they train in place of networks."""
    done: list[tuple[str, str]] = []

    def pretrain(study: Study, arm: Arm, seed: int) -> float:
        assert arm.recipe is not None
        folder = study.encoder(arm.recipe, seed)
        (folder / "export").mkdir(parents=True)
        done.append(("encoder", folder.name))
        return 40.0

    def tune(study: Study, arm: Arm, seed: int) -> Outcome:
        done.append((arm.name, str(seed)))
        made = outcome(arm.name, seed, 1.0)
        made.facts["made_from"] = study._made_of(arm, seed).digest
        return keep(made, study.out / "cells" / made.cell.name)

    def run(tasks: RayTasks, jobs: Iterable[PaediatricJob]) -> Iterator[tuple[int, float]]:
        for place, job in enumerate(jobs):
            yield place, tasks.work(job, {})
            assert not job.sign.exists()
        assert tasks.gpu_each, "cells of a node would all take its first GPU"

    monkeypatch.setattr(Study, "pretrain", pretrain)
    monkeypatch.setattr(Study, "tune", tune)
    monkeypatch.setattr(RayTasks, "run", run)
    monkeypatch.setattr("cardialign.cluster.runs.lifecycle.prepare", lambda config: None)
    study = Study(children, children, "finding", 2, TINY, tmp_path)
    some = list(make_on_ray(study, Budget(42.5), OnRay(None, 2)))  # two encoders have cost 80
    assert not some and len(done) == 2 and {what for what, _ in done} == {"encoder"}
    assert not list(make_on_ray(study, Budget(42.5), OnRay(None, 2)))  # the other two
    made = {"cardialign-demo-seed0", "cardialign-demo-seed1", "merl-seed0", "merl-seed1"}
    assert {name for _, name in done} >= made, "a seed is of the whole path: each trains its own encoder"
    some = list(make_on_ray(study, Budget(2.5), OnRay(None, 2)))  # of cells that cost 1 each
    assert [(each.cell.variant.name, each.cell.seed) for each in some] == [("B3", 0), ("B4", 0), ("B3", 1)]
    assert len(list(make_on_ray(study, Budget(), OnRay(None, 2)))) == 2 * len(ARMS) - 3
    assert len(done) == len(set(done)) == 2 * 2 + 2 * len(ARMS), "nothing is made twice"
    assert list(make_on_ray(study, Budget(), OnRay(None, 2))) == []


def test_a_pretraining_that_collapses_is_named_and_ends_nothing_but_what_starts_from_it(
    children: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm ends MERL's pretraining of one seed; the study goes on, tells it, and gives it no second chance."""
    tried: list[str] = []

    def train(config, folder, lock):  # type: ignore[no-untyped-def]
        tried.append(folder.name)
        if folder.name == "merl-seed0":
            raise NotLearnt("collapsed at step 20: effective rank 1.0", "lower optimizer.lr")

    def tune(study: Study, arm: Arm, seed: int) -> Outcome:
        made = outcome(arm.name, seed, 1.0)
        made.facts["made_from"] = study._made_of(arm, seed).digest
        return keep(made, study.out / "cells" / made.cell.name)

    def export(run_dir: Path, out: Path, **how: object) -> None:
        out.mkdir()

    monkeypatch.setattr("cardialign.cluster.studies.paediatric.cells.train", train)
    monkeypatch.setattr("cardialign.pretrain.export.from_run.export_run", export)
    monkeypatch.setattr("cardialign.cluster.runs.lifecycle.prepare", lambda config: None)
    monkeypatch.setattr(Study, "tune", tune)
    study = Study(children, children, "finding", 1, TINY, tmp_path)
    of_merl = {arm.name for arm in ARMS if arm.recipe == "merl"}
    assert of_merl and of_merl.isdisjoint({"B3", "B4"})
    for _ in range(2):  # the second call has nothing left to do
        list(study.make(Budget()))
    assert {each.cell.variant.name for each in study.there()} == {arm.name for arm in ARMS} - of_merl
    assert sorted(tried) == ["cardialign-demo-seed0", "merl-seed0"]
    result = tabled(study, 20)
    assert result["not_learnt"] == {"merl-seed0": "collapsed at step 20: effective rank 1.0"}
    told = summary(result)
    assert any("merl-seed0 collapsed" in line and "encoders/merl-seed0" in line for line in told)
    assert not any("still to be made" in line for line in told), "what has no start is not waited for"
    assert "merl-seed0 collapsed" in (tmp_path / "table.md").read_text()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.deployment  # what runs a task on a real Ray: evaluations/test_ray_cells.py; a study's, without one: above
@pytest.mark.timeout(900)
def test_cells_as_ray_tasks_have_the_figures_of_cells_one_after_the_other(
    cardialign: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["study", "paediatric", "--tiny", "--seeds", 1, "--bootstrap", 20]
    there = cardialign(*words, "--out", tmp_path / "ray", "--workers", 2)
    assert there.code == 0, there.err
    here = cardialign(*words, "--out", tmp_path / "here")
    figures = [[{**row, "cpu_seconds": 0} for row in each.json["rows"]] for each in (there, here)]
    assert figures[0] == figures[1] and there.json["cells"] == len(ARMS)
    assert not list((tmp_path / "ray").rglob(".alive"))


def test_another_study_asks_for_its_shards(cardialign: Call, tmp_path: Path) -> None:
    unknown = cardialign("study", "partz", "--out", tmp_path / "out")
    assert unknown.code == 2 and "partz" in unknown.json["problem"], "its name is looked at before its records"
    assert "missingness" in unknown.json["remedy"] and "paediatric" in unknown.json["remedy"]
    answer = cardialign("study", "parts", "--out", tmp_path / "out")
    assert answer.code == 2 and "--shards" in answer.err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_goes_from_nothing_to_its_table_and_on_where_it_stopped(cardialign: Call, tmp_path: Path) -> None:
    words = ["study", "paediatric", "--tiny", "--out", tmp_path / "out", "--bootstrap", 20]
    first = cardialign(*words, "--seeds", 1, "--budget-hours", 0.0001)
    assert first.code != 0 and "the budget is spent, 1 of 6 cells are made: no seed has B3 and B4" in first.err
    kept = tmp_path / "out" / "cells" / "B3-fold0-seed0" / CELL
    made = kept.stat().st_mtime_ns
    whole = cardialign(*words, "--seeds", 1)
    assert whole.code == 0, whole.err
    assert [row["arm"] for row in whole.json["rows"]] == [arm.name for arm in ARMS]
    assert kept.stat().st_mtime_ns == made, "a finished cell is not made again"
    tried = json.loads(kept.read_text())["tried"]
    assert set(tried) == {"behind"} and all(each["validation"] > 0 for each in tried.values())
    assert not list((tmp_path / "out").rglob("run")), "what remains of a pretraining is its export"
    assert "| B4 |" in (tmp_path / "out" / "table.md").read_text()
