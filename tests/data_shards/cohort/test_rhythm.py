"""Beat times of each rhythm."""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.data_shards.cohort.rhythm import RhythmPlan, fibrillatory_waves, flutter_waves, generate


@pytest.mark.parametrize("origin", ["sinus", "afib", "flutter", "paced", "av-paced", "complete-block"])
@pytest.mark.parametrize("rate", [45.0, 75.0, 180.0])
def test_beats_cover_the_record_at_the_wanted_rate(origin: str, rate: float):
    plan = RhythmPlan(rate, origin, atrial_rate=2 * rate if origin == "flutter" else 90.0)
    for seconds in (10.0, 20.0):
        beats = generate(plan, 0.15, seconds, np.random.default_rng(3))
        qrs = np.array(beats.qrs)
        assert np.all(np.diff(qrs) > 0.2)
        assert qrs[0] < 0 and qrs[-1] > seconds - 60 / rate
        assert abs(60 / np.mean(np.diff(qrs)) - rate) < 0.15 * rate


def test_a_premature_ventricular_beat_has_a_fully_compensatory_pause_and_an_atrial_one_has_not():
    still = {"sinus_arrhythmia": 0.0}
    for seed in range(10):
        ventricular = generate(RhythmPlan(70, premature_ventricular=2, **still), 0.16, 10, np.random.default_rng(seed))
        early = [i for i, v in enumerate(ventricular.ventricular) if v]
        assert len(early) == 2
        for i in early:
            assert abs(ventricular.qrs[i + 1] - ventricular.qrs[i - 1] - 2 * 60 / 70) < 0.1
        atrial = generate(RhythmPlan(70, premature_atrial=2, **still), 0.16, 10, np.random.default_rng(seed))
        for p in [p for p, e in zip(atrial.p, atrial.p_early, strict=True) if e]:
            i = int(np.searchsorted(atrial.p, p))
            assert atrial.p[i + 1] - atrial.p[i - 1] < 1.98 * 60 / 70


def test_wenckebach_prolongs_pr_until_a_beat_is_dropped():
    beats = generate(RhythmPlan(75, wenckebach=4, sinus_arrhythmia=0.0), 0.18, 10, np.random.default_rng(0))
    conducted = [any(abs(p + pr - q) < 1e-9 for q in beats.qrs) for p, pr in zip(beats.p, beats.pr, strict=True)]
    dropped = np.flatnonzero(~np.array(conducted))
    assert set(np.diff(dropped)) == {4}
    group = beats.pr[dropped[0] + 1 : dropped[0] + 4]
    assert group == sorted(group) and group[-1] > group[0] + 0.1
    assert np.diff(group)[1] < np.diff(group)[0], "the increment shrinks, so that RR shortens before the pause"


def test_fibrillation_is_irregular_without_p_and_respiration_moves_sinus_rhythm():
    afib = generate(RhythmPlan(90, "afib"), 0.15, 60, np.random.default_rng(1))
    gaps = np.diff(afib.qrs)
    assert not afib.p and np.std(gaps) / np.mean(gaps) > 0.12
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.35
    sinus = generate(RhythmPlan(60, sinus_arrhythmia=0.08, breathing_hz=0.2), 0.15, 60, np.random.default_rng(1))
    assert 0.03 < np.std(np.diff(sinus.qrs)) < 0.1


def test_atrial_waves_have_their_frequencies():
    times = np.arange(0, 20, 0.004)
    hz = np.fft.rfftfreq(len(times), 0.004)
    flutter = np.abs(
        np.fft.rfft(flutter_waves(RhythmPlan(70, "flutter", atrial_rate=280, atrial_size=0.2), times, 0.0)[1])
    )
    assert abs(hz[np.argmax(flutter)] * 60 - 280) < 3
    power = np.abs(np.fft.rfft(fibrillatory_waves(RhythmPlan(90, "afib"), times, np.random.default_rng(2))[2])) ** 2
    assert power[(hz > 3.5) & (hz < 9.5)].sum() > 0.95 * power.sum()
