"""Whatever bytes of a data set's files are changed, cut or repeated: each reader gives a record that can be stored, or
says what is wrong; never a crash."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb
from scipy.io import savemat

from cardialign.data_shards.errors import DataError, RecordRejected, UserError
from cardialign.data_shards.reading.arrays import read_array
from cardialign.data_shards.reading.tables import read_table
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.signal.codec import decode_counts, encode
from cardialign.data_shards.signal.conform import conform
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import MIMIC_LEADS, ecg_counts, write_record

COUNTS = ecg_counts(300, gain=1000)
CHANGES = 30
SPICE = (
    b"9" * 25,
    b"e-330",
    b"nan",
    b"/",
    b"(9)",
    b"\0",
    b"\xff\xfe",
    b'"',
    b",",
    b";",
    b"\n",
    b"-1",
    b"inf",
    b"\xb5",
    b"{",
    b"#",
    b" ",
)


def challenge(root: Path) -> None:
    comments = ["Age: 63", "Sex: M", "Dx: 426783006,164889003"]
    write_record(
        root / "E1", COUNTS, gains="1000/mV", storage="16+24", prefix=b"\0" * 24, suffix=".mat", comments=comments
    )


def format_212(root: Path) -> None:
    wfdb.wrsamp(
        "r", fs=500, units=["mV"] * 12, sig_name=list(STANDARD_LEADS), d_signal=np.ascontiguousarray(COUNTS.T,
        dtype=np.int64), fmt=["212"] * 12,
        adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(root),
    )  # fmt: skip


def npz(root: Path) -> None:
    np.savez(root / "a.npz", signal=COUNTS / 1000, fs=500)


def csv(root: Path) -> None:
    rows = (",".join(f"{value:.3f}" for value in row) for row in COUNTS.T[:40] / 1000)
    (root / "a.csv").write_text("\n".join([",".join(STANDARD_LEADS), *rows]))


def original_mat(root: Path) -> None:
    savemat(root / "A0001.mat", {"ECG": {"sex": "Male", "age": 63, "data": COUNTS / 1000}})
    (root / "REFERENCE.csv").write_text("Recording,First_label,Second_label,Third_label\nA0001,1,,\n")


def paediatric(root: Path) -> None:
    np.savez(root / "a.npz", signal=COUNTS / 1000)
    row = '1,a.npz,p,7.5,female,500,Normal|A1,"[""Sinus rhythm""]"\n'
    (root / "records.csv").write_text(f"record_id,path,patient_id,age_years,sex,fs,labels,report\n{row}")


def mimic_iv_ecg(root: Path) -> None:
    write_record(root / "files" / "7", COUNTS, leads=MIMIC_LEADS, gains="1000/mV", comments=["<subject_id>: 9"])
    (root / "record_list.csv").write_text(
        "subject_id,study_id,file_name,ecg_time,path\n9,7,7,2182-09-22 12:04:00,files/7\n"
    )
    columns = [f"report_{k}" for k in range(18)]
    (root / "machine_measurements.csv").write_text(
        ",".join(["study_id", *columns]) + "\n7,Sinus rhythm" + "," * 17 + "\n"
    )


def ptb_xl(root: Path) -> None:
    write_record(root / "records500/1_hr", COUNTS, gains="1000.0(0)/mV")
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nSR,sinus,,,1.0,,\n"
    )
    head = "ecg_id,patient_id,age,sex,recording_date,report,scp_codes,strat_fold,filename_lr,filename_hr\n"
    (root / "ptbxl_database.csv").write_text(
        head + "1,9.0,56.0,1,1984-11-09 09:17:34,sinus,{'SR': 0.0},3,,records500/1_hr\n"
    )


CASES: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "challenge": ("challenge", challenge, {}),
    "format 212": ("wfdb", format_212, {}),
    "npz": ("arrays", npz, {}),
    "csv": ("arrays", csv, {"sampling_rate": 500}),
    "original mat": ("cpsc2018", original_mat, {}),
    "paediatric": ("zzu-pecg", paediatric, {}),
    "mimic-iv-ecg": ("mimic-iv-ecg", mimic_iv_ecg, {}),
    "ptb-xl": ("ptb-xl", ptb_xl, {}),
}


def changed(raw: bytes, rng: random.Random) -> bytes:
    """One to three changes, most of them in the first 600 bytes, where headers are: a byte, a word, a gap, an end, a
    line."""
    data = bytearray(raw)
    kind = rng.choice(("byte", "byte", "word", "word", "gap", "end", "line"))
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        at = rng.randrange(len(data) if rng.random() < 0.4 else min(len(data), 600))
        if kind == "byte":
            data[at] = rng.randrange(256)
        elif kind == "word":
            data[at : at + rng.randint(0, 2)] = rng.choice(SPICE)
        elif kind == "gap":
            del data[at : at + rng.randint(1, 200)]
        elif kind == "end":
            del data[at:]
        else:
            lines = bytes(data).split(b"\n")
            line = rng.randrange(len(lines))
            lines[line : line + 1] = rng.choice(([lines[line]] * 2, [], [lines[line].rpartition(b" ")[0]]))
            data = bytearray(b"\n".join(lines))
    return bytes(data)


@pytest.mark.parametrize("case", CASES)
def test_changed_files_give_a_record_or_a_reason(tmp_path: Path, case: str) -> None:
    name, make, options = CASES[case]
    whole, root = tmp_path / "whole", tmp_path / "changed"
    whole.mkdir()
    make(whole)
    (entry,) = (source := open_source(name, whole, **options)).entries()
    source.read(entry)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    rng = random.Random(case)
    reasons: list[str] = []
    for _ in range(CHANGES):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        file = root / rng.choice(files)
        file.write_bytes(changed(file.read_bytes(), rng))
        try:
            source = open_source(name, root, **options)
            records = [source.read(each) for each in source.entries()]
        except (RecordRejected, UserError) as error:
            reasons.append(str(error))
            continue
        for record in records:
            stored = conform(record, SignalSpec(500, 1))
            np.testing.assert_array_equal(decode_counts(encode(stored)), stored.counts)
            assert np.isfinite(stored.millivolts()).all()
    assert reasons, "none of the changes was noticed: are the right files changed?"
    assert min(map(len, reasons)) > 20


def test_an_npy_header_with_an_open_bracket_or_a_shape_beyond_memory_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, COUNTS / 1000)
    path.write_bytes(path.read_bytes().replace(b"(12, 300)", b"(12, 300 "))
    with pytest.raises(RecordRejected, match=r"bad-format.*a\.npy"):
        read_array(path)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (12, 10**12)})
        file.write(bytes(800))
    with pytest.raises(RecordRejected, match=r"bad-format.*a\.npy"):
        read_array(path)


def test_a_table_whose_column_names_are_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,Ger\xe4t\n1,2\n")
    with pytest.raises(DataError, match=r"t\.csv is not a readable CSV table"):
        read_table(tmp_path / "t.csv", ("id",))
