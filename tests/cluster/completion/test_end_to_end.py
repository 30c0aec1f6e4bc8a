"""The whole way on virtual patients, whose reports leave out what their truth table holds: a coarse encoder, a stand-in
for a language model that makes things up, what the ECGs keep of it, and stage 2 on the completed reports."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.completion.asking import NO_LIMIT
from cardialign.cluster.completion.complete import Completion, complete_reports
from cardialign.cluster.completion.endpoint import Endpoint
from cardialign.cluster.completion.stub import MODEL, StubServer, features_for
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.encoder import TextEncoder
from tests.support.learning import LearningData, learn, learning_data  # noqa: F401  (a fixture)

SHOWN_BY = {
    "P waves absent": {"AFIB"},
    "Irregular RR intervals": {"AFIB", "PVC"},
    "Rapid ventricular rate": {"STACH"},
    "Slow ventricular rate": {"SBRAD"},
    "Premature wide QRS complexes": {"PVC"},
    "Spikes before QRS complexes": {"PACE"},
    "Wide QRS complexes": {"PACE", "LBBB", "RBBB"},
    "Broad notched R in lateral leads": {"LBBB"},
    "RSR' pattern in V1": {"RBBB"},
    "Wide terminal S in lateral leads": {"RBBB"},
    "High QRS voltages in chest leads": {"LVH"},
    "ST elevation in II, III and aVF": {"ISTE"},
}
"""Feature -> the findings of the cohort that show it. What is not listed here none of them shows."""
SMALLER = {"encoder.patches": [{"kernel_ms": 200, "stride_ms": 200}, {"kernel_ms": 400, "stride_ms": 400}]}


def said(shard_set: ShardSet) -> list[tuple[str, ...]]:
    table = [tuple(each) for each in shard_set.reports.column("statements").to_pylist()]
    return [table[number] if number >= 0 else () for number in shard_set.report.tolist()]


def is_right(feature: str, findings: set[str]) -> bool:
    return bool(SHOWN_BY.get(feature, set()) & findings)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_the_ecgs_keep_what_is_so_and_drop_what_was_made_up(
    learning_data: LearningData,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    coarse = learn("fg-clep", learning_data, tmp_path / "coarse", {**SMALLER, "training.epochs": 10})
    assert coarse.zero_shot.difference.low > 0.2, "it learns"
    plain = ShardSet.open(learning_data.shards)
    with StubServer("127.0.0.1", 0, made_up=0.6) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        endpoint = Endpoint(server.address, MODEL)
        how = Completion(strangers=0.1, guard=("virtual-findings-v2",), budget=NO_LIMIT)
        out, answers = tmp_path / "completed", tmp_path / "answers"
        figures = complete_reports(plain, out, endpoint, coarse.encoder, answers, how)
        server.shutdown()
    other = ShardSet.open(learning_data.shards, reports=out)

    codes, truth, _ = plain.labels(np.arange(len(plain)), "finding")
    texts = plain.reports.column("text").to_pylist()
    counts = {"proposed": 0, "proposed right": 0, "kept": 0, "kept right": 0, "left out": 0}
    for row, (before, after) in enumerate(zip(said(plain), said(other), strict=True)):
        findings = {codes[k] for k in np.flatnonzero(truth[row])}
        proposed = features_for(texts[int(plain.report[row])], made_up=0.6) if before else []
        kept = after[len(before) :]
        counts["proposed"] += len(proposed)
        counts["proposed right"] += sum(is_right(f, findings) for f in proposed)
        counts["kept"] += len(kept)
        counts["kept right"] += sum(is_right(f, findings) for f in kept)
        counts["left out"] += sum(is_right(f, findings) for f in SHOWN_BY) if before else 0
    precision = counts["kept right"] / counts["kept"]
    unfiltered = counts["proposed right"] / counts["proposed"]
    recall = counts["kept right"] / counts["proposed right"]
    recovered = counts["kept right"] / counts["left out"]
    with capsys.disabled():
        print(
            f"\ncompletion against the truth table: {counts}; precision {precision:.3f} (unfiltered {unfiltered:.3f}), "
            f"recall of right proposals {recall:.3f}, of all that the reports leave out {recovered:.3f}"
        )
    assert figures["pairs"]["kept"] == counts["kept"]
    assert 0.3 < unfiltered < 0.8, "there is something to drop"
    assert precision > unfiltered + 0.15 and recall > 0.3

    build_text_bank(other, TextEncoder(TextConfig()))
    start = {**SMALLER, "init_from": str(coarse.run_dir), "data.reports": str(out)}
    second = learn("fg-clep-stage-2", learning_data, tmp_path / "second", {**start, "training.epochs": 2})
    first_auroc, second_auroc = coarse.zero_shot.result.macro, second.zero_shot.result.macro
    with capsys.disabled():
        print(f"zero-shot on unseen patients: stage 1 {first_auroc:.3f}, stage 2 {second_auroc:.3f}")
    assert second_auroc > first_auroc - 0.05
