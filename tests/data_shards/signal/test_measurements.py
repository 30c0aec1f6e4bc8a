"""Rate, intervals and axes are those that the hearts were made with, and of real recordings what their readers said."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.signal.measurements import Measurements, frontal, measure, words
from tests.data_shards.signal.test_delineate import heart, recording


def record(millivolts: np.ndarray, rate: float, **fields: object) -> EcgRecord:
    """Of all leads, in steps of a microvolt."""
    gain = np.full(12, 1000.0, dtype=np.float32)
    return EcgRecord("r", np.round(1000 * millivolts).astype(np.int16), gain, rate, **fields)


def standard(rate: float, code: str, seed: int) -> tuple[EcgRecord, object]:
    made = heart(code, seed)
    return record(recording(made, round(rate)), rate), made


def test_rate_and_intervals_are_those_that_the_hearts_were_made_with() -> None:
    """Median errors over twelve people; QTc is QT where the RR interval is 1 s, and longer above 60 a minute."""
    errors = []
    for code in ("NORM", "SBRAD", "LBBB", "1AVB"):
        for seed in range(3):
            ecg, made = standard(500, code, seed)
            found, beat = measure(ecg), made.heart.draft.beat
            rr = float(np.median(np.diff(made.beats.qrs)))
            errors.append((found.rate - 60 / rr, found.pr - beat.pr_ms, found.qrs - beat.qrs_ms))
            assert found.qtc == pytest.approx(found.qt / rr ** (1 / 3), rel=0.02)
    assert (np.abs(np.median(errors, axis=0)) < (2.0, 12.0, 12.0)).all()


@pytest.mark.parametrize("seed", range(8))
def test_fibrillation_has_no_pr_interval(seed: int) -> None:
    """In three of these eight hearts the median of the beats keeps a hump of the fibrillation."""
    ecg, _ = standard(500, "AFIB", seed)
    assert np.isnan(measure(ecg).pr) and np.isnan(measure(ecg).p_axis)
    assert not any("PR" in line for line in words(measure(ecg)))


@pytest.mark.parametrize("code", ["NORM", "STACH", "SBRAD", "1AVB", "LBBB", "PVC", "PAC"])
def test_a_p_wave_is_one_though_other_beats_come_between(code: str) -> None:
    """Of four people each; beats without one, or with one elsewhere, are not of the usual kind."""
    assert sum(np.isfinite(measure(standard(500, code, seed)[0]).pr) for seed in range(4)) >= 3


def test_an_axis_is_that_of_einthovens_triangle() -> None:
    """A vector of 1 mV at 60 degrees: I = cos 60 = 0.5 mV, II = 1 mV, aVF = sqrt(3) / 2 sin 60 = 0.75 mV."""
    left, down = frontal(0.5, 0.75)
    assert np.degrees(np.arctan2(down, left)) == pytest.approx(60)
    assert frontal(0.0, np.sqrt(3) / 2) == pytest.approx((0, 1))


@pytest.mark.parametrize("degrees", [-75, -30, 0, 45, 90, 120, 170])
def test_the_axis_of_a_drawn_heart_is_the_direction_it_was_drawn_in(degrees: float) -> None:
    """Narrow QRS complexes of one direction, by the lead axes of the frontal plane (I 0, II 60, III 120 degrees)."""
    rate, angle = 250, np.radians(degrees)
    beat = np.exp(-0.5 * ((np.arange(10 * rate) / rate % 0.8 - 0.4) / 0.012) ** 2)
    bipolar = {"I": 0.0, "II": 60.0, "III": 120.0}
    rows = {lead: np.cos(angle - np.radians(at)) for lead, at in bipolar.items()}
    rows |= {"aVR": -(rows["I"] + rows["II"]) / 2, "aVL": rows["I"] - rows["II"] / 2, "aVF": rows["II"] - rows["I"] / 2}
    size = np.array([rows.get(lead, 0.3) for lead in STANDARD_LEADS])
    found = measure(record(size[:, None] * beat, rate))
    assert (found.qrs_axis - degrees + 180) % 360 - 180 == pytest.approx(0, abs=5)
    assert found.rate == pytest.approx(75, abs=0.5)


def test_without_lead_i_there_is_no_axis_and_the_rest_stays() -> None:
    ecg, _ = standard(500, "NORM", 0)
    ecg.lead_mask = np.array([lead != "I" for lead in STANDARD_LEADS])
    found = measure(ecg)
    assert np.isnan([found.p_axis, found.qrs_axis, found.t_axis]).all() and np.isfinite([found.rate, found.qrs]).all()
    assert not any("axes" in line for line in words(found))


@pytest.mark.parametrize(
    "ecg",
    [
        record(np.zeros((12, 5000)), 500.0),
        record(np.zeros((12, 400)), 40.0),
        record(np.zeros((12, 5000)), 500.0, lead_mask=np.zeros(12, dtype=bool)),
        record(np.zeros((12, 5000)), 500.0, valid_samples=0),
    ],
    ids=["silence", "40 Hz", "no lead", "no sample"],
)
def test_where_nothing_can_be_measured_nothing_is_said(ecg: EcgRecord) -> None:
    assert np.isnan(measure(ecg)).all() and words(measure(ecg)) == []


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_heart_rate(seed: int) -> None:
    """Its peaks are no beats: no two of them look alike."""
    noise = np.random.default_rng(seed).normal(size=(12, 5000))
    assert np.isnan(measure(record(0.3 * noise, 500.0))).all()


def test_words_leave_out_what_is_not_known() -> None:
    assert words(Measurements(72.4, np.nan, 91.6, 380.0, 401.2, np.nan, -12.2, 33.0)) == [
        "rate 72/min", "QRS 92, QT/QTc 380/401 ms", "axes QRS -12, T 33 degrees",
    ]  # fmt: skip


@pytest.mark.slow
def test_axes_of_real_recordings_are_on_the_side_that_their_readers_said(real_data: Path) -> None:
    """PTB-XL's own column: MID normal, LAD and ALAD to the left, RAD and ARAD to the right."""
    import wfdb

    said: dict[str, list[float]] = {}
    with (real_data / "ptb-xl" / "ptbxl_database.csv").open() as table:
        for row in csv.DictReader(table):
            path = real_data / "ptb-xl" / row["filename_lr"]
            if row["heart_axis"] in ("MID", "LAD", "ALAD", "RAD", "ARAD") and path.with_suffix(".hea").exists():
                read = wfdb.rdrecord(str(path))
                order = [[name.upper() for name in read.sig_name].index(lead.upper()) for lead in STANDARD_LEADS]
                said.setdefault(row["heart_axis"], []).append(measure(record(read.p_signal.T[order], 100.0)).qrs_axis)
    left, right = ([*said.get(a, ()), *said.get(b, ())] for a, b in (("LAD", "ALAD"), ("RAD", "ARAD")))
    assert len(left) > 20 and np.nanquantile(left, 0.95) < 30 and np.nanmedian(left) < -15
    assert len(right) > 3 and np.nanquantile(right, 0.05) > 75
    assert len(said["MID"]) > 10 and 0 < np.nanmedian(said["MID"]) < 90


@pytest.mark.slow
def test_in_real_fibrillation_a_pr_interval_is_an_exception(real_data: Path) -> None:
    """By PTB-XL's own statements; some of these recordings say sinus rhythm or pacing as well."""
    import ast

    import wfdb

    found: dict[str, list[bool]] = {"AFIB": [], "SR": []}
    with (real_data / "ptb-xl" / "ptbxl_database.csv").open() as table:
        for row in csv.DictReader(table):
            said = ast.literal_eval(row["scp_codes"])
            kind = next((code for code in found if code in said), None)
            path = real_data / "ptb-xl" / row["filename_lr"]
            if kind is None or not path.with_suffix(".hea").exists() or len(found[kind]) == 60:
                continue
            read = wfdb.rdrecord(str(path))
            order = [[name.upper() for name in read.sig_name].index(lead.upper()) for lead in STANDARD_LEADS]
            found[kind].append(bool(np.isfinite(measure(record(read.p_signal.T[order], 100.0)).pr)))
    assert len(found["AFIB"]) > 30 and np.mean(found["AFIB"]) < 0.1
    assert len(found["SR"]) == 60 and np.mean(found["SR"]) > 0.5
