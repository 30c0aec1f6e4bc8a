"""What a masker of known taste removes is told as such: the evidence, anything but it, or by chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.missingness.evaluate import Ranking
from cardialign.pretrain.evaluation.missingness.removed import what_is_removed
from cardialign.pretrain.evaluation.missingness.trained_masker import open_masker
from cardialign.pretrain.evaluation.prompts import PromptClass, PromptSet
from cardialign.pretrain.evaluation.task import EvaluationTask
from tests.support.tiny_shards import RATE, SECONDS, TinySource

CODES = ("AFIB", "RBBB", "ISTE")
N = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("tiny") / "shards"
    build_shards(TinySource(), folder, SetPlan(SignalSpec(RATE, SECONDS)), workers=1)
    return ShardSet.open(folder)


@pytest.fixture
def task(shards: ShardSet) -> EvaluationTask:
    """A third of the records each, AFIB in any lead; one record has two findings."""
    truth = np.eye(3, dtype=bool)[np.arange(N) % 3]
    truth[1, 2] = True
    prompts = PromptSet("p-v1", 1, "finding", "s", tuple(PromptClass(c, c.lower(), (c,)) for c in CODES))
    return EvaluationTask(prompts, np.arange(N), truth, shards.patients[np.arange(N)], {})


def liking(*leads: str) -> Ranking:
    """Removes these leads first, in this order, whatever the record."""
    taste = np.array([-leads.index(name) if name in leads else -20 - k for k, name in enumerate(STANDARD_LEADS)], float)
    return lambda signal, lead_mask, valid: np.repeat(taste[:, None], signal.shape[1], axis=1)


def test_evidence_that_is_removed_is_found_and_chance_is_known(shards: ShardSet, task: EvaluationTask) -> None:
    """V1, V2, II, III, aVF: all of RBBB's two leads, of ISTE's three only II, and of both together all five."""
    found = what_is_removed(shards, task, liking("V1", "V2", "II", "III", "aVF"), 0.25, resamples=50, seed=0)
    by_code = {each.code: each for each in found.classes}
    assert by_code["AFIB"].found is None and by_code["AFIB"].evidence == ()
    rows = {code: int(task.truth[:, c].sum()) for c, code in enumerate(CODES)}
    assert by_code["RBBB"].found is not None and by_code["RBBB"].found.value == 1
    iste = by_code["ISTE"].found
    assert iste is not None and iste.value == pytest.approx(((rows["ISTE"] - 1) / 3 + 1) / rows["ISTE"])
    alone, both = rows["RBBB"] - 1, 1
    chance = (alone * 2 + (rows["ISTE"] - 1) * 3 + both * 5) / 12 / (rows["RBBB"] + rows["ISTE"] - 1)
    assert found.chance == pytest.approx(chance) and found.records == rows["RBBB"] + rows["ISTE"] - 1
    assert found.beyond.value == pytest.approx(found.found.value - chance)
    assert by_code["RBBB"].removed[6] == 1 and by_code["RBBB"].removed[5] == 0, "a quarter: V1, V2, II"
    assert set(found.examples) == set(CODES) and found.examples["RBBB"][0] == 4, "the first has two findings"
    assert found.examples["ISTE"][1].sum() == 3 * shards.spec.samples
    assert "primary evidence found" in found.table()[-1] and found.to_dict()["classes"][0]["code"] == "AFIB"


def test_a_masker_that_spares_the_evidence_finds_less_than_chance(shards: ShardSet, task: EvaluationTask) -> None:
    found = what_is_removed(shards, task, liking("I", "aVR", "aVL", "V5", "V6"), 0.25, resamples=50, seed=0)
    assert found.found.value < found.chance and found.beyond.high < 0


def test_records_without_evidence_are_said_and_give_no_number(shards: ShardSet, task: EvaluationTask) -> None:
    afib = np.flatnonzero(task.truth[:, CODES.index("AFIB")])
    alone = EvaluationTask(task.prompts, task.rows[afib], task.truth[afib], task.patients[afib], {})
    found = what_is_removed(shards, alone, liking("I"), 0.25, resamples=50, seed=0)
    assert "n/a, no record here" in found.table()[-1] and "nan" not in "\n".join(found.table())
    assert "NaN" not in json.dumps(found.to_dict())


def test_a_folder_without_a_masker_is_said(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no verified checkpoint"):
        open_masker(tmp_path, shards.spec)
