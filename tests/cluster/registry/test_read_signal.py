"""One ECG by its name: what a WFDB record holds that an embedding must not take for signal is refused or said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.registry.read_signal import read_signal
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS
from tests.support.wfdb_files import ecg_counts, write_record


def test_samples_without_a_value_are_refused_by_lead_and_never_become_0_mv(tmp_path: Path) -> None:
    counts = ecg_counts()
    counts[[1, 7], 100:200] = -32768
    with pytest.raises(UserError, match="samples without a value in lead II, V2") as caught:
        read_signal(write_record(tmp_path / "r", counts))
    assert "cut the record" in caught.value.remedy


def test_a_lead_without_any_value_counts_as_not_recorded_and_is_said(tmp_path: Path) -> None:
    counts = ecg_counts()
    counts[5] = -32768
    signal = read_signal(write_record(tmp_path / "r", counts))
    assert signal.leads == tuple(lead for lead in STANDARD_LEADS if lead != "aVF")
    assert signal.remarks == ("no value in lead aVF: not recorded",)
    np.testing.assert_allclose(signal.millivolts, np.delete(counts, 5, axis=0) / 200, rtol=1e-6)


def test_leads_of_any_spelling_have_their_standard_names_and_other_channels_are_said(tmp_path: Path) -> None:
    counts = ecg_counts(leads=3)
    signal = read_signal(write_record(tmp_path / "r", counts, leads=("ECG_V1", "resp", "DI")))
    assert signal.leads == ("I", "V1") and signal.remarks == ("channels that are no lead were left out: resp",)
    np.testing.assert_allclose(signal.millivolts, counts[[2, 0]] / 200, rtol=1e-6)


def test_numbers_that_are_not_those_of_the_header_are_said(tmp_path: Path) -> None:
    path = write_record(tmp_path / "r", ecg_counts())
    header = path.with_suffix(".hea")
    header.write_text(header.read_text().replace(" 0 0 V3", " 77 0 V3"))
    (remark,) = read_signal(path).remarks
    assert "checksum" in remark and "(lead " in remark


def test_a_whole_record_has_no_remark(tmp_path: Path) -> None:
    signal = read_signal(write_record(tmp_path / "r", ecg_counts()))
    assert signal.remarks == () and signal.leads == STANDARD_LEADS


def test_an_age_that_a_header_says_is_read_and_no_other_is_taken(tmp_path: Path) -> None:
    record = write_record(tmp_path / "r", ecg_counts(), comments=["Age: 34", "Sex: F"])
    assert read_signal(record).age == 34.0 and read_signal(record, age=34.6).age == 34.6
    with pytest.raises(UserError, match="says an age of 34 years, --age says 70"):
        read_signal(record, age=70)
    assert read_signal(write_record(tmp_path / "silent", ecg_counts()), age=70).age == 70


def test_what_a_record_says_otherwise_than_the_options_is_refused_with_both(tmp_path: Path) -> None:
    record = write_record(tmp_path / "r", ecg_counts())
    named = ",".join(read_signal(record).leads)
    with pytest.raises(UserError, match=r"says 500 Hz, --sampling-rate says 250"):
        read_signal(record, sampling_rate=250)
    with pytest.raises(UserError, match=r"has the leads I, .*--leads says V6, "):
        read_signal(record, leads=",".join(reversed(named.split(","))))
    assert read_signal(record, leads=named.lower(), sampling_rate=500).sampling_rate == 500


def test_an_array_in_microvolts_is_one_where_it_is_said_and_a_record_says_so_itself(tmp_path: Path) -> None:
    microvolts = np.rint(ecg_counts(gain=1000)).astype(np.int16)
    np.save(tmp_path / "a.npy", microvolts)
    signal = read_signal(tmp_path / "a.npy", sampling_rate=500, units="uV")
    np.testing.assert_allclose(signal.millivolts, microvolts / 1000)
    assert read_signal(tmp_path / "a.npy", sampling_rate=500).millivolts.dtype == np.int16, "left to the contract"
    with pytest.raises(UserError, match="says its units itself, --units says uV"):
        read_signal(write_record(tmp_path / "r", ecg_counts()), units="uV")


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_number_that_stands_for_no_value_is_known_before_the_unit_is_taken_off(tmp_path: Path, kind: type) -> None:
    microvolts = np.rint(ecg_counts(gain=1000)).astype(kind)
    microvolts[2, 40:60] = -32768
    np.save(tmp_path / "a.npy", microvolts)
    read = read_signal(tmp_path / "a.npy", sampling_rate=500, units="uV").millivolts
    assert np.isnan(read[2, 40:60]).all() and np.isnan(read).sum() == 20
    np.testing.assert_allclose(np.delete(read, 2, axis=0), np.delete(microvolts, 2, axis=0) / 1000, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".xml"])
def test_a_file_of_another_kind_is_called_that(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"neither a WFDB record nor a \.npy file"):
        read_signal(tmp_path / f"a{suffix}")


def test_flat_leads_are_masked_as_in_shards_and_said_beside_the_embedding(tmp_path: Path) -> None:
    counts = ecg_counts()
    counts[5], counts[8, ::2], counts[8, 1::2] = 40, 7, 8  # one value; one count apart
    signal = read_signal(write_record(tmp_path / "r", counts))
    assert signal.lead_mask is not None and (~signal.lead_mask).nonzero()[0].tolist() == [5, 8]
    assert signal.remarks == ("one value throughout: masked, it holds no signal (lead aVF, V3)",)
    counts[:] = counts[:, :1]
    with pytest.raises(UserError, match="all 12 recorded leads are flat"):
        read_signal(write_record(tmp_path / "silent", counts))
    array = ecg_counts() / 200
    array[0] = 0.0
    np.save(tmp_path / "a.npy", array)
    assert read_signal(tmp_path / "a.npy", sampling_rate=500).remarks[0].endswith("(lead I)")


def test_a_file_of_two_arrays_is_refused_and_not_read_as_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.save(file, np.ones((12, 5000), dtype=np.float32))
        np.save(file, np.zeros((12, 5000), dtype=np.float32))
    with pytest.raises(UserError, match="bytes follow its array"):
        read_signal(path, sampling_rate=500)


@pytest.mark.parametrize("kind", ["archive", "named columns", "words"])
def test_what_is_no_array_of_numbers_under_the_name_of_one_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        if kind == "archive":
            np.savez(file, signal=np.ones((12, 50)))
        else:
            np.save(file, np.zeros(12, dtype=[("I", "f4")]) if kind == "named columns" else np.array(["I"] * 12))
    with pytest.raises(UserError, match="no single array of numbers"):
        read_signal(tmp_path / "a.npy", sampling_rate=500)
