"""Each finding meets its textbook criterion in the drawn waveform, in every one of a row of different people."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from cardialign.data_shards.cohort.findings import FINDINGS, compatible
from tests.support.cohort_measures import ADULTS, Measured, measured


def _inverted(m: Measured, *leads: str) -> bool:
    return all(m.t(lead) < -0.05 for lead in leads)


def _q_ms(m: Measured, lead: str) -> int:
    """Length of the negative stretch that opens the QRS, ms."""
    values = m.cut(lead, 0, m.width())
    negative = values < -0.02
    if not negative.any():
        return 0
    first = int(np.argmax(negative))
    if values[:first].max(initial=0) > 0.04:  # an r wave comes before: an S, not a Q
        return 0
    ends = np.flatnonzero(~negative[first:])
    return int(ends[0]) if len(ends) else len(values) - first


def _afib(m: Measured) -> bool:
    gaps = np.diff(m.beats.qrs)
    return not m.beats.p and float(np.std(gaps) / np.mean(gaps)) > 0.10


def _flutter_rate(m: Measured) -> float:
    """Strongest atrial frequency between 3.5 and 6 Hz in III, in waves per minute."""
    spectrum = np.abs(np.fft.rfft(m.leads["III"] * np.hanning(10_000), 80_000))
    hz = np.fft.rfftfreq(80_000, 0.001)
    band = (hz > 4.0) & (hz < 5.2)
    return float(60 * hz[band][np.argmax(spectrum[band])])


def _early_beats(m: Measured, ventricular: bool) -> list[tuple[float, float]]:
    """(coupling, pause) of premature beats inside the record as fractions of the median cycle."""
    gaps = np.diff(m.beats.qrs)
    middle = float(np.median(gaps))
    return [
        (gaps[i - 1] / middle, gaps[i] / middle)
        for i in range(1, len(gaps))
        if gaps[i - 1] < 0.8 * middle and 0 < m.beats.qrs[i] < 10 and m.beats.ventricular[i] == ventricular
    ]


def _dropped(m: Measured) -> bool:
    """Some P waves inside the record have no QRS, and PR grows from beat to beat before each of them."""
    pairs = [next((q - p for q in m.beats.qrs if 0.1 < q - p < 0.6), None) for p in m.beats.p if 0.5 < p < 9]
    growing = all(a is None or b is None or b > a for a, b in pairwise(pairs))
    return None in pairs and growing


CRITERIA: dict[str, Callable[[Measured], bool]] = {
    "NORM": lambda m: m.qrs_ms() < 115 and 55 <= np.median(m.rates()) <= 101
    and all(abs(m.st(x)) < 0.1 for x in m.leads) and m.t("V5") > 0.08,
    "SBRAD": lambda m: np.median(m.rates()) < 60,
    "STACH": lambda m: np.median(m.rates()) > 100,
    "AFIB": _afib,
    "AFLT": lambda m: not m.beats.p and 250 <= round(_flutter_rate(m)) <= 300,
    "PAC": lambda m: any(pause < 1.6 for _, pause in _early_beats(m, False)),
    "PVC": lambda m: any(coupling + pause > 1.8 for coupling, pause in _early_beats(m, True)),
    "1AVB": lambda m: 1000 * (m.beat() - max(p for p in m.beats.p if p < m.beat())) > 200,
    "WENCK": _dropped,
    "3AVB": lambda m: np.median(m.rates()) < 50 and len({round(q - p,
    2) for q in m.beats.qrs for p in m.beats.p if 0 < q - p < 0.8}) > 3,
    "PACE": lambda m: max(np.abs(np.diff(m.leads["II"][round((m.beat() - 0.012) * 1000) :][:20])).max(), 0) > 0.15
    and m.qrs_ms() > 120,
    "LBBB": lambda m: m.qrs_ms() >= 125 and m.trough("V1") > 0.6 and m.cut("V6", 0, 50).min() > -0.06
    and m.peak("V6") > 0.4 and m.t("V6") < 0 < m.t("V1"),
    "RBBB": lambda m: m.qrs_ms() >= 115 and m.cut("V1", 80, 150).max() > 0.25 and m.cut("I", 70, 150).min() < -0.08
    and m.cut("V6", 70, 150).min() < -0.12,
    "LAFB": lambda m: -75 <= m.axis() <= -42 and m.qrs_ms() < 122 and m.peak("aVL") > m.trough("aVL")
    and m.trough("III") > m.peak("III"),
    "WPW": lambda m: 1000 * (m.beat() - max(p for p in m.beats.p if p < m.beat())) < 120 and m.qrs_ms() > 108,
    "LVH": lambda m: m.trough("V1") + max(m.peak("V5"), m.peak("V6")) > 3.5,
    "RVH": lambda m: m.axis() > 95 and m.peak("V1") > m.trough("V1") and m.peak("V1") > 0.45 and m.trough("V6") > 0.25
    and m.t("V1") < 0,
    "LAE": lambda m: m.cut("V1", -(m.heart.draft.beat.pr_ms - 0.5 * m.heart.draft.beat.p_ms), -15).min() < -0.08,
    "RAE": lambda m: m.cut("II", -m.heart.draft.beat.pr_ms, -15).max() > 0.25,
    "OIMI": lambda m: _q_ms(m, "III") >= 30 and _q_ms(m, "aVF") >= 25 and m.trough("III") > 0.25 * m.peak("III"),
    "OAMI": lambda m: all(m.peak(x) < 0.12 or _q_ms(m, x) >= 25 for x in ("V1", "V2", "V3")),
    "ASTE": lambda m: m.st("V2") > 0.18 and m.st("V3") > 0.18 and m.st("V2") > m.st("V6"),
    "ISTE": lambda m: all(m.st(x) > 0.1 for x in ("II", "III", "aVF")) and m.st("aVL") < -0.05,
    "LSTE": lambda m: all(m.st(x) > 0.09 for x in ("I", "aVL", "V5", "V6")) and m.st("III") < -0.05,
    "PERI": lambda m: all(m.st(x) > 0.07 for x in ("I", "II", "aVF", "V4", "V5", "V6")) and m.st("aVR") < -0.07
    and m.cut("II", -25, -10).mean() < -0.03,
    "STD": lambda m: all(m.st(x) < -0.08 for x in ("II", "V4", "V5", "V6")) and m.st("aVR") > 0.08,
    "TINV": lambda m: _inverted(m, "V2", "V3") or _inverted(m, "I", "V5", "V6") or _inverted(m, "II", "III", "aVF"),
    "LQT": lambda m: m.qt() / np.sqrt(60 / np.median(m.rates()) / 1) > 470,
    "LVOLT": lambda m: all(np.ptp(m.cut(x, -10, m.width() + 10)) < 0.5 for x in ("I", "II", "III", "aVR", "aVL",
    "aVF")),
}  # fmt: skip


def test_every_finding_has_a_criterion_and_there_are_at_least_24():
    assert set(CRITERIA) == set(FINDINGS)
    assert len(FINDINGS) >= 24


@pytest.mark.parametrize("code", list(FINDINGS))
def test_the_drawn_waveform_meets_the_criterion(code: str):
    failed = [seed for seed in ADULTS if not CRITERIA[code](measured(code, seed))]
    assert not failed, f"{code} not met for seeds {failed}"


@pytest.mark.parametrize(
    "code", [c for c in FINDINGS if c not in ("NORM", "AFLT", "TINV", "LAE", "OIMI", "OAMI", "LSTE", "LAFB")]
)
def test_healthy_people_do_not_meet_the_criterion(code: str):
    met = [seed for seed in ADULTS if CRITERIA[code](measured("NORM", seed))]
    assert not met, f"{code} met by healthy seeds {met}"


def test_findings_combine_and_each_stays_visible():
    for pair in (
        ("AFIB", "LVH"),
        ("1AVB", "LBBB"),
        ("RBBB", "LAE"),
        ("PVC", "ISTE"),
        ("STACH", "LVH"),
        ("SBRAD", "LVOLT"),
        ("LAFB", "STD"),
    ):
        assert compatible(pair[1], [pair[0]], 60), pair
        for seed in ADULTS[:8]:
            for code in pair:
                assert CRITERIA[code](measured(pair, seed)), (pair, code, seed)


def test_exclusions_are_mutual_and_a_normal_ecg_excludes_everything():
    for code, finding in FINDINGS.items():
        assert code not in finding.excludes
        assert all(code in FINDINGS[other].excludes for other in finding.excludes)
    assert FINDINGS["NORM"].excludes == set(FINDINGS) - {"NORM"}
