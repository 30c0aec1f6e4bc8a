"""What the places of a comparison are: run directories, exported encoders, results of evaluations, grids, studies, and
folders of these."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cardialign.cluster.comparison.cost import Cost, cost_of_run
from cardialign.cluster.comparison.figure import Figure
from cardialign.cluster.comparison.results import figures_of, kind_of, read_values
from cardialign.cluster.comparison.study import variants_of
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.files import read_json
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run.files import BEST, CONFIG, EXPORT, METRICS, RESULT
from cardialign.pretrain.run.integrity import CONTRACT, DIGESTS, PROVENANCE, SETTINGS, verified_digests
from cardialign.pretrain.run.trace import read_trace

GRID, TABLE = "grid.json", "table.json"
LONGEST_NAME = 60
REMEDY = "name run directories, exported encoders, results of `evaluate ... --out`, grids or studies"


@dataclass(frozen=True)
class Source:
    """A trained thing, or a result whose encoder was not given.

    digests: of its encoders, by which results belong to it. figures: (digest, system, figure), as `results.Found`.
    apart: a result that was given a name of its own stays a method of its own, whoever's encoder it is of.
    """

    name: str
    path: Path
    what: str
    config: dict[str, Any] | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    digests: tuple[str, ...] = ()
    cost: Cost | None = None
    figures: tuple[tuple[str, str, Figure], ...] = ()
    remarks: tuple[str, ...] = ()
    apart: bool = False


def named(text: str) -> tuple[str | None, Path]:
    """`NAME=PLACE`, or a place alone. Raises UsageError."""
    path = Path(text).expanduser()
    name, equals, rest = text.partition("=")
    if not equals or path.exists():
        return None, path
    if not name.strip() or not rest.strip() or "/" in name:
        raise UsageError(f"{shown(text)[:80]} is no place, and no NAME=PLACE", "write for example ours=runs/a")
    return name.strip()[:LONGEST_NAME], Path(rest).expanduser()


def read_sources(given: Sequence[tuple[str | None, Path]]) -> tuple[list[Source], list[str]]:
    """All that lies at the places, each with a name of its own, and what in folders was passed over.

    Raises UsageError where one is given twice, or a name; UserError for a place with nothing to compare.
    """
    seen: dict[Path, Path] = {}
    for _, path in given:
        if path.resolve() in seen:
            raise UsageError(f"{path} is given twice", "give each place once")
        seen[path.resolve()] = path
    chosen = [name for name, _ in given if name is not None]
    if twice := sorted({name for name in chosen if chosen.count(name) > 1}):
        raise UsageError(f"two places are named {twice[0]}", "give each a name of its own")
    found: list[Source] = []
    passed: list[str] = []
    for name, path in given:
        here = _read(path, passed, deep=True)
        if not here:
            raise UserError(f"{path} holds nothing that can be compared", REMEDY)
        if name is not None:
            encoders = {digest for each in here for digest, _, _ in each.figures} | {d for e in here for d in e.digests}
            alone = len(here) == 1 or (len(encoders) == 1 and encoders != {""})
            here = [_renamed(each, name if alone and k == 0 else f"{name}/{each.name}") for k, each in enumerate(here)]
            here = [replace(each, apart=len(here) == 1 and bool(each.figures)) for each in here]
        found += here
    return _apart(found), passed


def _renamed(source: Source, name: str) -> Source:
    return replace(source, name=name)


def _apart(found: Sequence[Source]) -> list[Source]:
    """Every source with a name of its own: of two alike, the folders above are named, too."""
    names = [each.name for each in found]
    for level in range(1, 8):
        if len(set(names)) == len(names):
            break
        doubled = {name for name in names if names.count(name) > 1}
        names = [
            "/".join([*_above(each.path, level), each.name])[-LONGEST_NAME:] if name in doubled else name
            for name, each in zip(names, found, strict=True)
        ]
    taken: dict[str, int] = {}
    for k, name in enumerate(names):
        taken[name] = taken.get(name, 0) + 1
        names[k] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return [_renamed(each, name) for name, each in zip(names, found, strict=True)]


def _above(path: Path, level: int) -> list[str]:
    return [shown(part) for part in path.resolve().parent.parts[-level:] if part != "/"]


def _read(path: Path, passed: list[str], deep: bool) -> list[Source]:
    """What a place holds; [] where that is nothing. deep: also what lies directly in a folder of it."""
    if path.is_file():
        values = read_values(path)
        if kind_of(values) == "study":
            return _study(path.parent, values, path)
        return [_result(path, values)]
    if not path.is_dir():
        raise UserError(f"{path} does not exist", REMEDY)
    if (path / CONFIG).is_file() or (path / METRICS).is_file():
        return [source_of_run(path), *_loose(path, passed)]
    if (path / PROVENANCE).is_file() and (path / DIGESTS).is_file():
        return [_export(path)]
    if (path / GRID).is_file():
        return [_result(path / GRID, read_values(path / GRID), path)]
    if (path / TABLE).is_file():
        return _study(path, read_values(path / TABLE), path / TABLE)
    return _loose(path, passed) + (_folders(path, passed) if deep else [])


def _folders(path: Path, passed: list[str]) -> list[Source]:
    found: list[Source] = []
    for each in sorted(path.iterdir()):
        if each.is_dir() and not each.name.startswith("."):
            known = (CONFIG, PROVENANCE, GRID, TABLE)
            if any((each / name).is_file() for name in known):
                found += _read(each, passed, deep=False)
    return found


def _loose(path: Path, passed: list[str]) -> list[Source]:
    """The results that lie in a folder beside other things; what is damaged is named and passed over."""
    found = []
    for each in sorted(path.glob("*.json")):
        try:
            values = read_values(each)
            if kind_of(values) not in (None, "study"):
                found.append(_result(each, values))
        except DataError as error:
            passed.append(error.problem)
    return found


def _config(path: Path) -> dict[str, Any] | None:
    """A configuration that others may have written; None for one that cannot be read, or written down again."""
    config = read_json(path)
    try:
        json.dumps(config)
    except RecursionError:
        return None
    return config


def source_of_run(path: Path) -> Source:
    """A run, with the digests of its encoders as they were verified; what is not as it should be is a remark."""
    config, remarks = _config(path / CONFIG), []
    if config is None:
        remarks.append(f"its configuration ({CONFIG}) cannot be read")
    trace = read_trace(path)
    digests: list[str] = []
    for folder in (EXPORT, BEST):
        if (path / folder / DIGESTS).is_file():
            try:
                digests += verified_digests(path / folder)
            except UserError as error:
                remarks.append(error.problem)
    result = read_json(path / RESULT) or {}
    if result.get("steps") != result.get("total_steps") or not result:
        remarks.append("it has not finished: cost and curves are those of the steps so far")
    what = "run" if digests else "run without an exported encoder"
    cost = cost_of_run(path, config, trace)
    return Source(_name(path), path, what, config, trace, tuple(digests), cost, remarks=tuple(remarks))


def _export(path: Path) -> Source:
    """An encoder alone. Raises UserError when it is not as it was written."""
    digests = verified_digests(path)
    provenance, contract = read_json(path / PROVENANCE) or {}, read_json(path / CONTRACT) or {}
    parameters = provenance.get("parameters")
    count = parameters.get("ecg_encoder") if isinstance(parameters, dict) else None
    cost = Cost(parameters=count if isinstance(count, int) else None)
    told = contract.get("sampling_rate")
    remarks = (f"reads {told:g} Hz",) if isinstance(told, int | float) else ()
    config = _config(path / SETTINGS)
    if config is not None:
        config.pop("model_type", None)  # for transformers, and no setting
    return Source(_name(path), path, "exported encoder", config, [], digests, cost, remarks=remarks)


def _result(path: Path, values: dict[str, Any], folder: Path | None = None) -> Source:
    kind = kind_of(values)
    return Source(_name(folder or path), path, f"result ({kind})", figures=tuple(figures_of(path, values)))


def _study(path: Path, values: dict[str, Any], table: Path) -> list[Source]:
    try:
        return [
            Source(f"{each.study}/{each.variant}", table, "study variant", each.changes, cost=each.cost,
                   figures=tuple(("", "", figure) for figure in each.figures), remarks=each.remarks)
            for each in variants_of(path, values)
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:160]
        raise DataError(
            f"{table} is not as a study writes it: {shown(said)}", "run the study's command again"
        ) from None


def _name(path: Path) -> str:
    """The last folder or file of a path; of what is always called alike the one above it."""
    resolved = path.resolve()
    name = resolved.stem if resolved.is_file() else resolved.name
    if name in (EXPORT, BEST, "encoder", "run", "grid"):
        name = f"{resolved.parent.name}/{name}"
    return shown(name)[-LONGEST_NAME:] or "unnamed"
