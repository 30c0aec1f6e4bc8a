"""ZZU-pECG in its published form, as .npz with a table, and as the virtual paediatric cohort writes it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from cardialign.data_shards.errors import DataError, RecordRejected, UserError
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.shared.demographics import age_in_years
from cardialign.data_shards.sources.shared.patients import patient_hash
from tests.support.wfdb_files import ecg_counts, write_record

PUBLISHED = (
    "Filename", "ECG_ID", "Patient_ID", "Age", "Gender", "Acquisition_date", "Sampling_point", "Lead", "AHA_code",
    "CHN_code", "ICD-10 code", "pSQI",
)  # fmt: skip
NINE = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V3", "V5")


def write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def test_the_published_form_days_quotes_and_nine_leads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_record(tmp_path / "Child_ecg/P00/P00001/P00001_E01", ecg_counts(2500, gain=1000), gains="1000/mV")
    write_record(
        tmp_path / "Child_ecg/P00/P00002/P00002_E01", ecg_counts(2500, leads=9, gain=1000), leads=NINE, gains="1000/mV"
    )
    rows = [
        ("P00/P00001/P00001_E01", "P00001_E01", "P00001", "572d", "'Male'", "2018-01-09", 2500, 12, "'A1'", "'A1'",
        "'I40.0';'Q21.1'", ""),
        ("P00/P00002/P00002_E01", "P00002_E01", "P00002", "12d", "'Female'", "", 2500, 9,
        "'C22';'L145+Modifier362';'Left ventricular high voltage';'Z999'", "", "", ""),
    ]  # fmt: skip
    write_csv(tmp_path / "AttributesDictionary.csv", PUBLISHED, rows)
    source = open_source("zzu-pecg", tmp_path)
    first, second = (source.read(entry) for entry in source.entries())
    assert first.key == "zzu-P00001_E01" and first.patient == patient_hash("P00001")
    assert first.age_years == pytest.approx(572 / 365.25) and first.sex == "male" and first.acquired == "2018-01-09"
    assert first.labels == {"aha": ("A1",), "chn": ("A1",), "icd10": ("I40.0", "Q21.1")}
    assert first.statements == ("Normal ECG",)
    assert second.age_years == pytest.approx(12 / 365.25)
    assert second.statements == ("Sinus bradycardia", "ST deviation", "Left ventricular high voltage")
    assert second.labels["aha"][-1] == "Z999" and "Z999=1" in caplog.text
    assert second.quality["missing-lead"] == ("V2", "V4", "V6") and second.lead_mask.sum() == 9


def test_aha_codes_without_their_letter_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mason et al. 2007 write sinus bradycardia as 22 under the letter C: `22` and `C22` are one statement."""
    rows = []
    for number, code in ((1, "C22"), (2, "22"), (3, "22;D30")):
        name = f"P00/P0000{number}/P0000{number}_E01"
        write_record(tmp_path / "Child_ecg" / name, ecg_counts(500, gain=1000), gains="1000/mV")
        rows.append((name, name[-10:], name[4:10], "572d", "'Male'", "", 500, 12, code, "", "", ""))
    write_csv(tmp_path / "AttributesDictionary.csv", PUBLISHED, rows[:1])
    list(open_source("zzu-pecg", tmp_path).entries())
    assert "without the letter" not in caplog.text
    write_csv(tmp_path / "AttributesDictionary.csv", PUBLISHED, rows)
    list(open_source("zzu-pecg", tmp_path).entries())
    assert (
        "without the letter of their category source=zzu-pecg 22=2: 22 is a label of its own, beside C22" in caplog.text
    )


