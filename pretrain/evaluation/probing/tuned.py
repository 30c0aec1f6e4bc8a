"""A fine-tuned or supervised encoder on a probe task: several seeds, the test records scored once by each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.config.load import set_dotted
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderConfig, create_encoder
from cardialign.pretrain.evaluation.features import reader_of
from cardialign.pretrain.evaluation.ledger import opening_line, told
from cardialign.pretrain.evaluation.probing.fine_tune import (
    PRESETS,
    FineTuned,
    FineTuneOptions,
    Reader,
    classifier,
    fine_tune,
    parameter_groups,
)
from cardialign.pretrain.evaluation.probing.linear_probe import Parts, ProbeFit, learnable
from cardialign.pretrain.evaluation.probing.report import (
    class_facts,
    few_notes,
    left_open_notes,
    left_out_notes,
    shared_notes,
)
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.scored import ScoredRecords
from cardialign.pretrain.evaluation.scoring import class_auroc, decided_at, score_classes, usable_classes
from cardialign.pretrain.export.usable import UsableEncoder

Progress = Callable[[int, int], None]
TrainSeeds = Callable[[Sequence[int]], Iterator[tuple[int, FineTuned]]]
"""Seeds -> (place, what was learnt) of each, in any order."""


@dataclass(frozen=True)
class Runs:
    """How many seeds, resamples of the first one's interval, and what trains the seeds in the place of this process."""

    seeds: int = 1
    bootstrap: int = 1000
    elsewhere: TrainSeeds | None = None


@dataclass(frozen=True)
class TunedResult:
    """macro: mean over seeds, spread: their standard deviation; low..high: of the first seed, over patients.

    scored: what each seed made of every test record; no part of the JSON."""

    task: dict[str, Any]
    start: str
    options: dict[str, Any]
    macro: float
    spread: float | None
    low: float
    high: float
    seeds: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    left_out: list[dict[str, str]]
    unseen: list[str]
    scored: ScoredRecords = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "scored"}
        return plain({**values, "ledger": self.task.get("ledger", []), "trained_on": self.task.get("trained_on")})

    def table(self) -> str:
        spread = "" if self.spread is None else f" +- {self.spread:.3f} over {len(self.seeds)} seeds"
        lines = [
            f"{self.task['name']}, {self.start}: macro AUROC {self.macro:.3f}{spread}; "
            f"first seed {self.seeds[0]['macro']:.3f} ({self.low:.3f}-{self.high:.3f})",
            f"{self.task['records']}; best epoch {', '.join(str(each['best_epoch']) for each in self.seeds)}",
        ]
        if len(self.seeds) > 1:
            lines.append("classes, of the first seed:")
        lines += [f"  {each['code']:12s} {each['positives']:6d}  {each['auroc']:.3f}" for each in self.classes]
        lines += left_out_notes(self.left_out) + left_open_notes(self.task)
        if self.unseen:
            lines.append(f"without positives or negatives in training, counted as 0.5: {', '.join(self.unseen)}")
        lines += few_notes(self.task) + shared_notes(self.task, "its epoch was chosen too late")
        lines += told(self.task.get("ledger", []))
        if opening := self.task.get("test_opened"):
            lines.append(opening_line(opening))
        return "\n".join(lines)


def encoder_section(preset: str, changes: Sequence[str] = ()) -> EncoderConfig:
    """The encoder that a supervised preset trains from random weights, with `key=value` changes of it.

    Raises UsageError as `parse_config`.
    """
    return parse_config({"encoder": _start_of(preset, changes)}, "encoder").encoder


def _start_of(preset: str, changes: Sequence[str]) -> dict[str, object]:
    start, _ = PRESETS[preset]
    assert start is not None, f"{preset} starts from an encoder"
    values: dict[str, object] = copy.deepcopy(start)
    for each in changes:
        set_dotted(values, each)
    return values


