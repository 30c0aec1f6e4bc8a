"""Aliases of registered encoders: moved, through the gate where it is production's, and moved back.

Each move is a tag of the registered model, `promotion.ALIAS.TIME`: from, to, when, by whom, on what evidence. The alias
is moved before the tag is written: what stands in the tags has happened.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.address import absolute_uri
from cardialign.cluster.registry.artifacts import fetch_encoder
from cardialign.cluster.registry.card import refresh_card
from cardialign.cluster.registry.gate import Registry, Verdict, examine
from cardialign.cluster.registry.lookup import (
    LONGEST_TAG,
    PRODUCTION,
    Reference,
    find,
    is_gated,
    resolve,
    title,
    verified,
)
from cardialign.cluster.registry.requirements import Policy
from cardialign.cluster.registry.signing import SigningKey, sign_version, statement_of
from cardialign.cluster.registry.versioned import json_object
from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.names import check_alias
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shown import shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

HISTORY_TAG, FORCED_TAG = "promotion.", "forced."
LONGEST_REASON, LONGEST_LINE, MOST_LINES = 500, 180, 8
"""Characters, and lines, of what is kept in a tag."""


@dataclass(frozen=True)
class Demands:
    """What a promotion asks for and brings. require, margin, policy: as `requirements.Policy.of`; force: why what is
    missing is let through; key: to sign with."""

    require: tuple[str, ...] = ()
    margin: float | None = None
    policy: Path | None = None
    acknowledge_contract: bool = False
    force: str | None = None
    key: SigningKey | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.force is not None and not self.force.strip():
            raise UsageError("--force has no reason", "say why: it is recorded with the promotion")


def promote(reference: str, alias: str, tracking_uri: str, demands: Demands | None = None) -> dict[str, Any]:
    """Point `alias` of a model at the version behind `reference`.

    `production` is gated (`gate`), and so is every alias that something is required for; others are free. Whatever is
    refused changes nothing. Returns name, alias, version, before (what it pointed at), compared, remarks, forced and
    signed. Raises UserError naming all that is missing; damaged files cannot be forced.
    """
    check_alias(alias)
    demands = demands or Demands()
    asked = Reference.parse(reference)
    if asked.alias is None and asked.version is None:
        raise UsageError(f"{shown(reference)} does not say which version", "write NAME@candidate or NAME/VERSION")
    Policy.of(demands.require, demands.margin, demands.policy, {})  # words that mean nothing need no store to be told
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri, make=False)
    with mlflow_store.speaking(uri, f"does not promote {shown(reference)}"):
        version = resolve(client, asked, uri)
        gated = is_gated(alias) or bool(demands.require or demands.policy)
        verdict = None
        if gated or demands.key is not None:
            with tempfile.TemporaryDirectory(prefix="promote-") as scratch:
                verdict = _judge(Registry(client, uri, Path(scratch)), version, alias, demands, gated)
        return _move(client, version, alias, uri, verdict if gated else None, demands)


def _judge(registry: Registry, version: ModelVersion, alias: str, demands: Demands, gated: bool) -> Verdict:
    """Fetch and verify the encoder, hold it against what is asked for, and sign it. Raises UserError."""
    client, uri, scratch = registry.client, registry.uri, registry.scratch
    source = client.get_model_version_download_uri(version.name, version.version)
    folder = fetch_encoder(source, scratch / "encoder", uri, title(version))
    digest = verified(version, folder)
    model = client.get_registered_model(version.name)
    present = find(client, Reference(version.name, alias=alias)) if gated else None
    tags = model.tags if is_gated(alias) else {}
    policy = Policy.of(demands.require, demands.margin, demands.policy, tags)
    verdict = examine(registry, version, folder, digest, present, policy, demands.acknowledge_contract)
    if not gated:  # it is signed, and what a signature says must be known
        verdict.missing = [each for each in verdict.missing if each.what.endswith("is not known")]
    if verdict.missing and demands.force is None:
        things = f"{len(verdict.missing)} thing{'s' * (len(verdict.missing) > 1)}"
        listed = "".join(f"\n  - {each}" for each in [*verdict.missing, *(f"(note) {x}" for x in verdict.remarks)])
        raise UserError(
            f"{title(version)} does not get the alias {alias}: {things} missing or wrong{listed}",
            "bring what is named, or --force REASON, which is recorded",
        )
    if demands.key is not None:
        if not version.run_id:
            raise UserError(f"{title(version)} has no MLflow run that could keep a signature", "register it again")
        sign_version(client, version, folder, demands.key, statement_of(version, digest, verdict.origin))
    return verdict


def _move(
    client: MlflowClient, version: ModelVersion, alias: str, uri: str, verdict: Verdict | None, demands: Demands
) -> dict[str, Any]:
    name, number = version.name, int(version.version)
    before = _pointed_at(client, name, alias)
    if verdict is not None and before != verdict.present:
        raise UserError(
            f"{alias} of {shown(name)} was moved to {f'version {before}' if before else 'nothing'} meanwhile, "
            "by somebody else",
            "promote again: the encoder is then held against that one",
        )
    forced = demands.force is not None and verdict is not None and bool(verdict.missing)
    event: dict[str, Any] = {"from": before, "to": number, "by": _who(), "time": _now()}
    if verdict is not None:
        event["evidence"] = verdict.evidence_digest
        event |= {"margin": verdict.margin} if verdict.margin else {}
        if forced:
            assert demands.force is not None
            event["forced"] = demands.force.strip()[:LONGEST_REASON]
            event["missing"] = [each.what for each in verdict.missing]
            client.set_model_version_tag(name, version.version, f"{FORCED_TAG}{alias}"[:LONGEST_LINE], _tag(event))
    client.set_registered_model_alias(name, alias, version.version)
    client.set_registered_model_tag(name, _history_key(alias, event["time"]), _tag(event))
    if demands.key is not None:
        refresh_card(client, name, version.version, uri)
    return {
        "name": name,
        "alias": alias,
        "version": number,
        "before": before,
        "compared": verdict.compared if verdict else [],
        "remarks": verdict.remarks if verdict else [],
        "forced": event["missing"] if forced else [],
        "signed": demands.key.fingerprint if demands.key else None,
    }


def rollback(reference: str, tracking_uri: str) -> dict[str, Any]:
    """Point the alias (`NAME`, or `NAME@ALIAS`; default production) at what it pointed at before.

    Again goes back further. What has been deleted since is passed over. Returns name, alias, version, before and
    passed_over. Raises UserError when there is nothing to go back to, or it is damaged.
    """
    asked = Reference.parse(reference)
    if asked.version is not None:
        raise UsageError(f"{shown(reference)} is a version, not an alias", "write NAME or NAME@ALIAS")
    name, alias = asked.name, asked.alias or PRODUCTION
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri, make=False)
    with mlflow_store.speaking(uri, f"does not roll back {shown(name)}"):
        resolve(client, Reference(name), uri)
        before = _pointed_at(client, name, alias)
        trail = _trail(client.get_registered_model(name).tags, alias)
        earlier = trail[:-1] if trail and trail[-1] == before else trail
        passed = []
        while earlier and (found := find(client, Reference(name, version=str(earlier[-1])))) is None:
            passed.append(earlier.pop())
        if not earlier:
            gone = f"; deleted since: version {', '.join(map(str, passed))}" if passed else ""
            raise UserError(
                f"{alias} of {shown(name)} points at {f'version {before}' if before else 'nothing'}, and no "
                f"earlier version is recorded{gone}",
                "promote the version that you want: `cardialign registry promote NAME/VERSION --to ALIAS`",
            )
        assert found is not None
        with tempfile.TemporaryDirectory(prefix="rollback-") as scratch:
            source = client.get_model_version_download_uri(name, found.version)
            verified(found, fetch_encoder(source, Path(scratch) / "encoder", uri, title(found)))
        event = {"from": before, "to": int(found.version), "by": _who(), "time": _now(), "rollback": True}
        client.set_registered_model_alias(name, alias, found.version)
        client.set_registered_model_tag(name, _history_key(alias, _now()), _tag(event))
    return {"name": name, "alias": alias, "version": int(found.version), "before": before, "passed_over": passed}


def history(tags: Mapping[str, str], alias: str) -> list[dict[str, Any]]:
    """The moves of an alias that the tags of a registered model tell, oldest first: from, to, time, by ..."""
    found = []
    for key in sorted(key for key in tags if key.startswith(_history_key(alias))):
        values = json_object(tags[key])
        if values is not None and isinstance(values.get("to"), int):
            values["from"] = values.get("from") if isinstance(values.get("from"), int) else None
            found.append(values)
    return found


def _trail(tags: Mapping[str, str], alias: str) -> list[int]:
    """The versions that led to the present one: each promotion adds one, each rollback takes one away.

    Somebody else may have moved the alias: where it came from is part of the trail, too.
    """
    trail: list[int] = []
    for move in history(tags, alias):
        if move.get("rollback"):
            while trail and trail[-1] != move["to"]:
                trail.pop()
            trail = trail or [move["to"]]
            continue
        for version in (move["from"], move["to"]):
            if version is not None and (not trail or trail[-1] != version):
                trail.append(version)
    return trail


def _pointed_at(client: MlflowClient, name: str, alias: str) -> int | None:
    found = client.get_registered_model(name).aliases.get(alias)
    return None if found is None else int(found)


def _who() -> str:
    """Who promotes: the user of this machine; a container may have none."""
    with contextlib.suppress(OSError, KeyError):
        return shown(getpass.getuser())[:100]
    return "unknown"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def _tag(event: Mapping[str, Any]) -> str:
    """JSON that every store takes: of a long list its beginning, and how many more there are."""
    missing = [what[:LONGEST_LINE] for what in event.get("missing", [])]
    more = [f"and {len(missing) - MOST_LINES} more"] if len(missing) > MOST_LINES else []
    listed = {"missing": [*missing[:MOST_LINES], *more]} if missing else {}
    return json.dumps({**event, **listed}, ensure_ascii=False)[:LONGEST_TAG]


def _history_key(alias: str, time: str = "") -> str:
    """Of a move; without a time, what those of an alias begin with. An alias may be as long as a whole key."""
    word = alias if len(alias) <= LONGEST_LINE else hashlib.sha256(alias.encode()).hexdigest()
    return f"{HISTORY_TAG}{word}." + (f"{time}-{secrets.token_hex(2)}" if time else "")
