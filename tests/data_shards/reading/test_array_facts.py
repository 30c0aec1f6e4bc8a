"""What an .npz says of its rate in other words, in JSON text or in a structured value counts like its other facts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import ecg_counts

MILLIVOLTS = ecg_counts(1000, gain=1000) / 1000


def only(root: Path, **options: object) -> EcgRecord:
    source = open_source("arrays", root, **options)
    (entry,) = source.entries()
    return source.read(entry)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("fs", "0.25 kHz"), ("fs", "250 samples/s"), ("sampling_rate", "250 sps"), ("fs", "250 Samples per second"),
     ("fs_khz", 0.25), ("sampling_rate_kHz", "0.25"), ("samplingFrequency", b"2.5e2 Hz")],
)  # fmt: skip
def test_a_rate_in_any_unit_is_a_rate_and_no_option_may_contradict_it(tmp_path: Path, name: str, rate: object) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, **{name: rate})
    assert only(tmp_path).sampling_rate == 250
    assert only(tmp_path, sampling_rate=250).sampling_rate == 250
    with pytest.raises(RecordRejected, match="says 250, the option sampling_rate says 500"):
        only(tmp_path, sampling_rate=500)


@pytest.mark.parametrize("word", ["quarter", "250/s?", "2 x 125"])
def test_a_rate_in_words_that_are_not_understood_is_not_passed_over(tmp_path: Path, word: str) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs=word)
    with pytest.raises(RecordRejected, match=r"fs says '.*', expected a number of Hz"):
        only(tmp_path, sampling_rate=500)
    for nothing in ("", "N/A"):
        np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs=nothing, frequency="0.5 to 40")
        assert only(tmp_path, sampling_rate=500).sampling_rate == 500


def structured(fs: float, unit: str) -> np.ndarray:
    return np.array((fs, unit), dtype=[("fs", "f8"), ("unit", "U4")])


@pytest.mark.parametrize(
    "meta", [np.array(json.dumps({"fs": 250, "unit": "uV", "who": {"a": 1}, "note": None})), structured(250, "uV")]
)
def test_facts_within_one_array_count_like_arrays_of_their_own(tmp_path: Path, meta: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", signal=1000 * MILLIVOLTS, meta=meta)
    record = only(tmp_path)
    assert record.sampling_rate == 250
    np.testing.assert_allclose(record.millivolts(), MILLIVOLTS, atol=6e-4)
    with pytest.raises(RecordRejected, match="fs says 250, the option sampling_rate says 500"):
        only(tmp_path, sampling_rate=500)
    np.savez(tmp_path / "a.npz", signal=1000 * MILLIVOLTS, meta=meta, fs=250)
    assert only(tmp_path).sampling_rate == 250
    np.savez(tmp_path / "a.npz", signal=1000 * MILLIVOLTS, meta=meta, Fs=500)
    with pytest.raises(RecordRejected, match=r"Fs says 500, meta.fs says 250"):
        only(tmp_path)


@pytest.mark.parametrize("text", ["{fs: 250}", "{", '{"fs": 250, "fs": 500}', "[250]", "{" * 200, '{"fs": true}'])
def test_text_that_is_no_mapping_says_nothing(tmp_path: Path, text: str) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, meta=text)
    assert only(tmp_path, sampling_rate=500).sampling_rate == 500
