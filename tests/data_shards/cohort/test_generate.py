"""Cohorts on disk: the layouts, their tables, the same bytes for the same seed, and clear errors."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wfdb

from cardialign.data_shards.cohort.findings import FINDINGS
from cardialign.data_shards.cohort.generate import Cohort, CohortSummary, make_cohort
from cardialign.data_shards.cohort.layouts.mimic_iv_ecg import measuring_cart
from cardialign.data_shards.cohort.patients import plan_cohort
from cardialign.data_shards.cohort.synthesis import UNKNOWN
from cardialign.data_shards.errors import DataError, UsageError, UserError

ROOT = Path(__file__).parents[3]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(path.relative_to(folder).as_posix().encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def mimic(tmp_path_factory: pytest.TempPathFactory) -> CohortSummary:
    return make_cohort(tmp_path_factory.mktemp("mimic") / "cohort", Cohort(patients=55, records=120, seed=5))


@pytest.fixture(scope="module")
def ptb_xl(tmp_path_factory: pytest.TempPathFactory) -> CohortSummary:
    return make_cohort(
        tmp_path_factory.mktemp("ptbxl") / "cohort", Cohort(patients=25, records=44, seed=6, layout="ptb-xl")
    )


def test_mimic_records_read_in_wfdb_with_lead_order_gain_and_checksum(mimic: CohortSummary):
    rows = table(mimic.path / "record_list.csv")
    assert len(rows) == mimic.records == 120
    assert len({r["study_id"] for r in rows}) == 120
    limb_off = 0
    for row in rows:
        assert (
            row["path"] == f"files/p{row['subject_id'][:4]}/p{row['subject_id']}/s{row['study_id']}/{row['study_id']}"
        )
        record = wfdb.rdrecord(str(mimic.path / row["path"]), physical=False)
        counts = record.d_signal
        assert record.sig_name == ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"]
        assert (record.fs, record.sig_len, set(record.adc_gain), set(record.baseline), set(record.fmt)) == (
            500,
            5000,
            {200.0},
            {0},
            {"16"},
        )
        raw = np.frombuffer((mimic.path / (row["path"] + ".dat")).read_bytes(), "<i2").reshape(5000, 12)
        assert np.array_equal(counts, raw)
        assert [c % 65536 for c in record.checksum] == [int(x) for x in raw.sum(axis=0, dtype=np.int64) % 65536]
        assert record.init_value == raw[0].tolist()
        assert record.comments == [f"<subject_id>: {row['subject_id']}"]
        assert record.base_datetime.strftime("%Y-%m-%d %H:%M:%S") == row["ecg_time"]
        one, two, three, avr, avf, avl = counts[:, :6].T.astype(int)
        assert (
            max(np.abs(three - two + one).max(), np.abs(2 * avr + one + two).max(), np.abs(2 * avf - two - three).max())
            <= 2
        )
        assert np.abs(2 * avl - one + three).max() <= 2
        limb_off += not one.any()
        assert np.abs(two).max() < 3000, "millivolts, not volts"
    assert limb_off < 8


def test_mimic_tables_belong_together(mimic: CohortSummary):
    records = {r["study_id"]: r for r in table(mimic.path / "record_list.csv")}
    measurements = {r["study_id"]: r for r in table(mimic.path / "machine_measurements.csv")}
    truth: dict[str, set[str]] = {}
    for row in table(mimic.path / "truth.csv"):
        assert row["label_set"] == "finding" and row["label"] in FINDINGS
        truth.setdefault(row["study_id"], set()).add(row["label"])
    assert set(truth) == set(records) and set(measurements) <= set(records)
    assert len(next(iter(measurements.values()))) == 33
    people = {r["subject_id"]: r for r in table(mimic.path / "patients.csv")}
    assert set(people) == {r["subject_id"] for r in records.values()} and len(people) == mimic.patients
    assert all(18 <= int(p["anchor_age"]) <= 91 and p["gender"] in "MF" for p in people.values())
    for study, row in measurements.items():
        intervals = {k: int(row[k]) for k in ("p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "rr_interval")}
        no_p = bool(truth[study] & {"AFIB", "AFLT", "3AVB"})
        if no_p:
            assert intervals["p_onset"] == intervals["p_end"] == int(row["p_axis"]) == UNKNOWN
        elif "PACE" not in truth[study]:
            assert intervals["p_onset"] < intervals["p_end"] < intervals["qrs_onset"]
        assert intervals["qrs_onset"] < intervals["qrs_end"] < intervals["t_end"] < 1000
        if "LBBB" in truth[study]:
            assert intervals["qrs_end"] - intervals["qrs_onset"] >= 130
        if "STACH" in truth[study]:
            assert intervals["rr_interval"] < 610
        assert row["report_0"] and row["ecg_time"] == records[study]["ecg_time"]


def test_times_of_a_patient_increase_and_chronic_findings_stay(mimic: CohortSummary):
    plan = plan_cohort(55, 120, "mimic-iv-ecg", 5, "balanced", tuple(FINDINGS))
    assert max(len(p.visits) for p in plan) > 2
    for patient in plan:
        times = [v.time for v in patient.visits]
        assert times == sorted(set(times))
        assert all(set(patient.chronic) <= set(v.findings) for v in patient.visits)
    assert sum(len(p.visits) for p in plan) == 120


def test_every_finding_has_25_of_1000_and_about_an_eighth_is_normal():
    for layout in ("mimic-iv-ecg", "ptb-xl"):
        for seed in range(4):
            plan = plan_cohort(400, 1000, layout, seed, "balanced", tuple(FINDINGS))
            counts = Counter(f for p in plan for v in p.visits for f in v.findings)
            assert min(counts[c] for c in FINDINGS) >= 25, counts
            assert 110 <= counts["NORM"] <= 165
    clinical = plan_cohort(400, 1000, "mimic-iv-ecg", 0, "clinical", tuple(FINDINGS))
    counts = Counter(f for p in clinical for v in p.visits for f in v.findings)
    assert counts["SBRAD"] > 8 * counts["PERI"]


def test_measurement_rows_are_missing_about_as_often_as_in_the_real_set():
    plan = plan_cohort(1000, 3000, "mimic-iv-ecg", 1, "balanced", tuple(FINDINGS))
    missing = np.mean([measuring_cart(p, v, 1) is None for p in plan for v in p.visits])
    assert abs(missing - 0.0132) < 0.007


def test_ptb_xl_has_both_rates_folds_codes_and_reports(ptb_xl: CohortSummary):
    rows = table(ptb_xl.path / "ptbxl_database.csv")
    statements = {r[""]: r for r in table(ptb_xl.path / "scp_statements.csv")}
    assert len(rows) == 44 and len(rows[0]) == 28
    folds: dict[str, set[str]] = {}
    for row in rows:
        low, high = (wfdb.rdrecord(str(ptb_xl.path / row[k])) for k in ("filename_lr", "filename_hr"))
        assert (low.fs, low.sig_len, high.fs, high.sig_len) == (100, 1000, 500, 5000)
        assert high.sig_name == ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]
        assert np.median(np.abs(low.p_signal - high.p_signal[::5])) < 0.05
        assert set(high.adc_gain) == {1000.0}
        codes = ast.literal_eval(row["scp_codes"])
        assert codes and set(codes) <= set(statements)
        assert row["report"]
        folds.setdefault(row["patient_id"], set()).add(row["strat_fold"])
    assert all(len(f) == 1 for f in folds.values()) and len(set.union(*folds.values())) == 10
    assert {c for f in FINDINGS.values() for c, _ in f.scp} <= set(statements)
    truth = {(r["ecg_id"], r["label"]) for r in table(ptb_xl.path / "truth.csv")}
    for row in rows:
        assert ("NORM" in ast.literal_eval(row["scp_codes"])) == ((row["ecg_id"], "NORM") in truth)


def test_paediatric_layout_goes_from_newborn_to_fifteen(tmp_path: Path):
    made = make_cohort(tmp_path / "children", Cohort(patients=26, seed=2, layout="paediatric"))
    rows = table(made.path / "records.csv")
    assert len(rows) == made.records
    ages = [float(r["age_years"]) for r in rows]
    assert 0 <= min(ages) < 28 / 365 and max(ages) < 17 and any(int(r["age_days"]) < 28 for r in rows)
    for row in rows:
        with np.load(made.path / row["path"]) as file:
            signal = file["signal"]
        assert signal.dtype == np.float32 and signal.shape == (12, int(row["n"])) and int(row["n"]) >= 5000
        assert 0.2 < np.abs(signal).max() < 20
    assert {r["label"] for r in table(made.path / "truth.csv")}.isdisjoint({"OIMI", "OAMI", "ASTE"})


@pytest.mark.processes
def test_same_seed_same_bytes_whatever_the_worker_count(tmp_path: Path):
    options = {"patients": 34, "records": 44, "sampling_rate": 200}
    alone = make_cohort(tmp_path / "a", Cohort(seed=3, **options), workers=1)
    together = make_cohort(tmp_path / "b", Cohort(seed=3, **options), workers=2)
    other = make_cohort(tmp_path / "c", Cohort(seed=4, **options), workers=1)
    assert digest(alone.path) == digest(together.path) != digest(other.path)
    assert alone.findings == together.findings


@pytest.mark.parametrize(
    ("layout", "file", "column"),
    [
        ("mimic-iv-ecg", "record_list.csv", "subject_id"),
        ("ptb-xl", "ptbxl_database.csv", "patient_id"),
        ("paediatric", "records.csv", "patient_id"),
        ("lifespan", "records.csv", "patient_id"),
    ],
)
def test_cohorts_of_two_seeds_have_no_patient_in_common(tmp_path: Path, layout: str, file: str, column: str):
    people = [
        {row[column] for row in table(make_cohort(tmp_path / str(seed), plan).path / file)}
        for seed in (0, 1)
        for plan in [Cohort(patients=3, records=3, seed=seed, layout=layout)]
    ]
    assert len(people[0]) == len(people[1]) == 3 and not people[0] & people[1]


def test_findings_can_be_restricted_and_the_summary_says_so(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    made = make_cohort(
        tmp_path / "c",
        Cohort(patients=40, records=50, findings=["NORM", "AFIB", "LBBB"], sampling_rate=100),
        progress=lambda *at: seen.append(at),
    )
    assert set(made.findings) == {"NORM", "AFIB", "LBBB"}
    summary = json.loads((made.path / "cohort.json").read_text())
    assert summary["records_per_finding"] == made.findings and summary["records"] == 50 and summary["seed"] == 0
    assert list(summary["findings"]) == ["NORM", "AFIB", "LBBB"]
    assert seen[-1] == (40, 40)


def test_without_normal_everyone_has_a_finding():
    for codes in (("LBBB",), ("AFLT",), ("LBBB", "PVC")):
        plan = plan_cohort(30, 60, "mimic-iv-ecg", 0, "balanced", codes)
        assert {f for p in plan for v in p.visits for f in v.findings} == set(codes)


def test_an_existing_folder_is_left_alone(tmp_path: Path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("do not lose")
    with pytest.raises(UserError, match="exists already") as caught:
        make_cohort(out, Cohort(patients=1))
    assert "choose another folder" in caught.value.remedy
    assert (out / "thesis.txt").read_text() == "do not lose"


@pytest.mark.processes
def test_a_killed_run_is_recognised_and_made_anew(tmp_path: Path):
    script = (
        "import sys\nfrom cardialign.data_shards.cohort.generate import Cohort, make_cohort\n"
        "def stop(done, total):\n    print(done, flush=True)\n    sys.stdin.read()\n"
        "make_cohort(sys.argv[1], Cohort(patients=40, records=40, sampling_rate=100), progress=stop)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "c")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None and int(child.stdout.readline()) < 40, "killed in the middle"
    child.kill()
    child.communicate(timeout=30)
    left = tmp_path / "c.unfinished"
    assert not (tmp_path / "c").exists() and (left / "COHORT-UNFINISHED").exists()
    (left / "half.dat").write_bytes(b"x")
    again = make_cohort(tmp_path / "c", Cohort(patients=40, records=40, sampling_rate=100))
    fresh = make_cohort(tmp_path / "d", Cohort(patients=40, records=40, sampling_rate=100))
    assert not left.exists() and digest(again.path) == digest(fresh.path)


def test_a_foreign_folder_in_the_way_is_not_removed(tmp_path: Path):
    foreign = tmp_path / "c.unfinished"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("do not lose")
    with pytest.raises(UserError, match="in the way"):
        make_cohort(tmp_path / "c", Cohort(patients=1))
    assert (foreign / "thesis.txt").exists()


def test_all_wrong_options_are_named_at_once(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        make_cohort(
            tmp_path / "c",
            Cohort(patients=5, records=2, layout="mimic", findings=["AFIB", "XYZ"], prevalence="some"),
            workers=-1,
        )
    for word in ("records (2)", "'mimic'", "XYZ", "'some'", "workers", "ptb-xl", "clinical"):
        assert word in caught.value.problem
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="500 and 100"):
        make_cohort(tmp_path / "c", Cohort(patients=5, layout="ptb-xl", sampling_rate=250))


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write the cohort"):
        make_cohort(tmp_path / "file" / "c", Cohort(patients=1))
