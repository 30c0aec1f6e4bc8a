"""Registered encoders with everything that the gate of production asks for, in a real MLflow store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cardialign.cluster.registry.evidence import Evaluation, log_evaluation
from cardialign.cluster.registry.registry import register
from cardialign.cluster.tracking.mlflow_store import experiment_id, open_client
from cardialign.pretrain.evaluation.scored import ScoredRecords
from cardialign.pretrain.evaluation.scoring import score_classes
from cardialign.pretrain.run.integrity import verify_export, write_digests

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "zero-shot:clean-v2:ptb-xl-super"
SEEN = {"source": "ptb-xl", "fingerprint": "f" * 64, "records": 800, "patients": 700, "folds": [1, 2], "split": None}


def export_of(exported: Path, folder: Path, steps: int = 100, **changes: Any) -> Path:
    """A copy of an export that says where it comes from; changes: of its `training`, or its `contract`."""
    shutil.copytree(exported, folder)
    contract = changes.pop("contract", {})
    for file, values in (
        ("provenance.json", {"training": {"steps": steps, "shards_fingerprint": "f" * 64, "digest": "d" * 32}}),
        ("signal_contract.json", contract),
    ):
        told = json.loads((folder / file).read_text()) | values
        if file == "provenance.json":
            told["training"] |= changes
            told["trained_on"] = {"sets": [SEEN], "unknown": []}
        (folder / file).write_text(json.dumps(told))
    (folder / "digests.json").unlink()
    write_digests(folder)
    return folder


def registered(exported: Path, folder: Path, name: str, uri: str, **changes: Any) -> int:
    """Register such an export, trained from a commit; returns its version."""
    export = export_of(exported, folder, **changes)
    client = open_client(uri)
    run = client.create_run(experiment_id(client, uri), tags={"git.commit": COMMIT}).info.run_id
    return register(export, name, uri, run)


def evaluated(
    reference: str, export: Path, uri: str, scored: ScoredRecords, trained_on: str = "none", name: str = NAME
) -> None:
    """Log an evaluation with these scores, as `evaluate ... --track` does."""
    table = score_classes(list(scored.scores), scored.truth, scored.patients, scored.names, resamples=50, seed=0)[0]
    result = {
        "macro": table.macro.value,
        "low": table.macro.low,
        "high": table.macro.high,
        "classes": [{"code": each.code, "auroc": each.auroc} for each in table.classes],
        "trained_on": {"status": trained_on, "records": 0, "note": ""},
    }
    evaluation = Evaluation(name, {"kind": "zero-shot", "prompts": "p"}, scored, verify_export(export), "f" * 64)
    log_evaluation(reference, uri, "zero-shot/clean-v2/ptb-xl-super/test", result, evaluation)


def clone(uri: str, template: str, name: str) -> None:
    """The same versions of the same runs, and the same aliases, as another model: nothing is trained or sent again."""
    client = open_client(uri)
    client.create_registered_model(name)
    model = client.get_registered_model(template)
    for key, value in model.tags.items():
        client.set_registered_model_tag(name, key, value)
    for number in range(1, 6):
        version = client.get_model_version(template, str(number))
        client.create_model_version(name, version.source, version.run_id, tags=version.tags)
    for alias, number in model.aliases.items():
        client.set_registered_model_alias(name, alias, str(number))
