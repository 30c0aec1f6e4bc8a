"""Every trap that the real recordings hold, one test each, on files that hold the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal.conform import conform
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import MIMIC_LEADS, ecg_counts, write_record

REPORTS = [f"report_{k}" for k in range(18)]
PTB_COLUMNS = "ecg_id,patient_id,age,sex,recording_date,report,scp_codes,strat_fold,filename_lr,filename_hr\n"


def read_only(name: str, root: Path, **options: object) -> EcgRecord:
    """The one record of a folder."""
    source = open_source(name, root, **options)
    (entry,) = source.entries()
    return source.read(entry)


def challenge(
    root: Path, counts: np.ndarray, *, gains: str | list[str] = "1000/mV", comments: tuple[str, ...] = (), **header: str
) -> EcgRecord:
    """One record in Challenge form, `comments` written to the header as they stand."""
    path = write_record(
        root / "E00001", counts, gains=gains, storage="16+24", prefix=b"\0" * 24, suffix=".mat", **header
    )
    with path.with_name("E00001.hea").open("a") as stream:
        stream.writelines(f"{comment}\n" for comment in comments)
    return read_only("challenge", root)


def mimic(
    root: Path, reports: dict[str, dict[str, str]], studies: tuple[str, ...] = ("45106466",), **change: np.ndarray
) -> Path:
    """MIMIC-IV-ECG with `studies`, of which `reports` holds the measurements rows; `change` replaces the counts of lead
    names."""
    rows = []
    for study in studies:
        counts = ecg_counts(5000)
        for lead, values in change.items():
            counts[MIMIC_LEADS.index(lead)] = values
        line = f"{study} 12 500 5000 12:04:00 22/09/2182"
        write_record(
            root / "files" / study, counts, leads=MIMIC_LEADS, record_line=line, comments=["<subject_id>: 12177274"]
        )
        rows.append(f"12177274,{study},{study},2182-09-22 12:04:00,files/{study}\n")
    (root / "record_list.csv").write_text("subject_id,study_id,file_name,ecg_time,path\n" + "".join(rows))
    lines = [
        ",".join([study, *(columns.get(name, "") for name in REPORTS)]) + "\n" for study, columns in reports.items()
    ]
    (root / "machine_measurements.csv").write_text(",".join(["study_id", *REPORTS]) + "\n" + "".join(lines))
    return root


def ptb_xl(root: Path, age: str = "56.0", report: str = "sinusrhythmus") -> EcgRecord:
    write_record(
        root / "records500/00001_hr",
        ecg_counts(5000, gain=1000),
        leads=[lead.upper() for lead in STANDARD_LEADS],
        gains="1000.0(0)/mV",
    )
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nSR,sinus rhythm,,,1.0,,\n"
    )
    row = f"1,15709.0,{age},1,1984-11-09 09:17:34,{report},{{'SR': 0.0}},3,,records500/00001_hr\n"
    (root / "ptbxl_database.csv").write_text(PTB_COLUMNS + row)
    return read_only("ptb-xl", root, report="original")


@pytest.mark.parametrize("spelling", [str.upper, str.lower, str])
def test_lead_names_differ_in_case(tmp_path: Path, spelling: type[str]) -> None:
    counts = ecg_counts(gain=1000)
    path = write_record(tmp_path / "r", counts, leads=[spelling(lead) for lead in STANDARD_LEADS], gains="1000/mV")
    np.testing.assert_array_equal(read_only("wfdb", path.parent).counts, counts)


def test_lead_order_differs_avf_before_avl(tmp_path: Path) -> None:
    record = read_only("mimic-iv-ecg", mimic(tmp_path, {"45106466": {}}))
    stored = ecg_counts(5000)
    np.testing.assert_array_equal(record.counts[STANDARD_LEADS.index("aVL")], stored[MIMIC_LEADS.index("aVL")])
    assert MIMIC_LEADS.index("aVL") == 5 != STANDARD_LEADS.index("aVL")


def test_challenge_header_that_makes_wfdb_raise(tmp_path: Path) -> None:
    line = "E00001.mat 12 500 1000 05-May-2020 14:50:55"
    record = challenge(tmp_path, ecg_counts(gain=1000), record_line=line)
    assert (record.samples, record.sampling_rate) == (1000, 500.0)
    with pytest.raises(Exception, match="record line"):
        wfdb.rdheader(str(tmp_path / "E00001"))


@pytest.mark.parametrize("gain", [1000, 4880])
def test_gains_of_1000_and_4880_counts_per_millivolt(tmp_path: Path, gain: int) -> None:
    counts = ecg_counts(gain=gain)
    record = challenge(tmp_path, counts, gains=f"{gain}/mV")
    np.testing.assert_array_equal(record.counts, counts)
    np.testing.assert_array_equal(record.gain, gain)
    assert "gain-suspect" not in record.quality


def test_header_gain_1000_times_too_large_is_counted_in_the_build_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = ecg_counts(gain=1000)
    record = challenge(tmp_path / "set", counts, gains="1000000/mV", comments=("#Dx: 426783006",))
    assert record.quality["gain-suspect"] == STANDARD_LEADS and set(record.gain.tolist()) == {1e6}
    report = build_shards(
        open_source("challenge", tmp_path / "set"), tmp_path / "out", SetPlan(SignalSpec(500, 2)), workers=1
    )
    assert report.quality == {"gain-suspect": 1}
    assert ShardSet.open(tmp_path / "out").manifest["counts"]["quality"] == {"gain-suspect": 1}
    assert "gain-suspect records=1 of=1" in caplog.text


def test_gains_that_differ_from_lead_to_lead(tmp_path: Path) -> None:
    gains = [f"{100 + 50 * k}(0)/mV" for k in range(12)]
    record = challenge(tmp_path, ecg_counts(gain=500), gains=gains)
    np.testing.assert_array_equal(record.gain, [100 + 50 * k for k in range(12)])
    np.testing.assert_allclose(record.millivolts(), ecg_counts(gain=500) / record.gain[:, None], rtol=1e-6)


@pytest.mark.parametrize(
    "comment", ["#Dx: 270492004,164931005", "# Dx: 270492004, 164931005", "#Dx:I-AVB,STE", "# Dx: iavb, ste"]
)
def test_dx_with_and_without_a_space_as_abbreviations_and_as_codes(tmp_path: Path, comment: str) -> None:
    record = challenge(tmp_path, ecg_counts(gain=1000), comments=(comment,))
    assert record.labels["snomed"] == ("270492004", "164931005")
    assert record.statements == ("First degree AV block", "ST elevation")


@pytest.mark.parametrize("comments", [("#Dx:",), ("# Dx: ",), ("#Dx: Unknown",), ()])
def test_empty_dx_is_no_label_and_no_text(tmp_path: Path, comments: tuple[str, ...]) -> None:
    record = challenge(tmp_path, ecg_counts(gain=1000), comments=comments)
    assert (record.labels, record.statements) == ({}, ())


@pytest.mark.parametrize("comment", ["#Age: NaN", "# Age: nan", "#Age:", "#Age: Unknown"])
def test_age_nan_is_unknown(tmp_path: Path, comment: str) -> None:
    assert challenge(tmp_path, ecg_counts(gain=1000), comments=(comment, "#Sex: Female")).age_years is None


def test_age_300_in_ptb_xl_means_over_89(tmp_path: Path) -> None:
    assert ptb_xl(tmp_path, age="300.0").age_years == 90.0


@pytest.mark.parametrize("report", ["", " ", ". "])
def test_blank_report_is_no_statement(tmp_path: Path, report: str) -> None:
    assert ptb_xl(tmp_path, report=report).statements == ()


def test_flat_lead_is_flagged_and_masked(tmp_path: Path) -> None:
    record = read_only("mimic-iv-ecg", mimic(tmp_path, {"45106466": {}}, V3=np.full(5000, 7)))
    assert (
        record.quality == {"flat": ("V3",)}
        and not record.lead_mask[STANDARD_LEADS.index("V3")]
        and record.lead_mask.sum() == 11
    )


def test_a_record_flat_throughout_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RecordRejected, match="no-signal"):
        challenge(tmp_path, np.zeros((12, 1000), dtype=np.int16))


def test_dropped_out_and_clipped_leads_are_flagged_and_kept(tmp_path: Path) -> None:
    beats = ecg_counts(5000)
    dropped, clipped = beats[1].copy(), np.minimum(beats[1], 60)
    dropped[2000:3000] = 0
    record = read_only("mimic-iv-ecg", mimic(tmp_path, {"45106466": {}}, V1=dropped, V2=clipped))
    assert record.quality["dropout"] == ("V1",) and record.quality["clipped"] == ("V2",)
    assert record.lead_mask.all()
    np.testing.assert_array_equal(record.counts[STANDARD_LEADS.index("V1")], dropped)


def test_report_columns_with_gaps_keep_their_order(tmp_path: Path) -> None:
    reports = {
        "45106466": {
            "report_0": "Sinus rhythm",
            "report_1": "Possible right atrial abnormality",
            "report_3": "Borderline ECG",
        }
    }
    record = read_only("mimic-iv-ecg", mimic(tmp_path, reports))
    assert record.statements == ("Sinus rhythm", "Possible right atrial abnormality", "Borderline ECG")


def test_a_statement_with_and_without_its_dot_is_one_report(tmp_path: Path) -> None:
    reports = {"1": {"report_0": "Sinus rhythm"}, "2": {"report_2": "Sinus rhythm."}}
    out = build_shards(
        open_source("mimic-iv-ecg", mimic(tmp_path / "set", reports, ("1", "2"))), tmp_path / "out", workers=1
    )
    assert (out.records, out.reports) == (2, 1)


def test_records_without_a_measurements_row_are_kept_without_a_report(tmp_path: Path) -> None:
    source = open_source("mimic-iv-ecg", mimic(tmp_path, {"2": {"report_0": "Sinus rhythm"}}, ("1", "2")))
    assert [source.read(entry).statements for entry in source.entries()] == [(), ("Sinus rhythm",)]


@pytest.mark.parametrize(("samples", "valid"), [(1205, 1205), (30_000, 5000)])
def test_recordings_of_1205_samples_and_of_60_seconds(tmp_path: Path, samples: int, valid: int) -> None:
    counts = ecg_counts(samples, gain=1000)
    record = challenge(tmp_path, counts)
    assert record.samples == samples
    conformed = conform(record, SignalSpec())
    assert (conformed.samples, conformed.valid_samples, conformed.extra["original_samples"]) == (5000, valid, samples)
    np.testing.assert_array_equal(conformed.counts[:, :valid], counts[:, :valid])
    assert not conformed.counts[:, valid:].any()


def test_the_mimic_iv_ecg_header_and_its_120000_bytes(tmp_path: Path) -> None:
    root = mimic(tmp_path, {"45106466": {}})
    header, signal = (root / "files" / f"45106466{suffix}" for suffix in (".hea", ".dat"))
    lines = header.read_text().splitlines()
    first = int(ecg_counts(5000)[0, 0])
    lines[1] = f"45106466.dat 16 200.0(0)/mV 16 0 {first} 14670 0 I"
    assert lines[0] == "45106466 12 500 5000 12:04:00 22/09/2182" and lines[-1] == "# <subject_id>: 12177274"
    header.write_text("\n".join(lines) + "\n")
    assert signal.stat().st_size == 120_000
    record = read_only("mimic-iv-ecg", root)
    assert (record.samples, record.sampling_rate, set(record.gain.tolist())) == (5000, 500.0, {200.0})
    assert record.acquired == "2182-09-22T12:04:00"
