"""A run from end to end: check and prepare what it needs, open tracking, train on Ray, export, register."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.address import default_uri
from cardialign.cluster.cli.progress import Progress
from cardialign.cluster.environment.sizes import Sizes, sizes_of
from cardialign.cluster.environment.versions import git_commit, versions
from cardialign.cluster.runs.failure import StoppedError
from cardialign.cluster.runs.placement import Placement
from cardialign.cluster.runs.starts import mlflow_tags, note_start
from cardialign.cluster.tracking.groups import dataset
from cardialign.cluster.tracking.names import check_model
from cardialign.cluster.tracking.tracker import RunTracker
from cardialign.data_shards.errors import DONE, STOPPED, UsageError, UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import BEST, BEST_NOTE, CONFIG, EXPORT, PAGE, START, START_NOTE
from cardialign.pretrain.run.integrity import refuse_to_replace
from cardialign.pretrain.run.layout import writing
from cardialign.pretrain.run.lock import locked_run

if TYPE_CHECKING:
    import numpy as np

    from cardialign.cluster.runs.driver import PretrainResult
    from cardialign.data_shards.record import SignalSpec
    from cardialign.data_shards.shard_set.joined import JoinedSets
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import MixturePart, RunConfig
    from cardialign.pretrain.training.checkpoints.judge import Resume, Verdict

log = logging.getLogger(__name__)

FINAL = ("final_loss", "records_per_second", "data_wait_share", "restarts")
"""Figures of a finished run that MLflow gets as `run/...`."""


@dataclass(frozen=True)
class Tracking:
    """The MLflow store and experiment of a run. optional: train also when the store cannot be opened. command: what
    started the run, as it is noted ("" from a program). page: writes the page of a run directory to a file."""

    uri: str = field(default_factory=default_uri)
    experiment: str | None = None
    optional: bool = False
    command: str = ""
    page: Callable[[Path, Path], object] | None = None


def prepare(config: RunConfig) -> dict[str, Any]:
    """What can be found wrong before anything is started, and the text bank of every set.

    Returns records, steps and fingerprints of the run's data.
    """
    from cardialign.pretrain.methods.base import method_class
    from cardialign.pretrain.training.data import open_data, total_steps

    shard_set, selection, _ = open_data(config)
    _try_out(config, shard_set.spec)
    if config.evaluation is not None:
        from cardialign.pretrain.evaluation.selection.of_checkpoint import asked_of

        asked_of(config)
    reports = method_class(config).reports
    banks = [_bank(part, config) for part in config.data.parts] if reports else []
    return {
        "records": len(selection.rows),
        "steps": total_steps(config, len(selection.rows)),
        "shards_fingerprint": shard_set.fingerprint,
        "selection_fingerprint": selection.fingerprint,
        "text_encoder_fingerprint": banks[0]["encoder_fingerprint"] if banks else "",
        "datasets": datasets_of(config, shard_set, selection.rows),
    }


def datasets_of(config: RunConfig, opened: ShardSet | JoinedSets, rows: np.ndarray) -> list[dict[str, str]]:
    """The shard sets of a run, as MLflow keeps them: name, fingerprint, place, and how much of each is read."""
    from cardialign.data_shards.locations import url_of
    from cardialign.data_shards.shard_set.joined import JoinedSets

    sets, firsts = (opened.sets, opened.offsets) if isinstance(opened, JoinedSets) else ((opened,), (0,))
    found = []
    for part, each, first in zip(config.data.parts, sets, firsts, strict=True):
        read = int(((rows >= first) & (rows < first + len(each))).sum())
        facts = {"records": read, "records_of_the_set": len(each), "folds": part.folds, "split": part.split}
        facts = {key: value for key, value in facts.items() if value is not None}
        place = url_of(part.shards) or str(each.path)
        found.append(dataset(each.path.name, each.fingerprint, place, facts | {"weight": part.weight}, "training"))
    return found


def _try_out(config: RunConfig, spec: SignalSpec) -> None:
    """Method, encoder and start of a run, before any worker is started: raises UserError as the workers would."""
    import torch

    from cardialign.pretrain.encoders.base import create_encoder
    from cardialign.pretrain.methods.base import create_method, method_class
    from cardialign.pretrain.training.initialise import check_start, check_whole_start, open_start, require_start

    require_start(config)
    start = None if config.init_from is None else open_start(Path(config.init_from))
    if start is not None:
        with torch.device("meta"):
            encoder = create_encoder(config.encoder, spec, config.data.normalisation)
        check_start(encoder, config, start)
    if config.text.trainable == "frozen" or not method_class(config).reports:  # else it would load a language model
        with torch.device("meta"):
            method = create_method(config, spec)
        if start is not None:
            check_whole_start(method, config, start)


def _bank(part: MixturePart, config: RunConfig) -> dict[str, Any]:
    """The text bank of a shard set, with what the method reads of it: opened or made.

    It is made in a process of its own: the report encoder is gone from memory before the workers start.
    """
    from cardialign.cluster.cli.subcommand import run_command
    from cardialign.cluster.runs.text_bank import find_text_bank
    from cardialign.data_shards.locations import url_of

    text, shards = config.text, part.shards
    distant = config.method.distant_reports
    bank = find_text_bank(shards, text, config.method.statement_vectors, distant, part.reports)
    if bank is None:
        words = ["--encoder", text.encoder, "--max-tokens", str(text.max_tokens), "--style", text.style]
        words += [] if text.pooling is None else ["--pooling", text.pooling]
        words += ["--distant", str(distant)] if distant else []
        words += [] if part.reports is None else ["--reports", str(part.reports)]
        bank = run_command(["text-bank", "build", url_of(shards) or str(shards), *words])
    return bank


def run(
    config: RunConfig,
    run_dir: Path | str,
    tracking: Tracking | None = None,
    *,
    workers: int | Sizes = 2,
    address: str | None = None,
    register_as: str | None = None,
    resume: Resume = "same",
    placement: Placement | None = None,
) -> dict[str, Any]:
    """Train, track (default: the MLflow store of this folder), export to `run_dir/export`, register.

    resume: what becomes of a run that is there: "same", it goes on as planned; "extend", it goes on to the number of
    steps that `config` asks for; "start-over", it is moved to `run_dir/earlier/N`. A start that is refused changes
    neither the run directory nor the tracking store. The result's `exit_code` is 75 when the run stopped at a committed
    checkpoint. Raises UserError: configuration, data, a run that cannot go on, an MLflow store that cannot be opened
    (unless `tracking.optional`), a run directory that another run holds, or a failed run.
    """
    from cardialign.cluster.runs.driver import train_on_ray
    from cardialign.pretrain.run.restart import move_aside

    _check_sizes(config, sizes_of(workers))
    if register_as is not None:
        check_model(register_as)
    run_dir, tracking = Path(run_dir).expanduser().absolute(), tracking or Tracking()
    with locked_run(run_dir), writing(run_dir):
        judged = _judged(config, run_dir, resume)
        config = _with_local_start(config, run_dir, tracking.uri)
        data = prepare(config)
        if judged.start_over:
            move_aside(run_dir)
        tracker = _noted(run_dir, tracking, workers, data, _parameters(config, workers, data, placement or Placement()))
        status, final = "FINISHED" if judged.finished else "FAILED", {}  # a finished run stays one
        try:
            with Progress("pretrain", data["steps"]) as progress:
                outcome = train_on_ray(
                    config,
                    run_dir,
                    workers=workers,
                    address=address,
                    placement=placement,
                    on_step=lambda line: progress.update(int(line["step"]), figures=_figures(line)),
                    resume="same" if judged.start_over else resume,
                    steps=data["steps"],
                )
            status = "KILLED" if outcome.stopped else "FINISHED"
            final = {f"run/{name}": float(getattr(outcome, name)) for name in FINAL} | best_figures(run_dir)
        except (KeyboardInterrupt, StoppedError):
            status = "KILLED"
            raise
        finally:
            if status != "KILLED" or final:  # somebody who ends it does not wait for a page
                _write_page(run_dir, tracking)
            delivered = tracker.finish(status, final)
        result = _result(outcome, data, tracker, delivered)
        if outcome.stopped:
            return {**result, "next": "run the same command again to continue"}
        best = config.evaluation is not None and config.evaluation.hand_over == "best"
        return {**result, **_hand_over(run_dir, outcome.final_loss, tracker, register_as, best)}


def _check_sizes(config: RunConfig, sizes: Sizes) -> None:
    """Raises UsageError for a number of workers that the run cannot have, naming those that it can."""
    from cardialign.cluster.planning.question import legal_world

    if sizes.least < 1:
        raise UsageError(f"--workers {sizes} is less than 1", "one worker is the least")
    for workers in (sizes.least, sizes.most):
        legal_world(config, workers)


def _judged(config: RunConfig, run_dir: Path, resume: Resume) -> Verdict:
    """What the start will do, before anything is changed; raises UserError as the workers, or the export, would."""
    from cardialign.pretrain.training.checkpoints.judge import judge_start

    judged = judge_start(_with_named_start(config, run_dir), run_dir, resume)
    if not judged.start_over:
        refuse_to_replace(run_dir / EXPORT, overwrite=True)  # not only when the training is done
    return judged


def _with_named_start(config: RunConfig, run_dir: Path) -> RunConfig:
    """`init_from` as the workers will see it: an encoder of the registry lies in the run directory by then."""
    from cardialign.cluster.registry.open_encoder import REGISTRY

    if config.init_from is None or not config.init_from.startswith(REGISTRY):
        return config
    return config.model_copy(update={"init_from": str(run_dir / START)})


def _with_local_start(config: RunConfig, run_dir: Path, tracking_uri: str) -> RunConfig:
    """`init_from: models:/NAME@ALIAS` -> the folder in the run directory that the encoder is pulled to, once.

    Workers read files; and a run that continues starts from what it started from, wherever the alias points by then.
    """
    from cardialign.cluster.registry.registry import pull

    named = _with_named_start(config, run_dir)
    if config.init_from is None or named is config:
        return config
    folder = run_dir / START
    if not folder.is_dir():
        pulled = pull(config.init_from, folder, tracking_uri)
        facts = {key: pulled[key] for key in ("name", "version", "digest")}
        write_json(run_dir / START_NOTE, {"asked": config.init_from, **facts}, indent=1)
    return named


def _write_page(run_dir: Path, tracking: Tracking) -> None:
    """The page of the run as it ended; one that cannot be made is told, and the run ends as it would."""
    if tracking.page is None or fence.fenced_out(run_dir) or not (run_dir / CONFIG).is_file():  # nothing began
        return
    try:
        tracking.page(run_dir, run_dir / PAGE)
    except (UserError, OSError) as error:
        log.warning("page=not-written run=%s reason=%s", run_dir, error)
    except Exception as error:  # a defect of a page is no reason to lose what was trained
        log.warning("page=not-written run=%s reason=%s: %s", run_dir, type(error).__name__, error)


def _parameters(config: RunConfig, workers: int | Sizes, data: dict[str, Any], placement: Placement) -> dict[str, Any]:
    own = {"workers": sizes_of(workers).shown, "cpus_per_worker": placement.cpus_per_worker or 1}
    return {**config.resolved(), **own, "records": data["records"], "steps": data["steps"]}


def _noted(
    run_dir: Path, tracking: Tracking, workers: int | Sizes, data: dict[str, Any], parameters: dict[str, Any]
) -> RunTracker:
    """A start as MLflow and the run directory know it: where MLflow refuses it, there was none."""
    tracker = RunTracker(run_dir, tracking.uri, experiment=tracking.experiment, optional=tracking.optional)
    tracker.start(parameters["name"], parameters, _tags(data, tracking.command), data["datasets"])
    note_start(run_dir, tracking.command, str(sizes_of(workers).shown))
    return tracker


def _tags(data: dict[str, Any], command: str) -> dict[str, str]:
    commit = git_commit()
    tags = {
        "data.fingerprint": data["shards_fingerprint"],
        "data.selection": data["selection_fingerprint"],
        "git.commit": commit,
        **mlflow_tags(command, commit),
    }
    tags |= {f"version.{name}": number for name, number in versions().items()}
    return {key: value for key, value in tags.items() if value}


def _figures(line: dict[str, Any]) -> str:
    shown = [f"loss {line['loss']:.4f}"] if "loss" in line else []
    shown += [f"{line['records_per_second']:.0f} records/s"] if "records_per_second" in line else []
    return "  ".join(shown)


def _result(outcome: PretrainResult, data: dict[str, Any], tracker: RunTracker, delivered: bool) -> dict[str, Any]:
    return {
        **{key: value for key, value in asdict(outcome).items() if key != "seconds"},
        "training_seconds": outcome.seconds,
        "records": data["records"],
        "data_fingerprint": data["shards_fingerprint"],
        "tracking_uri": tracker.address,
        "run_id": tracker.run_id or None,
        "tracked": delivered,
        "exit_code": STOPPED if outcome.stopped else DONE,
    }


def best_figures(run_dir: Path) -> dict[str, float]:
    """`best/step` and `best/value` of the encoder that is kept in the run directory; {} where none is."""
    note = read_json(run_dir / BEST_NOTE) or {}
    return {f"best/{key}": float(note[key]) for key in ("step", "value") if isinstance(note.get(key), int | float)}


def _hand_over(
    run_dir: Path, final_loss: float, tracker: RunTracker, register_as: str | None, best: bool = False
) -> dict[str, Any]:
    from cardialign.pretrain.export.from_run import export_run

    note = read_json(run_dir / BEST_NOTE)
    if best and note is None:
        log.warning("evaluation=no-best run=%s action=the last checkpoint is handed over", run_dir)
    known = run_dir / BEST if best and note is not None else None
    exported = export_run(run_dir, overwrite=True)
    handed: dict[str, Any] = {"export": str(run_dir / EXPORT), "digest_of_export": exported["digest"]}
    if note is not None:
        handed |= {"best": {**note, "path": str(run_dir / BEST)}}
    if register_as:
        from cardialign.cluster.registry.registry import CANDIDATE, register

        if not tracker.run_id:
            raise UserError(
                f"the run is finished and exported to {run_dir / EXPORT}, but could not be registered: "
                f"{tracker.address} was not open",
                "run `cardialign tracking sync`, then the same command again with --register",
            )
        figures = {"final_loss": final_loss} | (best_figures(run_dir) if known is not None else {})
        version = register(known or run_dir / EXPORT, register_as, tracker.uri, tracker.run_id, figures)
        handed |= {"registered": register_as, "version": version, "alias": CANDIDATE}
    return handed
