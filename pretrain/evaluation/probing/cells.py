"""One share of one task as a piece of work that any process can do: everything it needs stands in files.

FOLDER/systems/       the features of every system for the records of a set, and systems.json
FOLDER/TASK/          task.json, and the arrays of a `ProbeTask`; `places`: its records among those of the set

Each folder lists the sha256 of its files; whoever opens it compares them. A fit runs on one thread, so that it does not
matter where.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cardialign.data_shards.array_files import load_array
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.files import FileFacts, differences, facts_below, read_json, write_json
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbedOptions, Progress, embedding_facts, scratch_beside
from cardialign.pretrain.evaluation.probing.linear_probe import Parts
from cardialign.pretrain.evaluation.probing.one_thread import one_thread
from cardialign.pretrain.evaluation.probing.report import ProbeOptions, ProbeResult, Reader, joined, probe_table
from cardialign.pretrain.evaluation.probing.systems import ReadOptions, System, floors_of, of_task, read_systems
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask, Records
from cardialign.pretrain.evaluation.probing.tokens import Tokens
from cardialign.pretrain.evaluation.probing.tuned import from_scratch
from cardialign.pretrain.evaluation.windows import Crop
from cardialign.pretrain.export.usable import UsableEncoder

SYSTEMS, TASK = "systems.json", "task.json"
_ARRAYS = ("rows", "truth", "decided", "train", "validation", "test", "patients", "places")


@dataclass(frozen=True)
class CellJob:
    """systems, task: folders as above; options: with one share; shards: place of the records, which only training
    reads."""

    systems: Path
    task: Path
    options: ProbeOptions
    shards: str = ""


Outcome = ProbeResult | UserError
"""The figures, or why there are none."""


class CellExecutor(Protocol):
    """Runs every job and yields (its place, its outcome) when it is done, in any order."""

    def run(self, jobs: Sequence[CellJob]) -> Iterator[tuple[int, Outcome]]: ...


class InThisProcess:
    """One after the other, here."""

    def run(self, jobs: Sequence[CellJob]) -> Iterator[tuple[int, Outcome]]:
        for place, job in enumerate(jobs):
            yield place, run_cell(job)


def run_cell(job: CellJob) -> Outcome:
    """Raises DataError when this process does not see the files, or they are not those that were written."""
    systems, task = _open_systems(job.systems), _Stored.open(job.task)
    trained = {}
    if job.options.supervised:
        shard_set = ShardSet.open(job.shards)
        trained = {name: from_scratch(name, shard_set, task.task) for name in job.options.supervised}
    return figures(task.task, of_task(systems, task.task, task.places), job.options, trained)


def figures(
    task: ProbeTask, systems: Sequence[System], options: ProbeOptions, trained: Mapping[str, Reader] | None = None
) -> Outcome:
    """`probe_table` on one thread; what is wrong with a task's records comes back as an outcome."""
    with one_thread():
        try:
            return probe_table(task, systems, options, trained)
        except UserError as error:
            return error


@dataclass(frozen=True)
class ProbePlan:
    """options: shares, seeds, bootstrap; floors beside the encoder, drawn from `seed`, None = all that it can have;
    attention: read tokens too."""

    options: ProbeOptions = field(default_factory=ProbeOptions)
    floors: tuple[str, ...] | None = None
    seed: int = 0
    attention: bool = False

    def beside(self, encoder: UsableEncoder) -> tuple[str, ...]:
        """The floors of an encoder."""
        return floors_of(encoder, self.floors)

    def named(self, encoder: UsableEncoder) -> tuple[str, ...]:
        """All that stands beside an encoder: floors, and what is trained from scratch."""
        return self.beside(encoder) + self.options.supervised

    def lacking(self, encoder: UsableEncoder) -> dict[str, str]:
        """What is to be told of a floor that nobody left out (`no_untrained_floor`)."""
        return {"no_untrained_floor": encoder.untrainable} if self.floors is None and encoder.untrainable else {}


def keep_features(
    encoder: UsableEncoder, chosen: Records, plan: ProbePlan, folder: Path, progress: Progress | None = None
) -> None:
    """The systems of a plan for these records, in `folder`; kept as they are where they are there already."""
    facts = features_facts(encoder, chosen, plan)
    if _are_kept(folder, facts):
        return
    tokens = partial(_tokens_folder, folder) if plan.attention else None
    how = ReadOptions(progress, tokens)
    keep_systems(folder, read_systems(encoder, chosen, plan.beside(encoder), plan.seed, how), facts)


def features_facts(encoder: UsableEncoder, chosen: Records, plan: ProbePlan) -> dict[str, Any]:
    """What decides the features of a plan's systems."""
    decided = embedding_facts(encoder, chosen.shard_set, chosen.rows, chosen.how(EmbedOptions()))
    pieces = {} if chosen.crop is None else {"average": chosen.crop.average}
    floors = list(plan.beside(encoder))
    return {**decided, **pieces, "floors": floors, "seed": plan.seed, "attention": plan.attention}


