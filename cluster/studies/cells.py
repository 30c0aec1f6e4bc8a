"""One cell of a study: a training run without Ray in a process of its own, then what it is worth on the fold kept out.

A cell that is there is taken as it is when it was made from the same configuration, records and prompts; a run that was
killed goes on from its checkpoint. What remains of a cell are its scores and its figures, not its weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cardialign.cluster.studies import missing
from cardialign.cluster.studies.design import Cell, Design
from cardialign.cluster.studies.not_learnt import NotLearnt, refuse_not_learnt, write_not_learnt
from cardialign.cluster.studies.origin import CONFIG, Origin, plain
from cardialign.cluster.studies.training import RUN, children_seconds, of_another_study, train
from cardialign.data_shards.array_files import load_arrays
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import commit_file, read_json, sha256_of, write_json
from cardialign.pretrain.run.lock import locked_run

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import RunConfig
    from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
    from cardialign.pretrain.evaluation.task import EvaluationTask
    from cardialign.pretrain.export.loaded import LoadedEncoder

log = logging.getLogger(__name__)

CELL, SCORES = "cell.json", "scores.npz"
COSTS = ("cpu_seconds", "parameters")
"""Numbers that every cell says."""
SPENT = "spent.json"
"""CPU-seconds of a training that is not finished."""
MEASURES = ("zero_shot", "probe")
STUDY_DECIDES = ("data.shards", "data.mixture", "data.folds", "data.split", "seed")
"""Keys of a recipe that no variant and no override changes."""


@dataclass(frozen=True)
class Setting:
    """What all cells share: the shard set, the prompts (and their label set), the folds that exist, further overrides
    of the recipe; missingness: scored with leads and time missing, too."""

    shards: Path
    prompts: str
    label_set: str
    folds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    missingness: bool = False

    def training(self, test: int) -> list[int]:
        """The folds that the encoder is pretrained on, and the probe learns from: all but the one kept out.

        Raises UsageError where too few are left: the probe chooses its penalty on one of them.
        """
        rest, known = [fold for fold in self.folds if fold != test], ", ".join(map(str, self.folds))
        if test not in self.folds:
            raise UsageError(f"fold {test} cannot be kept out of folds {known}", "name one of these in --test-folds")
        if len(rest) < 2:
            raise UsageError(
                f"fold {test} cannot be kept out of folds {known}",
                "at least two other folds must be left to learn from and to choose on: give more --folds",
            )
        return rest

    def validation(self, test: int) -> int:
        """The fold before the one kept out, in a circle."""
        rest = self.training(test)
        return max([fold for fold in rest if fold < test] or rest)


@dataclass(frozen=True)
class Outcome:
    """Scores of a cell on its fold, per measure: scores (n, C), truth bool (n, C), patients (n,), class codes (C,).

    decided bool (n, C): a class is scored over these records; of a measure that is not in it, over all. A floor without
    words has no zero-shot measure.
    """

    cell: Cell
    facts: dict[str, Any]
    scores: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    patients: dict[str, np.ndarray]
    codes: dict[str, list[str]]
    decided: dict[str, np.ndarray] = field(default_factory=dict)


def config_of(design: Design, cell: Cell, setting: Setting) -> RunConfig:
    """What a cell trains.

    Raises UsageError for a variant or an override that the recipe does not take, or that changes what the study itself
    decides: records and seed. A variant that trained on the fold kept out would win every table.
    """
    from cardialign.pretrain.config import load_config

    own = [
        f"data.shards={json.dumps(str(setting.shards))}",
        f"data.folds={json.dumps(setting.training(cell.fold))}",
        f"seed={cell.seed}",
    ]
    given, where = [*own, *setting.overrides], f"study {design.name}, variant {cell.variant.name}"
    recipe = design.recipe_of(cell.variant)
    try:
        steps = [] if design.records is None else ["training.epochs=null", "training.steps=1"]
        config = load_config(recipe, [*own, *steps, *setting.overrides, *cell.variant.overrides])
        if design.records is not None:
            steps = _steps(design.records, config.training.global_batch)
            config = load_config(recipe, [*own, *steps, *setting.overrides, *cell.variant.overrides])
    except UsageError as error:
        load_config(recipe, given)  # where the recipe or --set is at fault, that is what is said
        raise UsageError(f"{where}: {error.problem}", error.remedy) from None
    decided = load_config(recipe, own)
    for key in STUDY_DECIDES:
        now, meant = (attrgetter(key)(each) for each in (config, decided))
        if now != meant:
            raise UsageError(
                f"{where}: {key} is {now!s:.60}, and the study decides it",
                f"leave {key} out of --set and of the variant; --shards, --folds, --test-folds and --seeds say it",
            )
    return config


def _steps(records: int, global_batch: int) -> list[str]:
    """Overrides that make a run see so many records. Raises UsageError where these are no whole number of batches."""
    if records % global_batch:
        raise UsageError(
            f"training.global_batch {global_batch} does not divide the {records} records that the study shows to each",
            "choose a batch that does, or other `records` in the study",
        )
    return ["training.epochs=null", f"training.steps={records // global_batch}"]


def finished(cell: Cell, folder: Path, wanted: Origin, measures: Sequence[str] = MEASURES) -> Outcome | None:
    """A cell that was made from `wanted`; None when it is not there.

    Raises UserError for one that was made from something else: nothing is replaced.
    """
    facts = read_json(folder / CELL)
    if facts is None:
        return None
    if not isinstance(facts, dict) or not wanted.is_of(folder, facts.get("made_from")):
        raise of_another_study(folder, "a cell")
    return read_scores(cell, folder, facts, measures)


def check_costs(found: Outcome, folder: Path) -> Outcome:
    """The outcome, where it says what a table of the study says. Raises UserError."""
    if absent := [key for key in COSTS if key not in found.facts]:
        raise _without(folder, absent[0])
    return found


def _without(folder: Path, key: str) -> UserError:
    return UserError(f"{folder / CELL} does not say its {key}", "delete the folder: the cell is made anew")


def read_scores(cell: Cell, folder: Path, facts: dict[str, Any], measures: Sequence[str] = MEASURES) -> Outcome:
    """The scores in a cell's folder, bound to its facts. Raises UserError when they are not as they were written."""
    if wrong := [key for key in COSTS if key in facts and _seconds(facts[key]) is None]:
        raise _without(folder, wrong[0])
    try:
        if sha256_of(folder / SCORES) != facts.get("scores"):
            raise ValueError("it is not the one that the cell was scored with")
        kept = load_arrays(folder / SCORES)
        measures = [*measures, *(each for each in missing.MEASURES if f"scores_{each}" in kept)]
        arrays = {
            part: {measure: kept[f"{part}_{measure}"] for measure in measures}
            for part in ("scores", "truth", "patients", "codes")
        }
        decided = {each: kept[f"decided_{each}"] for each in measures if f"decided_{each}" in kept}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / SCORES} cannot be read: {error}", "delete the folder: the cell is made anew"
        ) from None
    codes = {measure: [str(code) for code in arrays["codes"][measure]] for measure in measures}
    return Outcome(cell, facts, arrays["scores"], arrays["truth"], arrays["patients"], codes, decided)


