"""What tests of the top floor stand on: a small cohort, its shard set at 100 Hz x 2.5 s, and an untrained encoder."""

from __future__ import annotations

from pathlib import Path

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.sources import open_source

SPEC = SignalSpec(sampling_rate=100.0, seconds=2.5)
SMALL = [
    "training.global_batch=16",
    "training.epochs=null",
    "training.steps=60",
    "training.checkpoint_every=10",
    "training.log_every=5",
    "collapse.enabled=false",
    "data.threads=1",
]
"""Overrides that turn the demo recipe into a run of seconds."""


def make_tiny_cohort(folder: Path, patients: int = 30, seed: int = 3) -> Path:
    return make_cohort(folder / "cohort", Cohort(patients=patients, seed=seed, sampling_rate=100)).path


def make_tiny_shards(folder: Path, cohort: Path) -> Path:
    source = open_source(
        "mimic-iv-ecg", cohort, labels=str(cohort / "truth.csv"), patients=str(cohort / "patients.csv")
    )
    return build_shards(source, folder / "shards", SetPlan(SPEC, records_per_shard=32), workers=1).path


def export_untrained(out: Path) -> Path:
    """The demo recipe's encoder with fresh weights, exported as a finished one would be."""
    import torch

    from cardialign.pretrain.config import load_config
    from cardialign.pretrain.export.write import export_encoder
    from cardialign.pretrain.methods.base import create_method

    config = load_config("cardialign-demo", SMALL)
    torch.manual_seed(0)
    state = create_method(config, SPEC).state_dict()
    return export_encoder(config, state, out, training={"steps": 0}, spec=SPEC, program=False)
