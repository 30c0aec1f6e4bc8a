"""A run over two sets: the same samples on one and two workers, the same losses after it was stopped and continued."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.cluster.runs.lifecycle import prepare
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.order.global_order import ORDER_VERSION
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.data_shards.text.joined_bank import JoinedBank
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.checkpoints.state import TrainerState, check_continues
from cardialign.pretrain.training.data import open_bank, open_data, open_sets, total_steps
from cardialign.pretrain.training.loop import TrainResult, train
from tests.support.processes import run_ranks
from tests.support.tiny_shards import RATE, SECONDS, HashingEncoder, TinySource, config_for, make_shards

pytestmark = pytest.mark.processes
STEPS = 6


class OtherSource(TinySource):
    """Half as many records, with some reports of the first set and some of its own."""

    def entries(self) -> list[Entry]:
        return [replace(entry, key=f"other-{entry.key}") for entry in super().entries()[::2]]

    def read(self, entry: Entry) -> EcgRecord:
        record = super().read(entry)
        return (
            record if entry.meta["i"] % 4 else replace(record, statements=("Sinus rhythm", "Right bundle branch block"))
        )


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("mixture")
    build_shards(OtherSource(), root / "other", SetPlan(SignalSpec(RATE, SECONDS), records_per_shard=20), workers=1)
    build_text_bank(ShardSet.open(root / "other"), HashingEncoder())
    return make_shards(root / "tiny"), root / "other"


def mixture_of(sets: tuple[Path, Path], data: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    values = config_for(sets[0], **training).resolved()
    parts = [{"shards": str(sets[0]), "weight": 2.0}, {"shards": str(sets[1])}]
    values["data"] |= {"shards": None, "mixture": parts} | (data or {})
    return parse_config(values)


class Stops(NullObserver):
    def __init__(self, after: int) -> None:
        self.left = after

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


def one_worker(rank: int, world: int, sets: tuple[Path, Path], root: Path) -> TrainResult:
    return train(mixture_of(sets), root / "one", NullObserver())


def two_workers(rank: int, world: int, sets: tuple[Path, Path], root: Path) -> list[TrainResult]:
    runs = (("two", NullObserver()), ("stopped", Stops(2)), ("stopped", NullObserver()))
    return [train(mixture_of(sets), root / name, reporter) for name, reporter in runs]


@pytest.fixture(scope="module")
def runs(sets, tmp_path_factory) -> tuple[Path, list[TrainResult]]:
    root = tmp_path_factory.mktemp("runs")
    two = run_ranks(2, two_workers, sets, root, init=False, deadline=100)
    run_ranks(1, one_worker, sets, root, init=False, deadline=100)
    return root, two[0]


def traced(root: Path, name: str, key: str) -> list[Any]:
    return [line[key] for line in read_trace(root / name)]


@pytest.mark.slow
def test_one_and_two_workers_train_on_the_same_samples(runs) -> None:
    root, _ = runs
    assert len(traced(root, "one", "digest")) == STEPS and traced(root, "one", "digest") == traced(
        root, "two", "digest"
    )
    np.testing.assert_allclose(traced(root, "two", "loss"), traced(root, "one", "loss"), rtol=2e-5)


@pytest.mark.slow
def test_a_stopped_run_continues_as_if_it_had_not_been(runs) -> None:
    root, (_, stopped, rest) = runs
    assert stopped.stopped and (rest.resumed_from, rest.steps, rest.stopped) == (2, STEPS, False)
    for key in ("digest", "loss"):
        assert traced(root, "stopped", key) == traced(root, "two", key)


@pytest.mark.slow
def test_an_encoder_of_a_mixture_is_exported_with_the_fingerprint_of_its_data(runs, sets, tmp_path) -> None:
    prepared = prepare(mixture_of(sets, steps=None, epochs=2))
    assert (prepared["records"], prepared["steps"]) == (90, 14)  # ceil(2 * 90 / 13)
    assert prepared["shards_fingerprint"] == open_sets(mixture_of(sets).data).fingerprint
    exported = export_run(runs[0] / "one", tmp_path / "encoder")
    assert exported["step"] == STEPS
    for file in (tmp_path / "encoder").glob("*.json"):
        assert str(sets[0].parent) not in file.read_text(), "no path of the machine that trained"


def set_of(joined: JoinedSets, rows: np.ndarray) -> np.ndarray:
    """Number of the set of every row."""
    return np.searchsorted(joined.offsets, rows, side="right") - 1


def test_weights_folds_and_windows_shape_the_batches(sets) -> None:
    config = mixture_of(sets, {"folds": [1, 2, 3, 4, 5, 6], "window": 1})
    opened, selection, order = open_data(config)
    assert isinstance(opened, JoinedSets) and isinstance(open_bank(config), JoinedBank)
    for step in range(8):
        assert np.bincount(set_of(opened, order.batch(step))).tolist() == [9, 4]  # 2 : 1 of 13
    folds = np.concatenate([each.fold for each in opened.sets])
    assert set(folds[selection.rows]) <= {1, 2, 3, 4, 5, 6} and total_steps(config, selection.rows.size) == STEPS
    own = [{"shards": str(sets[0]), "folds": [1, 2]}, {"shards": str(sets[1]), "split": "train"}]
    _, of_its_own, _ = open_data(mixture_of(sets, {"mixture": own, "folds": [3, 5]}))
    numbers = set_of(opened, of_its_own.rows)
    assert set(folds[of_its_own.rows][numbers == 0]) == {1, 2} and set(folds[of_its_own.rows][numbers == 1]) <= {3, 5}


def test_what_is_wrong_with_a_set_names_it(sets, tmp_path) -> None:
    with pytest.raises(DataError, match=r"other: \d+ records are selected, its weight in the mixture gives it 7 slots"):
        open_data(
            mixture_of(
                sets, {"mixture": [{"shards": str(sets[0])}, {"shards": str(sets[1]), "folds": [1]}]}, global_batch=14
            )
        )
    with pytest.raises(DataError, match=r"other: "):
        open_data(mixture_of(sets, {"mixture": [{"shards": str(sets[0])}, {"shards": str(sets[1]), "folds": [77]}]}))
    build_shards(OtherSource(), tmp_path / "longer", SetPlan(SignalSpec(RATE, SECONDS * 2)), workers=1)
    with pytest.raises(DataError, match="different signal specs") as caught:
        open_data(mixture_of((sets[0], tmp_path / "longer")))
    assert str(sets[0]) in str(caught.value) and str(tmp_path / "longer") in str(caught.value)
    build_shards(OtherSource(), tmp_path / "bare", SetPlan(SignalSpec(RATE, SECONDS)), workers=1)
    with pytest.raises(UserError, match=r"no text bank of .*bare") as missing:
        open_bank(mixture_of((sets[0], tmp_path / "bare")))
    assert "text-bank build" in missing.value.remedy
    with pytest.raises(UserError, match=r"neither data.shards nor data.mixture is set"):
        open_data(mixture_of(sets, {"mixture": []}))


def test_the_sets_of_a_mixture_may_move_but_not_change_their_weights(sets, tmp_path) -> None:
    config = mixture_of(sets)
    state = TrainerState(2, "0" * 32, json.loads(json.dumps(config.resolved())), "selection", 1, ORDER_VERSION)
    check_continues(state, mixture_of((tmp_path / "a", tmp_path / "b")), "selection", ORDER_VERSION, tmp_path)
    other = mixture_of(sets, {"mixture": [{"shards": str(sets[0]), "weight": 3.0}, {"shards": str(sets[1])}]})
    with pytest.raises(UserError, match=r"data\.mixture\.0\.weight was 2\.0, now 3\.0"):
        check_continues(state, other, "selection", ORDER_VERSION, tmp_path)
