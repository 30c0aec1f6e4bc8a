"""Beats are where hearts beat, tokens are what the published tokeniser cuts, and no rate costs a lead."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.cohort.noise import digitise, electrode_noise
from cardialign.data_shards.cohort.patients import Patient, Visit
from cardialign.data_shards.cohort.synthesis import beat_heart, draft_visit
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.encoders.beat_transformer import BeatTransformer
from cardialign.pretrain.encoders.blocks.beats import COARSE_HZ, coarse, levelled
from cardialign.pretrain.encoders.blocks.heartbeat_tokens import beat_places, cut_beats, most_beats, window_samples

RATE, SECONDS, HEARTS = 100, 10.0, 24
TOLERANCE = 0.075
"""Seconds from a beat, half of the 150 ms that ANSI/AAMI EC57 allows."""


def recorded(code: str, index: int, rate: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """mV (12, T) of a virtual adult with electrodes' noise, and when the middle of each QRS complex truly was, s."""
    visit = Visit(1, 40_000_000 + index, 30.0 + 2 * index, datetime(2120, 1, 1), (code,))
    person = Patient(index, 10_000_000 + index, bool(index % 2), visit.age, visit.time, (visit,))
    draft = draft_visit(person, visit, 17, SECONDS)
    if rate is not None:
        draft.rhythm.rate = rate
    random = np.random.default_rng(index)
    heart = beat_heart(draft, RATE, random)
    leads = heart.leads + electrode_noise(heart.leads.shape[1], RATE, 50.0, random)
    wide = np.array(heart.beats.ventricular)
    middles = np.array(heart.beats.qrs) + np.where(wide, 0.07, draft.beat.qrs_ms / 2000)
    return (digitise(leads, 200.0, None) / 200.0).astype(np.float32), middles


def everything(signal: torch.Tensor) -> torch.Tensor:
    return torch.ones(*signal.shape[:2], 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("code", "rate", "sensitivity", "precision"),
    [
        ("NORM", None, 0.98, 0.98),
        ("SBRAD", None, 0.98, 0.98),
        ("STACH", None, 0.98, 0.98),
        ("STACH", 200.0, 0.98, 0.98),
        ("AFIB", None, 0.98, 0.98),
        ("PAC", None, 0.98, 0.98),
        ("PVC", None, 0.97, 0.98),
        ("3AVB", None, 0.98, 0.85),  # P waves that stand alone
    ],
)
def test_beats_are_where_the_heart_beat(code: str, rate: float | None, sensitivity: float, precision: float) -> None:
    hearts = [recorded(code, index, rate) for index in range(HEARTS)]
    signal = torch.from_numpy(np.stack([each for each, _ in hearts]))
    most = most_beats(signal.shape[-1], RATE)
    places, there = beat_places(coarse(signal, everything(signal), RATE), most, window_samples(RATE))
    true = found = right = told = 0
    for row, (_, middles) in enumerate(hearts):
        at = (places[row][there[row]].numpy() + 0.5) / COARSE_HZ
        near = np.abs(at[:, None] - middles) < TOLERANCE
        whole = (middles > 0.1) & (middles < SECONDS - 0.1)
        true, found = true + int(whole.sum()), found + int(near[:, whole].any(axis=0).sum())
        told, right = told + len(at), right + int(near.any(axis=1).sum())
        assert not (near.sum(axis=0) > 1).any(), "no beat is found twice"
    assert true > 100
    assert found / true >= sensitivity and right / told >= precision


