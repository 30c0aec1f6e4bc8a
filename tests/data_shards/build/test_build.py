"""A build is parallel, restartable, the same bytes however it went, and loses no record silently."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.index_rows import write_index
from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.stream.stream import iterate_rows
from tests.support.small_source import SmallSource

SPEC = SignalSpec(500, 1)
ROOT = Path(__file__).parents[3]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def build(out: Path, records: int = 60, **options: object) -> object:
    source = options.pop("source", None) or SmallSource(records)
    plan = {"spec": SPEC, "records_per_shard": 16}
    plan |= {field.name: options.pop(field.name) for field in fields(SetPlan) if field.name in options}
    return build_shards(source, out, SetPlan(**plan), **{"workers": 1} | options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build") / "set"
    build(out, source=SmallSource(60, bad=(3, 40)))
    return out


def test_every_record_is_kept_or_listed_with_its_reason(undisturbed: Path, tmp_path: Path) -> None:
    source = SmallSource(60, bad=(3, 40))
    calls: list[tuple[int, int, int]] = []
    report = build_shards(
        source, tmp_path / "s", SetPlan(SPEC, records_per_shard=16), workers=1, progress=lambda *now: calls.append(now)
    )
    assert (report.records, report.rejected, report.shards) == (58, {"truncated": 2}, 4)
    assert calls[-1] == (60, 60, 2)
    with (tmp_path / "s" / "rejects.csv").open() as file:
        rejects = list(csv.DictReader(file))
    assert [(r["key"], r["path"], r["reason"]) for r in rejects] == [
        ("small-00003", "files/00003", "truncated"),
        ("small-00040", "files/00040", "truncated"),
    ]
    shards = ShardSet.open(tmp_path / "s")
    kept = [entry for entry in source.entries() if entry.meta["number"] not in (3, 40)]
    for row, entry in enumerate(kept):
        wanted, got = source.read(entry), shards.read_record(row)
        assert (
            (got.counts == wanted.counts).all()
            and (got.gain == wanted.gain).all()
            and (got.lead_mask == wanted.lead_mask).all()
        )
        for name in (
            "key",
            "statements",
            "labels",
            "patient",
            "fold",
            "age_years",
            "sex",
            "acquired",
            "quality",
            "valid_samples",
            "source",
        ):
            assert getattr(got, name) == getattr(wanted, name), name
    assert digests(tmp_path / "s") == digests(undisturbed)


def test_the_number_of_workers_does_not_change_a_byte_and_progress_goes_on_within_a_shard(
    undisturbed: Path, tmp_path: Path
) -> None:
    calls: list[tuple[int, int, int]] = []
    source = SmallSource(60, bad=(3, 40), delay=0.04)
    build(tmp_path / "s", source=source, workers=2, progress=lambda *now: calls.append(now))
    assert digests(tmp_path / "s") == digests(undisturbed)
    done = [now[0] for now in calls]
    assert done == sorted(done) and calls[-1] == (60, 60, 2)
    assert any(number % 16 for number in done[:-1]), "progress moved by whole shards only"


BUILD = """
import sys
from pathlib import Path
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.index_rows import write_index
from cardialign.data_shards.record import SignalSpec
from tests.support.small_source import SmallSource
if __name__ == "__main__":
    out, delay = Path(sys.argv[1]), float(sys.argv[4])
    records, workers, limit = (int(sys.argv[at]) for at in (2, 3, 5))
    if limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    source = SmallSource(records, bad=(3, 40), delay=delay)
    build_shards(source, out, SetPlan(SignalSpec(500, 1), records_per_shard=16), workers=workers)
