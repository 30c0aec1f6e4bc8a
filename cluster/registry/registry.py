"""The model registry: an exported encoder as a version of a registered MLflow model.

The folder (safetensors, JSON and digests) is logged as plain artifacts: a consumer downloads it with MLflow alone and
loads safetensors. Beside it lies what `mlflow.pyfunc.load_model` asks for (`pyfunc/mlmodel.py`), which names a loader
of ours and no code in the folder. `pull` leaves that where it is, and checks every file against `digests.json` before
the folder appears under its final name.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.address import absolute_uri
from cardialign.cluster.registry.artifacts import LARGEST, fetch_encoder
from cardialign.cluster.registry.card import SBOM_TAG, write_card
from cardialign.cluster.registry.lookup import (
    ARTIFACT,
    DIGEST_TAG,
    Reference,
    is_gated,
    names_of,
    number_of,
    pages,
    resolve,
    title,
    verified,
    versions_of,
)
from cardialign.cluster.registry.pyfunc.mlmodel import write_mlmodel
from cardialign.cluster.registry.sbom import log_sbom
from cardialign.cluster.registry.signing import TrustedKey, verify_signature
from cardialign.cluster.registry.versioned import SEEN, TRAINED_ON, finite, said_of
from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.names import LONGEST_NAME, check_alias, check_model, safe_key
from cardialign.cluster.tracking.places import send_folder
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run.integrity import (
    described_by,
    folder_beside,
    read_parts,
    refuse_to_replace,
    replace_export,
    verify_export,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

CANDIDATE = "candidate"


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
    touches them; what MLflow loads them by lies among them, a card and a bill of materials beside them. The same
    encoder of the same run is not registered twice: its files are sent again and its version is returned.
    Raises UserError when the folder does not match its digests, for a name or alias that MLflow does not take, for an
    alias behind the gate, and when the store does not do it.
    """
    check_model(name)
    if alias:
        check_alias(alias)
        if is_gated(alias):
            raise UsageError(f"nothing is registered as {alias}", "register it, then `cardialign registry promote`")
    digest = verify_export(export_dir)
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri)
    with mlflow_store.speaking(uri, f"does not register {name}"):
        known = _registered(client, name, digest, run_id)
        if run_id is None:
            run_id = str(known.run_id) if known is not None else _run_of_its_own(client, uri, name)
        send_folder(client, run_id, export_dir, f"{ARTIFACT}/{digest}")
        _let_mlflow_load(client, run_id, export_dir, digest)
        parts = read_parts(export_dir, described_by(export_dir))
        tags = {
            DIGEST_TAG: digest,
            **said_of(parts),
            **{f"metric.{safe_key(key)}": f"{value:.6g}" for key, value in (metrics or {}).items()},
        }
        if known is not None:
            log.info("registered=%s version=%s action=kept reason=the same encoder", name, known.version)
            version = known
            for key, value in tags.items():
                client.set_model_version_tag(name, version.version, key, value)
        else:
            if bill := log_sbom(client, run_id, digest):
                tags[SBOM_TAG] = bill
            source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT}/{digest}"
            _make_model(client, name)
            version = client.create_model_version(name, source=source, run_id=run_id, tags=tags)
        write_card(client, version, parts)
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)


def _let_mlflow_load(client: MlflowClient, run_id: str, export_dir: Path, digest: str) -> None:
    """What MLflow loads the encoder by, among its files. One that no library here could load has none, and is told."""
    with tempfile.TemporaryDirectory(prefix="mlmodel-") as scratch:
        try:
            write_mlmodel(export_dir, Path(scratch), run_id=run_id)
        except UserError as error:
            log.warning("mlmodel=none encoder=%s reason=%s", digest[:12], shown(error.problem)[:200])
            return
        send_folder(client, run_id, scratch, f"{ARTIFACT}/{digest}")