def test_npz_records_with_reports_in_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    signal = (ecg_counts(1205, gain=1000) / 1000).astype(np.float32)
    np.savez(
        tmp_path / "a.npz",
        signal=signal,
        fs=500,
        leads=np.array(["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]),
    )
    columns = ("record_id", "path", "fs", "leads", "age", "sex", "labels", "report", "patient_id")
    report = json.dumps(["Sinus bradycardia.", "ICD-10: Q18.0", "ICD-10: Z98.8"])
    rows = [
        (
            "P1_E01",
            "set/a.npz",
            "500.0",
            "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6",
            "16 mo",
            "F",
            "Kawasaki|C22|Z123",
            report,
            "P1",
        ),
        ("1", "elsewhere/b.npz", "500.0", "I II", "3", "M", "", "", "P2"),
    ]
    table = tmp_path.parent / f"{tmp_path.name}.csv"
    write_csv(table, columns, [(row[0], row[1].replace("set", tmp_path.name), *row[2:]) for row in rows])
    source = open_source("zzu-pecg", tmp_path, table=table)
    (entry,) = source.entries()
    record = source.read(entry)
    np.testing.assert_array_equal(record.counts, ecg_counts(1205, gain=1000))
    assert (record.age_years, record.sex, record.samples) == (pytest.approx(16 / 12), "female", 1205)
    assert record.statements == ("Sinus bradycardia",)
    assert record.labels == {"group": ("Kawasaki",), "aha": ("C22", "Z123"), "icd10": ("Q18.0", "Z98.8")}
    assert "outside the folder source=zzu-pecg rows=1" in caplog.text


def test_a_virtual_paediatric_cohort_reads_with_ages_to_the_day(tmp_path: Path) -> None:
    make_cohort(tmp_path / "cohort", Cohort(layout="paediatric", patients=3, records=6, seed=1))
    rows = list(csv.DictReader((tmp_path / "cohort/records.csv").open()))
    source = open_source("zzu-pecg", tmp_path / "cohort", labels=tmp_path / "cohort/truth.csv")
    records = [source.read(entry) for entry in source.entries()]
    assert len(records) == len(rows) >= 6
    for record, row in zip(records, rows, strict=True):
        assert record.age_years == pytest.approx(float(row["age_years"])) and record.samples == int(row["n"])
        assert "finding" in record.labels
        assert list(record.statements) == [text.rstrip(". ").strip("*- ") for text in row["report"].split("|")]
        stored = np.load(tmp_path / "cohort" / row["path"])["signal"]
        np.testing.assert_allclose(record.millivolts()[record.lead_mask], stored[record.lead_mask], atol=5.01e-4)


def test_a_missing_table_and_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of AttributesDictionary\.csv, records\.csv"):
        open_source("zzu-pecg", tmp_path)
    (tmp_path / "records.csv").write_text("record_id,path\nx,y.npz\n")
    with pytest.raises(DataError, match="lacks the columns Patient_ID/patient_id, Age/age_years/age, Gender/sex"):
        list(open_source("zzu-pecg", tmp_path).entries())


@pytest.mark.parametrize(
    ("text", "years"),
    [("572d", 572 / 365.25), ("16 mo", 16 / 12), ("7.5 yr", 7.5), ("59", 59.0), (" '3w' ", 21 / 365.25), ("90+", 90.0),
    ("300", 90.0),
     ("NaN", None), ("", None), ("-1", None), ("old", None), ("131", None), ("7 parsecs", None)],
)  # fmt: skip
def test_ages_in_every_spelling(text: str, years: float | None) -> None:
    assert age_in_years(text) == (None if years is None else pytest.approx(years))
    assert age_in_years("12", "days") == pytest.approx(12 / 365.25)


def test_real_paediatric_records_read(real_data: Path) -> None:
    source = open_source("zzu-pecg", real_data / "zzu-pecg", table=real_data / "records.csv")
    records = {entry.key: source.read(entry) for entry in source.entries()}
    assert len(records) == 12
    infant = records["zzu-P10027_E01"]
    assert infant.age_years == pytest.approx(4 / 12) and infant.labels["group"] == ("Sinus_Bradycardia",)
    assert infant.statements == ("Sinus bradycardia",) and infant.labels["icd10"] == ("E87.2", "G93.1", "T06.5")
    for key, record in records.items():
        stored = np.load(real_data / "zzu-pecg" / f"{key[4:]}.npz")["signal"]
        np.testing.assert_allclose(record.millivolts(), stored, atol=5.01e-4)


def test_a_rate_and_leads_that_the_table_and_the_file_give_in_two_ways_are_refused_with_both(tmp_path: Path) -> None:
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3"]
    for name, rate in (("a", 500), ("b", 250), ("c", 500)):
        np.savez(tmp_path / f"{name}.npz", signal=ecg_counts(1000, leads=9) / 200, fs=rate, leads=np.array(leads))
    rows = [(name, f"{name}.npz", "p", "7", "female", 500, " ".join(leads)) for name in "ab"]
    rows.append(("c", "c.npz", "p", "7", "female", 500, " ".join(reversed(leads))))
    columns = ("record_id", "path", "patient_id", "age", "sex", "fs", "leads")
    write_csv(tmp_path / "records.csv", columns, rows)
    source = open_source("zzu-pecg", tmp_path)
    good, other_rate, other_leads = source.entries()
    assert source.read(good).sampling_rate == 500
    with pytest.raises(RecordRejected, match="fs says 250, the table says 500"):
        source.read(other_rate)
    with pytest.raises(RecordRejected, match=r"has the leads I, II.*, the table says V3, V2"):
        source.read(other_leads)


def test_a_report_that_only_looks_like_json_is_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=ecg_counts(1000) / 200)
    for text in ("[" * 100_000 + "Sinus rhythm", "[Sinus rhythm"):
        write_csv(
            tmp_path / "records.csv",
            ("record_id", "path", "patient_id", "age", "sex", "report"),
            [("a", "a.npz", "p", "7", "female", text)],
        )
        (entry,) = open_source("zzu-pecg", tmp_path).entries()
        assert len(entry.meta["statements"]) == 1
