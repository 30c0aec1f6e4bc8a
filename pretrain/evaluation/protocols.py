"""Evaluation protocols as versioned data: data set, label set, split, preprocessing and prompts of a published figure.

They stand in `pretrain/protocols/*.yaml`. `clean-v1:ptb-xl-super` is task `ptb-xl-super` of protocol `clean-v1`. A task
takes its labels from the shard set, or from label files that the user gives (published splits are not ours to ship).
Files there are never edited after release: another choice is another version.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.splits import SPLITS, SplitRule
from cardialign.pretrain.config.yaml_text import read_yaml
from cardialign.pretrain.evaluation.label_files import other_labels, read_label_file, read_prompt_file, rows_by_name
from cardialign.pretrain.evaluation.prompts import PromptSet, load_prompts
from cardialign.pretrain.evaluation.task import EvaluationTask, labelled_task
from cardialign.pretrain.evaluation.windows import Crop

log = logging.getLogger(__name__)

PROTOCOLS = Path(__file__).parent.parent / "protocols"
_NORMALISATIONS = {"whole-record min-max to 0..1": "minmax"}


@dataclass(frozen=True)
class ProtocolTask:
    """One task of one protocol.

    `values` is the task's part of the file; `digest` is the sha256 over all that decides a figure.
    """

    protocol: str
    version: int
    name: str
    preprocessing: dict[str, Any]
    deviations: tuple[str, ...]
    values: dict[str, Any]

    @property
    def spec(self) -> str:
        return f"{self.protocol}:{self.name}"

    @property
    def crop(self) -> Crop | None:
        """How each record is cut into pieces, None where it is read whole."""
        return Crop(**self.values["crop"]) if "crop" in self.values else None

    @property
    def normalisation(self) -> str:
        """What the publication does to a signal, as a word of `encoders.blocks.normalise`; "none" where it says nothing
        or leaves it to the encoder."""
        return _NORMALISATIONS.get(self.preprocessing["normalisation"], "none")

    @property
    def words(self) -> PromptSet:
        """The shipped prompts of a task that takes its labels from the shard set, or the names of their classes."""
        asked = self.values["prompts"]
        if isinstance(asked, str):
            return load_prompts(asked)
        return load_prompts(asked["names_of"]).class_names(in_leads=asked.get("in_leads", False))

    @property
    def digest(self) -> str:
        content = [self.protocol, self.version, self.name, self.preprocessing, self.values]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def protocol_names() -> list[str]:
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def tasks_of(protocol: str) -> list[str]:
    """Names of a protocol's tasks. Raises UsageError for an unknown protocol, listing the known ones."""
    return list(_read(protocol)["tasks"])


def _read(name: str) -> dict[str, Any]:
    if name not in protocol_names():
        raise UsageError(
            f"unknown evaluation protocol {name!r}",
            f"write PROTOCOL:TASK; known protocols: {', '.join(protocol_names())}",
        )
    path = PROTOCOLS / f"{name}.yaml"
    values: dict[str, Any] = read_yaml(path.read_text(encoding="utf-8"), str(path))
    return values


def load_task(spec: str) -> ProtocolTask:
    """`PROTOCOL:TASK` -> the task. Raises UsageError for an unknown protocol or task, listing the known ones."""
    name, _, task = spec.partition(":")
    values = _read(name)
    if task not in values["tasks"]:
        known = ", ".join(f"{name}:{each}" for each in values["tasks"])
        raise UsageError(
            f"protocol {name} has no task {task!r}" if task else f"protocol {name} has several tasks",
            f"choose one of {known}",
        )
    chosen = {**values.get("evaluation", {}), **values["tasks"][task]}
    deviations = (*values.get("deviations", ()), *chosen.pop("deviations", ()))
    return ProtocolTask(values["name"], values["version"], task, values["preprocessing"], deviations, chosen)


def open_task(
    spec: str, shard_set: ShardSet, *, split: str = "test", label_files: Path | None = None
) -> EvaluationTask:
    """Rows, truth and words of one part of a protocol's task in this shard set.

    Raises UsageError: unknown protocol, task or split, a shard set of another data set, or label files that are needed
    and not there; DataError: a damaged label file, or none of the protocol's records in the shard set.
    """
    task = load_task(spec)
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}", f"choose one of {', '.join(SPLITS)}")
    source = str(shard_set.manifest["source"].get("name"))
    if source not in task.values["sources"]:
        raise UsageError(
            f"{task.spec} is about {task.values['sources'][0]}; {shard_set.path} was built from {source}",
            f"give a shard set built from {' or '.join(task.values['sources'])}",
        )
    found = (
        _from_label_files(task, shard_set, split, label_files)
        if "labels" in task.values
        else _from_shards(task, shard_set, split)
    )
    assert found.protocol is not None
    about: dict[str, Any] = {
        "protocol": task.protocol,
        "version": task.version,
        "task": task.name,
        "digest": task.digest,
        "split": split,
        "preprocessing": task.preprocessing,
        "deviations": [*task.deviations, *_signal_deviations(task, shard_set)],
    }
    about["deviations"] += found.protocol.get("deviations", [])
    shown = task.values.get("first_seconds")
    return replace(found, first_seconds=shown, crop=task.crop, protocol={**found.protocol, **about})


