"""Cells of a study are made once, by whoever comes first, and go on where they stopped."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cardialign.cluster.studies import missing, training
from cardialign.cluster.studies.cells import SPENT, config_of, origin_of, run_cell
from cardialign.cluster.studies.check import check, configs_of
from cardialign.cluster.studies.design import FLOORS, Cell, Design, Variant, cells_of, digest_of
from cardialign.cluster.studies.floors import run_floors
from cardialign.cluster.studies.measures import MEASURES
from cardialign.cluster.studies.origin import CONFIG, RECIPE, Origin
from cardialign.cluster.studies.outcome import CELL, SCORES, Outcome, Setting, check_costs, finished
from cardialign.cluster.studies.training import RUN
from cardialign.cluster.studies.work import Work, check_folder
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.config import load_config
from cardialign.pretrain.evaluation.missingness.surface.measure import SurfacePlan
from cardialign.pretrain.evaluation.zero_shot import evaluate_zero_shot
from cardialign.pretrain.export.loaded import untrained_encoder
from cardialign.pretrain.export.trained_on import TrainedOn, chosen, trained_set
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.run.lock import HeldError, locked_run
from tests.cluster.conftest import Answer
from tests.support.planted_source import PROMPTS

Call = Callable[..., Answer]


def test_a_training_that_was_stopped_costs_both_its_parts(
    four_folds: ShardSet, planted: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    burn = ["-c", "import sys, time\nwhile time.process_time() < 0.2: pass\nsys.exit(75)"]
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **how: start([words[0], *burn], **how))
    for least in (0.2, 0.4):
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, config, planted, tmp_path, four_folds)
        assert json.loads((tmp_path / SPENT).read_text())["cpu_seconds"] >= least


def test_a_training_that_fails_is_told_in_its_own_words_and_with_its_own_remedy(
    four_folds: ShardSet, planted: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    start = subprocess.Popen
    for said, told in (
        (str(UserError("the disk is full", "free space")), r"failed with code 1: the disk is full\n.*free space; see"),
        ("Killed", r"failed with code 1: Killed\n.*remedy: see"),
        ("", r"failed with code 1: it said nothing\n.*remedy: see"),
    ):
        dying = ["-c", f"import sys; sys.stderr.write({said!r}); sys.exit(1)"]
        monkeypatch.setattr(subprocess, "Popen", lambda words, d=dying, **how: start([words[0], *d], **how))
        with pytest.raises(UserError, match=told):
            run_cell(cell, config, planted, tmp_path / str(len(said)), four_folds)


def checked(
    setting: Setting, shards: ShardSet, variants: tuple[Variant, ...], test: int = 4, recipe: str = "cardialign-tiny"
) -> dict[int, int]:
    design = Design("mine", recipe, variants[0].name, variants)
    cells = cells_of(design, [test], 1)
    return check(design, cells, configs_of(design, cells, setting), setting, shards)


def test_what_cannot_be_scored_is_said_before_anything_is_trained(four_folds: ShardSet, planted: Setting) -> None:
    one = (Variant("a", "", {}),)
    assert checked(planted, four_folds, one) == {4: 0}, "no patient of fold 4 is in another"
    with pytest.raises(UsageError, match="method simclr reads no reports"):
        checked(planted, four_folds, one, recipe="simclr-tiny")
    no_words = dataclasses.replace(planted, measures=("probe",))
    assert checked(no_words, four_folds, one, recipe="simclr-tiny") == {4: 0}
    with pytest.raises(DataError, match="fold"):
        checked(dataclasses.replace(planted, folds=(1, 2, 3, 9)), four_folds, one, test=9)
    with pytest.raises(UsageError, match="variants a and b train the same"):
        checked(planted, four_folds, (*one, Variant("b", "", {"optimizer.lr": 1e-3})))
    with pytest.raises(UsageError, match="variants a and b train the same"):
        checked(planted, four_folds, (*one, Variant("b", "", {"name": "another-name"})))
    rare = PROMPTS.replace("  UP:", "  RARER:").replace("  DOWN:", "  RAREST:").replace("  FAST:", "  GONE:")
    Path(planted.prompts).write_text(rare + '  NEVER: {name: N, prompts: ["Never"]}\n')
    with pytest.raises(UsageError, match="no code of prompt set planted-v1 occurs"):
        checked(planted, four_folds, one)


def export_that_saw(shards: ShardSet, folds: tuple[int, ...], out: Path, seed: int = 0) -> Path:
    config = load_config("cardialign-tiny", [f"data.shards={shards.path}"])
    torch.manual_seed(seed)
    weights = create_method(config, shards.spec).state_dict()
    seen = TrainedOn((trained_set(shards, shards.select(folds=folds).rows, chosen(folds, None)),))
    return export_encoder(config, weights, out, training={"steps": 1}, spec=shards.spec, program=False, trained_on=seen)


def test_a_start_that_has_seen_the_fold_kept_out_is_refused_before_anything_is_trained(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    plain, clean = Variant("plain", "", {}), export_that_saw(four_folds, (1, 2, 3), tmp_path / "clean")
    saw = export_that_saw(four_folds, (3, 4), tmp_path / "saw")
    from_clean, from_saw = (Variant("started", "", {"init_from": str(each)}) for each in (clean, saw))
    assert checked(planted, four_folds, (plain, from_clean)) == {4: 0}
    with pytest.raises(
        UsageError, match=r"variant started: init_from .*saw has seen what fold 4 is tested on: 35 of 35"
    ):
        checked(planted, four_folds, (plain, from_saw))
    with pytest.raises(UserError, match="no run directory, no checkpoint and no exported encoder"):
        checked(planted, four_folds, (plain, Variant("lost", "", {"init_from": str(tmp_path / "absent")})))


def test_a_start_that_was_trained_anew_makes_other_cells(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    cell = Cell(Variant("a", "", {"init_from": str(export_that_saw(four_folds, (1,), tmp_path / "start"))}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    before = origin_of(config, planted, four_folds)
    shutil.rmtree(tmp_path / "start")
    export_that_saw(four_folds, (1,), tmp_path / "start", seed=1)
    assert origin_of(config, planted, four_folds) != before


def test_an_edited_file_of_prompts_makes_other_cells(four_folds: ShardSet, planted: Setting) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    before = origin_of(config, planted, four_folds)
    Path(planted.prompts).write_text(PROMPTS.replace("Upright deflections", "Upwards"))
    assert origin_of(config, planted, four_folds) != before


def test_a_cell_of_a_recipe_that_gained_a_key_at_its_default_stays_good(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    origin = origin_of(
        config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted), planted, four_folds
    )

    def earlier(**changes: object) -> str:
        """A cell as a release wrote it that had no `slow_read_seconds`; the digest of what it was made from."""
        written = copy.deepcopy(origin.facts[CONFIG])
        del written["data"]["slow_read_seconds"]
        written["training"] |= changes
        digest = digest_of({**origin.facts, CONFIG: written})
        elsewhere = {**written, "data": {**written["data"], "shards": "/somewhere/else"}}
        (tmp_path / RECIPE).write_text(json.dumps(elsewhere))
        return digest

    digest = earlier()
    assert digest != origin.digest and origin.is_of(tmp_path, digest)
    assert not origin.is_of(tmp_path, digest[::-1]), "a recipe that its digest does not prove"
    assert not origin.is_of(tmp_path, earlier(lead_dropout=0.5)), "another recipe"
    assert not dataclasses.replace(origin, facts={**origin.facts, "folds": [1]}).is_of(tmp_path, earlier())
    earlier()
    written = json.loads((tmp_path / RECIPE).read_text())
    (tmp_path / RECIPE).write_text(json.dumps({**written, "seed": 7}))
    assert not origin.is_of(tmp_path, digest), "a recipe that was changed afterwards"
    for broken in ("", "[]", "{", '{"data": 3}'):
        (tmp_path / RECIPE).write_text(broken)
        assert not origin.is_of(tmp_path, digest)


@pytest.mark.slow
def test_floors_are_those_of_the_product_are_kept_and_belong_to_their_records(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    design = Design("mine", "cardialign-tiny", "a", (Variant("a", "", {}),))
    found = run_floors(design, [(0, 4), (1, 4)], planted, tmp_path / "floors", four_folds)
    areas = {
        (each.cell.variant.name, each.cell.seed, measure): np.mean(
            [roc_auc_score(each.truth[measure][:, c], each.scores[measure][:, c]) for c in range(3)]
        )
        for each in found
        for measure in each.scores
    }
    kinds = [("untrained", "zero_shot"), ("untrained", "probe"), ("random-kernels", "probe")]
    assert set(areas) == {(*kind[:1], seed, kind[1]) for kind in kinds for seed in (0, 1)} | {
        ("hand-features", 0, "probe")
    }
    for seed in (0, 1):
        config = config_of(design, Cell(design.variants[0], 4, seed), planted)
        fresh = untrained_encoder(config, four_folds.spec, seed)
        same = evaluate_zero_shot(fresh, four_folds, prompts=planted.prompts, folds=[4], bootstrap=2)
        assert areas["untrained", seed, "zero_shot"] == pytest.approx(same.macro, abs=1e-6)
    assert areas["untrained", 0, "probe"] != areas["untrained", 1, "probe"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "floors").rglob("*.*")}
    again = run_floors(design, [(0, 4), (1, 4)], planted, tmp_path / "floors", four_folds)
    assert [each.facts for each in again] == [each.facts for each in found] and len(times) == 12
    assert times == {path: path.stat().st_mtime_ns for path in times}, "a finished floor is not made again"
    with pytest.raises(UserError, match="holds a cell of another study"):
        run_floors(design, [(0, 4)], dataclasses.replace(planted, folds=(1, 2, 4)), tmp_path / "floors", four_folds)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_from_the_command_line_goes_on_where_it_stopped(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    words = ["study", "parts", "--shards", four_folds.path, "--out", tmp_path / "out", "--prompts", planted.prompts]
    words += ["--folds", "1-4", "--test-folds", "4", "--seeds", 1, "--only", "before", "--bootstrap", 20]
    words += ["--set", "training.steps=2", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    short = cardialign(*words, "--budget-hours", 0.0001)
    assert short.code != 0 and "the budget is spent, 1 of 2 cells are made: no fold and seed has all" in short.err
    first = tmp_path / "out" / "cells" / "all-fold4-seed0"
    kept = {name: (first / name).stat().st_mtime_ns for name in (CELL, SCORES)}
    whole = cardialign(*words, "--budget-hours", 0.0001, "--no-floors")
    assert whole.code == 0, whole.err  # what is there costs nothing
    assert [row["variant"] for row in whole.json["rows"]] == ["all", "before"]
    floored = cardialign(*words)
    result = json.loads((tmp_path / "out" / "table.json").read_text())
    assert floored.code == 0 and result["cells"] == 2
    assert [row["variant"] for row in result["rows"]] == ["all", "before", *FLOORS]
    assert kept == {name: (first / name).stat().st_mtime_ns for name in kept}, "a finished cell is not made again"
    assert not (first / "run").exists()
    other = cardialign(*words, "--set", "optimizer.lr=1e-4")
    assert other.code != 0 and "holds a cell of another study" in other.err


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(900)
def test_processes_on_one_folder_share_the_cells_and_the_last_one_has_the_whole_table(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    words = ["study", "parts", "--shards", four_folds.path, "--prompts", planted.prompts, "--folds", "1-4", "--json"]
    words += ["--test-folds", "4", "--seeds", 2, "--only", "before", "--bootstrap", 20, "--out", tmp_path / "shared"]
    words += ["--set", "training.steps=2", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    command = [sys.executable, "-m", "cardialign", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPROFILEIMPORTTIME": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(3)]
    ended = [process.communicate() for process in started]
    said = [out.splitlines()[-1] for out, _ in ended]
    assert [process.returncode for process in started] == [0, 0, 0], said
    imported = {line.split("|")[2].strip() for _, told in ended for line in told.splitlines() if line.count("|") == 2}
    assert "torch" in imported and not {"ray", "mlflow"} & imported, "neither Ray nor a tracking store is needed"
    trainings = {path.parent.name: path.read_text() for path in tmp_path.rglob("training.log")}
    assert len(trainings) == 4 and all(each.count('"final_loss"') == 1 for each in trainings.values()), "each cell once"
    whole = [json.loads(each) for each in said if len(json.loads(each)["rows"]) == 2 + len(FLOORS)]
    assert whole and whole[-1]["cells"] == 4, "the last one has all cells, and the floors"
    table = json.loads((tmp_path / "shared" / "table.json").read_text())
    alone = cardialign(*[word for word in words[:-6] if word != "--json"][:-1], tmp_path / "alone", *words[-6:])
    free = [[{**row, "cpu_seconds": 0} for row in each["rows"]] for each in (table, alone.json)]
    assert free[0] == free[1], "who makes a cell changes no figure"


def test_what_a_training_said_last_is_found_before_what_libraries_warn_of_at_its_end() -> None:
    said = "INFO step=9\nstep 10: every record looks the same\n  remedy: lower optimizer.lr\n[W1] nccl warns\n"
    assert training._last_words(said) == ("step 10: every record looks the same", "lower optimizer.lr; ")
    assert training._last_words("INFO step=9\nKilled\n") == ("Killed", "")


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(600)
def test_a_training_that_collapses_is_named_and_the_others_go_on(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    """A loss that may not stay above chance for one step, and an effective rank that no batch has: it ends at once."""
    flat = {"collapse.enabled": True, "collapse.min_rank": 1000, "collapse.patience_steps": 1, "training.log_every": 1}
    study = {"name": "mine", "recipe": "cardialign-tiny", "reference": "a", "variants": {}}
    study["variants"] = {"b": {"words": "flat", "set": flat}, "a": {"words": "as it is", "set": {}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(study))
    words = ["study", tmp_path / "mine.yaml", "--shards", four_folds.path, "--out", tmp_path / "out", "--no-floors"]
    words += ["--prompts", planted.prompts, "--folds", "1-4", "--test-folds", "4", "--seeds", 1, "--bootstrap", 20]
    words += ["--set", "training.steps=4", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    first = cardialign(*words)
    assert first.code == 0, first.err
    assert first.json["cells"] == 1 and "step 2" in first.json["not_learnt"]["b-fold4-seed0"]
    log = tmp_path / "out" / "cells" / "b-fold4-seed0" / "training.log"
    said = log.read_text()
    again = cardialign(*words)
    assert again.json["not_learnt"] == first.json["not_learnt"] and log.read_text() == said, "it gets one chance"


def test_a_folder_of_something_else_is_not_strewn_with_cells(four_folds: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds something, and no study"):
        check_folder(four_folds.path)
    (tmp_path / "cells").mkdir()
    for folder in (tmp_path, tmp_path / "cells", tmp_path / "absent"):
        check_folder(folder)


def test_a_cell_that_another_process_holds_is_left_to_it(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    variant = Variant("a", "", {})
    design, cells = Design("mine", "cardialign-tiny", "a", (variant,)), [Cell(variant, 4, seed) for seed in (0, 1)]
    work = Work(design, cells, planted, four_folds, tmp_path, configs_of(design, cells, planted))
    assert work.held() == [] and work.there() == []
    with contextlib.ExitStack() as others:
        for cell in cells:
            others.enter_context(locked_run(tmp_path / "cells" / cell.name))
        assert list(work.make()) == [] and work.held() == cells
        with pytest.raises(HeldError, match=r"a-fold4-seed0 is in use by process"):
            run_cell(cells[0], work.configs[cells[0].name], planted, tmp_path / "cells" / cells[0].name, four_folds)
    assert work.held() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.deployment), signal.SIGKILL])
def test_a_study_that_is_ended_leaves_a_checkpoint_and_the_same_command_goes_on_from_it(
    four_folds: ShardSet, planted: Setting, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, recipe: cardialign-tiny, reference: a, variants: {a: {words: w, set: {}}}}"
    )
    words = ["study", tmp_path / "mine.yaml", "--shards", four_folds.path, "--out", tmp_path / "out", "--no-floors"]
    words += ["--prompts", planted.prompts, "--folds", "1-4", "--test-folds", "4", "--seeds", 1, "--bootstrap", 20]
    words += ["--set", "training.steps=30", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    command = [sys.executable, "-m", "cardialign", *map(str, words)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    cell = tmp_path / "out" / "cells" / "a-fold4-seed0"
    deadline = time.monotonic() + 240
    trace = cell / RUN / "metrics.jsonl"
    while not (trace.exists() and trace.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)  # until a step was taken
    started.send_signal(number)
    told = started.communicate()[1]
    assert started.returncode == (128 + number if number == signal.SIGTERM else -number), told  # as a shell has it
    while True:  # the training has the cell until it has come to its checkpoint
        with contextlib.suppress(HeldError), locked_run(cell):
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (cell / CELL).exists() and list((cell / RUN).rglob("step-*")), "a checkpoint, and no figures"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained = json.loads((cell / "training.log").read_text().strip().splitlines()[-1])
    assert trained["resumed_from"] > 0 and trained["steps"] == 30


@pytest.mark.deployment
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cells_as_ray_tasks_have_the_figures_of_cells_one_after_the_other(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["study", "parts", "--shards", four_folds.path, "--prompts", planted.prompts, "--folds", "1-4"]
    words += ["--test-folds", "4", "--seeds", 1, "--only", "before", "--bootstrap", 20, "--no-floors"]
    words += ["--set", "training.steps=2", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    there = cardialign(*words, "--out", tmp_path / "ray", "--workers", 2)
    assert there.code == 0, there.err
    here = cardialign(*words, "--out", tmp_path / "here")
    figures = [[{**row, "cpu_seconds": 0} for row in each.json["rows"]] for each in (there, here)]
    assert figures[0] == figures[1] and there.json["cells"] == 2
    assert not list((tmp_path / "ray").rglob(".alive"))


@pytest.mark.slow
def test_a_study_of_missingness_prints_every_surface_and_goes_on_where_it_was(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(missing, "plan_of_study", lambda: SurfacePlan((0, 9), (0.0, 0.5), draws=1))
    words = ["study", "missingness", "--shards", four_folds.path, "--prompts", planted.prompts, "--folds", "1-4"]
    words += ["--test-folds", "4", "--seeds", 1, "--only", "dropout", "--bootstrap", 20, "--no-floors"]
    words += ["--set", "training.steps=2", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    first = cardialign(*words, "--out", tmp_path / "out")
    assert first.code == 0, first.err
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.*")}
    again = cardialign(*words, "--out", tmp_path / "out", plain=True)
    assert again.code == 0 and made == {path: path.stat().st_mtime_ns for path in made}, "nothing is made twice"
    rows = first.json["missingness"]["rows"]
    assert [each["variant"] for each in rows] == ["dropout"]
    for row, usual in zip(rows, first.json["rows"], strict=True):
        whole = row["cells"][0]
        assert (whole["leads"], whole["time"], whole["lost"]["value"]) == (0, 0, 0)
        assert whole["auroc"]["value"] == pytest.approx(usual["zero_shot"]["auroc"], abs=1e-6)
        assert len(row["cells"]) == 4 and len(row["presets"]) == 4
        for each in (*row["cells"], *row["presets"]):
            assert each["lost"]["value"] == pytest.approx(whole["auroc"]["value"] - each["auroc"]["value"])
    assert "| dropout: leads missing | time missing 0 % |" in again.out and "only I, II, V2" in again.out


def test_a_training_of_another_study_that_was_stopped_is_left_as_it_is(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    (tmp_path / "cell" / "run").mkdir(parents=True)
    (tmp_path / "cell" / "recipe.yaml").write_text("{}")
    with pytest.raises(UserError, match="holds an unfinished training of another study"):
        run_cell(cell, config, planted, tmp_path / "cell", four_folds)
    assert (tmp_path / "cell" / "recipe.yaml").read_text() == "{}"


def test_scores_that_are_not_those_of_their_cell_are_refused(tmp_path: Path) -> None:
    cell = Cell(Variant("a", "", {}), 1, 0)
    arrays = {f"{part}_{each}": np.zeros(2) for part in ("scores", "truth", "patients", "codes") for each in MEASURES}
    np.savez(tmp_path / SCORES, **arrays)
    digest = hashlib.sha256((tmp_path / SCORES).read_bytes()).hexdigest()
    this, that = Origin({"made": "this"}), Origin({"made": "that"})
    (tmp_path / CELL).write_text(json.dumps({"made_from": this.digest, "scores": digest}))
    assert finished(cell, tmp_path, this) is not None and finished(cell, tmp_path / "absent", this) is None
    with pytest.raises(UserError, match="a cell of another study"):
        finished(cell, tmp_path, that)
    np.savez(tmp_path / SCORES, **{**arrays, "scores_probe": np.ones(2)})
    with pytest.raises(UserError, match="not the one that the cell was scored with"):
        finished(cell, tmp_path, this)


@pytest.mark.parametrize("value", ["x", None, [1], True, -1, 1e300])
def test_a_cell_whose_costs_are_no_numbers_is_named(tmp_path: Path, value: object) -> None:
    """Its folder may come from anybody: what it says is judged before it is added up."""
    cell, this = Cell(Variant("a", "", {}), 1, 0), Origin({"made": "this"})
    (tmp_path / CELL).write_text(json.dumps({"made_from": this.digest, "scores": "", "cpu_seconds": value}))
    with pytest.raises(UserError, match="does not say its cpu_seconds"):
        finished(cell, tmp_path, this)
    with pytest.raises(UserError, match="does not say its parameters"):
        check_costs(Outcome(cell, {"cpu_seconds": 1.0}, {}, {}, {}, {}, {}), tmp_path)
