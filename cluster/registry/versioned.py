"""What the tags of a registered version say, read as words of others: a tag that says nothing usable says nothing."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.files import parse_json
from cardialign.data_shards.shown import shown
from cardialign.pretrain.export.model_card import section
from cardialign.pretrain.run.integrity import CONTRACT, PROVENANCE, SETTINGS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from cardialign.pretrain.run.integrity import VerifiedExport

TRAINED_ON = "trained_on."
"""Of the tags that say, for each evaluation, which of its records were trained on before."""
SEEN = "seen."
"""Of the tags that say, for each figure `metric.KEY`, whether its records were trained on: none, found or unknown."""
EVIDENCE_TAG = "evidence."
"""Of the tags that say where the scores of an evaluation lie."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def evidence_tags(version: ModelVersion) -> list[dict[str, Any]]:
    """The evaluations of a version by their tags, sorted by name: digest, name, macro, low, high, n, patients,
    trained_on."""
    found = []
    for key, text in version.tags.items():
        values = json_object(text) if key.startswith(EVIDENCE_TAG) else None
        if values is not None and SHA256.fullmatch(str(values.get("digest"))) and isinstance(values.get("name"), str):
            figures = {name: finite(values.get(name)) for name in ("macro", "low", "high", "n", "patients")}
            found.append({"digest": values["digest"], "name": values["name"], **figures})
            found[-1]["trained_on"] = str(values.get("trained_on"))[:40]
    return sorted(found, key=lambda each: (each["name"], each["digest"]))


def said_of(parts: VerifiedExport) -> dict[str, str]:
    """What an export says of itself as plain tags, by which MLflow filters versions (`tags.method = 'cardialign'`).

    recipe, method, encoder, data (fingerprint of the shards), sampling_rate, seconds and leads (how many): what is
    known of them.
    """
    config, contract = parts.json(SETTINGS), parts.json(CONTRACT)
    told = {
        "recipe": config.get("name"),
        "method": section(config, "method").get("name"),
        "encoder": section(config, "encoder").get("name"),
        "data": section(parts.json(PROVENANCE), "training").get("shards_fingerprint"),
        "sampling_rate": contract.get("sampling_rate"),
        "seconds": contract.get("seconds"),
        "leads": len(leads) if isinstance(leads := contract.get("leads"), list) else None,
    }
    return {
        key: shown(f"{value:g}" if isinstance(value, float) else str(value))[:250]
        for key, value in told.items()
        if isinstance(value, str | int | float) and value
    }


def json_object(text: str) -> dict[str, Any] | None:
    """A tag as the JSON object that we wrote there; None for what somebody else wrote."""
    try:
        values = parse_json(text)
    except (ValueError, RecursionError, TypeError):
        return None
    return values if isinstance(values, dict) else None


def finite(value: Any) -> float | None:
    """A tag, or a value in one, as a figure; None for what somebody else wrote there."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
