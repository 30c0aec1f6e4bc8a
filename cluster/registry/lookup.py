"""Names and versions of the model registry: found, and their digests compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.registry.artifacts import fetch_files
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.shown import public, quoted, shown
from cardialign.pretrain.run.integrity import (
    DIGESTS,
    VerifiedExport,
    described_by,
    read_parts,
    verify_export,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ARTIFACT = "encoders"
"""Folder of a run's artifacts with one folder per encoder, named by its digest."""
DIGEST_TAG = "digest"
LONGEST_TAG = 5000
"""Characters that every MLflow takes as the value of a tag, or as a description."""
PRODUCTION = "production"
"""The alias that only the gate moves."""


def is_gated(alias: str) -> bool:
    """Whether an alias is the one of production, in whatever letters: people read it so."""
    return alias.casefold() == PRODUCTION


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
                f"{quoted(text)} names no registered encoder",
                "write NAME, NAME@ALIAS or NAME/VERSION, for example cardialign@candidate",
            )
        return cls(match["name"], match["alias"], match["version"])

    def __str__(self) -> str:
        return self.name + (f"@{self.alias}" if self.alias else f"/{self.version}" if self.version else "")


def pages(search: Callable[..., Any]) -> Iterator[Any]:
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


def names_of(client: MlflowClient) -> list[str]:
    return [model.name for model in pages(client.search_registered_models)]


def number_of(version: ModelVersion) -> int:
    """The number of a version; 0 where a server gives none, so that it hides no other version."""
    text = str(version.version)
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0


def versions_of(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of `name`, newest first."""
    found = [version for version in pages(client.search_model_versions) if version.name == name]
    return sorted(found, key=lambda version: -number_of(version))


def what_exists(client: MlflowClient, name: str) -> str:
    """For an error message."""
    names = names_of(client)
    if name not in names:
        return (
            f"registered encoders: {', '.join(map(shown, names))}"
            if names
            else "the registry is empty; `cardialign pretrain --register NAME` fills it"
        )
    versions = sorted(number_of(version) for version in versions_of(client, name))
    aliases = client.get_registered_model(name).aliases
    return f"{name} has versions {', '.join(map(str, versions)) or 'none'} and aliases " + (
        ", ".join(f"{shown(alias)} -> {version}" for alias, version in aliases.items()) or "none"
    )


def resolve(client: MlflowClient, reference: Reference, uri: str) -> ModelVersion:
    """The model version behind a reference. Raises UserError listing what exists."""
    found = find(client, reference)
    if found is None:
        raise UserError(f"{public(uri)} has no encoder {shown(str(reference))}", what_exists(client, reference.name))
    return found


def find(client: MlflowClient, reference: Reference) -> ModelVersion | None:
    """The same, None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        if reference.alias is not None:
            return client.get_model_version_by_alias(reference.name, reference.alias)
        if reference.version is not None:
            return client.get_model_version(reference.name, reference.version)
        versions = versions_of(client, reference.name)
        return versions[0] if versions else None
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    return None


def title(version: ModelVersion) -> str:
    """`NAME/VERSION`, for a terminal."""
    return shown(f"{version.name}/{version.version}")


def fetch_of_run(client: MlflowClient, run_id: str, path: str, names: Sequence[str], scratch: Path, uri: str) -> Path:
    """These files of the folder `path` among the artifacts of a run, in `scratch`. Raises DataError."""
    source = f"{client.get_run(run_id).info.artifact_uri}/{path}"
    return fetch_files(source, names, scratch, uri, f"MLflow run {run_id}")


def verified(version: ModelVersion, folder: Path, expected: str | None = None) -> str:
    """Digest of a version whose files were fetched to `folder`. expected: the digest that the user knows it by.

    Raises DataError where they are not as they were written, or not those that were registered: it is the store that
    holds them so.
    """
    try:
        digest = verify_export(folder)
    except UserError as error:
        problem = error.problem.replace(f"exported encoder {folder}", title(version)).replace(str(folder), "its folder")
        raise DataError(
            problem, "the artifact store holds it so: put back what was registered, or register it again from its run"
        ) from None
    as_registered(version, digest, expected)
    return digest


def as_registered(version: ModelVersion, digest: str, expected: str | None = None) -> None:
    """Raises DataError where the digest of its files is not the one that was registered, or not the expected one, and
    where nothing says which one it should be: then whoever can write the files decides what they are."""
    told = version.tags.get(DIGEST_TAG)
    if expected is not None and digest != expected:
        raise DataError(
            f"{title(version)} has the digest {digest}, expected was {expected}",
            "ask where the other digest comes from",
        )
    if told is None and expected is None:
        raise DataError(
            f"{title(version)} has no tag `{DIGEST_TAG}`: nothing says which encoder was registered",
            f"if {digest} is the digest that you know: `registry pull --expect-digest {digest}`; or register it again",
        )
    if told not in (None, digest):
        raise DataError(f"{title(version)}: not the encoder that was registered", "register it again from its run")


def fetch_description(client: MlflowClient, version: ModelVersion, scratch: Path, uri: str) -> VerifiedExport:
    """What an encoder says of itself (`described_by`), checked, without its weights.

    Raises UserError.
    """
    source = client.get_model_version_download_uri(version.name, version.version)
    fetch_files(source, (DIGESTS,), scratch, uri, title(version))
    names = described_by(scratch)
    fetch_files(source, names, scratch, uri, title(version))
    parts = read_parts(scratch, names)
    as_registered(version, parts.digest)
    return parts


def digest_of(values: Any) -> str:
    """sha256 of JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
