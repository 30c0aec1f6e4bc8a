"""A study without words: two trainings in one cell, shares of the labels, networks that labels alone train."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.studies import cells
from cardialign.cluster.studies.cells import config_of, first_config_of, origin_of_cell, run_cell
from cardialign.cluster.studies.check import check, configs_of
from cardialign.cluster.studies.design import FLOORS, Cell, Design, First, Variant, cells_of, digest_of
from cardialign.cluster.studies.origin import CONFIG, FIRST, FIRST_RECIPE, RECIPE, Origin, plain
from cardialign.cluster.studies.outcome import CELL, NotLearnt, Setting, refuse_not_learnt
from cardialign.cluster.studies.scoring import rank_of, scored_by_labels, task_of
from cardialign.cluster.studies.training import RUN
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.evaluation.probing import tuned
from cardialign.pretrain.evaluation.probing.fine_tune import FineTuned
from tests.cluster.conftest import Answer

Call = Callable[..., Answer]

TWO = Variant("two", "", {}, "heartlang-tiny", First("heartlang-quantiser-tiny", 32))
"""Two trainings, one behind the other: 32 records for the first, the rest for the second."""


def two_trainings(setting: Setting, first: int = 32) -> tuple[Cell, Setting, RunConfig]:
    variant = dataclasses.replace(TWO, first=First("heartlang-quantiser-tiny", first))
    cell, of = Cell(variant, 4, 0), ("probe_10", "probe", "fresh")
    here = dataclasses.replace(setting, overrides=("training.global_batch=16",), measures=of, records=96)
    return cell, here, config_of(Design("mine", "cardialign-tiny", "two", (variant,), 96, False, of), cell, here)


def test_of_two_trainings_both_count_and_both_decide_what_a_cell_is(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    cell, here, config = two_trainings(planted)
    first = first_config_of(cell, here)
    assert first is not None and (first.training.steps, config.training.steps) == (2, 4)
    assert first.data.folds == config.data.folds == (1, 2, 3) and first.seed == config.seed == 0
    origin = origin_of_cell(cell, config, here, four_folds)
    other, there, longer = two_trainings(planted, 48)
    assert origin != origin_of_cell(other, longer, there, four_folds)
    begun = {**json.loads(json.dumps(config.resolved())), "init_from": str(tmp_path / "first" / "run")}
    assert origin.says(begun), "where the first training lies decides nothing"
    assert not origin.says({**begun, "seed": 1})
    of_first = Origin({CONFIG: origin.facts["first"]})
    moved = json.loads(json.dumps(first.resolved()))
    moved["data"]["shards"] = "/somewhere/else"
    assert of_first.says(moved) and not of_first.says(begun), "nor where the records lie"
    broken = dataclasses.replace(cell, variant=dataclasses.replace(TWO, first=First("heartlang-quantiser-tiny", 33)))
    with pytest.raises(UsageError, match=r"first training of variant two: .* does not divide the 33 records"):
        first_config_of(broken, here)


def test_a_cell_of_two_recipes_that_gained_a_key_at_its_default_stays_good(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    cell, here, config = two_trainings(planted)
    origin = origin_of_cell(cell, config, here, four_folds)

    def earlier(**changes: object) -> str:
        """A cell as a release wrote it that had no `slow_read_seconds`; the digest of what it was made from."""
        facts = {part: copy.deepcopy(origin.facts[part]) for part in (CONFIG, FIRST)}
        facts[FIRST]["training"] |= changes
        for part, name in ((CONFIG, RECIPE), (FIRST, FIRST_RECIPE)):
            del facts[part]["data"]["slow_read_seconds"]
            elsewhere = {**facts[part], "data": {**facts[part]["data"], "shards": "/somewhere/else"}}
            (tmp_path / name).write_text(json.dumps(elsewhere))
        return digest_of({**origin.facts, **facts})

    digest = earlier()
    assert digest != origin.digest and origin.is_of(tmp_path, digest)
    assert not origin.is_of(tmp_path, earlier(lead_dropout=0.5)), "another first recipe"
    earlier()
    written = json.loads((tmp_path / FIRST_RECIPE).read_text())
    (tmp_path / FIRST_RECIPE).write_text(json.dumps({**written, "seed": 7}))
    assert not origin.is_of(tmp_path, digest), "a first recipe that was changed afterwards"
    for broken in ("", "[]", "{", '{"data": 3}'):
        (tmp_path / FIRST_RECIPE).write_text(broken)
        assert not origin.is_of(tmp_path, digest)


@pytest.mark.parametrize(
    ("first", "recipe", "change", "words"),
    [
        (
            "heartlang-quantiser-tiny",
            "heartlang-tiny",
            {"method.words": 128},
            r"words \(128, 32\): the source has shape",
        ),
        ("heartlang-quantiser-tiny", "heartlang-tiny", {"data.normalisation": "zscore"}, "the source's was none"),
        ("heartlang-quantiser-tiny", "heartlang-tiny", {"method.quantiser.heads": 4}, "source was trained with 2"),
        (
            "heartlang-quantiser-tiny",
            "heartlang-tiny",
            {"init_fresh": []},
            "init_from: the encoder of its first training, heartlang-q",
        ),
        ("cpc-tiny", "heartlang-tiny", {}, "the start has no words for heartbeats"),
        ("heartlang-tiny", "heartlang-tiny", {"seed": 0}, "its first training: method heartlang goes on from what"),
        (None, "heartlang-tiny", {}, ": method heartlang goes on from what"),
        ("heartlang-quantiser-tiny", "heartlang-tiny", {}, None),
    ],
)
def test_what_the_second_training_cannot_go_on_from_is_told_before_the_first_one(
    four_folds: ShardSet, planted: Setting, first: str | None, recipe: str, change: dict[str, object], words: str | None
) -> None:
    before = None if first is None else First(first, 32)
    variant, of = Variant("two", "", change, recipe, before), ("probe",)
    design = Design("mine", "cardialign-tiny", "two", (variant,), 96, False, of)
    here = dataclasses.replace(planted, overrides=("training.global_batch=16",), measures=of, records=96)
    cells = cells_of(design, [4], 1)
    configs = configs_of(design, cells, here)
    if words is None:
        check(design, cells, configs, here, four_folds)
    else:
        with pytest.raises(UserError, match=rf"^study mine, variant two(.|\n)*{words}"):
            check(design, cells, configs, here, four_folds)


def test_two_variants_that_differ_in_their_first_training_alone_are_two(four_folds: ShardSet, planted: Setting) -> None:
    one, two = (Variant(name, "", {}, "heartlang-tiny", TWO.first) for name in ("one", "two"))
    of, here = ("probe",), dataclasses.replace(planted, overrides=("training.global_batch=16",), measures=("probe",))
    here = dataclasses.replace(here, records=96)
    other = dataclasses.replace(two, first=First("heartlang-quantiser-tiny", 48))
    for variants, alike in (((one, two), True), ((one, other), False)):
        design = Design("mine", "cardialign-tiny", "one", variants, 96, False, of)
        cells = cells_of(design, [4], 1)
        with pytest.raises(UsageError, match="one and two train the same") if alike else contextlib.nullcontext():
            check(design, cells, configs_of(design, cells, here), here, four_folds)


@pytest.mark.parametrize("collapses", [0, 1, 2])
def test_of_two_trainings_both_recipes_stay_beside_the_cell_whichever_collapses(
    four_folds: ShardSet, planted: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collapses: int
) -> None:
    """And a release that reads them with a key more gives it no second chance."""
    cell, here, config = two_trainings(planted)
    trained: list[Path] = []

    def train(config: RunConfig, folder: Path, lock: int, says: object) -> None:
        trained.append(folder)
        if len(trained) == collapses:
            raise NotLearnt("every record looks the same", "lower the rate")
        (folder / RECIPE).write_text(json.dumps(plain(config)))
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(cells, "train", train)
    with pytest.raises(NotLearnt if collapses else KeyboardInterrupt):
        run_cell(cell, config, here, tmp_path / "cell", four_folds)
    kept = json.loads((tmp_path / "cell" / FIRST_RECIPE).read_text())
    first = first_config_of(cell, here)
    assert first is not None and kept == plain(first) and not (tmp_path / "cell" / CELL).exists()
    if collapses:
        origin = origin_of_cell(cell, config, here, four_folds)
        facts = {part: {**origin.facts[part], "gained": 1} for part in (CONFIG, FIRST)}
        later = Origin({**origin.facts, **facts})
        monkeypatch.setattr(Origin, "says", lambda self, written: True)
        with pytest.raises(NotLearnt, match="every record looks the same"):
            refuse_not_learnt(tmp_path / "cell", later)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("widht", 64, "encoder.widht: unknown key"), ("width", -1, "encoder.width"), ("token_ms", 3, "token_ms")],
)
def test_an_encoder_for_labels_alone_that_cannot_be_is_refused_before_anything_is_trained(
    four_folds: ShardSet, planted: Setting, key: str, value: object, words: str
) -> None:
    """Tokens of 3 ms would be a third of a sample at 100 Hz."""
    net = Variant("net", "", {f"encoder.{key}": value}, supervised="supervised-s4")
    design = Design("mine", "cardialign-tiny", "a", (Variant("a", "", {}), net), measures=("probe",))
    here = dataclasses.replace(planted, measures=("probe",))
    cells = cells_of(design, [4], 1)
    with pytest.raises(UsageError, match=rf"^study mine, variant net: (.|\n)*{words}"):
        check(design, cells, configs_of(design, cells, here), here, four_folds)


def test_features_that_use_no_direction_have_no_rank_and_end_nothing() -> None:
    """Roy & Vetterli's rank of k equal directions is k; of nothing it is not defined."""
    assert rank_of(np.eye(7, 5)) == 5.0
    assert rank_of(np.zeros((4, 3))) is None and rank_of(np.full((4, 3), np.inf)) is None