def _registered(client: MlflowClient, name: str, digest: str, run_id: str | None) -> ModelVersion | None:
    """The newest version of `name` that is this encoder (and of this run, when one is named); None without one."""
    same = [
        version
        for version in versions_of(client, name)
        if version.tags.get(DIGEST_TAG) == digest
        and str(version.source).endswith(f"/{ARTIFACT}/{digest}")
        and version.run_id
        and run_id in (None, version.run_id)
    ]
    return same[0] if same else None


def _run_of_its_own(client: MlflowClient, uri: str, name: str) -> str:
    experiment = mlflow_store.experiment_id(client, uri)
    run_id = str(client.create_run(experiment, run_name=f"register {name}"[:LONGEST_NAME]).info.run_id)
    client.set_terminated(run_id)
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


def list_models(tracking_uri: str) -> list[dict[str, Any]]:
    """Every registered version, newest first per name: name, version, aliases, run_id, metrics, seen (of a figure:
    whether its records were trained on), ledger (of each evaluation: which of them were), created (ms)."""
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri, make=False)
    with mlflow_store.speaking(uri, "does not list its encoders"):
        versions: dict[str, list[ModelVersion]] = {}
        for version in pages(client.search_model_versions):
            versions.setdefault(version.name, []).append(version)
        return [
            _row(version, aliases)
            for name in names_of(client)
            for aliases in [_aliases(client, name)]
            for version in sorted(versions.get(name, []), key=lambda version: -number_of(version))
        ]


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """The aliases of a model; none, and a word in the log, where the store does not give this one out."""
    try:
        return dict(client.get_registered_model(name).aliases)
    except Exception as error:  # of MLflow, or of what a server sent: no reason to hide the other models
        log.warning("model=%s aliases=unknown reason=%s", shown(name), shown(str(error))[:200])
        return {}


def _row(version: ModelVersion, aliases: Mapping[str, str]) -> dict[str, Any]:
    metrics = {key.removeprefix("metric."): v for key, v in version.tags.items() if key.startswith("metric.")}
    return {
        "name": version.name,
        "version": number_of(version),
        "aliases": sorted(alias for alias, target in aliases.items() if str(target) == str(version.version)),
        "run_id": version.run_id,
        "metrics": {key: number for key, v in metrics.items() if (number := finite(v)) is not None},
        "seen": {key.removeprefix(SEEN): v for key, v in version.tags.items() if key.startswith(SEEN)},
        "ledger": {key.removeprefix(TRAINED_ON): v for key, v in version.tags.items() if key.startswith(TRAINED_ON)},
        "created": version.creation_timestamp,
    }


def pull(
    reference: str,
    out: Path,
    tracking_uri: str,
    *,
    overwrite: bool = False,
    trusted: TrustedKey | None = None,
    expected: str | None = None,
    most: int = LARGEST,
) -> dict[str, Any]:
    """Download a registered encoder to `out`, verified before it gets that name.

    trusted: it must also be signed, by this key or under this certificate. expected: the digest that it must have; a
    version without a tag of its digest is pulled by that alone. most: bytes of its files.

    Returns name, version, files, bytes, path, digest, and of a signed one the statement. Raises UserError for an
    unknown reference, an existing folder, a file that does not match its digest, or what is not signed so.
    """
    refuse_to_replace(out, overwrite)
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri, make=False)
    with mlflow_store.speaking(uri, f"does not hand out {shown(reference)}"):
        version = resolve(client, Reference.parse(reference), uri)
        source = client.get_model_version_download_uri(version.name, version.version)
    signed = {}
    try:
        with folder_beside(out) as scratch:
            folder = fetch_encoder(source, scratch / ARTIFACT, uri, title(version), most)
            digest = verified(version, folder, expected)
            if trusted is not None:
                with mlflow_store.speaking(uri, f"does not hand out the signature of {title(version)}"):
                    signed = {"signed": verify_signature(client, version, folder, trusted, uri)}
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
        **signed,
    }