def random_start(values: dict[str, object], shard_set: ShardSet, seed: int) -> EcgEncoder:
    """The encoder that a section `encoder:` asks for, with fresh weights. Raises UsageError as `parse_config`."""
    config = parse_config({"encoder": values}, "encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_encoder(config.encoder, shard_set.spec, config.data.normalisation)


def tune(
    start: UsableEncoder | dict[str, object],
    shard_set: ShardSet,
    task: ProbeTask,
    options: FineTuneOptions,
    runs: Runs = Runs(),
    progress: Progress | None = None,
    about_to_score: Callable[[], None] | None = None,
) -> TunedResult:
    """Train from a given encoder, or from random weights of a section `encoder:`; each seed from the same start.

    about_to_score: called once, when everything fits.

    Raises UserError when the records do not fit the encoder, or the task holds nothing to choose by or to score.
    """
    options = _cropped(options, task)
    truth = task.truth[task.parts.test]
    usable, _ = usable_classes(truth, task.decided_in(task.parts.test))
    if not usable.size:
        raise UserError(f"{task.name}: no class of the {len(truth)} test records can be scored", "use other folds")
    _check_start(start, shard_set, task, options)
    if about_to_score is not None:
        about_to_score()

    def here(wanted: Sequence[int]) -> Iterator[tuple[int, FineTuned]]:
        for place, seed in enumerate(wanted):
            yield place, tuned_by(start, shard_set, task, options.model_copy(update={"seed": seed}))

    found: dict[int, FineTuned] = {}
    for place, each in (runs.elsewhere or here)(range(options.seed, options.seed + runs.seeds)):
        found[place] = each
        if progress is not None:
            progress(len(found), runs.seeds)
    about = {**task.about, "name": task.name}
    start_words = f"from random weights: {start['name']}" if isinstance(start, dict) else start.digest
    return _result(replace(task, about=about), start_words, options, [found[k] for k in sorted(found)], runs.bootstrap)


def tuned_by(
    start: UsableEncoder | dict[str, object], shard_set: ShardSet, task: ProbeTask, options: FineTuneOptions
) -> FineTuned:
    """One seed, that of the options. Raises UserError as `tune`."""
    options = _cropped(options, task)
    device: torch.device | str = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(start, dict):
        encoder = random_start(start, shard_set, options.seed)
    else:
        encoder = start.trainable(shard_set.spec)
    try:
        read = _reader(shard_set, task, options)
        return fine_tune(encoder, read, task.truth, task.parts, options, device, task.decided)
    except UserError:
        raise
    except ValueError as error:
        raise _told(error, task) from None


def from_scratch(
    preset: str, shard_set: ShardSet, task: ProbeTask, shown: int | None = None, changes: Sequence[str] = ()
) -> Callable[..., ProbeFit]:
    """A supervised preset as a way of reading a task: f(truth, parts, share, style, seed, decided), like a probe's.

    shown: at most so many records, each as often as it is shown, and at least one epoch; None: as the preset says.
    changes: `key=value`, of the preset's encoder.

    It learns from the same part of the training records as a probe of that share and seed, from weights of that seed.
    The choice of the fit is its best epoch. It raises ValueError as `fine_tune`, UserError when training diverges.
    """
    start, options = _start_of(preset, changes), PRESETS[preset][1]
    options = _cropped(options, task)

    def fit(
        truth: np.ndarray, parts: Parts, share: float, style: str, seed: int, decided: np.ndarray | None
    ) -> ProbeFit:
        rows = learnable(truth, parts, decided, share, style, seed).rows
        epochs = options.epochs if shown is None else min(options.epochs, max(1, shown // len(rows)))
        found = fine_tune(
            random_start(start, shard_set, seed),
            _reader(shard_set, task, options),
            truth,
            replace(parts, train=rows),
            options.model_copy(update={"seed": seed, "epochs": epochs}),
            decided=decided,
        )
        best = found.history[found.best_epoch - 1]
        return ProbeFit(share, style, seed, len(rows), found.best_epoch, best, found.scores, found.unseen)

    return fit


def _reader(shard_set: ShardSet, task: ProbeTask, options: FineTuneOptions) -> Reader:
    def read(places: np.ndarray) -> Iterator[Batch]:
        for batch in iterate_rows(shard_set, task.rows[places], options.batch_size):
            yield batch if task.first_seconds is None else _shown(batch, shard_set, task.first_seconds)

    return read


def _result(
    task: ProbeTask, start: str, options: FineTuneOptions, found: Sequence[FineTuned], bootstrap: int
) -> TunedResult:
    truth = task.truth[task.parts.test]
    usable, reasons = usable_classes(truth, task.decided_in(task.parts.test))
    truth, decided = truth[:, usable], decided_at(task.decided, task.parts.test, usable)
    macros = [float(class_auroc(each.scores[:, usable], truth, decided).mean()) for each in found]
    table = score_classes(
        [found[0].scores[:, usable]],
        truth,
        task.patients[task.parts.test],
        [task.names[c] for c in usable],
        resamples=bootstrap,
        seed=0,
        decided=decided,
    )[0]
    per_seed = [
        {"seed": options.seed + k, "macro": macro, "best_epoch": each.best_epoch, "history": each.history}
        for k, (each, macro) in enumerate(zip(found, macros, strict=True))
    ]
    records = ", ".join(f"{count} {part}" for part, count in task.about["records"].items())
    return TunedResult(
        {**task.about, "records": records, **class_facts(task, usable)},
        start,
        options.model_dump(mode="json"),
        float(np.mean(macros)),
        float(np.std(macros, ddof=1)) if len(found) > 1 else None,
        table.macro.low,
        table.macro.high,
        per_seed,
        [asdict(each) for each in table.classes],
        [{"code": task.names[c][0], "reason": why} for c, why in reasons.items()],
        [task.names[c][0] for c in found[0].unseen if c not in reasons],
        _scored(task, found, usable),
    )


def _scored(task: ProbeTask, found: Sequence[FineTuned], usable: np.ndarray) -> ScoredRecords:
    test = task.parts.test
    scores = np.stack([each.scores[:, usable] for each in found])
    names, decided = tuple(task.names[c] for c in usable), decided_at(task.decided, test, usable)
    return ScoredRecords(scores, task.truth[test][:, usable], task.patients[test], names, decided)


def _check_start(
    start: UsableEncoder | dict[str, object], shard_set: ShardSet, task: ProbeTask, options: FineTuneOptions
) -> None:
    """Raises UserError where the encoder does not fit or cannot learn as it is asked to."""
    if not isinstance(start, dict):
        made = reader_of(start.trainable, shard_set)
        parameter_groups(classifier(made, task.truth.shape[1], options), options)


def _told(error: ValueError, task: ProbeTask) -> UserError:
    return (
        error if isinstance(error, UserError) else UserError(f"{task.name}: {error}", "use other folds or another task")
    )


def _cropped(options: FineTuneOptions, task: ProbeTask) -> FineTuneOptions:
    """Where the task's protocol says how records are cut, it is cut so."""
    if task.crop is None:
        return options
    return options.model_copy(update={"crop_seconds": task.crop.seconds, "crop_average": task.crop.average})


def _shown(batch: Batch, shard_set: ShardSet, seconds: float) -> Batch:
    batch.valid_samples = np.minimum(batch.valid_samples, round(seconds * shard_set.spec.sampling_rate))
    batch.signal[..., round(seconds * shard_set.spec.sampling_rate) :] = 0.0
    return batch
