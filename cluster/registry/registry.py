"""The model registry: an exported encoder as a version of a registered MLflow model.

The folder (safetensors, JSON and digests) is logged as plain artifacts, without a pyfunc flavour: a consumer downloads
it with MLflow alone, also with code execution forbidden, and loads safetensors. `pull` checks every file against
`digests.json` before the folder appears under its final name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.address import absolute_uri, public
from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.names import (
    LONGEST_NAME,
    ascii_escapes,
    check_alias,
    check_model,
    safe,
    safe_key,
    shorten,
    shown,
)
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.pretrain.run.integrity import folder_beside, refuse_to_replace, replace_export, verify_export

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

CANDIDATE = "candidate"
ARTIFACT = "encoders"
"""Folder of a run's artifacts with one folder per encoder, named by its digest."""
DIGEST_TAG = "digest"
TRAINED_ON = "trained_on."
"""Of the tags that say, for each evaluation, which of its records were trained on before."""
LONGEST_TAG = 5000
"""Characters that every MLflow takes as the value of a tag."""


@dataclass(frozen=True)
class Reference:
    """`name`, with at most one of alias and version; neither means the newest version."""

    name: str
    alias: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """`name`, `name@alias`, `name/3`, each also after `models:/`. Raises UsageError."""
        match = re.fullmatch(r"(?:models:/)?(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>[0-9]{1,9}))?", text)
        if match is None:
            raise UsageError(
                f"{shown(text)} names no registered encoder",
                "write NAME, NAME@ALIAS or NAME/VERSION, for example cardialign@candidate",
            )
        return cls(match["name"], match["alias"], match["version"])


def register(
    export_dir: Path,
    name: str,
    tracking_uri: str,
    run_id: str | None = None,
    metrics: Mapping[str, float] | None = None,
    alias: str | None = CANDIDATE,
) -> int:
    """Log `export_dir` to its run (a new one without `run_id`) and make it the next version of `name`.

    `alias` then points to it. The files lie under their content (`encoders/DIGEST`), so no later version of the run
    touches them. The same encoder of the same run is not registered twice: its files are sent again and its version is
    returned.
    Raises UserError when the folder does not match its digests, for a name or alias that MLflow does not take, and
    when the store does not do it.
    """
    check_model(name)
    if alias:
        check_alias(alias)
    digest = verify_export(export_dir)
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    with mlflow_store.speaking(uri, f"does not register {name}"):
        known = _registered(client, name, digest, run_id)
        if run_id is None:
            run_id = str(known.run_id) if known is not None else _run_of_its_own(client, uri, name)
        client.log_artifacts(run_id, str(export_dir), f"{ARTIFACT}/{digest}")
        tags = {
            DIGEST_TAG: digest,
            **{f"metric.{safe_key(key)}": f"{value:.6g}" for key, value in (metrics or {}).items()},
        }
        if known is not None:
            log.info("registered=%s version=%s action=kept reason=the same encoder", name, known.version)
            version = known
            for key, value in tags.items():
                client.set_model_version_tag(name, version.version, key, value)
        else:
            source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT}/{digest}"
            _make_model(client, name)
            version = client.create_model_version(name, source=source, run_id=run_id, tags=tags)
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)


def _registered(client: MlflowClient, name: str, digest: str, run_id: str | None) -> ModelVersion | None:
    """The newest version of `name` that is this encoder (and of this run, when one is named); None without one."""
    same = [
        version
        for version in _versions(client, name)
        if version.tags.get(DIGEST_TAG) == digest
        and str(version.source).endswith(f"/{ARTIFACT}/{digest}")
        and version.run_id
        and run_id in (None, version.run_id)
    ]
    return same[0] if same else None


def _run_of_its_own(client: MlflowClient, uri: str, name: str) -> str:
    experiment = mlflow_store.experiment_id(client, uri)
    run_id = str(client.create_run(experiment, run_name=f"register {name}"[:LONGEST_NAME]).info.run_id)
    client.update_run(run_id, status="FINISHED")
    return run_id


def _make_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            name, description="ECG encoder: safetensors, configuration, signal contract, digests"
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Everything that a search of the client finds, page by page.

    No search here has a filter: names may hold what the language of filters has no word for.
    """
    token = None
    while True:
        page = search(max_results=1000, page_token=token)
        yield from page
        token = getattr(page, "token", None)
        if not token or not page:
            return


def _names(client: MlflowClient) -> list[str]:
    return [model.name for model in _pages(client.search_registered_models)]


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of `name`, newest first."""
    found = [version for version in _pages(client.search_model_versions) if version.name == name]
    return sorted(found, key=lambda version: -int(version.version))


def _known(client: MlflowClient, name: str) -> str:
    """What exists, for an error message."""
    names = _names(client)
    if name not in names:
        return (
            f"registered encoders: {', '.join(map(ascii_escapes, names))}"
            if names
            else "the registry is empty; `cardialign pretrain --register NAME` fills it"
        )
    versions = sorted(int(version.version) for version in _versions(client, name))
    aliases = client.get_registered_model(name).aliases
    return f"{name} has versions {', '.join(map(str, versions)) or 'none'} and aliases " + (
        ", ".join(f"{ascii_escapes(alias)} -> {version}" for alias, version in aliases.items()) or "none"
    )


def _resolve(client: MlflowClient, reference: Reference, uri: str) -> ModelVersion:
    """The model version behind a reference. Raises UserError listing what exists."""
    from mlflow.exceptions import MlflowException

    try:
        if reference.alias is not None:
            return client.get_model_version_by_alias(reference.name, reference.alias)
        if reference.version is not None:
            return client.get_model_version(reference.name, reference.version)
        versions = _versions(client, reference.name)
        if versions:
            return versions[0]
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    wanted = reference.name + (
        f"@{reference.alias}" if reference.alias else f"/{reference.version}" if reference.version else ""
    )
    raise UserError(f"{public(uri)} has no encoder {ascii_escapes(wanted)}", _known(client, reference.name))