def probe_task(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    task: ProbeTask,
    plan: ProbePlan,
    executor: CellExecutor,
    progress: Progress | None = None,
    about_to_score: Callable[[], None] | None = None,
) -> ProbeResult:
    """One task at every share of the plan; the files of the cells are gone afterwards.

    about_to_score: called once, when the features are there and the test records are next.

    A share that cannot be probed is named in the result (`missing`). Raises UserError when none can be.
    """
    with scratch_beside(shard_set) as folder:
        keep_features(encoder, task.records(shard_set), plan, folder / "systems", progress)
        if about_to_score is not None:
            about_to_score()
        keep_task(folder / "task", task, np.arange(len(task.rows)))
        place = place_of(shard_set)
        jobs = [CellJob(folder / "systems", folder / "task", each, place) for each in shares_of(plan.options)]
        outcomes = dict(executor.run(jobs))
    found = [each for _, each in sorted(outcomes.items()) if isinstance(each, ProbeResult)]
    failed = {jobs[place].options.shares[0]: each for place, each in outcomes.items() if isinstance(each, UserError)}
    if not found:
        raise next(iter(failed.values()))
    missing = [{"share": share, "reason": each.problem} for share, each in sorted(failed.items())]
    whole = joined(found)
    return replace(whole, task={**whole.task, "missing": missing})


def place_of(shard_set: ShardSet) -> str:
    """The URL or the whole path by which another process opens the set."""
    return url_of(shard_set.path) or str(Path(shard_set.path).absolute())


def shares_of(options: ProbeOptions) -> list[ProbeOptions]:
    """One for each share."""
    return [replace(options, shares=(share,)) for share in options.shares]


def keep_systems(folder: Path, systems: Sequence[System], facts: Mapping[str, Any]) -> None:
    """Write features, and list them with the facts that decided them. Tokens lie in the folder already."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in systems:
        np.save(folder / f"{each.name}.npy", each.features, allow_pickle=False)
    told = [{"name": each.name, "weights": each.digest, "tokens": each.tokens is not None} for each in systems]
    write_json(folder / SYSTEMS, {"facts": facts, "systems": told, "files": _listed(folder, SYSTEMS)}, indent=1)


def _tokens_folder(folder: Path, system: str) -> Path:
    """Where `keep_systems` expects the tokens of a system."""
    return folder / f"{system}.tokens"


def _are_kept(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the systems that these facts decide are there, every byte of them."""
    listed = read_json(folder / SYSTEMS)
    return listed is not None and listed.get("facts") == facts and not _differing(folder, SYSTEMS, listed)


def keep_task(folder: Path, task: ProbeTask, places: np.ndarray) -> None:
    """Write a task, `places` of its records among those whose features are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    patients = np.unique(task.patients, return_inverse=True)[1].astype(np.int64)  # the order decides the resamples
    parts = task.parts
    decided = np.ones_like(task.truth) if task.decided is None else task.decided
    arrays = (task.rows, task.truth, decided, parts.train, parts.validation, parts.test, patients, places)
    for name, array in zip(_ARRAYS, arrays, strict=True):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    told = {"name": task.name, "names": task.names, "first_seconds": task.first_seconds, "about": task.about}
    crop = None if task.crop is None else asdict(task.crop)
    write_json(folder / TASK, {**told, "crop": crop, "files": _listed(folder, TASK)}, indent=1)


@dataclass(frozen=True)
class _Stored:
    task: ProbeTask
    places: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> _Stored:
        values = _opened(folder, TASK)
        found = {name: load_array(folder / f"{name}.npy") for name in _ARRAYS}
        parts = Parts(found["train"], found["validation"], found["test"])
        names = [(code, words) for code, words in values["names"]]
        task = ProbeTask(
            values["name"],
            names,
            found["rows"],
            found["truth"],
            found["patients"],
            parts,
            values["first_seconds"],
            values["about"],
            None if values["crop"] is None else Crop(**values["crop"]),
            None if found["decided"].all() else found["decided"],
        )
        return cls(task, found["places"])


def _open_systems(folder: Path) -> list[System]:
    listed = _opened(folder, SYSTEMS)["systems"]
    return [
        System(
            each["name"],
            load_array(folder / f"{each['name']}.npy", mapped=True),
            each["weights"],
            Tokens.open(_tokens_folder(folder, each["name"])) if each["tokens"] else None,
        )
        for each in listed
    ]


def _opened(folder: Path, name: str) -> dict[str, Any]:
    listed = read_json(folder / name)
    if listed is None:
        raise DataError(
            f"{platform.node()} does not see the work in {folder}",
            "let it lie on a filesystem that every node mounts at the same path",
        )
    if differing := _differing(folder, name, listed):
        raise DataError(f"{folder / differing[0]} is not as it was written", "run the same command again")
    return listed


def _listed(folder: Path, but: str) -> dict[str, Any]:
    found = facts_below(folder, (but,))
    return {name: [facts.sha256, facts.bytes] for name, facts in found.items()}


def _differing(folder: Path, but: str, listed: Mapping[str, Any]) -> list[str]:
    files = {name: FileFacts(sha256, size) for name, (sha256, size) in listed["files"].items()}
    return [each.name for each in differences(folder, files, (but,))]