"""


def start(tmp_path: Path, *arguments: object) -> subprocess.Popen:
    script = tmp_path / "run_build.py"
    script.write_text(BUILD)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_a_build_of_two_workers_killed_midway_goes_on_and_ends_in_the_same_bytes(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Its workers must not go on beside the build that resumes it; test_build_kills.py kills a build in one process at
    every point."""
    out = tmp_path / "s"
    process = start(tmp_path, out, 60, 2, 0.04, 0)
    deadline = time.monotonic() + 60
    while not list((out / ".build").glob("shard-*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = len(list(out.glob("shard-*.tar")))
    assert 1 <= finished < 4 and not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="no finished shard set"):
        ShardSet.open(out)
    report = build(out, source=SmallSource(60, bad=(3, 40)))
    assert report.resumed_shards >= 1  # type: ignore[attr-defined]
    assert digests(out) == digests(undisturbed)


class OtherSalt(SmallSource):
    """Hashes patients with another salt and, like every source, does not say which."""

    def read(self, entry):
        record = super().read(entry)
        record.patient += "-salted"
        return record


def unfinished(out: Path) -> None:
    """An unfinished build: a source that breaks on its last record, after three shards are committed."""

    class Breaks(SmallSource):
        def read(self, entry):
            if entry.meta["number"] == 59:
                raise DataError("the table is gone")
            return super().read(entry)

    with pytest.raises(DataError, match="the table is gone"):
        build(out, source=Breaks(60))


class KillsItsProcess(SmallSource):
    """Reading record 40 ends the process the way the kernel does when memory is short, as long as `marker` exists."""

    def __init__(self, records: int, marker: Path) -> None:
        super().__init__(records, bad=(3, 40))
        self.marker = str(marker)

    def read(self, entry):
        if entry.meta["number"] == 40 and os.path.exists(self.marker):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(entry)


def test_a_killed_worker_is_an_error_with_a_remedy_and_the_build_resumes(undisturbed: Path, tmp_path: Path) -> None:
    marker = tmp_path / "memory is short"
    marker.touch()
    source = KillsItsProcess(60, marker)
    with pytest.raises(DataError, match="a build process was killed") as caught:
        build(tmp_path / "s", source=source, workers=2)
    assert "fewer workers" in caught.value.remedy and not (tmp_path / "s" / "manifest.json").exists()
    marker.unlink()
    build(tmp_path / "s", source=source)
    assert digests(tmp_path / "s") == digests(undisturbed)


def test_another_plan_does_not_go_on_in_an_unfinished_build(tmp_path: Path) -> None:
    unfinished(tmp_path)
    assert len(list(tmp_path.glob("shard-*.tar"))) == 3
    changes: list[tuple[dict, str]] = [
        ({"records_per_shard": 8}, "records_per_shard"),
        ({"codec": "npy"}, "codec"),
        ({"folds": [1, 2]}, "folds"),
        ({"limit": 50}, "entries"),
        ({"source": SmallSource(60, seed=1)}, "source"),
        ({"source": OtherSalt(60)}, "first_record"),
    ]
    for change, named in changes:
        with pytest.raises(DataError, match=f"another plan: .*{named}"):
            build(tmp_path, **change)
    assert build(tmp_path).resumed_shards == 3  # type: ignore[attr-defined]


def test_a_finished_set_is_replaced_only_when_asked(tmp_path: Path) -> None:
    build(tmp_path, 20)
    before = digests(tmp_path)
    with pytest.raises(DataError, match="already holds a finished shard set") as caught:
        build(tmp_path, 20)
    assert "overwrite" in caught.value.remedy and digests(tmp_path) == before
    build(tmp_path, source=SmallSource(20, seed=5), overwrite=True)
    assert digests(tmp_path) != before
    build(tmp_path, 20, overwrite=True)
    assert digests(tmp_path) == before


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="not empty"):
            build(tmp_path, overwrite=overwrite)
    with pytest.raises(DataError, match=r"cannot write .*thesis.tex/set"):
        build(tmp_path / "thesis.tex" / "set")
    with pytest.raises(DataError, match="is a file"):
        build(tmp_path / "thesis.tex")
    assert digests(tmp_path).keys() == {"thesis.tex"}


def test_two_builds_do_not_write_one_folder_at_the_same_time(tmp_path: Path) -> None:
    seen: list[str] = []

    def second_build(done: int, total: int, rejected: int) -> None:
        if not seen:
            with pytest.raises(DataError, match="another build is writing") as caught:
                build(tmp_path / "s")
            seen.append(str(caught.value))

    build(tmp_path / "s", progress=second_build)
    assert len(seen) == 1


