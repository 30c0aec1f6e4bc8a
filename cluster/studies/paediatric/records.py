"""The records of the paediatric study: adults to pretrain on, children to be fine-tuned on, some ages kept out.

Without shard sets of the user's both are virtual: adults in the layout of MIMIC-IV-ECG, and people from birth to 90
years whose hearts and findings follow the norms of their age (`data_shards.cohort.growth`). They are made once, in the
folder of the study.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cardialign.cluster.studies.paediatric.design import FINDINGS, HELD_OUT, Sizes, band_of, held_out_words
from cardialign.data_shards.errors import UserError

if TYPE_CHECKING:
    from cardialign.data_shards.cohort.generate import Cohort
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.probing.tasks import ProbeTask

log = logging.getLogger(__name__)
ADULT_SEED, CHILD_SEED = 11, 12
VALIDATION, SEEN_TEST = 0.15, 0.15
"""Shares of the patients of the ages that are learnt from."""
VIRTUAL_LABELS = "finding"


@dataclass(frozen=True)
class Split:
    """The task, and which of its test records are of ages that were kept out, bool (test,)."""

    task: ProbeTask
    held_out: np.ndarray


def virtual_adults(folder: Path, sizes: Sizes) -> Path:
    """The shard set of the adults, made where it is not there yet."""
    from cardialign.data_shards.cohort.generate import Cohort

    people = max(8, round(sizes.adults * 0.45))
    cohort = Cohort(people, sizes.adults, "mimic-iv-ecg", ADULT_SEED, sizes.sampling_rate)
    return _made(folder / f"adults-{sizes.adults}", cohort, "mimic-iv-ecg", sizes.seconds)


def virtual_children(folder: Path, sizes: Sizes) -> Path:
    """The shard set of people of all ages, one record each, made where it is not there yet."""
    from cardialign.data_shards.cohort.generate import Cohort

    n = sizes.children
    return _made(
        folder / f"children-{n}",
        Cohort(n, n, "lifespan", CHILD_SEED, sizes.sampling_rate, FINDINGS),
        "zzu-pecg",
        sizes.seconds,
    )


def _made(folder: Path, cohort: Cohort, source: str, seconds: int) -> Path:
    from cardialign.data_shards.build.build import SetPlan, build_shards
    from cardialign.data_shards.cohort.generate import make_cohort
    from cardialign.data_shards.record import SignalSpec
    from cardialign.data_shards.sources import open_source

    files, shards = folder / "cohort", folder / "shards"
    if not (shards / "manifest.json").is_file():
        if not files.exists():
            make_cohort(files, cohort)
        reader = open_source(source, files, labels=str(files / "truth.csv"))
        build_shards(reader, shards, SetPlan(SignalSpec(cohort.sampling_rate, seconds)), workers=1)
    return shards


def split_by_age(shard_set: ShardSet, label_set: str) -> Split:
    """Patients whose records all are of ages kept out are tested; the others part into training, validation and test.

    Who has records on both sides, or one of unknown age, is left out, and counted. Raises UserError where a part is
    empty.
    """
    from cardialign.pretrain.evaluation.probing.linear_probe import Parts
    from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
    from cardialign.pretrain.evaluation.task import decided_records

    every = shard_set.select(label_set=label_set).rows
    ages = shard_set.age_years[every]
    people, of = np.unique(shard_set.patients[every], return_inverse=True)
    away = np.array([band_of(age) in HELD_OUT for age in ages.tolist()])
    unknown = np.bincount(of, np.isnan(ages), len(people)) > 0
    out = np.bincount(of, away, len(people)) > 0
    both = out & (np.bincount(of, ~away, len(people)) > 0)
    left_out = (unknown | both)[of]
    drawn = np.random.default_rng(0).random(len(people))
    place = np.where(out, 3, np.where(drawn < VALIDATION, 1, np.where(drawn < VALIDATION + SEEN_TEST, 2, 0)))[of]
    rows, place = every[~left_out], place[~left_out]
    train, validation, seen, kept = (np.flatnonzero(place == part) for part in range(4))
    for words, part in (("training", train), ("validation", validation), ("ages kept out", kept), ("test", seen)):
        if not part.size:
            raise UserError(
                f"{shard_set.path}: no patient is left for {words} ({', '.join(held_out_words())} are kept out)",
                "give a set of more children, of all ages, with ages to the day",
            )
    codes, truth, _ = shard_set.labels(rows, label_set)
    about = {
        "label_set": label_set,
        "records": {"train": len(train), "val": len(validation), "test": len(seen), "held_out": len(kept)},
        "left_out": {"unknown age": int(unknown[of].sum()), "ages on both sides": int((both & ~unknown)[of].sum())},
    }
    log.info("paediatric records=%s left_out=%s", about["records"], about["left_out"])
    test = np.concatenate([seen, kept])
    task = ProbeTask(
        "children",
        [(code, code) for code in codes],
        rows,
        truth,
        shard_set.patients[rows],
        Parts(train, validation, test),
        about=about,
        decided=decided_records(shard_set, rows, label_set, codes),
    )
    return Split(task, np.arange(len(test)) >= len(seen))
