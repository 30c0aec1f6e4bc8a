"""SCAR-R as a run: the same on every topology, better than without training, and a masker that does harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.evaluation.missingness.cmrs import preserved, separation
from cardialign.pretrain.evaluation.missingness.masks import highest, random_units, units_of
from cardialign.pretrain.evaluation.missingness.removed import what_is_removed
from cardialign.pretrain.evaluation.missingness.trained_masker import open_masker
from cardialign.pretrain.evaluation.prompts import load_prompts
from cardialign.pretrain.evaluation.scoring import mean_over_records
from cardialign.pretrain.evaluation.task import labelled_task
from cardialign.pretrain.evaluation.zero_shot import class_words, cosines
from tests.support.learning import PROMPTS, LearningData, Learnt, learn, learning_data
from tests.support.small_scar import ENCODER, MASKER
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies

__all__ = ["learning_data"]


@pytest.mark.slow
@pytest.mark.processes
def test_losses_do_not_know_the_topology(tmp_path: Path) -> None:
    """Turns: the masker's step is every second one, so that both players' updates are in the trace."""
    shards = make_shards(tmp_path / "shards")
    values = config_for(shards, lead_dropout=0.2).resolved()
    values |= {"encoder": {**ENCODER, "patch_ms": 250}}
    values |= {
        "method": {"name": "scar", "align": "diagsim", "masker": {**MASKER, "turns": "alternate", "aim": "margin"}}
    }
    run_topologies(values, tmp_path / "runs")
    check_topologies(
        tmp_path / "runs", ["loss", "full_loss", "masked_loss", "margin", "selection", "budget", "removed"]
    )


def kept_by(learnt: Learnt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CMRS of each record without half its leads, (n,): the masker's choice, and chance; and the patients."""
    shards, encoder = learnt.unseen, learnt.encoder
    task, units = labelled_task(shards, PROMPTS), units_of("leads", shards.spec)
    words = class_words(encoder, load_prompts(PROMPTS))
    masker, read = open_masker(learnt.run_dir, shards.spec).ranking, encoder.gap_reader(shards.spec)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("whole", "blank", "masker", "chance")}
    for batch in iterate_rows(shards, task.rows, 40):
        rows = range(len(batch.rows))
        gladly = [masker(batch.signal[k], batch.lead_mask[k], int(batch.valid_samples[k])).mean(axis=1) for k in rows]
        chosen = {
            "whole": np.zeros((len(rows), 12), dtype=bool),
            "blank": np.ones((len(rows), 12), dtype=bool),
            "masker": highest(np.array(gladly), 6),
            "chance": np.stack([random_units(units, 6, 0, int(row)) for row in batch.rows]),
        }
        for name, which in chosen.items():
            output = read(batch.signal, batch.lead_mask, batch.valid_samples, units.mask(which))
            found[name].append(cosines(output.embedding.numpy(), words, 40))
    delta = {name: separation(np.concatenate(parts), task.truth) for name, parts in found.items()}
    kept = [preserved(delta[name], delta["whole"], delta["blank"]) for name in ("masker", "chance")]
    return kept[0], kept[1], task.patients


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_it_learns_what_reports_say_and_its_masker_what_to_take_away(
    learning_data: LearningData,
    tmp_path: Path,
) -> None:
    """Coarser tokens than the recipe's, and a masker that begins when the encoder has learnt something.

    The primary evidence, known by construction, is what it removes more often than chance would.
    """
    changes = {
        "encoder.patch_ms": 1000,
        "encoder.width": 48,
        "encoder.attention": "dense",
        "training.epochs": None,
        "training.steps": 100,
        "training.global_batch": 64,
        "method.masker.begins": 30,
    }
    learnt = learn("scar", learning_data, tmp_path / "run", changes)
    gain = learnt.zero_shot.difference
    assert gain.low > 0.2, gain
    worst, chance, patients = kept_by(learnt)
    there = np.isfinite(worst)
    assert there.mean() > 0.4
    harm = mean_over_records((chance - worst)[there], patients[there], resamples=500, seed=0)
    assert harm.low > 0, f"what the masker removes is worth no more than what chance does: {harm}"
    shards, task = learnt.unseen, labelled_task(learnt.unseen, PROMPTS)
    masker = open_masker(learnt.run_dir, shards.spec)
    assert masker.learnt == "the masker learnt in 35 of 100 steps, from step 30 on"
    evidence = what_is_removed(shards, task, masker.ranking, 0.3, resamples=500, seed=0)
    assert evidence.beyond.low > 0, f"it finds {evidence.found}, chance {evidence.chance:.3f}: {evidence.beyond}"
