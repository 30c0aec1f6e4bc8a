"""The scores behind a figure, kept beside its result: what two results are compared by, pair by pair of records.

OUT.scores.safetensors beside OUT (or OUT.json) holds scores, truth and patients by number of every figure; the result
says under `scores` which file that is, its sha256, and what each figure measures. Nothing in it names a record, a
patient or a report: records are known by one digest over all of them (`pretrain.evaluation.scored`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cardialign.cluster.cli.result_file import is_file_to_be, write_result
from cardialign.cluster.tracking.names import shorten
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import commit_file, is_sha256, read_bytes
from cardialign.pretrain.run.tensors import load_numbers

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.grid.result import GridResult
    from cardialign.pretrain.evaluation.probing.report import Key, ProbeResult
    from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
    from cardialign.pretrain.evaluation.probing.tuned import TunedResult
    from cardialign.pretrain.evaluation.result import ZeroShotComparison, ZeroShotResult
    from cardialign.pretrain.evaluation.scored import ScoredRecords

log = logging.getLogger(__name__)
SUFFIX, VERSION = ".scores.safetensors", 1
AGAIN = "evaluate again with --out, or compare without paired differences"


@dataclass(frozen=True)
class Evaluation:
    """Scores as they are kept.

    name: `KIND:WHAT`, as a requirement of the gate writes it (`requirements`). measure: what decides what a score
    means; figures of another measure are not compared. encoder: digest of what was scored; shards: fingerprint.
    """

    name: str
    measure: Mapping[str, Any]
    scored: ScoredRecords
    encoder: str
    shards: str


def of_zero_shot(result: ZeroShotResult, shard_set: ShardSet) -> Evaluation:
    assert result.scored is not None
    protocol = result.protocol
    what = result.prompts["name"]
    if protocol:
        what = f"{protocol['protocol']}:{protocol['task']}" + (
            "" if protocol["split"] == "test" else f":{protocol['split']}"
        )
    digests = {"protocol": protocol["digest"] if protocol else None, "prompts": result.prompts["digest"]}
    measure = {"kind": "zero-shot", "label_set": result.prompts["label_set"], **digests}
    return Evaluation(
        f"zero-shot:{shorten(what)}", measure, result.scored.nameless(shard_set), result.encoder, shard_set.fingerprint
    )


def of_probe(
    result: ProbeResult, task: ProbeTask, shard_set: ShardSet, share: float, how: Mapping[str, Any]
) -> Evaluation:
    """Of the encoder's own linear probe.

    how: `subset`, how a share of the training records is chosen, and `encoder`, the digest of what was probed.
    """
    from cardialign.pretrain.evaluation.probing.report import OF_ENCODER

    return _of_reader(result, OF_ENCODER, task, shard_set, share, how)


def _of_reader(
    result: ProbeResult, key: Key, task: ProbeTask, shard_set: ShardSet, share: float, how: Mapping[str, Any]
) -> Evaluation:
    """Of one system, read in one way; what is none of the encoder's own says so in its measure."""
    from cardialign.pretrain.evaluation.probing.report import OF_ENCODER

    (system, reader), scored = key, result.scored[share][key]
    kind = reader.replace(" ", "-")
    measure: dict[str, Any] = {
        "kind": kind,
        "share": share,
        **_learnt(task, shard_set),
        "subset": None if share == 1 else [how["subset"], int(scored.scores.shape[0])],
    }
    whose = ""
    if system != OF_ENCODER[0]:
        measure["system"], whose = system, f" of {system}"
    name = f"{kind}{whose}:{shorten(task.name)}@{100 * share:g}"
    return _evaluation(name, measure, scored, task, shard_set, str(how["encoder"]))


def of_tuned(result: TunedResult, task: ProbeTask, shard_set: ShardSet) -> Evaluation:
    """Of an encoder that was trained on labels: what its weights are worth as a start, with these options."""
    options = _digest(json.dumps(result.options, sort_keys=True).encode())
    measure = {"kind": "fine-tune", **_learnt(task, shard_set), "options": options, "seeds": len(result.seeds)}
    return _evaluation(f"fine-tune:{shorten(task.name)}", measure, result.scored, task, shard_set, result.start)


def _learnt(task: ProbeTask, shard_set: ShardSet) -> dict[str, Any]:
    from cardialign.pretrain.evaluation.scored import records_digest

    protocol = task.about.get("protocol")
    return {
        "label_set": task.about.get("label_set"),
        "protocol": protocol["test"]["digest"] if protocol else None,
        "learnt_from": records_digest(shard_set, task.rows[task.parts.train]),
        "chosen_by": records_digest(shard_set, task.rows[task.parts.validation]),
    }


def _evaluation(
    name: str, measure: Mapping[str, Any], scored: ScoredRecords, task: ProbeTask, shard_set: ShardSet, encoder: str
) -> Evaluation:
    scored = replace(scored, rows=task.rows[task.parts.test])
    return Evaluation(name, measure, scored.nameless(shard_set), encoder, shard_set.fingerprint)


def of_comparison(result: ZeroShotResult | ZeroShotComparison, shard_set: ShardSet) -> list[Evaluation]:
    """Of the encoder, and of the baseline where there is one."""
    from cardialign.pretrain.evaluation.result import ZeroShotComparison

    both = (result.result, result.baseline) if isinstance(result, ZeroShotComparison) else (result,)
    return [of_zero_shot(each, shard_set) for each in both]


