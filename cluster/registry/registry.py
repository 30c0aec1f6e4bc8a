"""The model registry: an exported encoder as a version of a registered MLflow model.

The folder (safetensors, JSON and digests) is logged as plain artifacts, without a pyfunc flavour: a consumer downloads
it with MLflow alone, also with code execution forbidden, and loads safetensors. `pull` checks every file against
`digests.json` before the folder appears under its final name.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.tracking import mlflow_store
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.pretrain.run.integrity import refuse_to_replace, verify_export

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE = "candidate"
ARTIFACT = "encoder"
DIGEST_TAG = "digest"
EXPERIMENT = "cardialign"


@dataclass(frozen=True)
class Reference:
    """`name`, with at most one of alias and version; neither means the newest version."""

    name: str
    alias: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """`name`, `name@alias`, `name/3`, each also after `models:/`. Raises UsageError."""
        match = re.fullmatch(r"(?:models:/)?(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))?", text)
        if match is None:
            raise UsageError(
                f"{text!r} names no registered encoder",
                "write NAME, NAME@ALIAS or NAME/VERSION, for example cardialign@candidate",
            )
        return cls(match["name"], match["alias"], match["version"])


def check_name(name: str) -> None:
    """Raises UsageError for a name that MLflow would not register, before anything is done for it."""
    if not name.strip() or name != name.strip() or re.search(r"[/:@]", name):
        raise UsageError(
            f"{name!r} cannot be the name of a registered encoder", "write a name without /, : and @, like my-encoder"
        )


def register(
    export_dir: Path,
    name: str,
    tracking_uri: str,
    run_id: str | None = None,
    metrics: Mapping[str, float] | None = None,
    alias: str | None = CANDIDATE,
) -> int:
    """Log `export_dir` to its run (a new one without `run_id`) and make it the next version of `name`.

    `alias` then points to it. Raises UserError when the folder does not match its digests or the store cannot be
    opened.
    """
    check_name(name)
    digest = verify_export(export_dir)
    uri = mlflow_store.absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    if run_id is None:
        run = client.create_run(mlflow_store.experiment_id(client, uri, EXPERIMENT), run_name=f"register {name}")
        run_id = run.info.run_id
        client.update_run(run_id, status="FINISHED")
    client.log_artifacts(run_id, str(export_dir), ARTIFACT)
    artifact_uri = client.get_run(run_id).info.artifact_uri
    if name not in _names(client):
        client.create_registered_model(
            name, description="ECG encoder: safetensors, configuration, signal contract, digests"
        )
    tags = {DIGEST_TAG: digest, **{f"metric.{key}": f"{value:.6g}" for key, value in (metrics or {}).items()}}
    version = client.create_model_version(name, source=f"{artifact_uri}/{ARTIFACT}", run_id=run_id, tags=tags)
    if alias:
        client.set_registered_model_alias(name, alias, version.version)
    return int(version.version)


def _names(client: MlflowClient) -> list[str]:
    return [model.name for model in client.search_registered_models(max_results=1000)]


def _known(client: MlflowClient, name: str) -> str:
    """What exists, for an error message."""
    names = _names(client)
    if name not in names:
        return (
            f"registered encoders: {', '.join(names)}"
            if names
            else "the registry is empty; `cardialign pretrain --register NAME` fills it"
        )
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name='{name}'"))
    aliases = client.get_registered_model(name).aliases
    return f"{name} has versions {', '.join(map(str, versions)) or 'none'} and aliases " + (
        ", ".join(f"{alias} -> {version}" for alias, version in aliases.items()) or "none"
    )


def _resolve(client: MlflowClient, reference: Reference, uri: str) -> Any:
    """The model version behind a reference. Raises UserError listing what exists."""
    from mlflow.exceptions import MlflowException

    try:
        if reference.alias is not None:
            return client.get_model_version_by_alias(reference.name, reference.alias)
        if reference.version is not None:
            return client.get_model_version(reference.name, reference.version)
        versions = client.search_model_versions(f"name='{reference.name}'")
        if versions:
            return max(versions, key=lambda version: int(version.version))
    except MlflowException:
        pass
    wanted = reference.name + (
        f"@{reference.alias}" if reference.alias else f"/{reference.version}" if reference.version else ""
    )
    raise UserError(f"{uri} has no encoder {wanted}", _known(client, reference.name))


def list_models(tracking_uri: str) -> list[dict[str, Any]]:
    """Every registered version, newest first per name: name, version, aliases, run_id, metrics, created (ms)."""
    client = mlflow_store.open_client(mlflow_store.absolute_uri(tracking_uri))
    rows = []
    for name in _names(client):
        aliases = client.get_registered_model(name).aliases
        versions = sorted(client.search_model_versions(f"name='{name}'"), key=lambda version: -int(version.version))
        for version in versions:
            rows.append(
                {
                    "name": name,
                    "version": int(version.version),
                    "aliases": sorted(
                        alias for alias, target in aliases.items() if str(target) == str(version.version)
                    ),
                    "run_id": version.run_id,
                    "metrics": {
                        key.removeprefix("metric."): float(v)
                        for key, v in version.tags.items()
                        if key.startswith("metric.")
                    },
                    "created": version.creation_timestamp,
                }
            )
    return rows


def promote(name: str, version: int, alias: str, tracking_uri: str) -> dict[str, Any]:
    """Point `alias` of `name` at `version`; returns what it pointed at before.

    Raises UserError when the version does not exist.
    """
    uri = mlflow_store.absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
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
    uri = mlflow_store.absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    version = _resolve(client, Reference.parse(reference), uri)
    source = client.get_model_version_download_uri(version.name, version.version)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        folder = _download(source, scratch, uri, f"{version.name}/{version.version}")
        digest = verify_export(folder)
        if version.tags.get(DIGEST_TAG, digest) != digest:
            raise DataError(
                f"{version.name}/{version.version}: not the encoder that was registered",
                "register it again from its run",
            )
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "name": version.name,
        "version": int(version.version),
        "path": str(out),
        "files": len(list(out.iterdir())),
        "bytes": size,
        "digest": digest,
    }


def log_evaluation(reference: str, tracking_uri: str, prefix: str, result: Mapping[str, Any]) -> None:
    """Figures of an evaluation (macro, low, high, classes) -> metrics `prefix/...` of the encoder's run.

    The macro also becomes a tag of its version.
    """
    uri = mlflow_store.absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    version = _resolve(client, Reference.parse(reference), uri)
    figures = {"macro": result["macro"], "macro_low": result["low"], "macro_high": result["high"]}
    if result.get("baseline"):
        figures["untrained_macro"] = result["baseline"]["macro"]
    figures |= {f"auroc/{entry['code']}": entry["auroc"] for entry in result["classes"]}
    for key, value in figures.items():
        if value is not None and version.run_id:
            client.log_metric(version.run_id, metric_name(f"{prefix}/{key}"), float(value))
    if result["macro"] is not None:
        client.set_model_version_tag(version.name, version.version, f"metric.{prefix}/macro", f"{result['macro']:.6g}")


def metric_name(text: str) -> str:
    """MLflow takes letters, digits and `_-. /` in a metric's name; label codes such as PRC(S) hold more."""
    return re.sub(r"[^\w\-. /]", "_", text)


def _download(source: str, scratch: str, uri: str, wanted: str) -> Path:
    from mlflow.artifacts import download_artifacts

    try:
        return Path(download_artifacts(artifact_uri=source, dst_path=str(Path(scratch) / ARTIFACT), tracking_uri=uri))
    except Exception as error:  # every artifact store has errors of its own
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{wanted}: its artifacts cannot be fetched from {source}: {first_line}",
            "check the artifact store, or register again",
        ) from error
