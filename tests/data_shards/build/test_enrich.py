"""Measured intervals in words: arithmetic by hand, what cannot be is not said, the physiology of virtual patients."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from statistics import median

import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.enrich import enrich_reports
from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.shared.intervals import interval_statements
from tests.support.tiny_shards import TinySource

NO = math.nan


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (
            (820, 40, 140, 204, 296, 596, 45, -30, 61),
            ["RR interval 820 ms", "PR interval 164 ms", "QRS duration 92 ms", "QT interval 392 ms",
             "P axis 45 degrees", "QRS axis -30 degrees", "T axis 61 degrees"],
        ),
        (  # atrial fibrillation: no P wave
            (560, 29999, 29999, 200, 290, 560, 29999, 10, 30),
            ["RR interval 560 ms", "QRS duration 90 ms", "QT interval 360 ms", "QRS axis 10 degrees",
             "T axis 30 degrees"],
        ),
        ((29999, 29999, 29999, 29999, 29999, 29999, 29999, 29999, 29999), []),
        ((NO,) * 9, []),
        ((0, 300, 310, 200, 190, 250, 999, 999, 999), []),  # in no order
        ((1000, -5, 0, 200, 300, 600, 270, -180, 359), [
            "RR interval 1000 ms", "QRS duration 100 ms", "QT interval 400 ms",
            "P axis -90 degrees", "QRS axis 180 degrees", "T axis -1 degrees",
        ]),
    ],
)  # fmt: skip
def test_what_was_measured_is_said_and_what_was_not_is_not(measured: tuple[float, ...], said: list[str]) -> None:
    assert list(interval_statements(measured)) == said


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    findings = ("NORM", "SBRAD", "STACH", "LBBB", "1AVB", "AFIB")
    root = tmp_path_factory.mktemp("enrich") / "patients"
    return make_cohort(root, Cohort(patients=40, records=60, seed=4, sampling_rate=100, findings=findings)).path


@pytest.fixture(scope="module")
def shards(cohort: Path) -> Path:
    source = open_source("mimic-iv-ecg", cohort, labels=str(cohort / "truth.csv"))
    return build_shards(source, cohort.parent / "shards", SetPlan(SignalSpec(100, 2.5)), workers=1).path


def statements(shard_set: ShardSet) -> list[tuple[str, ...]]:
    table = [tuple(each) for each in shard_set.reports.column("statements").to_pylist()]
    return [table[number] if number >= 0 else () for number in shard_set.report.tolist()]


def test_every_report_keeps_its_words_and_gains_the_numbers_of_its_own_row(
    cohort: Path, shards: Path, tmp_path: Path
) -> None:
    figures = enrich_reports(ShardSet.open(shards), cohort, tmp_path / "out")
    plain, other = ShardSet.open(shards), ShardSet.open(shards, reports=tmp_path / "out")
    with (cohort / "machine_measurements.csv").open(encoding="utf-8") as file:
        rows = {row["study_id"]: row for row in csv.DictReader(file)}
    for row, (before, after) in enumerate(zip(statements(plain), statements(other), strict=True)):
        assert after[: len(before)] == before
        measured = rows.get(plain.key(row).removeprefix("mimic-"))
        if measured is None:
            assert after == before
            continue
        added = dict(re.fullmatch(r"(.+?) (-?\d+) (?:ms|degrees)", each).groups() for each in after[len(before) :])  # type: ignore[union-attr]
        assert added["RR interval"] == measured["rr_interval"]
        assert int(added["QRS duration"]) == int(measured["qrs_end"]) - int(measured["qrs_onset"])
        assert ("PR interval" in added) == (measured["p_onset"] != "29999")
    assert figures["distinct_reports"] == {"before": plain.report_count, "after": other.report_count}
    assert plain.report_count < other.report_count == len({s for s in statements(other) if s})
    (step,) = other.overlay.made  # type: ignore[union-attr]
    assert step["kind"] == "intervals"


def test_the_words_say_what_the_hearts_do(cohort: Path, shards: Path, tmp_path: Path) -> None:
    enrich_reports(ShardSet.open(shards), cohort / "machine_measurements.csv", tmp_path / "out")
    other = ShardSet.open(shards, reports=tmp_path / "out")
    said = statements(other)

    def typical(code: str, name: str) -> float:
        codes, truth, _ = other.labels(range(len(other)), "finding")  # type: ignore[arg-type]
        rows = [r for r in range(len(other)) if truth[r, codes.index(code)]]
        numbers = [int(m[1]) for r in rows for s in said[r] if (m := re.fullmatch(rf"{name} (\d+) ms", s))]
        return median(numbers)

    assert typical("STACH", "RR interval") < 600 < 1000 < typical("SBRAD", "RR interval")
    assert typical("LBBB", "QRS duration") >= 120 > typical("NORM", "QRS duration")
    assert typical("1AVB", "PR interval") > 200 > typical("NORM", "PR interval")


def test_another_source_another_table_and_none_are_refused(cohort: Path, shards: Path, tmp_path: Path) -> None:
    tiny = build_shards(TinySource(), tmp_path / "tiny", SetPlan(SignalSpec(100, 2.5)), workers=1).path
    with pytest.raises(UserError, match="was built from tiny, whose tables hold no measured intervals"):
        enrich_reports(ShardSet.open(tiny), cohort, tmp_path / "out")
    with pytest.raises(UserError, match=r"no machine_measurements.csv at"):
        enrich_reports(ShardSet.open(shards), tmp_path / "nowhere", tmp_path / "out")
    lines = (cohort / "machine_measurements.csv").read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join([lines[0], *(re.sub(r"^(\d+),\d", r"\1,9", x) for x in lines[1:])]))
    with pytest.raises(DataError, match=r"has a row for 0 of the \d+ records with a report"):
        enrich_reports(ShardSet.open(shards), tmp_path / "other.csv", tmp_path / "out")
    (tmp_path / "bare.csv").write_text("subject_id,study_id,report_0\n1,2,x\n")
    with pytest.raises(DataError, match="rr_interval"):
        enrich_reports(ShardSet.open(shards), tmp_path / "bare.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_with_half_of_the_rows_or_two_of_one_study_is_told(
    cohort: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head, *rows = (cohort / "machine_measurements.csv").read_text().splitlines()
    place = head.split(",").index("rr_interval")
    words = rows[0].split(",")
    words[place] = "1"
    (tmp_path / "half.csv").write_text("\n".join([head, *rows[: len(rows) // 2], ",".join(words)]))
    figures = enrich_reports(ShardSet.open(shards), tmp_path / "half.csv", tmp_path / "out")
    told = [each for each in caplog.records if "has a row for" in each.getMessage()]
    assert [each.levelname for each in told] == ["WARNING"] and figures["matched"] == len(rows) // 2
    assert "1 ids stand in several rows of half.csv that say different things" in caplog.text


def test_measurements_of_another_subject_are_nobodys_and_a_table_sorted_by_one_column_is_refused(
    cohort: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The set knows hashes of patients alone: yet two records of one patient are never of two subjects."""
    with (cohort / "machine_measurements.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    plain = ShardSet.open(shards)
    twice = next(s for s in {r["subject_id"] for r in rows} if sum(r["subject_id"] == s for r in rows) == 2)
    moved = next(row for row in rows if row["subject_id"] == twice)

    def write(name: str, subjects: list[str]) -> Path:
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "subject_id": subject} for row, subject in zip(rows, subjects, strict=True))
        return tmp_path / name

    table = write("moved.csv", ["99999999" if row is moved else row["subject_id"] for row in rows])
    enrich_reports(plain, table, tmp_path / "out")
    said, before = statements(ShardSet.open(shards, reports=tmp_path / "out")), statements(plain)
    own = {plain.key(row) for row in range(len(plain)) if said[row] == before[row]} - {
        plain.key(row) for row in range(len(plain)) if not before[row]
    }
    assert own == {f"mimic-{row['study_id']}" for row in rows if row["subject_id"] == twice}
    assert "the shards and moved.csv disagree on 2 of the" in caplog.text
    everybody = write("one.csv", [rows[0]["subject_id"]] * len(rows))
    with pytest.raises(DataError, match=r"subject_id: the shards and one.csv disagree on (\d+) of the \1 records"):
        enrich_reports(plain, everybody, tmp_path / "refused")
