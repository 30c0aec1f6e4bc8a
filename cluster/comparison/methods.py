"""Sources -> methods: a run with the results of its encoder; runs that differ in their seed alone are one method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cardialign.cluster.comparison.figure import Column, Figure
from cardialign.cluster.comparison.sources import Source
from cardialign.data_shards.errors import UsageError

SAME = 1e-9


@dataclass(frozen=True)
class Member:
    """One training run (seed) of a method, or what else has figures: column -> its figures there."""

    name: str
    source: Source
    figures: dict[Column, list[Figure]]


@dataclass(frozen=True)
class Method:
    """floor: what stands beside an encoder (untrained weights, hand features), and is nobody's."""

    name: str
    members: tuple[Member, ...]
    floor: bool = False

    @property
    def columns(self) -> list[Column]:
        return sorted({column for each in self.members for column in each.figures}, key=lambda column: column.place)


def methods_of(sources: Sequence[Source]) -> list[Method]:
    """In the order given, floors last.

    Raises UsageError where two results are of one system, one task and the same records, and differ.
    """
    owner: dict[str, Source] = {}
    for source in sources:
        for digest in source.digests:
            owner.setdefault(digest, source)
    held: dict[str, dict[Column, list[Figure]]] = {}
    order: dict[str, Source] = {source.name: source for source in sources if source.digests or not source.figures}
    floors: dict[str, dict[Column, list[Figure]]] = {}
    floor_of: dict[str, Source] = {}
    orphans: dict[str, str] = {}
    for source in sources:
        for digest, system, figure in source.figures:
            home = source if source.apart else owner.get(digest)
            if home is None and digest:  # results of one encoder that was not given are one method
                name = orphans.setdefault(digest, source.name)
            else:
                name = source.name if home is None else home.name
            if not system:
                order.setdefault(name, source if home is None else home)
                _put(held.setdefault(name, {}), figure, name)
            else:
                own = f"{system}, {name}" if system == "untrained" else system
                floor_of.setdefault(own, source)
                _put(floors.setdefault(own, {}), figure, own, any_of_them=True)
    members = [Member(name, source, held.get(name, {})) for name, source in order.items()]
    floor_methods = [
        Method(name, (Member(name, floor_of[first], floors[first]),), floor=True)
        for name, first in _once(floors).items()
    ]
    return [*_by_seed(members), *floor_methods]


def _once(floors: Mapping[str, dict[Column, list[Figure]]]) -> dict[str, str]:
    """Floors that are the same in all figures (encoders of one architecture, untrained) as one: name -> the first."""
    alike: dict[tuple[tuple[Column, float], ...], list[str]] = {}
    for name, of in floors.items():
        figures = sorted(
            ((column, each.value) for column, held in of.items() for each in held),
            key=lambda pair: (pair[0].place, pair[1]),
        )
        alike.setdefault(tuple(figures), []).append(name)
    out = {}
    for names in alike.values():
        first, *others = names
        short = [name.removeprefix("untrained, ") for name in others]
        out[", ".join([first, *short[:2], *(["..."] if len(short) > 2 else [])])] = first
    return out


def _put(of: dict[Column, list[Figure]], figure: Figure, name: str, any_of_them: bool = False) -> None:
    """Add a figure; the same one again is passed over, another one of the same ground is refused."""
    there = of.setdefault(figure.column, [])
    for k, other in enumerate(there):
        if dict(other.ground) == dict(figure.ground) or (
            other.ground.get("records", 0) == figure.ground.get("records")
        ):
            if abs(other.value - figure.value) < SAME or any_of_them:
                there[k] = figure if figure.parts and not other.parts else other
                return
            if other.ground.get("prompts") == figure.ground.get("prompts"):
                raise UsageError(
                    f"{other.source} and {figure.source} both hold {figure.column} of {name}, and differ",
                    f"give one of them, or names of their own: a={other.source} b={figure.source}",
                )
    there.append(figure)


def _by_seed(members: Sequence[Member]) -> list[Method]:
    together: dict[str, list[Member]] = {}
    for each in members:
        key = _recipe(each)
        seeds = [other.source.config["seed"] for other in together.get(key, []) if other.source.config]
        if each.source.config is not None and each.source.config.get("seed") in seeds:
            key = f"{key} {each.name}"  # the same recipe and seed twice: on other data, or again
        together.setdefault(key, []).append(each)
    return [Method(_together(group), tuple(group)) for group in together.values()]


def _recipe(member: Member) -> str:
    """The same for runs that differ in their seed (and what they are called) alone."""
    config, source = member.source.config, member.source
    if config is None or "seed" not in config or not source.what.startswith("run"):
        return f"alone {member.name}"
    rest: dict[str, Any] = {key: value for key, value in config.items() if key not in ("seed", "name")}
    return json.dumps(rest, sort_keys=True, default=str)


def _together(group: Sequence[Member]) -> str:
    if len(group) == 1:
        return group[0].name
    first, last = min(each.name for each in group), max(each.name for each in group)
    alike = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    common = first[:alike].rstrip("-_ ./").removesuffix("seed").rstrip("-_ ./")
    return f"{common or group[0].name} ({len(group)} seeds)"
