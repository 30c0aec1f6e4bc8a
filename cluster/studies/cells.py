"""One cell of a study: a training run without Ray in a process of its own, then what it is worth on the fold kept out.

A cell that is there is taken as it is when it was made from the same configuration, records and prompts; a run that was
killed goes on from its checkpoint. What remains of a cell are its scores and its figures, not its weights.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cardialign.cluster.environment.versions import source_root
from cardialign.cluster.studies.design import Cell, Design, digest_of
from cardialign.data_shards.errors import STOPPED, UsageError, UserError
from cardialign.data_shards.files import commit_file, read_json, sha256_of, write_json

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import RunConfig
    from cardialign.pretrain.export.loaded import LoadedEncoder

log = logging.getLogger(__name__)

CELL, SCORES, RUN, RECIPE, OUTPUT = "cell.json", "scores.npz", "run", "recipe.yaml", "training.log"
MEASURES = ("zero_shot", "probe")


@dataclass(frozen=True)
class Setting:
    """What all cells share: the shard set, the prompts (and their label set), the folds that exist, further overrides
    of the recipe."""

    shards: Path
    prompts: str
    label_set: str
    folds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    def training(self, test: int) -> list[int]:
        """The folds that the encoder is pretrained on, and the probe learns from: all but the one kept out.

        Raises UsageError where too few are left: the probe chooses its penalty on one of them.
        """
        rest = [fold for fold in self.folds if fold != test]
        if test not in self.folds or len(rest) < 2:
            raise UsageError(
                f"fold {test} cannot be kept out of folds {', '.join(map(str, self.folds))}",
                "at least two other folds must be left to learn from and to choose on",
            )
        return rest

    def validation(self, test: int) -> int:
        """The fold before the one kept out, in a circle."""
        rest = self.training(test)
        return max([fold for fold in rest if fold < test] or rest)


@dataclass(frozen=True)
class Outcome:
    """Scores of a cell on its fold, per measure: scores (n, C), truth bool (n, C), patients (n,), class codes (C,)."""

    cell: Cell
    facts: dict[str, Any]
    scores: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    patients: dict[str, np.ndarray]
    codes: dict[str, list[str]]


def config_of(design: Design, cell: Cell, setting: Setting) -> RunConfig:
    """What a cell trains. Raises UsageError for a variant or an override that the recipe does not take."""
    from cardialign.pretrain.config import load_config

    own = [
        f"data.shards={json.dumps(str(setting.shards))}",
        f"data.folds={json.dumps(setting.training(cell.fold))}",
        f"seed={cell.seed}",
    ]
    return load_config(design.recipe, [*own, *setting.overrides, *cell.variant.overrides])


def finished(cell: Cell, folder: Path, wanted: str) -> Outcome | None:
    """A cell that was made from what `wanted` is the digest of; None when it is not there.

    Raises UserError for one that was made from something else: nothing is replaced.
    """
    facts = read_json(folder / CELL)
    if facts is None:
        return None
    if facts.get("made_from") != wanted:
        raise UserError(
            f"{folder} holds a cell of another study: recipe, records, prompts or overrides differ",
            "give another --out, or move that folder away",
        )
    try:
        if sha256_of(folder / SCORES) != facts.get("scores"):
            raise ValueError("it is not the one that the cell was scored with")
        with np.load(folder / SCORES, allow_pickle=False) as kept:
            arrays = {
                part: {measure: kept[f"{part}_{measure}"] for measure in MEASURES}
                for part in ("scores", "truth", "patients", "codes")
            }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / SCORES} cannot be read: {error}", "delete the folder: the cell is made anew"
        ) from None
    codes = {measure: [str(code) for code in arrays["codes"][measure]] for measure in MEASURES}
    return Outcome(cell, facts, arrays["scores"], arrays["truth"], arrays["patients"], codes)


def run_cell(cell: Cell, config: RunConfig, setting: Setting, folder: Path, shard_set: ShardSet) -> Outcome:
    """Train, export, score, and keep the scores in `folder`; raises as the training does, KeyboardInterrupt when that
    was stopped."""
    from cardialign.pretrain.export.from_run import export_run
    from cardialign.pretrain.export.loaded import load_encoder

    folder.mkdir(parents=True, exist_ok=True)
    made_from = made_of(config, setting, shard_set)
    known = finished(cell, folder, made_from)
    if known is not None:
        return known
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    _train(config, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    exported = folder / RUN / "export"
    export_run(folder / RUN, exported, overwrite=True)
    encoder = load_encoder(exported)
    found = _scored(cell, encoder, setting, shard_set)
    facts = {
        "variant": cell.variant.name,
        "fold": cell.fold,
        "seed": cell.seed,
        "made_from": made_from,
        "encoder": encoder.digest,
        "parameters": sum(parameter.numel() for parameter in encoder.ecg.parameters()),
        "cpu_seconds": round(spent, 1),
        "seconds": round(time.monotonic() - started, 1),
    }
    arrays: dict[str, Any] = {
        f"{part}_{measure}": np.asarray(values[measure])
        for part, values in (("scores", found.scores), ("truth", found.truth), ("patients", found.patients))
        for measure in MEASURES
    } | {f"codes_{measure}": np.asarray(found.codes[measure]) for measure in MEASURES}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    commit_file(folder / SCORES, write)
    facts["scores"] = sha256_of(folder / SCORES)
    write_json(folder / CELL, facts, indent=1)
    shutil.rmtree(folder / RUN, ignore_errors=True)
    return Outcome(cell, facts, found.scores, found.truth, found.patients, found.codes)


def made_of(config: RunConfig, setting: Setting, shard_set: ShardSet) -> str:
    """Digest of all that a cell follows from; where the shard set lies does not matter."""
    values = config.resolved()
    values["data"] = {**values["data"], "shards": shard_set.fingerprint}
    return digest_of(
        {"config": values, "prompts": setting.prompts, "labels": setting.label_set, "folds": setting.folds}
    )


def _train(config: RunConfig, folder: Path) -> None:
    (folder / RECIPE).write_text(json.dumps(config.resolved(), indent=1), encoding="utf-8")  # JSON is YAML
    words = ["--recipe", str(folder / RECIPE), "--run-dir", str(folder / RUN)]
    path = os.pathsep.join(filter(None, [str(source_root()), os.environ.get("PYTHONPATH", "")]))
    with (folder / OUTPUT).open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cardialign.pretrain", *words],
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C: let it reach a checkpoint
            process.terminate()
            process.wait()
            raise
    if code == STOPPED:
        raise KeyboardInterrupt
    if code != 0:
        lines = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(
            f"training of {folder.name} failed with code {code}: {lines[-1] if lines else 'it said nothing'}",
            f"see {folder / OUTPUT}; the same command goes on from there",
        )


def _scored(cell: Cell, encoder: LoadedEncoder, setting: Setting, shard_set: ShardSet) -> Outcome:
    from cardialign.pretrain.evaluation.features import EmbedOptions, embed_set
    from cardialign.pretrain.evaluation.probing.linear_probe import probe
    from cardialign.pretrain.evaluation.probing.tasks import task_of_folds
    from cardialign.pretrain.evaluation.task import labelled_task
    from cardialign.pretrain.evaluation.zero_shot import class_embeddings

    words = labelled_task(shard_set, setting.prompts, folds=[cell.fold])
    validation = setting.validation(cell.fold)
    learn = [fold for fold in setting.training(cell.fold) if fold != validation]
    task = task_of_folds(shard_set, setting.label_set, learn, [validation], [cell.fold])
    embedded = embed_set([encoder], shard_set, task.rows, EmbedOptions(with_features=True))[0]
    assert embedded.features is not None
    fitted = probe(np.asarray(embedded.features), task.truth, task.parts, decided=task.decided)
    place = np.searchsorted(task.rows, words.rows)
    cosines = np.asarray(embedded.embedding)[place] @ class_embeddings(encoder, words.prompts).T
    test = task.parts.test
    return Outcome(
        cell,
        {},
        {"zero_shot": cosines, "probe": fitted.scores},
        {"zero_shot": words.truth, "probe": task.truth[test]},
        {"zero_shot": np.asarray(words.patients).astype(str), "probe": task.patients[test].astype(str)},
        {"zero_shot": list(words.prompts.codes), "probe": [code for code, _ in task.names]},
    )


def cells_of(design: Design, test_folds: Sequence[int], seeds: int) -> list[Cell]:
    """All cells, seed by seed: what a budget ends early is whole up to some seed."""
    return [Cell(variant, fold, seed) for seed in range(seeds) for fold in test_folds for variant in design.variants]
