"""Published label files and prompt files, joined to a shard set by record name.

A label file has one row per record and one 0/1 column per class; a prompt file says class -> text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import parse_json, read_bytes, sha256_of
from cardialign.data_shards.reading.tables import columns_of, read_table, strings
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.shared.ids import plain_id
from cardialign.pretrain.evaluation.prompts import PromptClass, PromptSet

NO_LABELS = ("sex", "gender", "validation", "validated_by_human", "strat_fold", "fold", "pacemaker")
"""Columns of 0 and 1 in published files that are about a record or a patient."""
_VALUES = {"0": False, "0.0": False, "1": True, "1.0": True}


def read_label_file(path: Path, id_column: str, classes: Sequence[str]) -> tuple[list[str], np.ndarray, str]:
    """Record names (n,), truth bool (n, C) in the order of `classes`, sha256 of the file.

    Columns may stand in any order (in the published train and test files they differ). Raises DataError naming file,
    row and column when one is missing, holds no 0/1, or a record occurs twice.
    """
    table = read_table(path, (id_column, *classes))
    names = [record_name(text) for text in strings(table, id_column)]
    seen: dict[str, int] = {}
    for line, name in enumerate(names, start=2):
        if not name or name in seen:
            what = f"record {name} occurs in line {seen[name]} too" if name else f"no {id_column}"
            raise DataError(f"{path}, line {line}: {what}", "give the label file as it was published")
        seen[name] = line
    truth = np.zeros((len(names), len(classes)), dtype=bool)
    for k, column in enumerate(classes):
        for i, text in enumerate(strings(table, column)):
            if text not in _VALUES:
                raise DataError(
                    f"{path}, line {i + 2}: {column} is {text!r}, not 0 or 1", "give the label file as it was published"
                )
            truth[i, k] = _VALUES[text]
    return names, truth, sha256_of(path)


def other_labels(path: Path, classes: Sequence[str]) -> dict[str, int]:
    """Columns that hold 0 and 1 in every row and are none of `classes`, with how many rows have a 1: labels of
    classes that nobody asked for, or a class whose name is written in another way."""
    known = {name.casefold() for name in (*classes, *NO_LABELS)}
    names = [name for name in columns_of(path) if name.casefold() not in known]
    table = read_table(path, (), optional=names)
    found = {}
    for name in names:
        values = strings(table, name) if name in table.column_names else []
        if values and set(values) <= set(_VALUES) and (count := sum(_VALUES[text] for text in values)):
            found[name] = count
    return found


def record_name(text: str) -> str:
    """`9`, `9.0`, `A2600`, `/chapman/WFDBRecords/18/186/JS18048.mat` -> the name that a record's key ends with."""
    name = PurePosixPath(plain_id(text).replace("\\", "/")).name
    for suffix in (".mat", ".hea", ".dat"):
        name = name.removesuffix(suffix)
    return plain_id(name)


def rows_by_name(shard_set: ShardSet, names: Sequence[str]) -> np.ndarray:
    """int64 (n,): row of each record, -1 where the shard set does not hold it.

    A key is its source's prefix, a dash and the record's name. Raises DataError when two records of the shard set
    answer to one name.
    """
    wanted = set(names)
    rows: dict[str, int] = {}
    for row, key in enumerate(shard_set.index.column("key").to_pylist()):
        name = key if key in wanted else key.partition("-")[2]
        if name in wanted:
            if name in rows:
                raise DataError(
                    f"{shard_set.path}: records {shard_set.key(rows[name])} and {key} "
                    f"both answer to the published name {name}",
                    "evaluate on a shard set of one data set",
                )
            rows[name] = row
    return np.array([rows.get(name, -1) for name in names], dtype=np.int64)


def read_prompt_file(path: Path, classes: Sequence[str], name: str) -> PromptSet:
    """A JSON object class -> text as one prompt per class, in lower case as published.

    Raises DataError when it is none or lacks a class.
    """
    try:
        texts = parse_json(read_bytes(path))
        missing = [code for code in classes if not str(texts.get(code) or "").strip()]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is no JSON object of class and text: {error}", "give the prompt file as it was published"
        ) from error
    if missing:
        raise DataError(f"{path} has no text for {', '.join(missing)}", "give the prompt file as it was published")
    entries = tuple(PromptClass(code, code, (str(texts[code]).strip().lower(),)) for code in classes)
    return PromptSet(name, 1, "published label file", "published prompts, given by the user", entries)
