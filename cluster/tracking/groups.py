"""How a run reads in MLflow: figures in groups, as its charts show them, and data sets by name and fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.shown import public, shown

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DATA, SPEED, TRAIN = "data/", "speed/", "train/"
_SPEED = ("records_per_second", "exchange_share")
_SPEED_OF = ("step_seconds_", "checkpoint_")
LONGEST_DIGEST, LONGEST_DATASET = 36, 500
"""Characters of MLflow's digest and name of a data set: a fingerprint stands at its full length in the profile."""
SOURCE_TYPE = "cardialign shards"


def grouped(key: str) -> str:
    """The name in MLflow of a figure of the spool: data/ and speed/ say where the time went, train/ what was learnt;
    what has a group already (system/, evaluation/) keeps it."""
    if "/" in key:
        return key
    if key.startswith("data_"):
        return DATA + key.removeprefix("data_")
    return (SPEED if key in _SPEED or key.startswith(_SPEED_OF) else TRAIN) + key


def ungrouped(key: str) -> str:
    """The name of the same figure in the spool, and in the MLflow run of an earlier release."""
    group, _, name = key.partition("/")
    return {"data": f"data_{name}", "speed": name, "train": name}.get(group, key)


def dataset(name: str, fingerprint: str, source: str, profile: Mapping[str, Any], context: str) -> dict[str, str]:
    """A data set as `tracking.json` keeps it. source: folder or address, of which no secret is kept; profile: figures
    that MLflow shows beside it; context: what it is for, `training` or `evaluation`."""
    return {
        "name": shown(name)[:LONGEST_DATASET] or "shards",
        "digest": fingerprint[:LONGEST_DIGEST],
        "source": json.dumps({"uri": public(source)}),
        "profile": json.dumps({"fingerprint": fingerprint, **profile}),
        "context": context,
    }


def dataset_input(kept: Mapping[str, str]) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(kept["name"], kept["digest"], SOURCE_TYPE, kept["source"], None, kept["profile"])
    return DatasetInput(entity, [InputTag("mlflow.data.context", kept["context"])])