def of_shares(result: ProbeResult, task: ProbeTask, shard_set: ShardSet, how: Mapping[str, Any]) -> list[Evaluation]:
    """Of every system and reader at every share whose scores are there; how: as of `of_probe`."""
    return [
        _of_reader(result, key, task, shard_set, share, how) for share, found in result.scored.items() for key in found
    ]


def of_grid(found: GridResult, sets: Mapping[str, ShardSet], how: Mapping[str, Any]) -> list[Evaluation]:
    """Of every system and reader in every cell whose scores are there; how: as of `of_probe`."""
    opened = {each.task.name: each for each in found.opened}
    out: list[Evaluation] = []
    for name, result in found.tasks.items():
        task = opened[name].found
        if task is not None:
            out += of_shares(result, task, sets[opened[name].set_name], how)
    return out


def arrays_of(scored: ScoredRecords) -> dict[str, np.ndarray]:
    """As files hold them: scores (S, n, C), truth bool (n, C), patients int64 (n,), decided bool (n, C) or absent."""
    arrays = {"scores": scored.scores, "truth": scored.truth, "patients": scored.patients.astype(np.int64)}
    if scored.decided is not None:
        arrays["decided"] = scored.decided
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def scored_of(arrays: Mapping[str, Any], names: tuple[tuple[str, str], ...], records: str) -> ScoredRecords:
    """What `arrays_of` gave, from a file that others may have written. Raises ValueError, KeyError."""
    from cardialign.pretrain.evaluation.scored import ScoredRecords

    scores, truth, patients = (arrays[name] for name in ("scores", "truth", "patients"))
    decided = arrays.get("decided")
    shape = (len(patients), len(names))
    fits = scores.ndim == 3 and scores.shape[1:] == truth.shape == shape and truth.dtype == bool
    if not fits or (decided is not None and (decided.shape != shape or decided.dtype != bool)):
        raise ValueError("its arrays have other shapes than its classes")
    if patients.dtype != np.int64 or scores.dtype.kind != "f" or not np.isfinite(scores).all():
        raise ValueError("its scores are no numbers")
    return ScoredRecords(scores, truth, patients, names, decided, None, records)


def write_with_scores(out: Path, result: Mapping[str, Any], of: Iterable[Evaluation]) -> None:
    """The result as JSON, and beside it the scores of its figures; these alone where `out` is a pipe or a device.

    The scores are there before the result that names them; where they cannot be written, the result stands alone.
    Raises UserError when that cannot be written.
    """
    from safetensors.numpy import save

    if not is_file_to_be(out):
        write_result(out, dict(result))
        return
    kept = list(of)
    raw = save({f"{k}.{name}": a for k, each in enumerate(kept) for name, a in arrays_of(each.scored).items()})
    place = out.with_name(f"{out.name.removesuffix('.json')}{SUFFIX}")  # of zs-1.5 another one than of zs-1.0
    try:
        commit_file(place, lambda temporary: temporary.write_bytes(raw))
    except OSError as error:  # a name too long, say: the figures are not lost with their scores
        log.warning("scores=%s action=leave-out reason=%s", place, error)
        write_result(out, dict(result))
        return
    told = [
        {
            "name": each.name,
            "measure": dict(each.measure),
            "encoder": each.encoder,
            "shards": each.shards,
            "records": each.scored.records,
            "classes": [list(name) for name in each.scored.names],
        }
        for each in kept
    ]
    scores = {"version": VERSION, "file": place.name, "sha256": hashlib.sha256(raw).hexdigest(), "of": told}
    write_result(out, {**result, "scores": scores})


def scores_beside(out: Path, result: Mapping[str, Any]) -> Sequence[Evaluation]:
    """The scores that a result names, its digest compared. Raises DataError where there are none, or other ones."""
    told = result.get("scores")
    if told is None:
        raise DataError(f"{out} keeps no scores", AGAIN)
    try:
        if told["version"] != VERSION:
            raise ValueError("another release wrote it")
        if Path(told["file"]).name != told["file"]:
            raise ValueError("it names no file beside it")
        raw = read_bytes(out.with_name(told["file"]))
        if hashlib.sha256(raw).hexdigest() != told["sha256"]:
            raise ValueError("they are not as they were written (sha256 differs)")
        arrays: dict[int, dict[str, np.ndarray]] = {}
        for key, array in load_numbers(raw).items():
            place, _, name = key.partition(".")
            arrays.setdefault(int(place), {})[name] = array
        return [_evaluation_of(each, arrays[k]) for k, each in enumerate(told["of"])]
    except OSError as error:
        raise DataError(f"{out}: its scores are not beside it: {error.strerror or error}", AGAIN) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{out}: its scores cannot be used: {str(error)[:200]}", AGAIN) from None


def _evaluation_of(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Evaluation:
    names = tuple((str(code), str(name)) for code, name in told["classes"])
    if not is_sha256(told["records"]) or not isinstance(told["measure"], dict):
        raise ValueError("it does not say of what")
    scored = scored_of(arrays, names, told["records"])
    return Evaluation(str(told["name"]), told["measure"], scored, str(told["encoder"]), str(told["shards"]))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
