"""A run directory -> an exported encoder: of its newest verified checkpoint, and without its shards."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json
from cardialign.data_shards.order.global_order import ORDER_VERSION
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.export.doors.onnx import add_onnx, check_onnx
from cardialign.pretrain.export.exposure.consumed import consumed_rows
from cardialign.pretrain.export.exposure.salt import CertificateSalt, salt_of_run
from cardialign.pretrain.export.trained_on import Records, TrainedOn, TrainedSet, chosen, trained_set
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.files import CHECKPOINTS, CONFIG, EXPORT, INITIALISED, START_NOTE
from cardialign.pretrain.run.integrity import (
    EXPOSURE,
    folder_beside,
    read_export,
    refuse_to_replace,
    replace_export,
    verify_export,
)
from cardialign.pretrain.training.checkpoints.condition import Finding, newest_sound, verify
from cardialign.pretrain.training.checkpoints.files import committed
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.checkpoints.state import TrainerState, changed_keys, stored_config
from cardialign.pretrain.training.data import open_data

log = logging.getLogger(__name__)


def export_run(
    run_dir: Path | str,
    out: Path | str | None = None,
    *,
    overwrite: bool = False,
    step: int | None = None,
    program: bool = True,
    onnx: bool = False,
    salt: CertificateSalt | None = None,
) -> dict[str, Any]:
    """Export the encoder of the run in `run_dir` to `out` (default `run_dir/export`).

    The configuration is that of the checkpoint, which trained the weights. step: of this checkpoint, not of the newest;
    program: with `encoder.pt2`, as `export_encoder`; onnx: with `encoder.onnx`, too. salt: of its exposure certificate;
    None: the run's own, which is kept beside it and stands in no export.

    Returns path, checkpoint, step, files, bytes, digest; exposure: root of its certificate, None without; passed_over:
    newer checkpoints that are not as they were written, which stay where they are; differs: what `config.resolved.json`
    says otherwise, key -> [in the checkpoint, in the file]. An encoder that is replaced (`overwrite`) stays until the
    new one is whole.
    Raises UserError when the run has no verified checkpoint, a newer one cannot be read now, or `out` exists.
    """
    if onnx:
        check_onnx()
    run_dir = Path(run_dir)
    beside, unread = _beside(run_dir)
    found, passed = newest_sound(run_dir) if step is None else (_checkpoint(run_dir, step), [])
    if found is None:
        raise _nothing_to_export(run_dir, passed)
    out = Path(out) if out else run_dir / EXPORT
    refuse_to_replace(out, overwrite)
    state = TrainerState.read(found.path)
    config = parse_config(state.config, f"configuration of {found.path}")  # what trained it, whatever was asked since
    spec, shards_fingerprint = _trained_on(state, config, beside, run_dir, found.path)
    training = {**_facts(state, shards_fingerprint), **_other_reports(config), **_start(run_dir)}
    seen = _records(state, found.path)
    if salt is None and (own := salt_of_run(run_dir)) is not None:
        salt = CertificateSalt(own)
    weights = load_weights(found.path)
    try:
        with folder_beside(out) as folder:
            fresh = folder / "new"
            export_encoder(
                config, weights, fresh, training=training, spec=spec, program=program, trained_on=seen, salt=salt
            )
            if onnx:
                add_onnx(fresh)
            replace_export(fresh, out, folder)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}", "choose another folder, or free space") from error
    differs = {CONFIG: [None, unread]} if unread else _differing(state, beside, run_dir)
    told = {"checkpoint": str(found.path), "step": state.step, "passed_over": [one.said() for one in passed]}
    return {**_of_folder(out), **told, "differs": differs}


def _of_folder(out: Path) -> dict[str, Any]:
    """What an export consists of, as it was written."""
    files = sorted(p for p in out.iterdir() if p.is_file())
    return {
        "path": str(out),
        "files": [p.name for p in files],
        "bytes": sum(p.stat().st_size for p in files),
        "digest": verify_export(out),
        "exposure": (read_json(out / EXPOSURE) or {}).get("root"),
    }


def _facts(state: TrainerState, shards_fingerprint: str | None) -> dict[str, Any]:
    """What provenance says of the training."""
    return {
        "steps": state.step,
        "digest": state.digest,
        "selection_fingerprint": state.selection_fingerprint,
        "shards_fingerprint": shards_fingerprint,
        "world_size": state.world_size,
        **({} if state.plan is None else {"plan": [list(stretch) for stretch in state.plan]}),
    }


def _beside(run_dir: Path) -> tuple[dict[str, Any] | None, str]:
    """What `config.resolved.json` says now, None where it is absent or unreadable; why it is unreadable.

    An export needs it no more than to find shards that were moved: it is told, and no end.
    """
    try:
        told = stored_config(run_dir)
    except UserError as error:
        log.warning("run=%s exported=configuration-of-the-checkpoint ignored=%s", run_dir, error.problem)
        return None, error.problem
    return None if told is None else json.loads(json.dumps(told.resolved())), ""


def _other_reports(config: RunConfig) -> dict[str, Any]:
    """What was done to the reports that the run read, when they were not those of its sets; "unknown" where they are
    gone."""
    told = []
    for part in config.data.parts:
        if part.reports is None:
            continue
        try:
            overlay = ShardSet.open(part.shards, reports=part.reports).overlay
            assert overlay is not None
            told.append({"digest": overlay.digest, "made": overlay.made})
        except UserError as error:
            log.warning("reports=%s remark=what was done to them is not known: %s", part.reports, error.problem)
            told.append({"digest": "unknown"})
    return {"reports": told} if told else {}


def _checkpoint(run_dir: Path, step: int) -> Finding:
    """The sound checkpoint of this step. Raises UserError that lists the steps there are, CheckpointError."""
    known = dict(committed(run_dir))
    if step not in known:
        steps = ", ".join(map(str, known)) or "none"
        raise UserError(f"{run_dir} has no checkpoint of step {step}", f"its checkpoints: {steps}")
    return verify(known[step])


def _nothing_to_export(run_dir: Path, passed: list[Finding]) -> UserError:
    if not (run_dir / CONFIG).exists() and not passed:
        return UserError(f"{run_dir} holds no run ({CONFIG} is missing)", "give the --run-dir of `cardialign pretrain`")
    return UserError(
        f"{run_dir} has no verified checkpoint" + "".join(f"\n  - {one.said()}" for one in passed),
        "train first: `cardialign pretrain`; see `cardialign checkpoints verify`",
    )


def _differing(state: TrainerState, beside: dict[str, Any] | None, run_dir: Path) -> dict[str, list[Any]]:
    """What the configuration beside the checkpoints says otherwise than the one that trained the weights."""
    changed = {} if beside is None else {key: list(pair) for key, pair in changed_keys(state.config, beside).items()}
    if changed:
        said = "; ".join(f"{key} is {then!r} there, {now!r} in the file" for key, (then, now) in changed.items())
        log.warning("run=%s exported=configuration-of-the-checkpoint %s differs: %s", run_dir, CONFIG, said)
    return changed


def _start(run_dir: Path) -> dict[str, Any]:
    """Where the weights that the run started from come from, when it did not start from random ones."""
    origin = _origin(run_dir)
    if origin is None:
        return {}
    named = {key: _last_names(value) if key in ("export", "checkpoint") else value for key, value in origin.items()}
    return {"init_from": {**named, **(read_json(run_dir / START_NOTE) or {})}}


def _last_names(place: Any) -> str:
    """What a folder is called, and a checkpoint with its run: where they lie is nobody's business but the machine's."""
    path = PurePath(str(place))
    run = path.parent.parent.name
    return f"{run}/{path.name}" if run and path.parent.name == CHECKPOINTS else path.name


def _origin(run_dir: Path) -> dict[str, Any] | None:
    """Where the weights that a run started from come from; None when it started from none, {} when nobody can say."""
    path = run_dir / INITIALISED
    if not os.path.lexists(path):
        return None
    origin = (read_json(path) or {}).get("origin")
    return origin if isinstance(origin, dict) else {}


def _records(state: TrainerState, checkpoint: Path, later: tuple[Path, ...] = ()) -> TrainedOn:
    """What the weights of a checkpoint have seen: the records of its run, and those of whatever the run started from.

    They are told by the run's shards; where these are not to be had, the facts of the checkpoint are left. later: the
    runs that started from this one. A directory may be among them: the run that was there has given way to another.
    """
    run_dir = checkpoint.parent.parent
    if run_dir in later:
        return TrainedOn(unknown=(f"it started from run {run_dir.name}, which is no longer there",))
    seen = _selected(state, run_dir)
    origin = _origin(run_dir)
    return seen if origin is None else seen + seen_by_start(origin, (*later, run_dir))


def seen_by_start(origin: Mapping[str, Any], later: tuple[Path, ...] = ()) -> TrainedOn:
    """What the weights have seen that a run starts from; origin: as `training.initialise.Start` says it.

    later: the runs that started from them, one after the other.
    """
    name = origin.get("export") or origin.get("checkpoint")
    name = name if isinstance(name, str) else "weights that are not named"
    try:
        if "export" in origin:
            before = TrainedOn.read(read_export(Path(name)))
        else:
            before = _records(TrainerState.read(Path(name)), Path(name), later)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        before = None
    return before or TrainedOn(unknown=(f"it started from {_last_names(name)}, whose records are not known",))


def _selected(state: TrainerState, run_dir: Path) -> TrainedOn:
    config = _where_its_shards_are(state, _beside(run_dir)[0], run_dir)
    parts = config.data.parts
    try:
        opened, selection, order = open_data(config)
        if selection.fingerprint == state.selection_fingerprint:
            read = consumed_rows(order, state.step, state.digest) if state.order_version == ORDER_VERSION else None
            known = selection.rows if read is None else read
            held = zip(_per_set(opened, selection.rows), _per_set(opened, known), parts, strict=True)
            return TrainedOn(
                tuple(
                    replace(
                        trained_set(each, rows, chosen(part.folds, config.data.split_rule(part))),
                        records=Records(each, listed, read is not None),
                    )
                    for (each, rows), (_, listed), part in held
                )
            )
        reason: object = "the shards at this place are not those it was trained on: were they built anew?"
    except (UserError, OSError) as error:
        reason = error
    log.warning("trained_on=unknown run=%s reason=%s", run_dir, reason)
    facts = [
        {"fingerprint": state.shards_fingerprint, **chosen(part.folds, config.data.split_rule(part))} for part in parts
    ]
    alone = tuple(TrainedSet(each) for each in facts if len(facts) == 1 and each["fingerprint"])
    return TrainedOn(alone, ("the shards it was trained on were not there when it was exported",))


def _per_set(opened: ShardSet | JoinedSets, rows: np.ndarray) -> list[tuple[ShardSet, np.ndarray]]:
    """Rows of one set or of several joined ones, given to the sets that hold them."""
    if isinstance(opened, ShardSet):
        return [(opened, rows)]
    ends = [*opened.offsets[1:], len(opened)]
    return [
        (each, rows[(rows >= start) & (rows < end)] - start)
        for each, start, end in zip(opened.sets, opened.offsets, ends, strict=True)
    ]


def _where_its_shards_are(state: TrainerState, beside: dict[str, Any] | None, run_dir: Path) -> RunConfig:
    """The checkpoint's configuration, with the places of the shards that the run's own file says now, and without other
    reports than theirs: these select no record."""
    data = (beside or {}).get("data")
    places = {key: data[key] for key in ("shards", "mixture") if key in data} if isinstance(data, dict) else {}
    own = parse_config(state.config, f"configuration of a checkpoint in {run_dir}").resolved()
    moved = {**own["data"], **places, "reports": None}
    moved["mixture"] = [{**part, "reports": None} for part in moved["mixture"]]
    return parse_config({**own, "data": moved}, str(run_dir / CONFIG))


def _trained_on(
    state: TrainerState, config: RunConfig, beside: dict[str, Any] | None, run_dir: Path, checkpoint: Path
) -> tuple[SignalSpec, str]:
    """Signal spec and fingerprint of the run's shards: the checkpoint says them; for an old one the shards do.

    Where these are now `config.resolved.json` may say; that they are those that trained, their selection shows.
    """
    if state.spec is not None and state.shards_fingerprint is not None:
        return state.spec, state.shards_fingerprint
    moved = _where_its_shards_are(state, beside, run_dir)
    try:
        shards, selection, _ = open_data(moved)
    except UserError as error:
        raise UserError(
            f"checkpoint {checkpoint} was written before checkpoints knew which signals they were trained on, "
            f"and the run's shards cannot be asked: {error.problem}",
            f"put the place where the shards are now into {run_dir / CONFIG} and export again",
        ) from None
    if selection.fingerprint != state.selection_fingerprint:
        raise UserError(
            f"checkpoint {checkpoint} was trained on other records than those of {moved.data.shards or 'the mixture'}",
            f"put the place of the shards that trained it into {run_dir / CONFIG} and export again",
        )
    return shards.spec, shards.fingerprint
