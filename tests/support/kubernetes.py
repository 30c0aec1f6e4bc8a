"""Judging Kubernetes manifests without a cluster: core objects and resources of KubeRay, unknown fields refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

VERSION = "1.31"
"""Of Kubernetes: old enough that clusters have it."""


def objects(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def judge(manifest: dict[str, Any], definitions: Path | None) -> None:
    """Raise `jsonschema.ValidationError` (or kubernetes_validate's) for what an API server would refuse or drop.

    definitions: the folder with KubeRay's own.
    """
    if manifest["apiVersion"].startswith("ray.io/"):
        assert definitions is not None
        schema = _schema(definitions, manifest["kind"], manifest["apiVersion"].partition("/")[2])
        jsonschema.Draft202012Validator(schema).validate(manifest)  # the schema itself is not ours to check
    else:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


@functools.cache
def _schema(definitions: Path, kind: str, version: str) -> dict[str, Any]:
    definition = yaml.load((definitions / f"ray.io_{kind.lower()}s.yaml").read_text(), _Loader)
    found = next(one for one in definition["spec"]["versions"] if one["name"] == version and one["served"])
    schema = _closed(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
    return dict(schema)


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _closed(schema: Any) -> Any:
    """`schema` in which an object has no other fields than those it lists: an API server would drop them unsaid."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed(value) for key, value in schema.items()}
    listed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if listed and not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
        inner["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        inner.pop("type", None)
    return inner


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod specification in an object: whatever has `containers`."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)
