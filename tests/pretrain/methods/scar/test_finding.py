"""Evidence that stands in one lead alone, another for every report: the masker finds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.scar.method import Scar
from tests.support.small_scar import ENCODER, MASKER, Bank, make

SHOWN_IN = {"II": 2.0, "V1": 4.0, "V5": -2.0, "aVL": -4.0}
"""The lead of each report's sign, a wave of so many Hz, below 0 turned over; nothing else says anything."""
LOUD, LOUD_HZ = 3, 8.0
"""As many other leads of every record have a wave that is larger and means nothing."""
ENCODER_OF_HALVES = {**ENCODER, "patch_ms": 500}
ROWS, STEPS, BEGINS = 32, 140, 60


def records(step: int) -> Batch:
    generator = np.random.default_rng([7, step])
    report = generator.integers(0, len(SHOWN_IN), ROWS)
    signal = generator.normal(scale=0.2, size=(ROWS, 12, 200))
    hertz, seconds = np.array(list(SHOWN_IN.values()))[report], np.arange(200) / 100
    own = np.array([STANDARD_LEADS.index(lead) for lead in SHOWN_IN])[report]
    signal[np.arange(ROWS), own] += np.sin(2 * np.pi * hertz[:, None] * seconds)
    for row in range(ROWS):
        loud = generator.choice(np.delete(np.arange(12), own[row]), LOUD, replace=False)
        signal[row, loud] += 1.5 * np.sin(2 * np.pi * (LOUD_HZ * seconds + generator.random()))
    ages, sexes, valid = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.int8), np.full(ROWS, 200, np.int32)
    mask = np.ones((ROWS, 12), dtype=bool)
    return Batch(step, np.arange(ROWS), signal.astype(np.float32), mask, valid, report, ages, sexes, np.arange(ROWS))


def found_by(method: Scar) -> float:
    """Share of unseen records of which the lead of the sign is the first to go."""
    batch = records(999)
    with torch.inference_mode():
        logits = method.removal_logits(torch.from_numpy(batch.signal), torch.from_numpy(batch.lead_mask))
    first = logits.mean(dim=2).argmax(dim=1).numpy()
    return float((np.array(STANDARD_LEADS)[first] == np.array(list(SHOWN_IN))[batch.report]).mean())


@pytest.mark.slow
def test_the_lead_that_alone_tells_a_report_is_what_is_removed_of_its_records() -> None:
    """By turns, each player by an optimizer of its own. What is loudest is not what is removed."""
    playing = {**MASKER, "width": 16, "turns": "alternate", "aim": "margin", "begins": BEGINS}
    method = make(playing, ENCODER_OF_HALVES).train()
    own = [p for name, p in method.named_parameters() if name.startswith("masker.")]
    others = [p for name, p in method.named_parameters() if not name.startswith("masker.") and p.requires_grad]
    players = {True: torch.optim.Adam(own, lr=4e-3), False: torch.optim.Adam(others, lr=5e-3)}
    for step in range(STEPS):
        if step == BEGINS:
            assert found_by(method) < 0.6, "before it has played"
        inputs = method.inputs(records(step), Bank(), Draws(0, step, slice(0, ROWS)))  # type: ignore[arg-type]
        method.zero_grad()
        method.loss(method(inputs), inputs).loss.backward()
        players["plays" in inputs].step()
    assert (found := found_by(method)) > 0.9, f"by chance 1 in 12; found {found:.2f}"
