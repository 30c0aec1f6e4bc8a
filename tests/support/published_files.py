"""Made-up sets of CPSC2018 and Chapman-Shaoxing-Ningbo in their layouts, and label files as merl-v1 publishes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.pretrain.evaluation.protocols import load_task
from tests.support.wfdb_files import ecg_counts, write_record

DX = ("426783006", "164889003", "270492004")
"""Sinus rhythm, atrial fibrillation, first degree AV block."""
LEADING = {
    "cpsc2018": ("patient_id", "ecg_id", "validation", "age", "sex", "scp_codes"),
    "csn": ("age", "diagnose"),
}
"""Columns of the published files that are neither the record nor a class."""


def published_name(task: str, record: str) -> str:
    """A record as the published files write it."""
    return record if task == "cpsc2018" else f"/chapman/WFDBRecords/01/010/{record}.mat"


def write_data_set(folder: Path, records: Sequence[str]) -> Path:
    """Challenge form: one record of 2.5 s at 100 Hz per name, in folders of two."""
    for number, name in enumerate(records):
        comments = [f"Age: {40 + number}", "Sex: Male", f"Dx: {DX[number % len(DX)]}"]
        counts = ecg_counts(250, rate=100, gain=1000, seed=number)
        path = folder / f"g{number // 2}" / name
        write_record(
            path,
            counts,
            rate="100",
            gains="1000/mV",
            storage="16+24",
            prefix=b"\0" * 24,
            suffix=".mat",
            comments=comments,
        )
    return folder


def make_set(folder: Path, source: str, records: Sequence[str], spec: SignalSpec) -> ShardSet:
    write_data_set(folder / "files", records)
    build_shards(open_source(source, folder / "files"), folder / "set", SetPlan(spec), workers=1)
    return ShardSet.open(folder / "set")


def write_label_files(folder: Path, task: str, split: str, records: Sequence[str]) -> Path:
    """One label file and the prompt file; record i holds classes i and i + 1 of the task, modulo their number."""
    labels = load_task(f"merl-v1:{task}").values["labels"]
    classes = labels["classes"]
    file = folder / labels[split]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow([labels["id"], *LEADING[task], *reversed(classes)])
        for i, record in enumerate(records):
            held = {classes[i % len(classes)], classes[(i + 1) % len(classes)]}
            rest = ["x"] * len(LEADING[task])
            writer.writerow([published_name(task, record), *rest, *(int(name in held) for name in reversed(classes))])
    prompts = folder / load_task(f"merl-v1:{task}").values["prompts"]["file"]
    prompts.parent.mkdir(exist_ok=True)
    prompts.write_text(json.dumps({name: f"Words for {name}" for name in classes}))
    return folder
