"""The software that made an encoder, as a CycloneDX bill of materials beside it: every installed package, its version.

Made by `cyclonedx-bom` (extra `sign`) from the environment that registers, which is that of the training's driver. The
same environment gives the same bytes; the serial number follows from the content.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.tracking.places import send_folder
from cardialign.data_shards.files import parse_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

FOLDER, FILE = "sboms", "sbom.cdx.json"
SPEC = "1.6"
PATIENCE_SECONDS = 300


def log_sbom(client: MlflowClient, run_id: str, digest: str) -> str:
    """The bill of the encoder `digest` as an artifact of its run; returns its sha256, "" where it cannot be made."""
    bill = make_sbom(digest)
    if bill is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="sbom-") as scratch:
        path = Path(scratch) / FILE
        path.write_bytes(bill)
        send_folder(client, run_id, scratch, f"{FOLDER}/{digest}")
    return hashlib.sha256(bill).hexdigest()


def make_sbom(digest: str) -> bytes | None:
    """CycloneDX JSON of this environment, about the encoder with this digest; None without the extra `sign`."""
    listed = _environment()
    if listed is None:
        return None
    bill = parse_json(listed)
    bill["metadata"]["component"] = {
        "type": "machine-learning-model",
        "bom-ref": "encoder",
        "name": "encoder",
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    content = json.dumps(bill, sort_keys=True)
    bill["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, content).urn
    return (json.dumps(bill, indent=1, sort_keys=True) + "\n").encode()


@functools.cache
def _environment() -> str | None:
    """What is installed, without places on this machine. It does not change while a process lives."""
    if importlib.util.find_spec("cyclonedx_py") is None:
        log.info('sbom=none reason=cyclonedx-bom is not installed remedy=pip install "cardialign[sign]"')
        return None
    words = ["environment", "--no-validate", "--output-reproducible", "--of", "JSON", "--sv", SPEC, "-o", "-"]
    try:
        made = subprocess.run(  # noqa: S603 - a module of this environment, words of ours
            [sys.executable, "-P", "-m", "cyclonedx_py", *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        bill: dict[str, Any] = parse_json(made.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("sbom=none reason=%s", error)
        return None
    for component in bill.get("components", []):
        kept = [each for each in component.get("externalReferences", []) if not each["url"].startswith("file:")]
        component["externalReferences"] = kept
        if not kept:
            del component["externalReferences"]
    return json.dumps(bill)
