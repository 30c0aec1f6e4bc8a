"""Whatever one record does to its reader, the others are built; what a walk could not look at is in the list of
rejects; and a reader that fails on most of a set makes no set."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import BuildSummary, SetPlan, build_shards
from cardialign.data_shards.build.shard_task import read_sidecar
from cardialign.data_shards.errors import DataError, RecordRejected
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.base import Entry
from tests.support.small_source import SmallSource
from tests.support.wfdb_files import ecg_counts


class Odd(SmallSource):
    """A reader that fails on some records, each in its own way: number -> what it raises or does to the record."""

    def __init__(self, records: int, faults: dict[int, object]) -> None:
        super().__init__(records)
        self.faults = faults

    def read(self, entry: Entry) -> EcgRecord:
        fault = self.faults.get(entry.meta["number"])
        if isinstance(fault, Exception):
            raise fault
        record = super().read(entry)
        for name, value in (fault or {}).items():  # type: ignore[attr-defined]
            setattr(record, name, value)
        return record


def built(source: SmallSource, out: Path, workers: int = 1) -> BuildSummary:
    return build_shards(source, out, SetPlan(SignalSpec(500, 1), records_per_shard=8), workers=workers)


def rejects(out: Path) -> list[dict[str, str]]:
    with (out / "rejects.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


FAULTS: dict[int, object] = {
    0: ValueError("Invalid cutoff frequency"),
    3: OverflowError("int too large"),
    5: RecursionError("maximum recursion depth exceeded"),
    9: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    10: PermissionError(13, "Permission denied"),
    11: MemoryError(),
    12: ZeroDivisionError("line one\nline two \x1b[2J"),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_record_with_any_failure_is_a_reject_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    caplog.set_level(logging.DEBUG)
    summary = built(Odd(24, FAULTS), tmp_path / "set", workers)
    assert (summary.records, summary.rejected) == (24 - len(FAULTS), {"reader-failed": len(FAULTS)})
    told = {reject["key"]: reject["detail"] for reject in rejects(tmp_path / "set")}
    for number, error in FAULTS.items():
        assert told[f"small-{number:05d}"].startswith(f"undeclared {type(error).__name__} in small: ")
    assert "Invalid cutoff frequency" in told["small-00000"] and r"line two \x1b[2J" in told["small-00012"]
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == len(FAULTS) and all("test_failures.py" in each for each in warnings)
    assert "Traceback (most recent call last)" in caplog.text and "raise fault" in caplog.text
    kept = [number for number in range(24) if number not in FAULTS]
    shards = ShardSet.open(tmp_path / "set")
    assert [shards.key(row) for row in range(len(shards))] == [f"small-{number:05d}" for number in kept]


@pytest.mark.parametrize(
    "change",
    [
        {"age_years": float("nan")},
        {"extra": {"x": object()}},
        {"key": "k" * 91},
        {"statements": ("\udcff",)},
        {"fold": 40000},
    ],
)
def test_metadata_that_a_shard_cannot_hold_costs_its_record_alone(tmp_path: Path, change: dict[str, object]) -> None:
    summary = built(Odd(10, {4: change}), tmp_path / "set")
    assert (summary.records, summary.rejected) == (9, {"bad-metadata": 1})


def test_a_reader_that_fails_on_most_records_makes_no_set_and_the_next_build_reads_them_anew(tmp_path: Path) -> None:
    outage = {number: OSError(5, "Input/output error") for number in range(8, 24)}
    with pytest.raises(DataError, match=r"the reader failed on 16 of 24 records.*OSError in read") as caught:
        built(Odd(24, outage), tmp_path / "set")
    assert "storage" in caught.value.remedy and not (tmp_path / "set/manifest.json").exists()
    assert len(rejects(tmp_path / "set")) == 16
    summary = built(Odd(24, {}), tmp_path / "set")
    assert (summary.records, summary.rejected, summary.resumed_shards) == (24, {}, 1)


@pytest.mark.parametrize(("failing", "made"), [(12, True), (13, False), (24, False)])
def test_more_than_half_of_the_records_is_most(tmp_path: Path, failing: int, made: bool) -> None:
    source = Odd(24, {number: ValueError("a fault of the reader") for number in range(failing)})
    if made:
        assert built(source, tmp_path / "set").records == 24 - failing
        return
    with pytest.raises(DataError, match=f"the reader failed on {failing} of 24 records"):
        built(source, tmp_path / "set")


def test_declared_rejects_are_no_failures_however_many(tmp_path: Path) -> None:
    source = Odd(24, {number: RecordRejected("no-signal", "flat") for number in range(20)})
    assert built(source, tmp_path / "set").rejected == {"no-signal": 20}


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a fault"), RecursionError("too deep"), OSError(5, "Input/output")]
)
def test_a_source_that_fails_while_it_lists_is_a_sentence_with_the_place(tmp_path: Path, error: Exception) -> None:
    class Fails(SmallSource):
        def entries(self):  # type: ignore[no-untyped-def]
            yield from super().entries()
            raise error

    with pytest.raises(
        DataError, match=rf"small: the listing of \. failed after 3 records with {type(error).__name__}"
    ):
        built(Fails(3), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_damaged_plan_or_sidecar_of_an_unfinished_build_is_no_riddle(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(DataError, match="gone"):
        built(Odd(24, {20: DataError("the table is gone")}), out)
    (out / ".build/shard-000000.json").write_text('{"shard": ')
    assert built(Odd(24, {}), out).resumed_shards == 1
    out = tmp_path / "other"
    with pytest.raises(DataError, match="gone"):
        built(Odd(24, {20: DataError("the table is gone")}), out)
    (out / ".build/plan.json").write_bytes(b"\xff{")
    with pytest.raises(DataError, match=r"(?s)plan\.json is damaged.*overwrite"):
        built(Odd(24, {}), out)


def folder(root: Path) -> Path:
    for name in ("a/1", "b/2"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{name}.npy", ecg_counts(1000, gain=1000) / 1000)
    return root


def test_what_the_walk_could_not_look_at_is_counted_and_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(tmp_path / "src")
    (root / "c").symlink_to("/no/such/disk")
    os.mkfifo(root / "pipe.npy")
    source = open_source("arrays", root, sampling_rate=500)
    summary = build_shards(source, tmp_path / "set", SetPlan(SignalSpec(500, 2)), workers=1)
    assert (summary.records, summary.rejected) == (2, {"broken-link": 1, "not-a-file": 1})
    assert [(each["key"], each["path"], each["reason"]) for each in rejects(tmp_path / "set")] == [
        ("", "c", "broken-link"), ("", "pipe.npy", "not-a-file"),
    ]  # fmt: skip
    assert "not looked at source=arrays number=2" in caplog.text
    assert ShardSet.open(tmp_path / "set").manifest["counts"]["rejected"] == summary.rejected


def test_a_set_of_which_nothing_could_be_looked_at_says_why(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/records").symlink_to("/no/such/disk")
    with pytest.raises(DataError, match=r"no record found under .*'records': a link to '/no/such/disk'"):
        list(open_source("arrays", tmp_path / "src").entries())


def test_names_in_the_list_of_rejects_are_no_formulas_and_no_commands(tmp_path: Path) -> None:
    root = folder(tmp_path / "src")
    for name in ("=HYPERLINK(0).npy", "+cmd.npy", "@SUM.npy", "e\x1b[2J.npy"):
        (root / name).write_bytes(b"no array")
    build_shards(
        open_source("arrays", root, sampling_rate=500), tmp_path / "set", SetPlan(SignalSpec(500, 2)), workers=1
    )
    paths = {each["path"] for each in rejects(tmp_path / "set")}
    assert paths == {"'=HYPERLINK(0).npy", "'+cmd.npy", "'@SUM.npy", r"e\x1b[2J.npy"}


def test_a_build_that_was_killed_while_it_listed_owns_nothing_that_others_put_there(tmp_path: Path) -> None:
    """All that it leaves is its lock and an unfinished listing."""
    source = open_source("arrays", folder(tmp_path / "src"), sampling_rate=500)
    out, plan = tmp_path / "set", SetPlan(SignalSpec(500, 2))
    for name in ("lock", ".listing.tmp"):
        (out / ".build").mkdir(parents=True, exist_ok=True)
        (out / ".build" / name).write_bytes(b"")
    (out / "shard-000000.tar").write_bytes(b"somebody's")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="not empty and holds no shard set"):
            build_shards(source, out, plan, workers=1, overwrite=overwrite)
        assert (out / "shard-000000.tar").read_bytes() == b"somebody's"
    (out / "shard-000000.tar").unlink()
    assert build_shards(source, out, plan, workers=1).records == 2


def test_a_set_whose_removal_was_cut_off_is_still_ours(tmp_path: Path) -> None:
    source = open_source("arrays", folder(tmp_path / "src"), sampling_rate=500)
    out, plan = tmp_path / "set", SetPlan(SignalSpec(500, 2))
    build_shards(source, out, plan, workers=1)
    (out / "manifest.json").unlink()
    (out / ".build").mkdir()
    (out / ".build" / "emptying").touch()
    assert build_shards(source, out, plan, workers=1).records == 2
    assert not (out / ".build").exists()


def test_a_recording_that_is_corrected_before_its_build_goes_on_is_the_corrected_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first shard is finished, the second is not; then the file of the first one's second record is replaced."""
    root, out, plan = tmp_path / "src", tmp_path / "set", SetPlan(SignalSpec(500, 2), records_per_shard=2)
    root.mkdir()
    for name in "abcd":
        np.save(root / f"{name}.npy", ecg_counts(1000, gain=1000) / 1000)
    source, seen = open_source("arrays", root, sampling_rate=500), []
    read = source.read
    source.read = lambda entry: seen.append(entry) or (read(entry) if len(seen) < 5 else sys.exit(1))
    with pytest.raises(SystemExit):
        build_shards(source, out, plan, workers=1)
    assert read_sidecar(out, 0) is not None and read_sidecar(out, 1) is None
    unchanged = build_shards_again(out, tmp_path / "copy", root, plan)
    assert unchanged.resumed_shards == 1
    np.save(root / "b.npy", 2 * ecg_counts(1000, gain=1000) / 1000)
    os.utime(root / "b.npy", (2e9, 2e9))
    summary = build_shards(open_source("arrays", root, sampling_rate=500), out, plan, workers=1)
    assert (summary.records, summary.resumed_shards) == (4, 0)
    peaks = [np.abs(ShardSet.open(out).read_record(row).millivolts()).max() for row in range(4)]
    np.testing.assert_allclose(peaks, np.array([1, 2, 1, 1]) * peaks[0], rtol=1e-3)
    assert "made anew shard=0: b.npy was changed after the shard was written" in caplog.text


def build_shards_again(unfinished: Path, copy: Path, root: Path, plan: SetPlan) -> BuildSummary:
    shutil.copytree(unfinished, copy)
    return build_shards(open_source("arrays", root, sampling_rate=500), copy, plan, workers=1)