def _seconds(value: Any) -> float | None:
    """A number from 0 on, out of a file that anybody may have written; None for anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value) if known else None


def run_cell(cell: Cell, config: RunConfig, setting: Setting, folder: Path, shard_set: ShardSet) -> Outcome:
    """Train, export, score, and keep the scores in `folder`, which is held meanwhile.

    Raises as the training does, NotLearnt where that collapses or did so before, KeyboardInterrupt when it was stopped,
    HeldError when another process makes it.
    """
    origin = origin_of(config, setting, shard_set)
    with locked_run(folder, "wait for the process that makes this cell, or stop it") as lock:
        refuse_not_learnt(folder, origin)
        return finished(cell, folder, origin) or _made(cell, config, setting, folder, shard_set, origin, lock)


def _made(
    cell: Cell, config: RunConfig, setting: Setting, folder: Path, shard_set: ShardSet, origin: Origin, lock: int
) -> Outcome:
    from cardialign.pretrain.benchmarks.counts import count_recipe
    from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap
    from cardialign.pretrain.export.from_run import export_run
    from cardialign.pretrain.export.loaded import load_encoder

    started, before = time.monotonic(), children_seconds()
    earlier = _seconds((read_json(folder / SPENT) or {}).get("cpu_seconds")) or 0.0
    try:
        train(config, folder, lock, origin.says)
    except NotLearnt as error:
        write_not_learnt(folder, origin.digest, error)
        raise
    finally:  # a training that is stopped and goes on has cost both parts
        spent = earlier + children_seconds() - before
        with contextlib.suppress(OSError):  # a full disk: what ended the training is what is to be told
            write_json(folder / SPENT, {"cpu_seconds": spent})
    exported = folder / RUN / "export"
    export_run(folder / RUN, exported, overwrite=True, program=False)
    encoder = load_encoder(exported, scoring_device())
    if config.init_from is not None:  # its start may have seen the fold kept out
        words = words_of(setting, shard_set, cell.fold)
        refuse_overlap(find_overlap(encoder, shard_set, words.rows), encoder, shard_set)
    found, size = scored(cell, encoder, setting, shard_set), count_recipe(config, shard_set.spec)
    facts = {
        "variant": cell.variant.name,
        "fold": cell.fold,
        "seed": cell.seed,
        "made_from": origin.digest,
        "encoder": encoder.digest,
        "parameters": size.encoder_parameters,
        "trained_parameters": size.trained_parameters,
        "gflop": round(size.forward_flop / 1e9, 4),
        "cpu_seconds": round(spent, 1),
        "seconds": round(time.monotonic() - started, 1),
        "device": str(encoder.device.type),
    }
    kept = keep(replace(found, facts=facts), folder)
    shutil.rmtree(folder / RUN, ignore_errors=True)
    (folder / SPENT).unlink(missing_ok=True)
    return kept


def scoring_device() -> str:
    """Where records are embedded: as the training, on a GPU where PyTorch sees one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def keep(found: Outcome, folder: Path) -> Outcome:
    """Write scores and figures of a cell: those bound to these, and these last."""
    parts = (
        ("scores", found.scores), ("truth", found.truth), ("patients", found.patients), ("codes", found.codes),
        ("decided", found.decided),
    )  # fmt: skip
    arrays: dict[str, Any] = {
        f"{part}_{measure}": np.asarray(values) for part, of in parts for measure, values in of.items()
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    folder.mkdir(parents=True, exist_ok=True)
    commit_file(folder / SCORES, write)
    facts = {**found.facts, "scores": sha256_of(folder / SCORES)}
    write_json(folder / CELL, facts, indent=1)
    return replace(found, facts=facts)


def origin_of(config: RunConfig, setting: Setting, shard_set: ShardSet) -> Origin:
    """All that a cell follows from; where the shard set lies does not matter."""
    from cardialign.pretrain.evaluation.prompts import load_prompts, prompt_set_names
    from cardialign.pretrain.training.initialise import open_start

    values = plain(config)
    values["data"] = {**values["data"], "shards": shard_set.fingerprint}
    facts: dict[str, Any] = {CONFIG: values, "prompts": setting.prompts, "labels": setting.label_set}
    facts["folds"] = setting.folds
    if setting.missingness:
        facts["missingness"] = missing.VERSION
    if config.init_from is not None:  # which may be trained further, or anew
        facts["start"] = open_start(Path(config.init_from)).origin.get("digest")
    if setting.prompts not in prompt_set_names():  # a file of the user's, which may be edited
        facts["prompts"] = load_prompts(setting.prompts).digest
    return Origin(facts)


def scored(cell: Cell, encoder: LoadedEncoder, setting: Setting, shard_set: ShardSet) -> Outcome:
    """Both measures of an encoder on the fold kept out."""
    from cardialign.pretrain.evaluation.features import EmbedOptions, embed_set

    task = task_of(setting, shard_set, cell.fold)
    embedded = embed_set([encoder], shard_set, task.rows, EmbedOptions(with_features=True))[0]
    assert embedded.features is not None
    found = measured(cell, task, np.asarray(embedded.features), (encoder, embedded.embedding), setting, shard_set)
    if setting.missingness:
        missing.add_missing(found, encoder, shard_set, words_of(setting, shard_set, cell.fold))
    return found


def task_of(setting: Setting, shard_set: ShardSet, fold: int) -> ProbeTask:
    """What the probe learns from, chooses by and is scored on where that fold is kept out."""
    from cardialign.pretrain.evaluation.probing.tasks import task_of_folds

    validation = setting.validation(fold)
    learn = [each for each in setting.training(fold) if each != validation]
    return task_of_folds(shard_set, setting.label_set, learn, [validation], [fold])


def words_of(setting: Setting, shard_set: ShardSet, fold: int) -> EvaluationTask:
    """What zero-shot is scored on where that fold is kept out."""
    from cardialign.pretrain.evaluation.task import labelled_task

    return labelled_task(shard_set, setting.prompts, folds=[fold])


def measured(
    cell: Cell,
    task: ProbeTask,
    features: np.ndarray,
    beside: tuple[LoadedEncoder, np.ndarray] | None,
    setting: Setting,
    shard_set: ShardSet,
) -> Outcome:
    """features (n, F) of the task's records; beside: the encoder that has words, and its embeddings (n, e) of them."""
    from cardialign.pretrain.evaluation.features import EmbedOptions
    from cardialign.pretrain.evaluation.probing.linear_probe import probe
    from cardialign.pretrain.evaluation.zero_shot import class_scores, class_words, cosines
    from cardialign.pretrain.methods.parts.scoring import COSINE

    fitted = probe(features, task.truth, task.parts, decided=task.decided)
    test = task.parts.test
    scores, truth = {"probe": fitted.scores}, {"probe": task.truth[test]}
    patients, codes = {"probe": task.patients[test].astype(str)}, {"probe": [code for code, _ in task.names]}
    decided = {"probe": task.decided_in(test)}
    if beside is not None:
        encoder, embedding = beside
        words = words_of(setting, shard_set, cell.fold)
        if encoder.scorings[0] == COSINE:
            own = np.asarray(embedding)[np.searchsorted(task.rows, words.rows)]
            scores["zero_shot"] = cosines(own, class_words(encoder, words.prompts), len(own))
        else:
            scores["zero_shot"] = class_scores([encoder], shard_set, words, EmbedOptions())[0]
        truth["zero_shot"] = words.truth
        patients["zero_shot"], codes["zero_shot"] = np.asarray(words.patients).astype(str), list(words.prompts.codes)
        decided["zero_shot"] = words.decided
    known = {measure: each for measure, each in decided.items() if each is not None}
    return Outcome(cell, {}, scores, truth, patients, codes, known)
