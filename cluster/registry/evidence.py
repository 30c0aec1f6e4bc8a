"""The figures of an evaluation beside the version of an encoder, and every score they are made of.

evidence/DIGEST/ among the artifacts of the version's MLflow run:
evidence.json        which encoder (digest), which protocol or prompts (digests), which shards, the figures
scores.safetensors   scores, truth, patients by number; its sha256 stands in evidence.json
A tag `evidence.KEY` of the version holds the DIGEST, which is the sha256 of evidence.json. So a later encoder can be
compared on the same records without their shards, and nothing in here names a record, a patient or a report.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cardialign.cluster.cli.address import absolute_uri
from cardialign.cluster.evaluations.kept import Evaluation, arrays_of, scored_of
from cardialign.cluster.registry.card import refresh_card
from cardialign.cluster.registry.lookup import (
    DIGEST_TAG,
    LONGEST_TAG,
    Reference,
    digest_of,
    fetch_of_run,
    resolve,
    title,
)
from cardialign.cluster.registry.versioned import EVIDENCE_TAG, SEEN, TRAINED_ON, evidence_tags, finite
from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.names import safe, shorten
from cardialign.cluster.tracking.places import check_run, send_folder
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.files import parse_json, read_bytes, sha256_of
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run.tensors import load_numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from cardialign.pretrain.evaluation.scored import ScoredRecords

FOLDER, FACTS, SCORES = "evidence", "evidence.json", "scores.safetensors"
EVALUATED, CLASSES = "evaluation/", "classes.json"
TABLES = "mlflow.loggedArtifacts"
"""Tag of a run by which MLflow knows which of its artifacts are tables."""
VERSION = 1


def log_evaluation(
    reference: str, tracking_uri: str, prefix: str, result: Mapping[str, Any], evaluation: Evaluation | None = None
) -> None:
    """Figures of an evaluation (macro, low, high) -> metrics `evaluation/prefix/...` of the encoder's run.

    The classes are one table among its artifacts, `evaluation/prefix/classes.json`, as MLflow shows them. The macro
    also becomes a tag of its version, and so does the `ledger` (which of the records were trained on before): without
    it a figure of its own training set looks like any other. evaluation: its scores, which become evidence of the
    version; its card is written anew.
    Raises UserError, also where the reference has another encoder by now.
    """
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri, make=False)
    figures = {"macro": result["macro"], "macro_low": result["low"], "macro_high": result["high"]}
    if result.get("baseline"):
        figures["untrained_macro"] = result["baseline"]["macro"]
    if result.get("trained_on"):
        figures["trained_on_records"] = result["trained_on"]["records"]
    with mlflow_store.speaking(uri, f"does not take the figures of {shown(reference)}"):
        version = resolve(client, Reference.parse(reference), uri)
        if evaluation is not None:
            _log_scores(client, version, result, evaluation)
        prefix = "/".join(safe(part) for part in prefix.split("/"))
        for key, value in figures.items():
            if value is not None and version.run_id:
                client.log_metric(version.run_id, shorten(f"{EVALUATED}{prefix}/{key}"), float(value))
        if version.run_id:
            _log_classes(client, str(version.run_id), f"{EVALUATED}{shorten(prefix)}/{CLASSES}", result)
        if result["macro"] is not None:
            key, trained_on = shorten(f"{prefix}/macro"), result.get("trained_on") or {}
            client.set_model_version_tag(version.name, version.version, f"metric.{key}", f"{result['macro']:.6g}")
            seen = str(trained_on.get("status", "unknown"))
            client.set_model_version_tag(version.name, version.version, f"{SEEN}{key}", seen)
        if result.get("ledger"):
            key = f"{TRAINED_ON}{shorten(prefix)}"
            said = shown("; ".join(str(line["line"]) for line in result["ledger"]))[:LONGEST_TAG]
            client.set_model_version_tag(version.name, version.version, key, said)
            if version.run_id:
                client.set_tag(version.run_id, key, said)
        if evaluation is not None:
            refresh_card(client, version.name, version.version, uri)


def _log_classes(client: MlflowClient, run_id: str, path: str, result: Mapping[str, Any]) -> None:
    """A row per class, best first, in the form of `mlflow.log_table`, which would add to a table that is there.
    Four digits, as a reader wants them: the scores lie beside the version."""
    untrained = {each["code"]: each["auroc"] for each in (result.get("baseline") or {}).get("classes", [])}
    columns = ["code", "name", "positives", "auroc", "low", "high"]
    classes = sorted(result["classes"], key=lambda each: -(finite(each["auroc"]) or -1.0))
    rows = [[each.get(column) for column in columns] for each in classes]
    if untrained:
        columns = [*columns, "untrained"]
        rows = [[*row, untrained.get(row[0])] for row in rows]
    clean = [
        [(None if finite(cell) is None else round(cell, 4)) if isinstance(cell, float) else cell for cell in row]
        for row in rows
    ]
    check_run(client, run_id)
    client.log_dict(run_id, {"columns": columns, "data": clean}, path)
    known = client.get_run(run_id).data.tags.get(TABLES, "[]")
    tables = parse_json(known) if known.startswith("[") else []
    entry = {"path": path, "type": "table"}
    told = json.dumps([*tables, entry])
    if entry not in tables and len(told) <= LONGEST_TAG:
        client.set_tag(run_id, TABLES, told)


def _log_scores(client: MlflowClient, version: ModelVersion, result: Mapping[str, Any], evaluation: Evaluation) -> None:
    if not version.run_id:
        raise UserError(f"{title(version)} has no MLflow run that could keep its scores", "register it again")
    registered = version.tags.get(DIGEST_TAG)
    if registered != evaluation.encoder:
        raise UserError(
            f"{title(version)} is not the encoder that was evaluated: the alias has moved, or it has no digest",
            "evaluate it again by NAME/VERSION; an old version gets its digest when it is registered again",
        )
    scored, trained_on = evaluation.scored, result.get("trained_on") or {}
    with tempfile.TemporaryDirectory(prefix="evidence-") as scratch:
        folder = Path(scratch) / FOLDER
        folder.mkdir()
        _write_scores(folder / SCORES, scored)
        facts = {
            "version": VERSION,
            "name": evaluation.name,
            "measure": dict(evaluation.measure),
            "encoder": evaluation.encoder,
            "shards": evaluation.shards,
            "records": scored.records,
            "n": len(scored.truth),
            "patients": int(np.unique(scored.patients).size),
            "classes": [list(each) for each in scored.names],
            **{key: result[key] for key in ("macro", "low", "high")},
            "trained_on": trained_on.get("status", "unknown"),
            "scores": sha256_of(folder / SCORES),
        }
        text = json.dumps(facts, indent=1, sort_keys=True)
        (folder / FACTS).write_text(text, encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        send_folder(client, str(version.run_id), folder, f"{FOLDER}/{digest}")
    kept = ("name", "macro", "low", "high", "n", "patients", "trained_on")
    key = EVIDENCE_TAG + digest_of([evaluation.name, facts["measure"], scored.records])[:24]
    value = json.dumps({"digest": digest, **{name: facts[name] for name in kept}})
    client.set_model_version_tag(version.name, version.version, key, value)


def _write_scores(path: Path, scored: ScoredRecords) -> None:
    from safetensors.numpy import save_file

    save_file(arrays_of(scored), path)


@dataclass(frozen=True)
class Evidence:
    """One evaluation as it lies beside a version, its digests compared."""

    digest: str
    facts: Mapping[str, Any]
    scored: ScoredRecords

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def measured(self) -> str:
        """The same for two that can be compared."""
        return digest_of([self.name, self.facts["measure"], self.facts["records"], self.facts["classes"]])


def read_evidence(
    client: MlflowClient, version: ModelVersion, encoder: str, scratch: Path, uri: str
) -> tuple[list[Evidence], list[str]]:
    """What is beside a version whose files have the digest `encoder`, and of what cannot be used a sentence each."""
    found, damaged = [], []
    for told in evidence_tags(version) if version.run_id else []:
        name, digest = shown(str(told.get("name"))[:200]), told["digest"]
        try:
            place = f"{FOLDER}/{digest}"
            folder = fetch_of_run(client, str(version.run_id), place, (FACTS, SCORES), scratch / digest, uri)
            found.append(_read(folder, digest, encoder))
        except (UserError, OSError) as error:
            why = error.problem if isinstance(error, UserError) else str(error)
            damaged.append(f"{name} of {title(version)} cannot be used: {why}")
    return found, damaged


def _read(folder: Path, digest: str, encoder: str) -> Evidence:
    try:
        text, content = read_bytes(folder / FACTS), read_bytes(folder / SCORES)
        facts = parse_json(text)
        if hashlib.sha256(text).hexdigest() != digest or hashlib.sha256(content).hexdigest() != facts["scores"]:
            raise DataError("its files are not as they were written (sha256 differs)", "")
        if facts["version"] != VERSION or facts["encoder"] != encoder:
            raise DataError("it is of another encoder, or another release wrote it", "")
        arrays = load_numbers(content)
        names = tuple((str(code), str(name)) for code, name in facts["classes"])
        scored = scored_of(arrays, names, str(facts["records"]))
        if not isinstance(facts["name"], str) or not isinstance(facts["measure"], dict):
            raise ValueError("it does not say of what")
        return Evidence(digest, {**facts, "n": len(scored.truth), "trained_on": str(facts["trained_on"])}, scored)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(f"its files cannot be read ({shown(str(error))[:200]})", "") from None
