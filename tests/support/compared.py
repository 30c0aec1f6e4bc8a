"""Results, runs and studies as their commands leave them, with a known truth in them: what `compare` is given."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.cluster.evaluations.kept import Evaluation, write_with_scores
from cardialign.pretrain.evaluation.scored import ScoredRecords
from cardialign.pretrain.evaluation.scoring import score_classes
from tests.support.scored_records import scored_records
from tests.support.small_encoder import small_config

SHARDS, PROMPTS = "5" * 64, "9" * 64


def digest(letter: str) -> str:
    return letter * 64


def zero_shot_file(
    path: Path, signal: float, *, encoder: str = "e" * 64, seed: int = 1, scored: ScoredRecords | None = None,
    keep: bool = True, **changes: Any,
) -> ScoredRecords:  # fmt: skip
    """A zero-shot result of 200 records of 100 patients and two classes, and its scores beside it."""
    scored = scored or scored_records(signal, seed, records="c" * 64)
    (table,) = score_classes(
        [scored.scores], scored.truth, scored.patients, list(scored.names), resamples=10, seed=0, decided=scored.decided
    )
    values: dict[str, Any] = {
        "n": len(scored.truth),
        "patients": 100,
        "classes": [dataclasses.asdict(each) for each in table.classes],
        "macro": table.macro.value,
        "low": table.macro.low,
        "high": table.macro.high,
        "prompts": {"name": "ptb-xl-super-v2", "label_set": "super", "digest": PROMPTS},
        "bootstrap": {"resamples": 50},
        "folds": None,
        "encoder": encoder,
        "shards": SHARDS,
        "trained_on": {"status": "none"},
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    measure = {"kind": "zero-shot", "label_set": "super", "prompts": values["prompts"]["digest"]}
    kept = [Evaluation("zero-shot:ptb-xl-super-v2", measure, scored, encoder, values["shards"])] if keep else []
    if keep:
        write_with_scores(path, values, kept)
    else:
        path.write_text(json.dumps(values))
    return scored


def run_folder(
    path: Path,
    *,
    seed: int = 0,
    rate: float = 100.0,
    ranks: int = 2,
    device: str = "cpu",
    steps: int = 30,
    **changes: Any,
) -> Path:
    """A run directory whose every step of 8 records went at `rate` records per second, and no encoder."""
    path.mkdir(parents=True)
    config = {**json.loads(small_config(**changes).model_dump_json()), "seed": seed}
    (path / "config.resolved.json").write_text(json.dumps(config))
    lines = [{"step": k + 1, "loss": 3.0 / (k + 1) + 0.1 * seed, "records_per_second": rate} for k in range(steps)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    note = {
        "steps": steps,
        "total_steps": steps,
        "device": device,
        "name": device,
        "ranks": [{"rank": r} for r in range(ranks)],
    }
    (path / "memory.json").write_text(json.dumps(note))
    (path / "result.json").write_text(json.dumps({"steps": steps, "total_steps": steps}))
    return path


def exported(run: Path, letter: str, monkeypatch: Any) -> str:
    """The run has an encoder of this digest; making a real one for each would take seconds."""
    (run / "export").mkdir()
    (run / "export" / "digests.json").write_text("{}")
    (run / "export" / "signal_contract.json").write_text(json.dumps({"sampling_rate": 100.0, "seconds": 2.0}))
    monkeypatch.setattr(
        "cardialign.cluster.comparison.sources.verified_digests",
        lambda folder: (digest(json.loads((folder / "letter").read_text())),),
    )
    (run / "export" / "letter").write_text(json.dumps(letter))
    return digest(letter)


def patient_bootstrap(a: list[ScoredRecords], b: list[ScoredRecords], resamples: int = 400) -> tuple[float, float]:
    """Percentile interval of the difference of mean AUROC (over seeds and classes), by drawing patients with
    replacement: counting pairs, and none of our code."""
    patients = a[0].patients
    of_patient = [np.flatnonzero(patients == p) for p in np.unique(patients)]
    rng, drawn = np.random.default_rng(11), []
    for _ in range(resamples):
        rows = np.concatenate([of_patient[p] for p in rng.integers(0, len(of_patient), len(of_patient))])
        drawn.append(mean_auroc(a, rows) - mean_auroc(b, rows))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def mean_auroc(seeds: list[ScoredRecords], rows: np.ndarray) -> float:
    found = []
    for each in seeds:
        for scores in each.scores:
            for c in range(each.truth.shape[1]):
                positive, values = each.truth[rows, c], scores[rows, c]
                up, down = values[positive][:, None], values[~positive][None]
                found.append((up > down).mean() + 0.5 * (up == down).mean())
    return float(np.mean(found))
