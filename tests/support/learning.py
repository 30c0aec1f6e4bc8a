"""Does a method learn? A small virtual cohort, a short training on one core, and figures on patients it never saw."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from cardialign.data_shards.files import commit_folder
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.evaluation.result import ZeroShotComparison
from cardialign.pretrain.evaluation.zero_shot import compare_zero_shot
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import LoadedEncoder, load_encoder
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks

FINDINGS = ("NORM", "AFIB", "STACH", "SBRAD", "LBBB", "RBBB", "PACE", "LVH", "ISTE", "PVC")
"""Findings that a few hundred records teach. Rhythms and forms of all leads and of some."""
TRAINED, UNSEEN, RATE = 640, 240, 100
PROMPTS = "virtual-findings-v2"


@dataclass(frozen=True)
class LearningData:
    """Shard sets of 10 s at 100 Hz with labels; `shards` has a bank of MiniLM. No patient is in both."""

    shards: Path
    unseen: Path


@dataclass(frozen=True)
class Learnt:
    """A finished training: its run directory, its encoder, and what it ranks among records it has never seen."""

    run_dir: Path
    data: LearningData

    @cached_property
    def encoder(self) -> LoadedEncoder:
        return load_encoder(self.run_dir / "export")

    @cached_property
    def unseen(self) -> ShardSet:
        return ShardSet.open(self.data.unseen)

    @cached_property
    def zero_shot(self) -> ZeroShotComparison:
        """Trained against untrained by words, paired over patients."""
        return compare_zero_shot(self.encoder, self.encoder.untrained(), self.unseen, prompts=PROMPTS, threads=1)


def make_virtual_set(path: Path, records: int, seed: int, seconds: int) -> None:
    """A labelled shard set of virtual patients, two records each, at 100 Hz; its files lie beside it."""
    root = path.with_name(f"{path.name}-files")
    make_cohort(
        root,
        Cohort(patients=records // 2, records=records, seed=seed, sampling_rate=RATE, findings=FINDINGS),
        workers=1,
    )
    source = open_source("mimic-iv-ecg", root, labels=root / "truth.csv")
    build_shards(source, path, SetPlan(SignalSpec(RATE, seconds)), workers=1)


def make_learning_data(folder: Path) -> LearningData:
    """The two sets below `folder`, made once, whoever of several processes comes first."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return LearningData(folder / "train", folder / "unseen")
        with commit_folder(folder) as making:
            for name, records, seed in (("train", TRAINED, 11), ("unseen", UNSEEN, 12)):
                make_virtual_set(making / name, records, seed, 10)
            build_text_bank(ShardSet.open(making / "train"), TextEncoder(RunConfig().text))
    return LearningData(folder / "train", folder / "unseen")


@pytest.fixture(scope="session")
def learning_data(tmp_path_factory: pytest.TempPathFactory) -> LearningData:
    """Made once for all processes of a test run. Import it in the module of a learning test."""
    base = tmp_path_factory.getbasetemp()
    return make_learning_data((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "learning")


def _train(rank: int, world: int, config: RunConfig, run_dir: Path) -> float:
    return train(config, run_dir, NullObserver()).final_loss


def learn(
    recipe: str,
    data: LearningData,
    run_dir: Path,
    changes: Mapping[str, Any],
    deadline: float = 300,
    rank: Callable[[int, int, RunConfig, Path], float] = _train,
) -> Learnt:
    """Train a shipped recipe with changes (dotted keys) on one core, in `rank`, and export it. fp32, one worker."""
    fixed = {"data.shards": str(data.shards), "training.precision": "fp32", "data.threads": 1}
    words = [f"{key}={json.dumps(value)}" for key, value in {**fixed, **changes}.items()]
    run_ranks(1, rank, load_config(recipe, words), run_dir, init=False, deadline=deadline)
    export_run(run_dir, program=False)
    return Learnt(run_dir, data)


def macro_of(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean over classes with both kinds of records of the share of (positive, negative) pairs that are in order."""
    found = []
    for column in range(truth.shape[1]):
        yes, no = scores[truth[:, column], column], scores[~truth[:, column], column]
        if len(yes) and len(no):
            found.append(float(((yes[:, None] > no) + 0.5 * (yes[:, None] == no)).mean()))
    return float(np.mean(found))
