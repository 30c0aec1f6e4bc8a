"""The packages with which an encoder was made, as a CycloneDX bill of materials in its export: what this package asks
for, what that asks for, and so on, each in the version that is installed.

Read from the metadata of what is installed: nothing is imported, no network is asked. The same environment and weights
give the same bytes; what else is installed beside these packages changes nothing.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import uuid
from importlib.metadata import PackageMetadata
from typing import Any

SPEC = "1.6"
WHOLE = "cardialign"
MADE_WITH = "train"
"""The extra of ours that holds what trains and exports."""
ROOTS = ("torch", "deepspeed", "transformers", "safetensors", "numpy")
"""Where the walk begins in a checkout that was never installed."""


def bill_of_materials(sha256: str) -> bytes:
    """CycloneDX JSON about the encoder whose weights have this digest."""
    made_with = _packages()
    bill: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "encoder",
                "name": "encoder",
                "hashes": [{"alg": "SHA-256", "content": sha256}],
            }
        },
        "components": [
            {
                "type": "library",
                "bom-ref": f"{name}=={version}",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
            }
            for name, version in made_with
        ],
        "dependencies": [{"ref": "encoder", "dependsOn": [f"{name}=={version}" for name, version in made_with]}],
    }
    bill["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(bill, sort_keys=True)).urn
    return (json.dumps(bill, indent=1, sort_keys=True) + "\n").encode()


@functools.cache
def _packages() -> tuple[tuple[str, str], ...]:
    """(name, version) of every package below ours, sorted. It does not change while a process lives."""
    found: dict[str, PackageMetadata] = {}
    seen: set[tuple[str, str]] = set()
    wanted = {(name, "") for name in (WHOLE, *ROOTS)} | {(WHOLE, MADE_WITH)}
    while wanted := wanted - seen:
        name, extra = wanted.pop()
        seen.add((name, extra))
        if name not in found:
            try:
                found[name] = importlib.metadata.metadata(name)  # parsed anew whenever it is asked for
            except importlib.metadata.PackageNotFoundError:
                continue
        wanted |= _asked_for(found[name], extra)
    return tuple(sorted((name, str(package["Version"])) for name, package in found.items()))


def _asked_for(package: PackageMetadata, extra: str) -> set[tuple[str, str]]:
    """(name, extra) of what a package asks for on this machine under one of its extras; "" is the package itself."""
    from packaging.requirements import InvalidRequirement, Requirement

    found: set[tuple[str, str]] = set()
    for text in package.get_all("Requires-Dist") or ():
        try:
            asked = Requirement(text)
        except InvalidRequirement:
            continue
        if asked.marker is None or asked.marker.evaluate({"extra": extra}):
            name = re.sub(r"[-_.]+", "-", asked.name).lower()
            found |= {(name, each) for each in ("", *asked.extras)}
    return found
