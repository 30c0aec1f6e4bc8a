"""The result of an evaluation, as its file says it -> figures. A file may come from anybody: nothing in it is believed
before it is looked at."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cardialign.cluster.comparison.figure import (
    FINE_TUNE,
    FOUND,
    KINDS,
    NONE,
    ZERO_SHOT,
    Column,
    Figure,
    task_of,
)
from cardialign.cluster.evaluations.kept import Evaluation, scores_beside
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import parse_json, read_bytes, shortened
from cardialign.data_shards.shown import shown

if TYPE_CHECKING:
    from cardialign.pretrain.evaluation.scored import ScoredRecords

LARGEST = 64 << 20
LONGEST = 200
SYSTEM = "encoder"
FLOOR_WORDS = {"untrained": "untrained", "random-kernels": "random kernels", "hand-features": "hand features"}
KEPT = {kind: kind.replace(" ", "-") for kind in KINDS} | {FINE_TUNE: "fine-tune"}
"""Kind of evaluation -> how the measure of kept scores names it."""
Found = list[tuple[str, str, Figure]]
"""Digest of the encoder ("": none is named), the system beside it that the figure is of ("": the encoder's own)."""


def read_values(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError that names it."""
    remedy = "give a result that `cardialign evaluate ... --out` wrote"
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
        values = parse_json(read_bytes(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", remedy) from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON that can be read: {str(error)[:120]}", remedy) from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no result of an evaluation", remedy)
    return values


def kind_of(values: Mapping[str, Any]) -> str | None:
    """Which evaluation wrote such a result; None for what is none, or none that has figures to compare."""
    signs = {
        "zero-shot": ("prompts", "classes", "bootstrap", "macro"),
        "fine-tune": ("task", "start", "options", "seeds", "macro"),
        "grid": ("protocol", "tasks", "shares", "encoder"),
        "probe": ("task", "rows", "left_out"),
        "study": ("study", "rows", "reference"),
    }
    return next((kind for kind, keys in signs.items() if all(key in values for key in keys)), None)


def figures_of(path: Path, values: Mapping[str, Any]) -> Found:
    """Every figure of a result that is none of a study. Raises DataError that names the file and what is wrong."""
    readers = {"zero-shot": _zero_shot, "fine-tune": _fine_tune, "grid": _grid, "probe": _probe}
    kind = kind_of(values)
    if kind not in readers:
        raise DataError(
            f"{path} holds no result of an evaluation that is compared here",
            "give what `cardialign evaluate zero-shot`, `linear-probe`, `fine-tune` or `grid` wrote to --out; "
            "`missingness` and `cmrs` compare by a --beside of their own",
        )
    try:
        kept, why = scores_beside(path, values), ""
    except DataError as error:
        kept, why = [], error.problem
    try:
        found: Found = readers[kind](path, values)
        return [(digest, system, _with_scores(figure, system, kept, why)) for digest, system, figure in found]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:160]
        raise DataError(
            f"{path} is not as an evaluation writes it: {shown(said)}", "evaluate again with --out, or leave it out"
        ) from None


def words(value: Any) -> str:
    """A name out of a file."""
    if not isinstance(value, str):
        raise ValueError(f"{shortened(value)} is no name")
    return shown(value)[:LONGEST]


def share_of(value: Any) -> float:
    """A number in 0..1. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # refuses nan, too
        raise ValueError(f"{shortened(value)} is no number from 0 to 1")
    return float(value)


def _share_or_none(value: Any) -> float | None:
    return None if value is None else share_of(value)


def _spread(value: Any) -> float | None:
    return None if value is None else share_of(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"{shortened(value)} is no count")
    return value


def _seen(trained_on: Any, ledger: Any, figures: Sequence[str]) -> tuple[str, str]:
    """Whether the scored records were trained on before, and in words: of the lines of the ledger about `figures`."""
    lines = [each for each in ledger or [] if isinstance(each, dict) and each.get("figure") in figures]
    states = [each.get("status") for each in lines] or [(trained_on or {}).get("status", "unknown")]
    found = [each for each in lines if each.get("status") == FOUND]
    if FOUND in states:
        told = "; ".join(
            f"{_count(each.get('patients', 0))} patients of {words(each.get('against', ''))}" for each in found
        )
        return FOUND, f"trained on what it is scored on ({told or 'see its ledger'})"
    if all(state == NONE for state in states):
        return NONE, ""
    return "unknown", "not known whether it was trained on some of these records"


def _classes(values: Any) -> str:
    codes = [words(each["code"]) for each in values]
    return f"{len(codes)}: {', '.join(codes)}"


def _zero_shot(path: Path, values: Mapping[str, Any]) -> Found:
    both = [("", values)]
    if isinstance(values.get("baseline"), dict):
        both.append(("untrained", values["baseline"]))
    return [(words(values["encoder"]), system, _one_zero_shot(path, one)) for system, one in both]


def _one_zero_shot(path: Path, values: Mapping[str, Any]) -> Figure:
    prompts, protocol = values["prompts"], values.get("protocol")
    name = words(prompts["name"])
    ground = {
        "shards": words(values["shards"]),
        "protocol": "none",
        "folds": _folds(values.get("folds")),
        "labels": words(prompts["label_set"]),
        "classes": _classes(values["classes"]),
        "prompts": f"{name} {words(prompts['digest'])}",
        "scoring": words(prompts.get("scoring", "cosine")),
    }
    split = values.get("split")
    if isinstance(split, dict):
        ground["split"] = words(str(sorted(split.items())))
    remarks = []
    if isinstance(protocol, dict):
        ground["protocol"] = f"{words(protocol['protocol'])} {words(protocol['digest'])}"
        ground["split"] = words(protocol["split"])
        remarks = [words(each) for each in protocol.get("deviations", [])]
        name = f"{words(protocol['protocol'])}:{words(protocol['task'])}"
    seen, said = _seen(values.get("trained_on"), values.get("ledger"), ("encoder",))
    macro = share_of(values["macro"])
    return Figure(
        Column(ZERO_SHOT, task_of(name)),
        macro,
        None,
        _share_or_none(values["low"]),
        _share_or_none(values["high"]),
        1,
        _count(values["n"]),
        _count(values["patients"]),
        len(values["classes"]),
        ground,
        path,
        words(values["encoder"]),
        seen,
        said,
        remarks=(*remarks, *_opened(values.get("test_opened"))),
    )


def _folds(folds: Any) -> str:
    return "all" if folds is None else ", ".join(str(_count(fold)) for fold in folds)


def _opened(opened: Any) -> list[str]:
    times = (opened or {}).get("times")
    return [f"its test records were opened {times} times for this run"] if isinstance(times, int) and times > 1 else []


def _task_ground(task: Mapping[str, Any], shards: str | None) -> tuple[str, dict[str, str], list[str]]:
    """Name, ground and remarks of the task of a probe or a fine-tuning."""
    ground = {"protocol": "none"}
    if shards is not None:
        ground["shards"] = shards
    remarks = _opened(task.get("test_opened"))
    protocol = task.get("protocol")
    if isinstance(protocol, dict):
        test = protocol["test"]
        ground["protocol"] = f"{words(test['protocol'])} {words(test['digest'])}"
        remarks += [words(each) for each in test.get("deviations", [])]
    else:
        folds = task.get("folds")
        ground["labels"] = words(task["label_set"])
        if isinstance(folds, dict):
            ground["folds"] = "; ".join(f"{words(part)} {_folds(of)}" for part, of in folds.items())
    if shared := task.get("test_patients_in_training"):
        remarks.append(f"{_count(shared)} patients of the test records are among the labelled training records, too")
    return words(task["name"]), ground, remarks


def _probe(path: Path, values: Mapping[str, Any]) -> Found:
    digest = words(values.get("encoder", ""))
    shards = words(values["shards"]) if "shards" in values else None
    return _rows(path, values, digest, shards, "")


def _grid(path: Path, values: Mapping[str, Any]) -> Found:
    found: Found = []
    digest, sets = words(values["encoder"]), values["sets"]
    told = f"{words(values['style'])} x {_count(values['seeds'])}"
    for name, result in values["tasks"].items():
        own = [words(to) for of, to in sets.items() if str(name).startswith(str(of))]
        found += _rows(path, result, digest, own[0] if len(own) == 1 else None, told)
    return found


def _rows(path: Path, values: Mapping[str, Any], digest: str, shards: str | None, subset: str) -> Found:
    task = values["task"]
    name, ground, remarks = _task_ground(task, shards)
    found: Found = []
    for row in values["rows"]:
        system, share, fits = words(row["system"]), share_of(row["share"]), row["fits"]
        kind = words(row["reader"])
        if kind not in KINDS:
            raise ValueError(f"{kind} is no way of reading that is known here")
        own = {**ground, "classes": _classes(row["classes"])}
        if share < 1:
            own["subset"] = subset or f"{len(fits)} seeds"
        seen, said = _seen(task.get("trained_on"), task.get("ledger"), (system, "every system"))
        figure = Figure(
            Column(kind, task_of(name), share),
            share_of(row["macro"]),
            _spread(row["spread"]),
            _share_or_none(row["interval"][0]),
            _share_or_none(row["interval"][1]),
            len(fits),
            _test_records(task["records"]),
            None,
            _count(task["classes"]),
            own,
            path,
            digest if system == SYSTEM else "",
            seen,
            said,
            remarks=tuple(remarks),
        )
        found.append((digest, "" if system == SYSTEM else FLOOR_WORDS.get(system, system), figure))
    return found


def _test_records(told: Any) -> int | None:
    """`82 train, 14 val, 30 test` -> 30."""
    for part in str(told).split(","):
        number, _, name = part.strip().partition(" ")
        if name == "test" and number.isdecimal():
            return int(number)
    return None


def _fine_tune(path: Path, values: Mapping[str, Any]) -> Found:
    task, seeds, start = values["task"], values["seeds"], words(values["start"])
    name, ground, remarks = _task_ground(task, words(values["shards"]) if "shards" in values else None)
    ground["classes"] = _classes(values["classes"])
    remarks.append(words("trained on labels with " + ", ".join(f"{k} {v}" for k, v in values["options"].items())))
    scratch = start.startswith("from random weights")
    seen, said = _seen(values.get("trained_on"), values.get("ledger"), ("fine-tuned encoder", "every system"))
    if scratch:
        seen, said = NONE, ""
    figure = Figure(
        Column(FINE_TUNE, task_of(name), 1.0),
        share_of(values["macro"]),
        _spread(values["spread"]),
        _share_or_none(values["low"]) if len(seeds) == 1 else None,  # of the first seed alone
        _share_or_none(values["high"]) if len(seeds) == 1 else None,
        len(seeds),
        _test_records(task["records"]),
        None,
        len(values["classes"]),
        ground,
        path,
        start,
        seen,
        said,
        remarks=tuple(remarks),
    )
    return [("" if scratch else start, start if scratch else "", figure)]


def _with_scores(figure: Figure, system: str, kept: Sequence[Evaluation], why: str) -> Figure:
    """The figure with its scores, and what they say of its ground; without them with the reason."""
    if why:
        return replace(figure, unpaired=why)
    for each in kept:
        if not (_is_whose(each, figure, system) and _is_of(each, figure.column)):
            continue
        measure, ground = each.measure, {**figure.ground, **ground_of(each.scored)}
        for key in ("learnt_from", "chosen_by"):
            if isinstance(measure.get(key), str):
                ground[key] = measure[key]
        if isinstance(measure.get("subset"), list):
            ground["subset"] = words(" x ".join(map(str, measure["subset"])))
        patients = len(set(each.scored.patients.tolist()))
        return replace(figure, ground=ground, parts=(each.scored,), patients=figure.patients or patients)
    return replace(figure, unpaired="the scores of this system are not kept")


def ground_of(scored: ScoredRecords) -> dict[str, str]:
    """What scores say of the records they are of, and of their labels."""
    content = hashlib.sha256(np.packbits(scored.truth).tobytes())
    if scored.decided is not None:
        content.update(np.packbits(scored.decided).tobytes())
    return {"records": scored.records, "truth": content.hexdigest()}


def _is_whose(kept: Evaluation, figure: Figure, system: str) -> bool:
    """Whether these are the scores of the system: what is beside a probed encoder is named, an encoder has a digest."""
    other = kept.measure.get("system")
    if other is not None:
        return bool(system) and system == FLOOR_WORDS.get(str(other), other)
    return bool(figure.encoder) and kept.encoder == figure.encoder


def _is_of(kept: Evaluation, column: Column) -> bool:
    """Whether these are the scores of a figure of the column; a result holds one zero-shot task."""
    if kept.measure.get("kind") != KEPT.get(column.kind):
        return False
    if column.kind == ZERO_SHOT:
        return True
    name, _, share = kept.name.partition(":")[2].partition("@")
    return task_of(name) == column.task and (not share or math.isclose(float(share), 100 * (column.share or 0)))