def test_a_file_size_limit_ends_a_real_build_with_the_bytes_it_needs(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "s"
    process = start(tmp_path, out, 60, 1, 0.0, 20_000)
    _, errors = process.communicate(timeout=60)
    assert (
        process.returncode == 1
        and "DataError: disk full while writing" in errors
        and "bytes; this file needs about" in errors
    )
    assert "run the same build again" in errors
    assert list(out.glob("*.tar")) == [] and list(out.glob(".*.tmp")) == [] and not (out / "manifest.json").exists()
    build(out, source=SmallSource(60, bad=(3, 40)))
    assert digests(out) == digests(undisturbed)


def test_a_full_disk_keeps_finished_shards_and_resumes_with_more_space(tmp_path: Path, undisturbed: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = (undisturbed / "shard-000000.tar").stat().st_size
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={2 * size + 40_000}", "tmpfs", disk], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(DataError, match=r"disk full while writing .* \d+ bytes are free"):
            build(disk / "s", source=SmallSource(60, bad=(3, 40)))
        assert not (disk / "s" / "manifest.json").exists() and not list((disk / "s").glob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        report = build(disk / "s", source=SmallSource(60, bad=(3, 40)))
        assert report.resumed_shards >= 1  # type: ignore[attr-defined]
        assert digests(disk / "s") == digests(undisturbed)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_folds_and_limit_choose_records(tmp_path: Path) -> None:
    build(tmp_path / "a", folds=[2, 4])
    assert set(ShardSet.open(tmp_path / "a").fold.tolist()) == {2, 4}
    build(tmp_path / "b", limit=5)
    assert len(ShardSet.open(tmp_path / "b")) == 5


def test_a_slice_without_a_usable_record_leaves_no_shard(tmp_path: Path) -> None:
    report = build(tmp_path / "a", source=SmallSource(48, bad=tuple(range(16, 32))))
    shards = ShardSet.open(tmp_path / "a")
    assert report.shards == 2 and shards.shard_names == ("shard-000000.tar", "shard-000002.tar")  # type: ignore[attr-defined]
    assert shards.read_record(16).key == "small-00032"


def test_no_usable_record_at_all_is_an_error_that_names_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable record .*'truncated': 5"):
        build(tmp_path / "a", source=SmallSource(5, bad=tuple(range(5))))
    assert not (tmp_path / "a" / "manifest.json").exists() and (tmp_path / "a" / "rejects.csv").exists()


def test_the_fingerprint_does_not_depend_on_the_folder(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "copy")
    assert ShardSet.open(tmp_path / "copy").fingerprint == ShardSet.open(undisturbed).fingerprint
    build(tmp_path / "other", source=SmallSource(60, seed=1))
    assert ShardSet.open(tmp_path / "other").fingerprint != ShardSet.open(undisturbed).fingerprint


def test_impossible_settings_are_usage_errors(tmp_path: Path) -> None:
    for options, named in (
        ({"codec": "zip"}, "codec"),
        ({"records_per_shard": 0}, "records_per_shard"),
        ({"limit": 0}, "limit"),
    ):
        with pytest.raises(UsageError, match=named):
            build(tmp_path / "s", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_real_ptb_xl_goes_from_wfdb_to_shards_and_back(real_data: Path, tmp_path: Path) -> None:
    source = open_source("ptb-xl", real_data / "ptb-xl")
    report = build_shards(source, tmp_path / "s", SetPlan(limit=60), workers=1)
    shards = ShardSet.open(tmp_path / "s")
    assert report.records + sum(report.rejected.values()) == 60 and report.records > 10
    assert {"super", "scp"} <= set(shards.label_sets)
    entries = {entry.key: entry for entry in source.entries()}
    for row in range(len(shards)):
        got = shards.read_record(row)
        wanted = source.read(entries[got.key])
        assert (
            (got.counts == wanted.counts).all()
            and got.statements == wanted.statements
            and dict(got.labels) == dict(wanted.labels)
        )
    batches = list(iterate_rows(shards, shards.select(require_report=True).rows, 16))
    assert all(np.isfinite(batch.signal).all() for batch in batches)


def test_a_key_that_is_listed_twice_is_named_before_anything_is_written(tmp_path: Path) -> None:
    class Repeats(SmallSource):
        def entries(self):
            return [*super().entries(), super().entries()[7]]

    with pytest.raises(DataError, match="'small-00007' occurs more than once"):
        build(tmp_path / "s", source=Repeats(20))
    assert not (tmp_path / "s").exists()


def test_an_index_written_piece_by_piece_holds_every_row_in_order(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ShardSet.open(undisturbed).index
    monkeypatch.setattr("cardialign.data_shards.build.index_rows.ROW_GROUP", 7)
    pieces = [
        piece
        for at, size in ((0, 3), (3, 20), (23, 0), (23, 35))
        for piece in table.slice(at, size).combine_chunks().to_batches()
    ]
    write_index(pieces, tmp_path / "index.parquet")
    written = pq.ParquetFile(tmp_path / "index.parquet")
    assert [written.metadata.row_group(i).num_rows for i in range(written.num_row_groups)] == [7] * 8 + [2]
    ages = ["age_years"]  # hold NaN, which equals nothing
    assert written.read().drop_columns(ages).equals(table.drop_columns(ages))


@pytest.mark.parametrize("spec", [(500, 1e9), (1e5, 1e6), (1e-3, 1), (500, 1e-9)])
def test_a_record_of_more_samples_than_a_shard_holds_or_of_none_is_refused_before_it_takes_memory(spec) -> None:
    with pytest.raises(UsageError, match="samples, a record has 1 to 16,777,216"):
        SetPlan(SignalSpec(*spec))


def test_overwrite_removes_what_a_set_lists_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    build(tmp_path, 20)
    kept = [
        "thesis.tex",
        "shard-of-glass.tar",
        "shard-000099.tar",
        "text_bank/notes.txt",
        "text_bank/old/bank.json/why.txt",
    ]
    for name in kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("years of work")
    build(tmp_path, 20, overwrite=True)
    assert [(tmp_path / name).read_text() for name in kept] == ["years of work"] * len(kept)


@pytest.mark.parametrize(
    ("name", "content"),
    [("manifest.json", '{"manifest_version": 3}'), ("manifest.json", "oops"), (".build/debug.yaml", "swift")],
)
def test_a_project_that_has_a_file_of_one_of_our_names_is_no_set(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    (tmp_path / "index.parquet").write_text("years of work")
    with pytest.raises(DataError, match="holds no shard set"):
        build(tmp_path, overwrite=True)
    assert (tmp_path / "index.parquet").read_text() == "years of work" and (tmp_path / name).read_text() == content
