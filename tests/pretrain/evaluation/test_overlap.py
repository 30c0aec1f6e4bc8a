"""An encoder is not scored on what it was trained on, unless that is asked for, and then every figure says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.pages.run_page import _notes
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.splits import SplitRule
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.shared.patients import patient_hash
from cardialign.pretrain.evaluation.overlap import FOUND, NONE, UNKNOWN, find_overlap
from cardialign.pretrain.evaluation.zero_shot import evaluate_zero_shot
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from cardialign.pretrain.export.trained_on import TrainedOn, TrainedSet, chosen, trained_set
from cardialign.pretrain.run.integrity import PROVENANCE, VerifiedExport
from tests.support.planted_source import PlantedSource
from tests.support.small_encoder import SPEC, small_config


class Salted(PlantedSource):
    """The planted records, their patients hashed with a salt, published under the name of their source."""

    def __init__(self, root: Path, salt: str, name: str = "planted", first: int = 0) -> None:
        super().__init__(root)
        self.salt, self.name, self.first = salt, name, first

    def entries(self):
        return super().entries()[self.first :]

    def read(self, entry):
        record = super().read(entry)
        return dataclasses.replace(record, patient=patient_hash(record.patient, Secret(self.salt)), source=self.name)

    def describe(self) -> dict:
        return {"name": self.name, "options": {"salted": bool(self.salt)}}


def built(folder: Path, salt: str, name: str = "planted", first: int = 0) -> ShardSet:
    target = folder / f"{name}-{salt}-{first}"
    build_shards(Salted(folder, salt, name, first), target, SetPlan(SPEC, records_per_shard=50), workers=1)
    return ShardSet.open(target)


class Copied(Salted):
    """Its last record is the very recording of its first, under another patient."""

    def read(self, entry):
        record, entries = super().read(entry), self.entries()
        return record if entry != entries[-1] else dataclasses.replace(record, counts=super().read(entries[0]).counts)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return built(tmp_path_factory.mktemp("mine"), "a")


def seen(shard_set: ShardSet, rows: np.ndarray, folds: tuple[int, ...] | None = None) -> LoadedEncoder:
    """An encoder that says that it was trained on these rows."""
    encoder = untrained_encoder(small_config(), SPEC)
    encoder.trained_on = TrainedOn((trained_set(shard_set, rows, chosen(folds, None)),))
    return encoder


def rows_of(shard_set: ShardSet, fold: int) -> np.ndarray:
    return shard_set.select(folds=[fold]).rows


def numbered(shard_set: ShardSet, numbers: range) -> np.ndarray:
    """Rows of the records that the source gave these numbers."""
    wanted = {f"planted-{number:04d}" for number in numbers}
    return np.array([row for row in range(len(shard_set)) if shard_set.key(row) in wanted])


def test_the_same_folds_are_found_and_other_folds_are_not(mine: ShardSet) -> None:
    one, two = rows_of(mine, 1), rows_of(mine, 2)
    encoder = seen(mine, one, (1,))
    found = find_overlap(encoder, mine, one)
    assert (found.status, found.records, found.recordings) == (FOUND, len(one), len(one))
    assert found.patients == len(np.unique(mine.patients[one])) and "folds 1" in found.note
    nothing = find_overlap(encoder, mine, two)
    assert (nothing.status, nothing.records) == (NONE, 0) and f"none of these {len(two)} records" in nothing.note
    assert find_overlap(encoder, mine, np.concatenate([one[:3], two])).records == 3


def test_another_record_of_a_trained_patient_is_found_by_the_patient(mine: ShardSet) -> None:
    first, second = (
        numbered(mine, range(0, 120, 2)),
        numbered(mine, range(1, 120, 2)),
    )  # the two records of each patient
    found = find_overlap(seen(mine, first), mine, second)
    assert (found.status, found.records, found.patients, found.recordings) == (FOUND, 60, 60, 0)


def test_a_set_that_was_built_again_with_another_salt_or_by_another_source_is_found_by_recording(
    mine: ShardSet, tmp_path: Path
) -> None:
    encoder = seen(mine, numbered(mine, range(40)))
    for other in (built(tmp_path, "b"), built(tmp_path, "", "elsewhere")):
        found = find_overlap(encoder, other, numbered(other, range(30, 120)))
        assert (found.status, found.records, found.recordings) == (FOUND, 10, 10)


def test_what_salts_hide_is_unknown_and_never_no_overlap(mine: ShardSet, tmp_path: Path) -> None:
    rest = built(tmp_path, "b", first=40)
    told = find_overlap(seen(mine, numbered(mine, range(40))), rest, np.arange(len(rest)))
    assert told.status == UNKNOWN and "salt" in told.note
    same_salt = built(tmp_path, "a", first=39)  # its first record is of a patient of the others
    told = find_overlap(seen(mine, numbered(mine, range(40))), same_salt, numbered(same_salt, range(40, 120)))
    assert told.status == NONE


def test_equal_numbers_of_other_people_are_no_overlap(mine: ShardSet, tmp_path: Path) -> None:
    """Two publishers both number their patients from 1: unsalted, the hashes are equal."""
    ours, theirs = built(tmp_path, "", "ours"), built(tmp_path, "", "theirs", first=60)
    told = find_overlap(seen(ours, numbered(ours, range(60))), theirs, np.arange(len(theirs)))
    assert told.status != FOUND and told.records == 0


def test_a_trained_recording_that_came_back_in_another_gain_and_under_another_name_is_never_called_unseen(
    mine: ShardSet, tmp_path: Path
) -> None:
    """The same voltages, written to plain arrays and built with a gain of 800 per mV: other counts, other patients."""
    rows, files = numbered(mine, range(12)), tmp_path / "arrays"
    files.mkdir()
    for number, row in enumerate(rows):
        np.save(files / f"x{number}.npy", mine.read_record(int(row)).millivolts())
    again = arrays(files, tmp_path / "again")
    stored, voltages = mine.read_record(int(rows[0])), again.read_record(0)
    assert np.allclose(voltages.millivolts(), stored.millivolts(), atol=2e-3), "one recording"
    told = find_overlap(seen(mine, rows), again, np.arange(len(again)))
    assert (told.status, told.records) == (UNKNOWN, 0)
    assert "planted and arrays number their patients" in told.note and "scaled" in told.note
    for number, row in enumerate(rows):  # and once more, from arrays that somebody rounded and renamed
        np.save(files / f"y{number}.npy", mine.read_record(int(row)).millivolts().round(2))
        (files / f"x{number}.npy").unlink()
    renamed = arrays(files, tmp_path / "renamed")
    told = find_overlap(seen(again, np.arange(len(again))), renamed, np.arange(len(renamed)))
    assert told.status == UNKNOWN and "own table" in told.note


def arrays(files: Path, target: Path) -> ShardSet:
    source = open_source("arrays", files, sampling_rate=SPEC.sampling_rate, gain=800)
    build_shards(source, target, SetPlan(SPEC), workers=1)
    return ShardSet.open(target)


def test_an_export_that_carries_no_records_is_unknown_but_for_its_own_set(mine: ShardSet, tmp_path: Path) -> None:
    old = untrained_encoder(small_config(), SPEC)
    old.trained_on = None
    old.provenance = {"training": {"steps": 3}}
    assert find_overlap(old, mine, np.arange(9)).status == UNKNOWN
    config = small_config(data={"folds": [1]})
    old = untrained_encoder(config, SPEC)
    old.trained_on = None
    old.provenance = {"training": {"shards_fingerprint": mine.fingerprint}}
    assert find_overlap(old, mine, rows_of(mine, 1)).records == len(rows_of(mine, 1))
    told = find_overlap(old, mine, rows_of(mine, 2))
    assert told.status == UNKNOWN and "does not say" in told.note
    assert find_overlap(old, built(tmp_path, "b"), np.arange(9)).status == UNKNOWN


def test_facts_without_digests_still_tell_the_folds_and_the_split_of_their_own_set(mine: ShardSet) -> None:
    encoder, rule = untrained_encoder(small_config(), SPEC), SplitRule("test")
    facts = {"fingerprint": mine.fingerprint, **chosen(None, rule)}
    encoder.trained_on = TrainedOn((TrainedSet(facts),), ("the shards were away",))
    assert find_overlap(encoder, mine, mine.select(split=rule).rows).status == FOUND
    assert find_overlap(encoder, mine, mine.select(split="train").rows).status == UNKNOWN


def test_scoring_is_refused_and_when_asked_for_named_with_the_figures(mine: ShardSet, prompts: Path) -> None:
    encoder = seen(mine, rows_of(mine, 1), (1,))
    with pytest.raises(UserError, match=r"was trained on what is to be scored(.|\n)*--allow-trained") as caught:
        evaluate_zero_shot(encoder, mine, prompts=prompts, bootstrap=5)
    assert f"{len(mine.select(folds=[1], label_set='finding').rows)} of 103 records" in caught.value.problem
    result = evaluate_zero_shot(encoder, mine, prompts=prompts, bootstrap=5, allow_trained=True)
    assert result.to_dict()["trained_on"]["status"] == FOUND
    assert "TRAINED ON WHAT IT IS SCORED ON" in result.table()
    assert any("TRAINED ON WHAT IT IS SCORED ON" in note for note in _notes(result.to_dict()))
    other = evaluate_zero_shot(encoder, mine, prompts=prompts, folds=[2], bootstrap=5)
    assert "trained on: none of these" in other.table() and other.trained_on["records"] == 0


def test_what_was_written_with_the_export_is_read_back(mine: ShardSet, tmp_path: Path) -> None:
    written = seen(mine, rows_of(mine, 2), (2,)).trained_on
    assert written is not None
    written.write(tmp_path)
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    told = {**content, PROVENANCE: json.dumps({"trained_on": written.to_dict()}).encode()}
    read = TrainedOn.read(VerifiedExport(tmp_path, {}, told))
    assert read is not None and read.sets[0].facts == written.sets[0].facts
    for name in ("patients", "recordings"):
        np.testing.assert_array_equal(getattr(read.sets[0], name), getattr(written.sets[0], name))
    assert TrainedOn.read(VerifiedExport(tmp_path, {}, {**content, PROVENANCE: b"{}"})) is None


def test_a_recording_under_two_patients_is_told_beside_the_figures(
    tmp_path: Path, mine: ShardSet, prompts: Path
) -> None:
    made = build_shards(Copied(tmp_path, "b"), tmp_path / "copied", SetPlan(SPEC, records_per_shard=50), workers=1)
    copied, encoder = ShardSet.open(made.path), untrained_encoder(small_config(), SPEC)
    every = np.arange(len(copied))
    assert find_overlap(encoder, copied, every).twice == 1 and find_overlap(encoder, mine, every).twice == 0
    assert find_overlap(encoder, copied, every[:-1]).twice == 0, "the other copy is not scored"
    told = evaluate_zero_shot(encoder, copied, prompts=prompts, bootstrap=2).table()
    assert "1 recording stands under several patients: the intervals take these for different people" in told