def list_models(tracking_uri: str) -> list[dict[str, Any]]:
    """Every registered version, newest first per name: name, version, aliases, run_id, metrics, ledger (of each
    evaluation: what was trained on before), created (ms)."""
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    with mlflow_store.speaking(uri, "does not list its encoders"):
        versions: dict[str, list[ModelVersion]] = {}
        for version in _pages(client.search_model_versions):
            versions.setdefault(version.name, []).append(version)
        return [
            _row(version, client.get_registered_model(name).aliases)
            for name in _names(client)
            for version in sorted(versions.get(name, []), key=lambda version: -int(version.version))
        ]


def _row(version: ModelVersion, aliases: Mapping[str, str]) -> dict[str, Any]:
    metrics = {key.removeprefix("metric."): v for key, v in version.tags.items() if key.startswith("metric.")}
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": sorted(alias for alias, target in aliases.items() if str(target) == str(version.version)),
        "run_id": version.run_id,
        "metrics": {key: number for key, v in metrics.items() if (number := _number(v)) is not None},
        "ledger": {key.removeprefix(TRAINED_ON): v for key, v in version.tags.items() if key.startswith(TRAINED_ON)},
        "created": version.creation_timestamp,
    }


def _number(text: str) -> float | None:
    """A tag as a figure; None for what somebody else wrote there."""
    try:
        return float(text)
    except ValueError:
        return None


def promote(name: str, version: int, alias: str, tracking_uri: str) -> dict[str, Any]:
    """Point `alias` of `name` at `version`; returns what it pointed at before.

    Raises UserError when the version does not exist, and for an alias that MLflow does not take.
    """
    check_alias(alias)
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    with mlflow_store.speaking(uri, f"does not promote {ascii_escapes(name)}"):
        _resolve(client, Reference(name, version=str(version)), uri)
        before = client.get_registered_model(name).aliases.get(alias)
        client.set_registered_model_alias(name, alias, str(version))
    return {"name": name, "alias": alias, "version": version, "before": int(before) if before is not None else None}


def pull(reference: str, out: Path, tracking_uri: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Download a registered encoder to `out`, verified before it gets that name.

    Returns name, version, files, bytes, path. Raises UserError for an unknown reference, an existing folder, or a file
    that does not match its digest.
    """
    refuse_to_replace(out, overwrite)
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    with mlflow_store.speaking(uri, f"does not hand out {ascii_escapes(reference)}"):
        version = _resolve(client, Reference.parse(reference), uri)
        source = client.get_model_version_download_uri(version.name, version.version)
    wanted = ascii_escapes(f"{version.name}/{version.version}")
    try:
        with folder_beside(out) as scratch:
            folder = _download(source, scratch, uri, wanted)
            digest = verify_export(folder)
            if version.tags.get(DIGEST_TAG, digest) != digest:
                raise DataError(f"{wanted}: not the encoder that was registered", "register it again from its run")
            replace_export(folder, out, scratch)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror or error}", "choose another folder, or free space"
        ) from None
    files = [path for path in out.iterdir() if path.is_file()]
    return {
        "name": version.name,
        "version": int(version.version),
        "path": str(out),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "digest": digest,
    }


def log_evaluation(reference: str, tracking_uri: str, prefix: str, result: Mapping[str, Any]) -> None:
    """Figures of an evaluation (macro, low, high, classes) -> metrics `prefix/...` of the encoder's run.

    The macro also becomes a tag of its version, and so does the `ledger` (which of the records were trained on before):
    without it a figure of its own training set looks like any other. Label codes are written so that MLflow takes them
    (`names.safe`).
    """
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    figures = {"macro": result["macro"], "macro_low": result["low"], "macro_high": result["high"]}
    if result.get("baseline"):
        figures["untrained_macro"] = result["baseline"]["macro"]
    if result.get("trained_on"):
        figures["trained_on_records"] = result["trained_on"]["records"]
    figures |= {f"auroc/{safe(entry['code'])}": entry["auroc"] for entry in result["classes"]}
    with mlflow_store.speaking(uri, f"does not take the figures of {ascii_escapes(reference)}"):
        version = _resolve(client, Reference.parse(reference), uri)
        prefix = "/".join(safe(part) for part in prefix.split("/"))
        for key, value in figures.items():
            if value is not None and version.run_id:
                client.log_metric(version.run_id, shorten(f"{prefix}/{key}"), float(value))
        if result["macro"] is not None:
            tag = f"metric.{shorten(f'{prefix}/macro')}"
            client.set_model_version_tag(version.name, version.version, tag, f"{result['macro']:.6g}")
        if result.get("ledger"):
            key = f"{TRAINED_ON}{shorten(prefix)}"
            said = ascii_escapes("; ".join(str(line["line"]) for line in result["ledger"]))[:LONGEST_TAG]
            client.set_model_version_tag(version.name, version.version, key, said)
            if version.run_id:
                client.set_tag(version.run_id, key, said)


def _download(source: str, scratch: Path, uri: str, wanted: str) -> Path:
    from mlflow.artifacts import download_artifacts

    try:
        return Path(download_artifacts(artifact_uri=source, dst_path=str(scratch / ARTIFACT), tracking_uri=uri))
    except Exception as error:  # every artifact store has errors of its own
        raise DataError(
            f"{wanted}: its artifacts cannot be fetched from {ascii_escapes(public(source))}: "
            f"{mlflow_store.reason(error, uri)}",
            "check the artifact store, or register again",
        ) from None
