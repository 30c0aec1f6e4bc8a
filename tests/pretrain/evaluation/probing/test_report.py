"""The probe table: every system beside the encoder, the same records for all, the right figures in the right cells."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.probing.linear_probe import Parts, probe
from cardialign.pretrain.evaluation.probing.report import ProbeOptions, ProbeResult, probe_table
from cardialign.pretrain.evaluation.probing.systems import System
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.probing.tuned import TunedResult
from cardialign.pretrain.evaluation.scored import ScoredRecords

N, CLASSES = 400, 3
PARTS = Parts(np.arange(0, 200), np.arange(200, 260), np.arange(260, N))


def task() -> tuple[ProbeTask, list[System]]:
    """Features that hold the labels, and features that hold nothing; two records per patient."""
    draw = np.random.default_rng(0)
    good = draw.normal(size=(N, 8)).astype(np.float32)
    truth = good[:, :CLASSES] + 0.4 * draw.normal(size=(N, CLASSES)) > 0.4
    names = [(f"C{k}", f"class {k}") for k in range(CLASSES)]
    patients = np.array([f"p{k // 2}" for k in range(N)])
    about = {"records": {"train": 200, "val": 60, "test": 140}, "test_patients_in_training": 0}
    made = ProbeTask("made-up", names, np.arange(N), truth, patients, PARTS, None, about)
    return made, [System("encoder", good, "d" * 64), System("untrained", draw.normal(size=(N, 8)).astype(np.float32))]


@pytest.fixture(scope="module")
def result() -> ProbeResult:
    made, systems = task()
    return probe_table(made, systems, ProbeOptions((0.1, 1.0), "stratified", seeds=3, bootstrap=200))


def test_every_system_is_read_in_both_ways_at_every_share(result: ProbeResult) -> None:
    cells = [(row.system, row.reader, row.share) for row in result.rows]
    assert len(set(cells)) == len(cells) == 2 * 2 * 2
    small = [row for row in result.rows if row.share == 0.1]
    assert all(len(row.fits) == 3 and {each["records"] for each in row.fits} == {20} for row in small)
    assert all(row.spread is not None and None not in row.interval for row in small)
    for row in small:
        assert row.macro == pytest.approx(np.mean([each["macro"] for each in row.fits]))
        assert row.spread == pytest.approx(np.std([each["macro"] for each in row.fits], ddof=1))


def test_a_figure_is_that_of_scikit_learn(result: ProbeResult) -> None:
    made, systems = task()
    scores = probe(systems[0].features, made.truth, PARTS).scores
    expected = [roc_auc_score(made.truth[PARTS.test][:, k], scores[:, k]) for k in range(CLASSES)]
    row = next(row for row in result.rows if (row.system, row.reader, row.share) == ("encoder", "linear probe", 1.0))
    assert row.macro == pytest.approx(np.mean(expected), abs=1e-12)
    assert [each["auroc"] for each in row.classes] == pytest.approx(expected, abs=1e-12)
    low, high = row.interval
    assert low is not None and high is not None and low < row.macro < high


def test_a_floor_that_holds_nothing_lies_below_the_encoder_by_a_paired_interval(result: ProbeResult) -> None:
    floor = next(
        row for row in result.rows if (row.system, row.reader, row.share) == ("untrained", "linear probe", 1.0)
    )
    encoder = next(
        row for row in result.rows if (row.system, row.reader, row.share) == ("encoder", "linear probe", 1.0)
    )
    assert floor.less_encoder is not None and encoder.less_encoder is None
    assert floor.less_encoder["value"] == pytest.approx(floor.macro - encoder.macro, abs=1e-12)
    assert floor.less_encoder["high"] < -0.2 and abs(floor.macro - 0.5) < 0.15


def test_what_was_trained_from_scratch_is_held_against_the_probe_of_the_encoder() -> None:
    made, systems = task()
    trained = {"supervised-net": partial(probe, systems[1].features)}  # whatever reads a task may stand there
    found = probe_table(made, systems, ProbeOptions((0.1, 1.0), seeds=2, bootstrap=50), trained)
    rows = [row for row in found.rows if row.system == "supervised-net"]
    assert [(row.reader, row.share, len(row.fits)) for row in rows] == [
        ("training from scratch", 0.1, 2), ("training from scratch", 1.0, 1)
    ]  # fmt: skip
    for row, floor in zip(
        rows, [r for r in found.rows if (r.system, r.reader) == ("untrained", "linear probe")], strict=True
    ):
        assert row.less_encoder == floor.less_encoder is not None, "the same fits: the same paired difference"


def test_table_and_json_say_the_same(result: ProbeResult) -> None:
    values = json.loads(json.dumps(result.to_dict()))
    table = result.table()
    for row in values["rows"]:
        assert f"{row['macro']:.3f}" in table
    assert "made-up" in table and "200 train, 60 val, 140 test" in table
    assert values["task"]["systems"]["encoder"] == {"features": 8, "weights": "d" * 64}


def test_patients_on_both_sides_are_told_under_the_table() -> None:
    made, systems = task()
    made.about["test_patients_in_training"] = 4
    told = probe_table(made, systems[:1], ProbeOptions(bootstrap=0, neighbours=False)).table()
    assert "4 patients of the test records are in training too" in told


def test_a_share_that_is_larger_than_it_is_called_is_told() -> None:
    """Thirty findings that one training record each has: 1 % of 200 records are 2, a positive of every class are 30."""
    made, systems = task()
    rare = np.zeros((N, 30), dtype=bool)
    rare[np.arange(30), np.arange(30)] = True
    rare[200:], names = np.tile(np.eye(30, dtype=bool), (7, 1))[:200], [(f"R{k}", f"rare {k}") for k in range(30)]
    made = replace(made, truth=np.concatenate([made.truth, rare], axis=1), names=[*made.names, *names])
    options = ProbeOptions((0.01, 1.0), "stratified", seeds=1, bootstrap=0, neighbours=False)
    told = probe_table(made, systems[:1], options).table()
    (line,) = [line for line in told.splitlines() if "learnt from" in line]
    count = int(line.split("learnt from ")[1].split(" of ")[0])
    assert line.startswith("at 1 % ") and 30 <= count <= 33 and f"{count} of 200 records, up to" in line
    options = ProbeOptions((0.1, 1.0), "random", seeds=1, bootstrap=0, neighbours=False)
    assert "learnt from" not in probe_table(*task(), options).table()


def test_a_class_without_test_positives_is_left_out_by_name() -> None:
    made, systems = task()
    made.truth[PARTS.test, 1] = False
    found = probe_table(made, systems[:1], ProbeOptions(bootstrap=0, neighbours=False))
    assert [each["code"] for each in found.left_out] == ["C1"] and len(found.rows[0].classes) == 2
    assert "left out, no positives" in found.table()


def test_nothing_to_score_or_to_choose_by_is_a_sentence() -> None:
    made, systems = task()
    made.truth[PARTS.validation] = False
    with pytest.raises(UserError, match="in training and in validation"):
        probe_table(made, systems, ProbeOptions(bootstrap=0))
    made.truth[PARTS.test] = False
    with pytest.raises(UserError, match="no class has both positives and negatives among 140 test records"):
        probe_table(made, systems, ProbeOptions(bootstrap=0))


def test_classes_under_a_mean_over_seeds_say_that_they_are_of_the_first() -> None:
    scored = ScoredRecords(np.zeros((1, 1, 1)), np.ones((1, 1), dtype=bool), np.zeros(1), (("AF", "AF"),))
    one = {"macro": 0.8, "best_epoch": 1}
    found = TunedResult(
        {"name": "x", "records": "9 train"}, "start", {}, 0.7, 0.1, 0.6, 0.9, [one, {**one, "macro": 0.6}],
        [{"code": "AF", "positives": 3, "auroc": 0.8}], [], [], scored,
    )  # fmt: skip
    lines = found.table().splitlines()
    assert lines[lines.index("classes, of the first seed:") + 1].split() == ["AF", "3", "0.800"]
    assert "of the first seed:" not in replace(found, seeds=[one]).table()