def _from_shards(task: ProtocolTask, shard_set: ShardSet, split: str) -> EvaluationTask:
    chosen = task.values["split"]
    words, unlabelled = task.words, task.values.get("unlabelled", "left-out")
    assert words.label_set == task.values["label_set"], f"{task.spec}: prompts answer to {words.label_set}"
    if chosen["by"] == "folds":
        found = labelled_task(shard_set, words, folds=chosen[split], unlabelled=unlabelled)
    else:
        rule = SplitRule(split, chosen["salt"], tuple(chosen["fractions"]))
        found = labelled_task(shard_set, words, split=rule, unlabelled=unlabelled)
    how = "are labelled" if unlabelled == "left-out" else "count, those without a label as negatives"
    note = f"{len(found.rows)} {split} records of this shard set {how}"
    return replace(found, protocol={"note": note})


def _from_label_files(task: ProtocolTask, shard_set: ShardSet, split: str, folder: Path | None) -> EvaluationTask:
    labels = task.values["labels"]
    wanted = [labels[split], task.values["prompts"]["file"]]
    if folder is None or not all((folder / name).is_file() for name in wanted):
        given = (
            f"{folder} lacks {' and '.join(name for name in wanted if not (folder / name).is_file())}"
            if folder
            else "no folder was given"
        )
        raise UsageError(
            f"{task.spec} needs the published label files: {given}",
            f"give --label-files FOLDER that holds {' and '.join(wanted)} "
            f"(columns {labels['id']}, {', '.join(labels['classes'][:3])} ...)",
        )
    names, truth, digest = read_label_file(folder / labels[split], labels["id"], labels["classes"])
    words = read_prompt_file(
        folder / task.values["prompts"]["file"], labels["classes"], name=f"{task.protocol}-prompts"
    )
    rows = rows_by_name(shard_set, names)
    present = rows >= 0
    note = f"{int(present.sum())} of {len(names)} {split} records are in this shard set"
    absent = [name for name, here in zip(names, present, strict=True) if not here]
    if not present.any():
        raise DataError(
            f"{task.spec}: {note} ({shard_set.path}): the files name {', '.join(absent[:3])} ..., "
            f"the set holds {shard_set.key(0)} ...",
            "build shards from the whole data set, or choose another --split",
        )
    if absent:
        note += f"; {len(absent)} are not, such as {', '.join(absent[:5])}"
        log.warning(
            "protocol=%s split=%s published=%d present=%d: not the published figure",
            task.spec,
            split,
            len(names),
            int(present.sum()),
        )
    unknown = other_labels(folder / labels[split], labels["classes"])
    if unknown:
        listed = ", ".join(f"{code} ({count})" for code, count in unknown.items())
        note += f"; labels there that are no class of the protocol: {listed}"
    order = rows[present].argsort()
    chosen = rows[present][order]
    facts = {
        "note": note,
        "unknown_labels": unknown,
        "published": len(names),
        "present": int(present.sum()),
        "missing": len(absent),
        "missing_examples": absent[:5],
        "label_file": {"file": labels[split], "sha256": digest},
    }
    found = EvaluationTask(
        words, chosen, truth[present][order], shard_set.patients[chosen], {}, protocol=facts, listed=rows[present]
    )
    return (
        found
        if not absent
        else replace(found, protocol={**facts, "deviations": [f"{len(absent)} of {len(names)} records are missing"]})
    )


def _signal_deviations(task: ProtocolTask, shard_set: ShardSet) -> list[str]:
    has, says = shard_set.spec, task.preprocessing
    if (has.sampling_rate, has.seconds) == (says["sampling_rate"], says["seconds"]):
        return []
    return [
        f"the shards hold {has.seconds:g} s at {has.sampling_rate:g} Hz, "
        f"the protocol says {says['seconds']} s at {says['sampling_rate']} Hz"
    ]