def by_the_published_rule(rows: np.ndarray, peaks: list[int]) -> list[np.ndarray]:
    """The beats of one lead, one after the other, as HeartLang's tokeniser cuts them: 96 samples around each peak, of
    which those beyond the middle to a neighbour are 0."""
    tokens = []
    for i, peak in enumerate(peaks):
        start = peak - 48 if i == 0 else max(peak - 48, -(-(peaks[i - 1] + peak) // 2))
        end = peak + 48 if i == len(peaks) - 1 else min(peak + 48, -(-(peak + peaks[i + 1]) // 2))
        token = np.zeros(96)
        for sample in range(max(start, 0), min(end, len(rows))):
            token[sample - peak + 48] = rows[sample]
        tokens.append(token)
    return tokens


def test_tokens_are_the_published_cut_of_every_lead_and_know_their_lead_and_time() -> None:
    signal = torch.from_numpy(np.stack([recorded("STACH", 3)[0], recorded("SBRAD", 4)[0], recorded("PVC", 5)[0]]))
    record = coarse(signal, everything(signal), RATE)
    most = most_beats(1000, RATE)
    beats = cut_beats(record, record, most, 96)
    places, there = beat_places(record, most, 96)
    assert beats.values.shape == (3, 12 * most, 96)
    level = levelled(record)
    for row in range(3):
        peaks = places[row][there[row]].tolist()
        for lead in (0, 7, 11):
            own = slice(lead * most, lead * most + len(peaks))
            wanted = by_the_published_rule(level[row, lead].numpy(), peaks)
            np.testing.assert_array_equal(beats.values[row, own].numpy(), np.stack(wanted).astype(np.float32))
            assert beats.mask[row, own].all() and not beats.mask[row, own.stop : (lead + 1) * most].any()
            assert beats.seconds[row, own].tolist() == pytest.approx([peak / RATE for peak in peaks])
        assert not beats.values[row][~beats.inside[row]].any()


def test_at_200_a_minute_every_lead_has_every_beat() -> None:
    """The published list of 256 tokens ends after 21 beats of each lead, and of 12 leads with 33 it keeps 7.8."""
    encoder = make(SECONDS)
    signal, middles = recorded("STACH", 2, 200.0)
    inside = int(((middles > 0.1) & (middles < SECONDS - 0.1)).sum())
    beats = encoder.cut(torch.from_numpy(signal)[None], torch.ones(1, 12, dtype=torch.bool))
    of_lead = beats.mask[0].unflatten(0, (12, -1)).sum(dim=1)
    assert inside >= 32 and (of_lead >= inside).all()
    fastest = torch.zeros(1, 12, 1000)
    fastest[:, :, 5::21] = 1.0  # as fast as two beats can follow each other
    there = encoder.cut(fastest, torch.ones(1, 12, dtype=torch.bool)).mask[0].unflatten(0, (12, -1)).sum(dim=1)
    assert (there >= 46).all()


def test_a_flat_line_is_cut_evenly_and_a_missing_lead_has_no_token() -> None:
    encoder = make(SECONDS)
    leads = torch.ones(2, 12, dtype=torch.bool)
    leads[1, 3] = False
    beats = encoder.cut(torch.zeros(2, 12, 1000), leads, torch.tensor([1000, 500]))
    count = beats.mask.unflatten(1, (12, -1)).sum(dim=2)
    assert (count[0] == 10).all() and count[1].tolist() == [5, 5, 5, 0] + [5] * 8
    assert (beats.inside[1].sum(dim=1)[beats.mask[1]] >= 48).all()


def make(seconds: float, rate: float = RATE, **values: Any) -> BeatTransformer:
    torch.manual_seed(0)
    section = {"name": "beat_transformer", "width": 16, "depth": 1, "heads": 2, "embedding_dim": 8, **values}
    made = create_encoder(parse_config({"encoder": section}).encoder, SignalSpec(rate, seconds))
    assert isinstance(made, BeatTransformer)
    return made


@torch.no_grad()
def test_the_same_heart_has_the_same_beats_at_every_rate() -> None:
    """A beat's token at 500 Hz is the mean of five samples; that at 100 Hz takes one of them."""
    signal = torch.from_numpy(recorded("NORM", 1)[0])[None]
    often = signal.repeat_interleave(5, dim=2)
    leads = torch.ones(1, 12, dtype=torch.bool)
    here, there = make(SECONDS).cut(signal, leads), make(SECONDS, 500).cut(often, leads)
    torch.testing.assert_close(here.values, there.values, atol=1e-5, rtol=0)
    assert torch.equal(here.mask, there.mask)


@torch.no_grad()
def test_lead_and_second_of_a_beat_are_told_apart() -> None:
    encoder = make(SECONDS)
    beats = encoder.cut(torch.from_numpy(recorded("NORM", 1)[0])[None], torch.ones(1, 12, dtype=torch.bool))
    blank = torch.zeros(1, beats.mask.shape[1], 16)
    at = encoder.places(blank, beats)[0].unflatten(0, (12, -1))
    count = int(beats.mask[0, : encoder.most].sum())
    second = beats.seconds[0, :count].long()
    for lead in range(12):
        torch.testing.assert_close(at[lead, :count], encoder.places.lead[lead] + encoder.places.second[second])


def test_records_without_room_for_a_beat_are_refused() -> None:
    for rate, seconds in ((40.0, 10.0), (100.0, 0.5)):
        with pytest.raises(UsageError, match="beat_transformer reads heartbeats"):
            make(seconds, rate)
