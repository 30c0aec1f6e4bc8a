"""Numbers that stand for "no value" in arrays and tables are none, and what looks like them is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.reading.no_value import without_sentinels
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import ecg_counts

MILLIVOLTS = ecg_counts(1000, gain=1000) / 1000


def only(root: Path, **options: object) -> EcgRecord:
    source = open_source("arrays", root, sampling_rate=500, **options)
    (entry,) = source.entries()
    return source.read(entry)


@pytest.mark.parametrize(
    ("unit", "kind", "none"),
    [("mV", "f4", -99), ("mV", "f8", -999), ("mV", "f4", -9999), ("mV", "f8", 1e20), ("mV", "f4", 9.96921e36),
     ("uV", "i2", -32768), ("uV", "f4", 32767), ("uV", "i4", -9999), ("uV", "i4", -2147483648),
     ("counts", "i2", -32768)],
)  # fmt: skip
@pytest.mark.parametrize("form", ["leads-first", "samples-first", "csv"])
def test_a_number_that_stands_for_no_value_is_none_and_leaves_the_others_alone(
    tmp_path: Path, unit: str, kind: str, none: float, form: str
) -> None:
    scale = {"mV": 1.0, "uV": 1000.0, "counts": 1000.0}[unit]
    stored = (MILLIVOLTS * scale).astype(kind) if kind[0] == "f" else np.rint(MILLIVOLTS * scale).astype(kind)
    stored[3, 400:440] = stored[:, 700] = none
    if form == "csv":
        rows = "\n".join(",".join(repr(float(each)) for each in row) for row in stored.T)
        (tmp_path / "a.csv").write_text(",".join(STANDARD_LEADS) + "\n" + rows + "\n")
    else:
        np.save(tmp_path / "a.npy", stored if form == "leads-first" else stored.T)
    record = only(tmp_path, unit=unit, **({"gain": 1000} if unit == "counts" else {}))
    expected = MILLIVOLTS.copy()
    expected[3, 400:440] = expected[:, 700] = 0
    np.testing.assert_allclose(record.millivolts(), expected, atol=6e-4)
    assert record.quality == {"non-finite": STANDARD_LEADS}


@pytest.mark.parametrize(
    "row",
    [
        [999, 500, 20, -3],  # microvolts on their way up
        [-999, -150, 0, 2],
        [32767, 32000, 31000, 100],  # a rail of 16 bits that the voltage climbs to
        [-32768, -20000, 0, 5],
        [99, 20, 1, 0],
        [9998, 1, 0, 2],
        [np.nan, 1.0, -0.5, 0],
        [np.inf, 1.0, -0.5, 0],
    ],
)
def test_samples_that_a_voltage_may_come_to_are_left_alone(row: list[float]) -> None:
    rows = np.array([row, [0, 1, 2, 3]])
    assert without_sentinels(rows) is rows


def test_every_lead_has_its_own_and_several_may_stand_in_one() -> None:
    rows = np.array([[1, -32768, 9999, 2], [999, 4, 500, -32768], [32767] * 4])
    nan = np.nan
    np.testing.assert_array_equal(without_sentinels(rows), [[1, nan, nan, 2], [999, 4, 500, nan], [nan] * 4])
