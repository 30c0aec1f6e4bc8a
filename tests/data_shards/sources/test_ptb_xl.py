"""PTB-XL as published: label sets by the benchmark's rule, English statements from SCP codes, published folds, both
rates."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cardialign.data_shards.errors import DataError, RecordRejected, UsageError, UserError
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.shared.patients import patient_hash
from cardialign.data_shards.sources.vocabularies.scp import parse_scp_codes
from tests.support.wfdb_files import ecg_counts, write_record

STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NDT,non-diagnostic T abnormalities,1.0,1.0,,STTC,STTC
NORM,normal ECG,1.0,,,NORM,NORM
IMI,inferior myocardial infarction,1.0,,,MI,IMI
AMI,anterior myocardial infarction,1.0,,,MI,AMI
ISCAL,ischemic in anterolateral leads,1.0,,,STTC,ISCA
1AVB,first degree AV block,1.0,,,CD,_AVB
PVC,ventricular premature complex,,1.0,,,
SR,sinus rhythm,,,1.0,,
"""
HEADER = (
    "ecg_id",
    "patient_id",
    "age",
    "sex",
    "recording_date",
    "report",
    "scp_codes",
    "strat_fold",
    "filename_lr",
    "filename_hr",
    "heart_axis",
    "baseline_drift",
)
CODES = {
    1: "{'NORM': 100.0, 'SR': 0.0}",
    2: "{'IMI': 35.0, 'AMI': 0.0, 'NDT': 100.0, 'PVC': 100.0, 'SR': 0.0}",
    3: "{'1AVB': 100.0, 'IMI': 15.0, 'ISCAL': 50.0, 'XYZ': 100.0}",
    4: "{'NORM': 80.0, 'SR': 0.0}",
    5: "NORM and more",
}


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "ptb"
    folder.mkdir()
    (folder / "scp_statements.csv").write_text(STATEMENTS)
    rows = []
    for ecg_id, codes in CODES.items():
        low, high = f"records100/00000/{ecg_id:05d}_lr", f"records500/00000/{ecg_id:05d}_hr"
        write_record(folder / low, ecg_counts(1000, seed=ecg_id, rate=100, gain=1000), rate="100", gains="1000.0(0)/mV")
        if ecg_id != 4:
            write_record(folder / high, ecg_counts(5000, seed=ecg_id, gain=1000), gains="1000.0(0)/mV")
        age = {1: "56.0", 2: "300.0", 3: ""}.get(ecg_id, "7.0")
        axis, drift = ("LAD", " , I-V1,  ") if ecg_id == 1 else ("", "")
        rows.append(
            (
                ecg_id,
                f"{15700 + ecg_id // 2}.0",
                age,
                ecg_id % 2,
                "1984-11-09 09:17:34",
                " sinusrhythmus. ",
                codes,
                ecg_id,
                low,
                high,
                axis,
                drift,
            )
        )
    with (folder / "ptbxl_database.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([HEADER, *rows])
    return folder


def meta(root: Path, **options) -> dict[int, dict]:
    return {
        int(entry.key.removeprefix("ptbxl-")): entry.meta for entry in open_source("ptb-xl", root, **options).entries()
    }


def test_label_sets_follow_the_published_rule(root):
    """A statement counts when listed, likelihood 0 included; sets without a code are absent; unknown codes stay in
    "scp"."""
    assert {ecg_id: entry["labels"] for ecg_id, entry in meta(root).items() if ecg_id < 4} == {
        1: {"scp": ("NORM", "SR"), "super": ("NORM",), "sub": ("NORM",), "rhythm": ("SR",)},
        2: {
            "scp": ("IMI", "AMI", "NDT", "PVC", "SR"),
            "super": ("MI", "STTC"),
            "sub": ("IMI", "AMI", "STTC"),
            "form": ("NDT", "PVC"),
            "rhythm": ("SR",),
        },
        3: {"scp": ("1AVB", "IMI", "ISCAL", "XYZ"), "super": ("CD", "MI", "STTC"), "sub": ("_AVB", "IMI", "ISCA")},
    }


def test_english_statements_carry_the_likelihood_as_a_qualifier(root):
    statements = {ecg_id: entry["statements"] for ecg_id, entry in meta(root).items()}
    assert statements[1] == ("Sinus rhythm", "Normal ECG")
    assert statements[2] == (
        "Sinus rhythm",
        "Possible inferior myocardial infarction",
        "Anterior myocardial infarction",
        "Non-diagnostic T abnormalities",
        "Ventricular premature complex",
    )
    assert statements[3] == (
        "First degree AV block",
        "Cannot rule out inferior myocardial infarction",
        "Probable ischemic ST-T changes in anterolateral leads",
    )
    assert statements[4] == ("Sinus rhythm", "Otherwise normal ECG")


def test_codes_that_the_statement_table_lacks_are_logged(root, caplog):
    meta(root)
    assert "XYZ=1" in caplog.text


def test_the_original_report_is_kept_on_request(root):
    assert meta(root, report="original")[1]["statements"] == ("sinusrhythmus",)


@pytest.mark.parametrize(("rate", "samples"), [(100, 1000), ("500", 5000)])
def test_both_sampling_rates(root, rate, samples):
    source = open_source("ptb-xl", root, sampling_rate=rate, salt="s")
    record = source.read(next(iter(source.entries())))
    np.testing.assert_array_equal(record.counts, ecg_counts(samples, seed=1, rate=samples / 10, gain=1000))
    assert (record.key, record.sampling_rate, record.fold) == ("ptbxl-1", samples / 10, 1)
    assert record.patient == patient_hash("15700", Secret("s"))
    assert (record.age_years, record.sex, record.acquired) == (56.0, "female", "1984-11-09T09:17:34")
    assert record.extra == {"annotations": {"heart_axis": "LAD", "baseline_drift": "I-V1"}}


def test_age_300_means_over_89_and_an_empty_one_unknown(root):
    assert [entry["age_years"] for entry in meta(root).values()] == [56.0, 90.0, None, 7.0, 7.0]


def test_listed_files_that_are_absent_and_unreadable_codes_are_rejected(root):
    source = open_source("ptb-xl", root)
    entries = list(source.entries())
    for entry, reason, part in (
        (entries[3], "missing-file", "00004_hr.hea"),
        (entries[4], "bad-labels", "NORM and more"),
    ):
        with pytest.raises(RecordRejected) as caught:
            source.read(entry)
        assert caught.value.reason == reason
        assert part in caught.value.detail


@pytest.mark.parametrize("text", ["", "{", "[1]", "{'NORM': 'high'}", "__import__('os')", "{'A': None}", "(" * 500])
def test_scp_codes_are_data_and_never_run(text):
    with pytest.raises(ValueError, match="no dictionary"):
        parse_scp_codes(text)


def test_records_to_which_the_table_gives_no_fold_or_no_patient_are_counted(root, caplog):
    meta(root)
    assert "folds not given" not in caplog.text and "patients not named" not in caplog.text
    with (root / "ptbxl_database.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    for row in rows[:2]:
        row[header.index("strat_fold")] = row[header.index("patient_id")] = ""
    with (root / "ptbxl_database.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    source = open_source("ptb-xl", root)
    for _ in range(2):  # a second walk counts anew
        caplog.clear()
        list(source.entries())
        assert "the table gives no fold to 2 of 5 records; theirs follows from the hash" in caplog.text
        assert "the table names no patient for 2 of 5 records" in caplog.text


def test_a_column_of_folds_that_is_blank_throughout_is_told(root, caplog):
    with (root / "ptbxl_database.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    for row in rows:
        row[header.index("strat_fold")] = ""
    with (root / "ptbxl_database.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    list(open_source("ptb-xl", root).entries())
    assert "the table gives no fold to 5 of 5 records; theirs follows from the hash" in caplog.text


def test_outside_labels_join_the_published_ones(root, tmp_path):
    (tmp_path / "truth.csv").write_text("ecg_id,label_set,label\n1,finding,normal\n")
    entries = meta(root, labels=tmp_path / "truth.csv")
    assert entries[1]["labels"]["finding"] == ("normal",)
    assert "super" in entries[1]["labels"]
    assert "finding" not in entries[2]["labels"]
    assert open_source("ptb-xl", root, labels=tmp_path / "truth.csv").label_sets == (
        "scp",
        "super",
        "sub",
        "form",
        "rhythm",
        "finding",
    )


def test_wrong_options_and_layouts_say_what_is_expected(root, tmp_path):
    with pytest.raises(UsageError, match="sampling_rate is 250"):
        open_source("ptb-xl", root, sampling_rate=250)
    with pytest.raises(UsageError, match="report is 'german'") as caught:
        open_source("ptb-xl", root, report="german")
    assert "scp, original" in caught.value.remedy
    with pytest.raises(UserError, match=r"ptbxl_database\.csv, scp_statements\.csv not found") as layout:
        open_source("ptb-xl", root / "records100")
    assert "records100/ and records500/" in layout.value.remedy
    with pytest.raises(UserError, match="does not exist"):
        open_source("ptb-xl", tmp_path / "nowhere")


def test_missing_columns_and_empty_tables_are_named(root):
    database = root / "ptbxl_database.csv"
    database.write_text(database.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match=r"ptbxl_database\.csv is empty"):
        list(open_source("ptb-xl", root).entries())
    database.write_text("ecg_id,age\n1,2\n")
    with pytest.raises(DataError, match="lacks the columns patient_id, sex"):
        list(open_source("ptb-xl", root).entries())


def test_a_statement_table_whose_switches_became_booleans_says_the_same_and_other_words_are_named(root):
    told, table = meta(root), root / "scp_statements.csv"
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    names = ["diagnostic", "form", "rhythm"]
    frame[names] = (frame[names] == "1.0").astype(str)
    frame.iloc[:, 0] += " "
    frame.to_csv(table, index=False)
    assert table.read_text().count("True") == 9
    assert meta(root) == told
    table.write_text(STATEMENTS.replace("normal ECG,1.0", "normal ECG,x"))
    with pytest.raises(DataError, match="the column 'diagnostic' holds 'x', expected 1 or nothing"):
        meta(root)


def test_the_description_holds_no_path(root):
    source = open_source("ptb-xl", root, salt="secret-salt")
    list(source.entries())
    text = json.dumps(source.describe())
    assert "secret-salt" not in text and str(root) not in text and "sha256" in text


@pytest.mark.parametrize(
    ("label_set", "folder"), [("super", "super_class"), ("sub", "sub_class"), ("form", "form"), ("rhythm", "rhythm")]
)
def test_labels_agree_with_the_published_protocol_on_every_shared_record(real_data, label_set, folder):
    """MERL's label files drop the underscores of SCP codes; nothing else may differ, over all three splits."""
    parts = [
        real_data / "protocols/merl/ptbxl" / folder / f"ptbxl_{folder}_{split}.csv"
        for split in ("train", "val", "test")
    ]
    published = pd.concat(map(pd.read_csv, parts)).set_index("ecg_id")
    classes = list(published.columns[5:])
    ours = meta(real_data / "ptb-xl")
    shared = [ecg_id for ecg_id in ours if ecg_id in published.index]
    assert len(shared) > 250
    for ecg_id in shared:
        expected = {name for name in classes if published.loc[ecg_id, name] == 1}
        assert {code.replace("_", "") for code in ours[ecg_id]["labels"][label_set]} == expected
        assert ours[ecg_id]["fold"] == published.loc[ecg_id, "strat_fold"]


def test_real_recordings_are_read_and_only_absent_files_rejected(real_data):
    source = open_source("ptb-xl", real_data / "ptb-xl")
    read, reasons = 0, set()
    for entry in source.entries():
        try:
            record = source.read(entry)
        except RecordRejected as error:
            reasons.add(error.reason)
            continue
        read += 1
        assert record.counts.shape == (12, 5000) and record.statements and record.lead_mask.all()
    assert read == 444
    assert reasons == {"missing-file"}


def test_a_row_that_names_the_file_of_another_record_is_rejected(root):
    table = pd.read_csv(root / "ptbxl_database.csv", dtype=str)
    table["filename_hr"] = table["filename_hr"].to_numpy()[::-1]  # sorted apart from the rest of the table
    table.to_csv(root / "ptbxl_database.csv", index=False)
    source = open_source("ptb-xl", root)
    for ecg_id, entry in zip(CODES, source.entries(), strict=True):
        if ecg_id == 3:  # the middle row keeps its file
            assert source.read(entry).samples == 5000
        else:
            with pytest.raises(RecordRejected, match=rf"bad-metadata.*says ecg_id {ecg_id}, filename_hr records500"):
                source.read(entry)
