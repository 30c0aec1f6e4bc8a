"""The lead field and the derived leads."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.cohort.dipole import DOWER, frontal_axis, loops, torso, twelve_leads


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_derived_limb_leads_obey_einthoven_and_goldberger_in_counts(seed: int):
    eight = np.random.default_rng(seed).integers(-16000, 16001, (8, 50))
    one, two, three, avr, avl, avf = twelve_leads(eight)[:6].astype(int)
    assert np.array_equal(three, two - one)
    assert np.abs(2 * avr + one + two).max() <= 1
    assert np.abs(2 * avl - one + three).max() <= 1
    assert np.abs(2 * avf - two - three).max() <= 1
    assert np.abs(avr + avl + avf).max() <= 1


def test_lead_geometry_of_the_published_matrix():
    left, feet, back = np.eye(3)
    rows = {lead: DOWER[i] for i, lead in enumerate(("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"))}
    assert rows["I"] @ left > 0.5 and rows["II"] @ feet > 1.0
    assert rows["V1"] @ left < 0 < rows["V6"] @ left, "a leftward vector is negative in V1 and positive in V6"
    assert all(rows[lead] @ back < 0 for lead in ("V1", "V2", "V3")), (
        "a backward vector points away from the anterior leads"
    )


def test_people_differ_in_lead_field_but_keep_the_geometry():
    fields = [torso(np.random.default_rng(seed)) for seed in range(30)]
    assert np.std([f[3, 2] for f in fields]) > 0.02
    for field in fields:
        assert np.abs(field - DOWER).max() < 0.6
        assert field[2, 0] < 0 < field[7, 0]


def test_loops_are_the_sum_of_their_gaussians():
    rng = np.random.default_rng(1)
    centre, left, right = rng.uniform(-0.2, 2.2, 30), rng.uniform(0.005, 0.06, 30), rng.uniform(0.005, 0.09, 30)
    vector = rng.standard_normal((30, 3))
    times = np.arange(1000) / 500
    away = times - centre[:, None]
    shape = np.exp(-0.5 * (away / np.where(away < 0, left[:, None], right[:, None])) ** 2)
    assert np.allclose(loops(centre, left, right, vector, 1000, 500), vector.T @ shape, atol=0.015)


def test_frontal_axis_follows_the_hexaxial_convention():
    assert frontal_axis(1, 0) == 0
    assert frontal_axis(0, 1) == 90
    assert frontal_axis(0, -1) == -90
    assert abs(frontal_axis(1, np.sqrt(3) / 2) - 45) < 1e-9
