"""Labels, words, parts and signals that do not go together are named, never averaged over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.atlas.chart import MapOptions, make_atlas
from cardialign.pretrain.evaluation.label_files import other_labels
from cardialign.pretrain.evaluation.probing.fine_tune import FineTuneOptions
from cardialign.pretrain.evaluation.probing.systems import check_systems
from cardialign.pretrain.evaluation.probing.tasks import Records, task_of_folds
from cardialign.pretrain.evaluation.probing.tuned import Runs, tune
from cardialign.pretrain.evaluation.zero_shot import evaluate_zero_shot
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.support.planted_source import PROMPTS, ThreeFolds
from tests.support.small_encoder import SPEC, small_config


class OneOnBothSides(ThreeFolds):
    """The second record of the first patient lies in the fold of the test records."""

    def read(self, entry):
        record = super().read(entry)
        record.fold = 3 if entry.meta["k"] == 1 else record.fold
        return record


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("folds")
    build_shards(OneOnBothSides(folder, 90), folder / "shards", SetPlan(SPEC, records_per_shard=45), workers=1)
    return ShardSet.open(folder / "shards")


@pytest.fixture(scope="module")
def encoder() -> LoadedEncoder:
    return untrained_encoder(small_config(), SPEC, seed=0)


def test_a_mistyped_code_is_not_a_finding_that_happens_to_be_rare(folds, encoder, tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(PROMPTS.replace("  UP:", "  UPP:"))
    result = evaluate_zero_shot(encoder, folds, prompts=file, bootstrap=5)
    reasons = {each["code"]: each["reason"] for each in result.excluded}
    assert reasons["UPP"] == "no record of the shard set has such a code of finding (did you mean 'UP'?)"
    assert result.unprompted_records.keys() == {"UP"} and "UP (" in result.table()
    assert {each.code for each in result.classes} == {"DOWN", "FAST"}


def test_a_macro_of_rare_classes_alone_is_called_one(folds, encoder, tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(PROMPTS)
    few = evaluate_zero_shot(encoder, folds, prompts=file, folds=[3], split="test", bootstrap=5)
    assert few.macro_frequent.classes == 0 and "no class has 10 positives" in few.table()
    assert "no class has 10 positives" not in evaluate_zero_shot(encoder, folds, prompts=file, bootstrap=5).table()


def test_columns_of_labels_that_nobody_asked_for_are_named_and_facts_about_people_are_not(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("ecg_id,sex,age,note,MI,NORMAL,BRUGADA,EMPTY\n1,0,0,1,0,1,1,0\n2,1,61,x,1,0,1.0,0\n")
    assert other_labels(file, ["MI", "NORM"]) == {"NORMAL": 1, "BRUGADA": 2}


def test_a_patient_on_both_sides_is_counted_in_the_result_and_named_on_the_screen_alone(folds, caplog) -> None:
    with caplog.at_level("WARNING"):
        task = task_of_folds(folds, "finding", [1], [2], [3])
    assert task.about["test_patients_in_training"] == 1 and task.about["validation_patients_in_training"] == 0
    key = folds.key(1)
    assert f"test records of patients in training: {key}" in caplog.text and key not in json.dumps(task.about)


def test_fine_tuning_says_what_a_probe_says(folds, encoder) -> None:
    """Patients on both sides, classes with few positives, and classes by which no epoch could be chosen."""
    task = task_of_folds(folds, "finding", [1], [2], [3])
    fast = [code for code, _ in task.names].index("FAST")
    task.truth[task.parts.validation, fast] = False
    told = tune(encoder, folds, task, FineTuneOptions(epochs=1), Runs(bootstrap=5)).table()
    assert "1 patients of the test records are in training too: no figure of new patients" in told
    assert "nothing was chosen by them, for want of validation records: FAST" in told
    assert "fewer than 10 positives among the test records" in told


def zero_shot(encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROMPTS)
    evaluate_zero_shot(encoder, shards, prompts=tmp_path / "p.yaml", bootstrap=5)


def probe(encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path) -> None:
    check_systems(encoder, Records(shards, np.arange(len(shards))), (), tokens=False)


def fine_tune(encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path) -> None:
    tune(encoder, shards, task_of_folds(shards, "finding", [1], [2], [3]), FineTuneOptions(epochs=1))


def map_of(encoder: LoadedEncoder, shards: ShardSet, tmp_path: Path) -> None:
    make_atlas([("mine", encoder)], shards, np.arange(len(shards)), MapOptions())


@pytest.mark.parametrize("use", [zero_shot, probe, fine_tune, map_of])
def test_a_signal_that_the_encoder_was_not_trained_on_is_refused_with_the_name_of_the_set(
    folds, tmp_path: Path, use: Callable[..., None]
) -> None:
    other = untrained_encoder(small_config(), SignalSpec(100, 1), seed=0)
    with pytest.raises(UserError) as refused:
        use(other, folds, tmp_path)
    assert str(folds.path) in refused.value.problem
    assert "it holds 2 s at 100 Hz, the encoder was trained on 1 s at 100 Hz" in refused.value.problem
