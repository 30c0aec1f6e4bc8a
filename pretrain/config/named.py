"""The two sections whose `name` decides which keys they have, in the words of any release.

Reads neither files nor YAML: an exported encoder is loaded through here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import BeforeValidator

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.plugins import Table
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.config.fields import Strict
from cardialign.pretrain.config.sentences import told
from cardialign.pretrain.config.towers import EncoderConfig

MAIN = {"name": "cardialign"}
"""What a recipe gets that names no method, or no encoder."""
RENAMED = {"model": "encoder", "objective": "method"}
"""Sections of version 1 and what they are called now."""
RENAMED_METHODS = {"diagsim": "cardialign"}
"""`objective.name` of version 1 -> `method.name`."""
MODEL_TYPE = "cardialign"
"""`model_type` in the `config.json` of an export, by which transformers knows it; no key of a configuration."""
TEXT_BEFORE_POOLING = {"encoder", "trainable", "train_layers", "max_tokens", "style"}
"""Keys of a stored section `text:` from before it said how to pool."""
POOLING_AS_BEFORE = ("minilm", "ncbi/MedCPT-Query-Encoder", "ncbi/MedCPT-Article-Encoder")


def _section(table: Table, values: Any) -> Any:
    """Dict of a section -> the typed configuration of what its `name` asks for, which checks the rest."""
    if not isinstance(values, dict):
        return values
    values = {**MAIN, **values}
    try:
        kind = table.find(values["name"] if isinstance(values["name"], str) else told(values["name"])).Config
    except UsageError as error:
        raise ValueError(f"{error.problem}; {error.remedy}") from None
    return kind.model_validate(values)


def _named(table: Table, values: Any) -> Any:
    """`section`, for what anybody may have written: a section that is no mapping, a name that is no text."""
    if not isinstance(values, dict | Strict):
        name = values if isinstance(values, str) and values in table else next(iter(table))
        raise ValueError(f"{told(values)} is not a section; write {table.kind}: {{name: {name}}}")
    name = values.get("name", MAIN["name"]) if isinstance(values, dict) else ""
    if not isinstance(name, str):
        raise ValueError(f"name is {told(name)}; write a name, one of: {', '.join(table)}")
    return _section(table, values)


def choice(table: Table) -> BeforeValidator:
    return BeforeValidator(partial(_named, table))


def upgrade(values: dict[str, Any], origin: str = "configuration") -> dict[str, Any]:
    """A configuration written by any release, as today's release words it; today's comes back as it is.

    The one place that knows old words.

    Raises UsageError when a section stands there under its old and under its new name.
    """
    upgraded = {key: value for key, value in values.items() if (key, value) != ("model_type", MODEL_TYPE)}
    for old, new in RENAMED.items():
        if old not in upgraded:
            continue
        if new in upgraded:
            raise UsageError(f"{origin} has both {new} and its old name {old}", f"move what is under {old} to {new}")
        upgraded[new] = upgraded.pop(old)
    method = upgraded.get("method")
    if isinstance(method, dict) and name_of(method) in RENAMED_METHODS:
        upgraded["method"] = {**method, "name": RENAMED_METHODS[name_of(method)]}
    return upgraded


def stored_text(text: Any) -> Any:
    """The section `text:` of a stored configuration, with the pooling that it meant when a path decided it.

    Until `text.pooling` was a key, ids and folders with "medcpt" in their path were pooled by their first token, all
    others by the mean. What is written by hand leaves out keys and stays as it is; so do the words whose pooling is the
    same today.
    """
    if not isinstance(text, dict) or set(text) != TEXT_BEFORE_POOLING or not isinstance(text["encoder"], str):
        return text
    if text["encoder"] in POOLING_AS_BEFORE:
        return text
    return {**text, "pooling": "cls" if "medcpt" in text["encoder"].lower() else "mean"}


def name_of(section: Any) -> str:
    """The `name` of a section that may hold mistakes; "" when it has none that is text."""
    name = section.get("name", MAIN["name"]) if isinstance(section, dict) else ""
    return name if isinstance(name, str) else ""


def encoder_section(values: dict[str, Any], origin: str) -> EncoderConfig:
    """The section `encoder:` of a stored configuration alone, whatever method trained it. Raises UsageError."""
    try:
        found: EncoderConfig = _section(ENCODERS, upgrade(values, origin).get("encoder", MAIN))
    except ValueError as error:  # pydantic's, and that of an unknown name
        raise UsageError(
            f"{origin}: encoder: {error}",
            "load it with the release that wrote it, or install the package of the encoder",
        ) from None
    return found
