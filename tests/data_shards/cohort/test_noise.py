"""Noise and faults."""

from __future__ import annotations

import numpy as np

from cardialign.data_shards.cohort.noise import FAULT_SHARE, Fault, digitise, draw_fault, electrode_noise


def test_noise_has_wander_mains_and_muscle_of_realistic_size():
    power, sizes = np.zeros(2501), []
    for seed in range(40):
        noise = electrode_noise(5000, 500, 60.0, np.random.default_rng(seed))
        power += (np.abs(np.fft.rfft(noise, axis=1)) ** 2).mean(axis=0)
        sizes.append(float(np.median(noise.std(axis=1))))
    hz = np.fft.rfftfreq(5000, 0.002)
    assert 0.008 < np.median(sizes) < 0.12, "tens of microvolts"
    assert power[hz < 1].sum() > power[(hz > 2) & (hz < 55)].sum()
    assert power[np.abs(hz - 60) < 0.3].mean() > 20 * power[np.abs(hz - 70) < 3].mean()


def test_about_six_in_a_hundred_records_have_a_fault():
    rng = np.random.default_rng(0)
    faults = [draw_fault(5000, rng) for _ in range(4000)]
    share = np.mean([f is not None for f in faults])
    assert abs(share - FAULT_SHARE) < 0.012
    assert {f.kind for f in faults if f} == {"flat", "dropout", "clipped"}


def test_faults_show_in_the_counts_and_einthoven_still_holds():
    eight = np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32)
    flat = digitise(eight, 200, Fault("flat", ("V3",), 0, 1000))
    assert not flat[8].any() and flat[7].any()
    part = digitise(eight, 200, Fault("dropout", ("V1",), 100, 400))
    assert not part[6, 100:400].any() and part[6, :100].any()
    clipped = digitise(eight, 200, Fault("clipped", ("V6",), 0, 1000))
    assert np.mean(np.abs(clipped[11]) == np.abs(clipped[11]).max()) > 0.05
    limb = digitise(eight, 200, Fault("flat", ("I",), 0, 1000))
    assert not limb[0].any() and np.array_equal(limb[2], limb[1])