def test_labels_alone_are_shown_no_more_records_than_the_study_says(
    four_folds: ShardSet, planted: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fold 4 kept out, fold 3 chooses: some 80 records learn. A tenth of them is shown ten times as often."""
    shown: list[tuple[int, int]] = []

    def noted(encoder, read, truth, parts, options, **how):  # type: ignore[no-untyped-def]
        shown.append((len(parts.train), options.epochs))
        return FineTuned(np.zeros((len(parts.test), truth.shape[1])), [0.5], 1)

    monkeypatch.setattr(tuned, "fine_tune", noted)
    cell = Cell(Variant("net", "", {}, supervised="supervised-resnet1d"), 4, 0)
    here = dataclasses.replace(planted, measures=("zero_shot", "probe_10", "probe", "fresh"), records=320)
    found = scored_by_labels(cell, here, four_folds, "made from")
    task = task_of(here, four_folds, 4)
    assert set(found.scores) == {"probe_10", "probe"}, "it has no words, and its fresh weights mean nothing"
    many = len(task.parts.train)
    assert shown == [(many // 10, min(50, 320 // (many // 10))), (many, 320 // many)]
    assert found.facts["parameters"] > 0 and found.facts["gflop"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_without_words_has_two_stages_shares_of_labels_and_networks_from_scratch(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    """The real path of `study baselines`: methods without reports, one of them in two trainings."""
    tiny = {"training.global_batch": 16}
    study = {
        "name": "mine", "recipe": "cpc-tiny", "reference": "a", "records": 64,
        "measures": ["probe_10", "probe", "fresh"],
        "variants": {
            "a": {"words": "what comes next", "set": tiny},
            "b": {"words": "two", "recipe": "heartlang-tiny", "set": tiny,
                  "first": {"recipe": "heartlang-quantiser-tiny", "records": 32}},
            "c": {"words": "labels alone", "supervised": "supervised-resnet1d", "set": {}},
        },
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(study))
    words = ["study", tmp_path / "mine.yaml", "--shards", four_folds.path, "--out", tmp_path / "out"]
    words += ["--prompts", planted.prompts, "--folds", "1-4", "--test-folds", "4", "--seeds", 1, "--bootstrap", 20]
    first = cardialign(*words)
    assert first.code == 0, first.err
    rows = {row["variant"]: row for row in first.json["rows"]}
    assert list(rows) == ["a", "b", "c", *FLOORS] and first.json["cells"] == 3
    measures = {name: {each for each in ("zero_shot", "probe_10", "probe", "gained") if each in row}
                for name, row in rows.items()}  # fmt: skip
    assert measures["a"] == measures["b"] == {"probe_10", "probe", "gained"}
    assert all(measures[name] == {"probe_10", "probe"} for name in ("c", *FLOORS))
    assert rows["a"]["gained"]["fresh"] == pytest.approx(rows["untrained"]["probe"]["auroc"], abs=1e-9), (
        "one and the same"
    )
    cell = tmp_path / "out" / "cells" / "b-fold4-seed0"
    trained = json.loads((cell / RECIPE).read_text())
    assert trained["init_from"] == str(cell / "first" / RUN) and not (cell / "first").exists()
    before = json.loads((cell / FIRST_RECIPE).read_text())
    assert before["method"]["name"] == "heartlang_quantiser" and before["training"]["steps"] == 1
    files = {path.relative_to(cell.parent): path.read_bytes() for path in cell.parent.rglob("*.npz")}
    again = cardialign(*words)
    assert again.json["rows"] == first.json["rows"]
    assert files == {path.relative_to(cell.parent): path.read_bytes() for path in cell.parent.rglob("*.npz")}
    page = cardialign("compare", tmp_path / "out", "--out", tmp_path / "page")
    assert page.code == 0, page.err
