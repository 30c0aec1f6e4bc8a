"""An evaluation leaves its scores beside the version, complete enough to be compared by, and without any name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.registry.evidence import read_evidence
from cardialign.cluster.registry.registry import register
from cardialign.cluster.tracking.mlflow_store import open_client
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.scoring import class_auroc, usable_classes
from cardialign.pretrain.run.integrity import verify_export
from tests.support.registered import evaluated, export_of
from tests.support.scored_records import scored_records


@pytest.mark.slow
def test_a_tracked_evaluation_leaves_all_scores_and_nobodys_name(
    cardialign: Callable[..., Any], exported: Path, shards: Path, tmp_path: Path, uri: str
) -> None:
    register(exported, "tiny", uri)
    words = ("--encoder", "models:/tiny@candidate", "--shards", shards, "--prompts", "virtual-findings-v2")
    answer = cardialign("evaluate", "zero-shot", *words, "--bootstrap", 20, "--track", "--tracking-uri", uri)
    assert answer.code == 0, answer.err
    client, digest = open_client(uri), verify_export(exported)
    version = client.get_model_version("tiny", "1")
    (found,), damaged = read_evidence(client, version, digest, tmp_path / "fetched", uri)
    assert damaged == [] and found.name == "zero-shot:virtual-findings-v2"
    scored, opened = found.scored, ShardSet.open(shards)
    columns, _ = usable_classes(scored.truth, scored.decided)
    assert class_auroc(scored.scores[0][:, columns], scored.truth[:, columns]).mean() == answer.json["macro"]
    told = {key: answer.json[key] for key in ("macro", "low", "high", "n", "patients")}
    assert {key: found.facts[key] for key in told} == told and found.facts["encoder"] == digest
    assert found.facts["shards"] == opened.fingerprint and found.facts["measure"]["prompts"]
    assert found.facts["trained_on"] == "unknown", "this export does not say"
    kept = b"".join(path.read_bytes() for path in (tmp_path / "fetched").rglob("*") if path.is_file())
    records = [opened.read_record(row) for row in range(len(opened))]
    names = {word for each in records for word in (each.key, str(each.patient), *each.statements)}
    names -= {word for each in scored.names for word in each}  # the classes are called so, whatever a report says
    assert len(names) > 50 and not [name for name in names if name.encode() in kept]
    shown = cardialign("registry", "show", "tiny@candidate", "--tracking-uri", uri, plain=True)
    assert (
        f"| zero-shot:virtual-findings-v2 | {told['macro']:.3f} | {told['low']:.3f}-{told['high']:.3f} |" in shown.out
    )
    assert f"{told['macro']:.3f}" in version_text(uri)


def version_text(uri: str) -> str:
    return str(open_client(uri).get_model_version("tiny", "1").description)


@pytest.mark.slow
def test_scores_are_not_logged_to_the_encoder_that_an_alias_has_moved_to(
    exported: Path, tmp_path: Path, uri: str
) -> None:
    register(exported, "tiny", uri)
    longer = export_of(exported, tmp_path / "longer")
    register(longer, "tiny", uri)
    before = dict(open_client(uri).get_model_version("tiny", "2").tags)
    with pytest.raises(UserError, match=r"tiny/2 is not the encoder that was evaluated"):
        evaluated("tiny@candidate", exported, uri, scored_records(1.5))
    assert open_client(uri).get_model_version("tiny", "2").tags == before
    evaluated("tiny@candidate", longer, uri, scored_records(1.5))
    tags = open_client(uri).get_model_version("tiny", "2").tags
    assert [json.loads(value)["n"] for key, value in tags.items() if key.startswith("evidence.")] == [200]
