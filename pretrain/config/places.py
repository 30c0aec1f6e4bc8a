"""Relative folders in a recipe -> absolute ones: workers and later starts of a run have other working folders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.locations import url_of

log = logging.getLogger(__name__)

SHIPPED_ENCODER = "minilm"
"""The word of `text.encoder` that is no folder and no id."""


def place_paths(values: dict[str, Any]) -> None:
    """Relative folders of `init_from`, `data.shards`, `data.reports`, `data.mixture`, `evaluation.shards` and
    `text.encoder`, and files of prompts in `evaluation.zero_shot` -> absolute ones, in place.

    Empty ones stay, and are refused with the other mistakes: they would mean the folder where the command runs.
    Raises UsageError for what can be no path.
    """
    start = values.get("init_from")
    if isinstance(start, str) and start.strip() and not start.startswith("models:/"):
        values["init_from"] = _absolute(start)
    text = values.get("text")
    if isinstance(text, dict) and isinstance(text.get("encoder"), str) and text["encoder"].strip():
        text["encoder"] = place_encoder(text["encoder"])
    data, beside = values.get("data"), values.get("evaluation")
    mixture = data.get("mixture") if isinstance(data, dict) else None
    for part in [data, beside, *(mixture if isinstance(mixture, list) else [])]:
        if isinstance(part, dict) and isinstance(part.get("shards"), str) and part["shards"].strip():
            part["shards"] = url_of(part["shards"]) or _absolute(part["shards"])
        if isinstance(part, dict) and isinstance(part.get("reports"), str) and part["reports"].strip():
            part["reports"] = url_of(part["reports"]) or _absolute(part["reports"])
    if isinstance(beside, dict) and isinstance(beside.get("zero_shot"), list):
        beside["zero_shot"] = [_prompt_file(name) for name in beside["zero_shot"]]


def _prompt_file(name: Any) -> Any:
    """A file of prompts by its absolute path; the name of a set that comes with the package as it is."""
    return _absolute(name) if isinstance(name, str) and name.endswith((".yaml", ".yml")) else name


def place_encoder(word: str) -> str:
    """`text.encoder` with a relative folder made absolute; `minilm` and Hugging Face ids stay.

    A folder here that has the name of an id comes first, as in transformers, and the log says so. `minilm` always is
    the shipped encoder. Raises UsageError for what can be no path.
    """
    if word == SHIPPED_ENCODER:
        if Path(word).is_dir():
            log.warning("text_encoder=%s remark=the shipped encoder is taken; write ./%s for the folder", word, word)
        return word
    if word.startswith((".", "~", "/")):
        return _absolute(word)
    placed = _absolute(word)
    if not _is_folder(placed):
        return word
    if word.strip("/").count("/") < 2:  # it could be an id
        log.warning(
            "text_encoder=%s remark=the folder %s is taken, not a model of that name on the Hugging Face hub; "
            "write ./%s to say so", word, placed, word,
        )  # fmt: skip
    return placed


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # a name too long to be one
        return False


def _absolute(folder: str) -> str:
    shown = folder if len(folder) <= 160 else f"{folder[:160]}..."
    if "\0" in folder:
        raise UsageError(f"{shown!r} is no path: it holds a NUL character", "write the folder's name")
    try:
        return str(Path(folder).expanduser().absolute())
    except RuntimeError:  # ~name of nobody here
        raise UsageError(f"{shown!r}: no such user's home on this machine", "write the whole path") from None
    except OSError as error:  # the working directory is gone
        raise UsageError(f"{shown!r} has no place: {error}", "change to a folder that exists") from None
