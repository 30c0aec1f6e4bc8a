"""A record whose codes leave a class open is no negative of it: no probe learns, chooses or is scored by it there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.grid.plan import OpenTask
from cardialign.pretrain.evaluation.probing import attention
from cardialign.pretrain.evaluation.probing.attention import attention_probe
from cardialign.pretrain.evaluation.probing.cells import CellJob, keep_systems, keep_task, run_cell
from cardialign.pretrain.evaluation.probing.fine_tune import FineTuneOptions, fine_tune
from cardialign.pretrain.evaluation.probing.linear_probe import Parts, ProbeFit, neighbours, probe
from cardialign.pretrain.evaluation.probing.logistic import fit_path
from cardialign.pretrain.evaluation.probing.neighbours import neighbour_scores
from cardialign.pretrain.evaluation.probing.report import ProbeOptions, ProbeResult, probe_table
from cardialign.pretrain.evaluation.probing.systems import System
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask, task_of_folds, task_of_protocol
from cardialign.pretrain.evaluation.probing.tokens import Tokens
from cardialign.pretrain.evaluation.probing.tuned import Runs, tune
from cardialign.pretrain.evaluation.protocols import load_task
from tests.pretrain.evaluation.probing.test_fine_tune import PARTS as TUNED_PARTS
from tests.pretrain.evaluation.probing.test_fine_tune import Reader, make, records
from tests.support.open_codes import OpenCodes, by_hand
from tests.support.small_encoder import SPEC

N = 500
PARTS = Parts(np.arange(0, 240), np.arange(240, 340), np.arange(340, N))


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, truth and decided: half of the likely positives of the first two classes are left open."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(N, 10)).astype(np.float32)
    full = features[:, :3] + 0.3 * draw.normal(size=(N, 3)) > 0
    decided = ~full | (draw.random((N, 3)) < 0.5)
    decided[:, 2] = True
    return features, full & decided, decided


def attended(
    features: np.ndarray, truth: np.ndarray, parts: Parts, decided: np.ndarray | None = None, **more: int
) -> ProbeFit:
    tokens = np.stack([features, features[:, ::-1]], axis=1)
    return attention_probe(Tokens(tokens, np.ones(tokens.shape[:2], dtype=bool)), truth, parts, decided=decided, **more)


def in_pieces(
    features: np.ndarray, truth: np.ndarray, parts: Parts, decided: np.ndarray | None = None, **more: int
) -> ProbeFit:
    return probe(np.stack([features, features * 0.9], axis=1), truth, parts, decided=decided, **more)


Read = Callable[..., ProbeFit]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROUNDS", 3)


every_reader = pytest.mark.parametrize("read", [probe, in_pieces, neighbours, attended])


@every_reader
def test_what_an_open_record_would_have_says_nothing(read: Read) -> None:
    features, truth, decided = data()
    turned = truth ^ ~decided
    first, second = (read(features, labels, PARTS, decided=decided) for labels in (truth, turned))
    np.testing.assert_array_equal(first.scores, second.scores)
    assert (first.choice, first.validation) == (second.choice, second.validation)


@every_reader
def test_open_positives_do_not_drag_a_class_down(read: Read) -> None:
    features, truth, decided = data()
    full = truth | ~decided
    without, as_negatives = (read(features, truth, PARTS, decided=each) for each in (decided, None))
    assert without.validation > as_negatives.validation + 0.05
    figures = [
        np.mean([roc_auc_score(full[PARTS.test, c], found.scores[:, c]) for c in range(3)])
        for found in (without, as_negatives)
    ]
    assert figures[0] > figures[1]


@every_reader
def test_where_every_record_is_decided_nothing_changes(read: Read) -> None:
    features, truth, decided = data()
    first, second = (read(features, truth, PARTS, decided=each) for each in (None, np.ones_like(decided)))
    np.testing.assert_array_equal(first.scores, second.scores)
    assert (first.choice, first.validation) == (second.choice, second.validation)


@every_reader
def test_an_open_record_is_as_good_as_none(read: Read) -> None:
    """Of the only class: the same figures without the records. Each open one in training is a copy of another, so that
    mean and spread of the features are the same."""
    features, truth, _ = data()
    train, rest = np.arange(240), np.arange(240, N)
    rest_decided = np.random.default_rng(1).random(len(rest)) < 0.7
    all_features = np.concatenate([features[train], features[train], features[rest]])
    all_truth = np.concatenate([truth[train], ~truth[train], truth[rest]])[:, :1]
    decided = np.concatenate([np.ones(240, bool), np.zeros(240, bool), rest_decided])[:, None]
    parts = Parts(np.arange(480), np.arange(480, 580), np.arange(580, len(all_truth)))
    kept = np.flatnonzero(decided[:, 0])
    fewer = Parts(*(np.searchsorted(kept, part[decided[part, 0]]) for part in dataclasses.astuple(parts)))
    with_open = read(all_features, all_truth, parts, decided=decided)
    removed = read(all_features[kept], all_truth[kept], fewer)
    test = decided[parts.test, 0]
    if read is attended:  # its batches are others
        assert with_open.validation == pytest.approx(removed.validation, abs=0.02)
        return
    assert (with_open.choice, with_open.validation) == pytest.approx((removed.choice, removed.validation), abs=1e-9)
    np.testing.assert_allclose(with_open.scores[test], removed.scores, atol=2e-3 * removed.scores.std())


@pytest.mark.parametrize(("n", "width"), [(240, 10), (60, 100)], ids=["more-records", "more-features"])
def test_every_class_gets_what_scikit_learn_gives_it_from_its_decided_records(n: int, width: int) -> None:
    draw = np.random.default_rng(5)
    features = (draw.normal(size=(n, width)) * draw.uniform(0.1, 9, width) + 3).astype(np.float32)
    exact = features.astype(np.float64)
    standard = (exact - exact.mean(0)) / exact.std(0)
    full = standard[:, :3] + 0.5 * draw.normal(size=(n, 3)) > 0
    decided = ~full | (draw.random(full.shape) < 0.5)
    truth = full & decided
    for found in fit_path(features, truth, [0.01, 1.0], decided):
        for c in range(3):
            rows = decided[:, c]
            alone = LogisticRegression(C=found.strength, tol=1e-10, max_iter=20_000).fit(standard[rows], truth[rows, c])
            expected = alone.decision_function(standard)
            np.testing.assert_allclose(found.scores(features)[:, c], expected, rtol=0, atol=5e-3 * expected.std())


def test_a_class_without_decided_negatives_is_refused_and_left_out() -> None:
    features, truth, decided = data()
    decided[PARTS.train, 1] = truth[PARTS.train, 1]
    with pytest.raises(ValueError, match="positives and negatives"):
        fit_path(features[PARTS.train], truth[PARTS.train], [1.0], decided[PARTS.train])
    assert probe(features, truth, PARTS, decided=decided).unseen == (1,)


def test_neighbours_of_a_class_are_those_that_scikit_learn_finds_among_its_decided_records() -> None:
    features, truth, decided = data()
    known, asked = features[:60] + 0.5, features[60:80] + 0.5
    found = neighbour_scores(known, truth[:60], asked, 7, decided[:60])
    for c in range(3):
        rows = np.flatnonzero(decided[:60, c])
        distance, places = NearestNeighbors(n_neighbors=7, metric="cosine").fit(known[rows]).kneighbors(asked)
        weights = np.clip(1 - distance, 0, None)
        votes = truth[rows[places], c]
        np.testing.assert_allclose(found[:, c], (weights * votes).sum(1) / weights.sum(1), atol=1e-6)


def test_fine_tuning_learns_and_stops_by_decided_records() -> None:
    signal, truth = records()
    decided = ~truth | (np.random.default_rng(3).random(truth.shape) < 0.5)
    decided[:, 1] = True
    all_decided = np.ones_like(decided)
    given = ((truth & decided, decided), (truth ^ ~decided, decided), (truth, None), (truth, all_decided))
    options = FineTuneOptions(epochs=2, batch_size=32)
    first, turned, before, all_of_them = (
        fine_tune(make("vit1d"), Reader(signal[:, :, :50]), labels, TUNED_PARTS, options, decided=known)
        for labels, known in given
    )
    assert first.history == turned.history != before.history == all_of_them.history
    np.testing.assert_array_equal(first.scores, turned.scores)
    np.testing.assert_array_equal(before.scores, all_of_them.scores)


def test_a_step_of_fine_tuning_is_that_of_the_decided_records_alone() -> None:
    """One class, one step over all records at once: the loss is the mean over those that count."""
    signal, truth = records()
    truth = truth[:, :1]
    signal = signal[:, :, :50]
    decided = np.random.default_rng(4).random(truth.shape) < 0.6
    decided[140:] = True
    kept = np.flatnonzero(decided[:, 0])
    fewer = Parts(*(np.searchsorted(kept, part[decided[part, 0]]) for part in dataclasses.astuple(TUNED_PARTS)))
    options = FineTuneOptions(epochs=1, batch_size=256, lr=1e-3, warmup=0)

    def scored(signal: np.ndarray, truth: np.ndarray, parts: Parts, decided: np.ndarray | None) -> np.ndarray:
        return fine_tune(make("vit1d"), AtOnce(signal), truth, parts, options, decided=decided).scores

    with_open = scored(signal, truth ^ ~decided, TUNED_PARTS, decided)
    np.testing.assert_allclose(with_open, scored(signal[kept], truth[kept], fewer, None), atol=1e-5)


class AtOnce(Reader):
    """All rows in one batch."""

    batch = 256


@pytest.fixture(scope="module")
def csn(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("csn")
    build_shards(OpenCodes(folder, 240), folder / "set", SetPlan(SPEC), workers=1)
    return ShardSet.open(folder / "set")


@functools.cache
def _peaks(path: Path) -> np.ndarray:
    shards = ShardSet.open(path)
    return np.stack([shards.read_record(row).millivolts().max(axis=1) for row in range(len(shards))]).astype(np.float32)


def known_by_hand(shards: ShardSet, rows: np.ndarray, finding: str) -> tuple[np.ndarray, np.ndarray]:
    """Truth and decided (n,) as a reader of the codes would have them."""
    said = [by_hand(shards.read_record(row).labels["snomed"], finding) for row in rows.tolist()]
    return np.array([each is True for each in said]), np.array([each is not None for each in said])


def folds(csn: ShardSet) -> ProbeTask:
    return task_of_folds(csn, "chapman", [1], [2], [3])


def protocol(csn: ShardSet) -> ProbeTask:
    return task_of_protocol("clean-v2:csn", csn)


@pytest.mark.parametrize("opened", [folds, protocol])
def test_a_task_says_which_records_leave_which_class_open(csn: ShardSet, opened: Callable) -> None:
    task = opened(csn)
    codes = [code for code, _ in task.names]
    counts = {}
    assert task.decided is not None
    for finding in ("STTU", "STDD"):
        truth, decided = known_by_hand(csn, task.rows, finding)
        np.testing.assert_array_equal(task.truth[:, codes.index(finding)], truth)
        np.testing.assert_array_equal(task.decided[:, codes.index(finding)], decided)
        counts[finding] = int((~decided).sum())
    assert task.decided[:, codes.index("SB")].all()
    assert {code: task.about["left_open"][code] for code in counts} == counts and min(counts.values()) > 10


@pytest.fixture(scope="module")
def result(csn: ShardSet) -> ProbeResult:
    task = folds(csn)
    return probe_table(task, [System("encoder", _peaks(csn.path)[task.rows])], ProbeOptions(bootstrap=50))


def test_the_table_is_over_decided_records_and_says_how_many_are_not(csn: ShardSet, result: ProbeResult) -> None:
    task, peaks = folds(csn), _peaks(csn.path)
    codes = [code for code, _ in task.names]
    fit = probe(peaks[task.rows], task.truth, task.parts, decided=task.decided)
    row = next(row for row in result.rows if row.reader == "linear probe")
    figures = {each["code"]: each for each in row.classes}
    for finding in ("STTU", "STDD"):
        truth, decided = (each[task.parts.test] for each in known_by_hand(csn, task.rows, finding))
        alone = roc_auc_score(truth[decided], fit.scores[decided, codes.index(finding)])
        assert figures[finding]["auroc"] == pytest.approx(alone, abs=1e-12) and alone > 0.97
        assert figures[finding]["positives"] == truth.sum()
        assert roc_auc_score(truth, fit.scores[:, codes.index(finding)]) < alone - 0.02, "as negatives they spoil it"
    assert row.macro == pytest.approx(np.mean([each["auroc"] for each in figures.values()]), abs=1e-12)
    counts = result.to_dict()["task"]["left_open"]
    note = f"neither learnt nor scored for it: STDD ({counts['STDD']}), STTU ({counts['STTU']})"
    assert note in result.table()


def test_a_cell_in_files_is_the_same(csn: ShardSet, result: ProbeResult, tmp_path: Path) -> None:
    task = folds(csn)
    keep_systems(tmp_path / "systems", [System("encoder", _peaks(csn.path)[task.rows])], {})
    keep_task(tmp_path / "task", task, np.arange(len(task.rows)))
    found = run_cell(CellJob(tmp_path / "systems", tmp_path / "task", ProbeOptions(bootstrap=50)))
    assert isinstance(found, ProbeResult)
    assert found.to_dict()["rows"] == result.to_dict()["rows"]


def test_a_cell_of_a_grid_that_knew_nothing_open_is_not_taken_for_one_of_now(csn: ShardSet) -> None:
    task = protocol(csn)
    now, then = (
        OpenTask(load_task("clean-v2:csn"), "csn", each).digest(csn)
        for each in (task, dataclasses.replace(task, decided=None))
    )
    assert now != then


def test_fine_tuning_is_scored_over_decided_records_and_says_how_many_are_not(csn: ShardSet) -> None:
    start: dict[str, object] = {"name": "resnet1d", "width": 4, "heads": 2}
    task = folds(csn)
    assert task.decided is not None
    found, turned = (
        tune(start, csn, dataclasses.replace(task, truth=truth), FineTuneOptions(epochs=1), Runs(bootstrap=20))
        for truth in (task.truth, task.truth ^ ~task.decided)
    )
    assert found.classes == turned.classes and found.macro == turned.macro
    truth, decided = (each[task.parts.test] for each in known_by_hand(csn, task.rows, "STTU"))
    assert next(each for each in found.classes if each["code"] == "STTU")["positives"] == truth[decided].sum()
    assert "neither learnt nor scored for it: STDD" in found.table()
