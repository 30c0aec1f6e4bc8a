"""The gate of production: what an encoder must show before the alias moves, and all that is missing at once.

Evidence lies beside the versions (`evidence`): figures with intervals, and the scores they are made of. On every set of
records that both were scored on, the candidate is compared with the present production model, paired and resampled by
patient. It is worse when the whole 95 % interval of the difference lies below the margin: upper bound < -margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.registry.evidence import Evidence, read_evidence
from cardialign.cluster.registry.lookup import digest_of, fetch_description, title
from cardialign.cluster.registry.origin import Origin
from cardialign.cluster.registry.requirements import Policy, Requirement
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shown import between, shown
from cardialign.pretrain.export.model_card import CONTRACT_KEYS
from cardialign.pretrain.run.integrity import CONTRACT, PROVENANCE, SETTINGS, VerifiedExport, read_parts

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Missing:
    """What keeps an encoder out, and the way in."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}\n    remedy: {self.remedy}"


@dataclass
class Verdict:
    """missing: everything that keeps the version out; compared: each paired figure; remarks: what to know beside;
    present: the version that it was held against; margin: that was granted."""

    digest: str
    origin: Origin
    missing: list[Missing] = field(default_factory=list)
    compared: list[dict[str, Any]] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    present: int | None = None
    margin: float = 0.0

    @property
    def evidence_digest(self) -> str:
        """One word for all the evidence that was looked at."""
        return digest_of(sorted(self.evidence))


@dataclass(frozen=True)
class Registry:
    """Where versions are read from; scratch: an empty folder."""

    client: MlflowClient
    uri: str
    scratch: Path


def examine(
    registry: Registry,
    candidate: ModelVersion,
    folder: Path,
    digest: str,
    present: ModelVersion | None,
    policy: Policy,
    acknowledged: bool,
) -> Verdict:
    """Whether `candidate`, whose verified files lie in `folder`, may take the place of `present`. Changes nothing."""
    parts = read_parts(folder, (SETTINGS, CONTRACT, PROVENANCE))
    run = registry.client.get_run(candidate.run_id).data if candidate.run_id else None
    verdict = Verdict(digest, Origin.of(parts, run.tags if run else {}))
    verdict.present, verdict.margin = None if present is None else int(present.version), policy.margin
    verdict.missing += [Missing(*each) for each in verdict.origin.missing(candidate.run_id or "")]
    if present is not None and str(present.version) == str(candidate.version):
        present = None  # it is in production as it stands
    incumbent = None if present is None else _Incumbent.read(registry, present, verdict)
    if incumbent is not None and not acknowledged:
        verdict.missing += _contract(parts, incumbent)
    mine, damaged = read_evidence(registry.client, candidate, digest, registry.scratch / "candidate", registry.uri)
    verdict.missing += [Missing(each, "run that evaluation again with --track") for each in damaged]
    verdict.evidence += [each.digest for each in mine]
    _evaluations(candidate, mine, incumbent, policy, verdict)
    return verdict


@dataclass(frozen=True)
class _Incumbent:
    version: ModelVersion
    parts: VerifiedExport | None
    evidence: Sequence[Evidence]

    @classmethod
    def read(cls, registry: Registry, version: ModelVersion, verdict: Verdict) -> _Incumbent:
        scratch = registry.scratch / "production"
        try:
            parts = fetch_description(registry.client, version, scratch, registry.uri)
        except UserError as error:
            verdict.remarks.append(f"production, {title(version)}, cannot be read: {error.problem}")
            return cls(version, None, ())
        found, damaged = read_evidence(registry.client, version, parts.digest, scratch, registry.uri)
        verdict.remarks += damaged
        verdict.evidence += [each.digest for each in found]
        return cls(version, parts, found)


def _contract(parts: VerifiedExport, incumbent: _Incumbent) -> list[Missing]:
    """What a consumer's signals, and what consumers made of the embeddings, would have to follow."""
    remedy = "tell the consumers, then promote with --acknowledge-contract"
    if incumbent.parts is None:
        what = f"the signal contract of production, {title(incumbent.version)}, cannot be read"
        return [Missing(what, "if that is right, --acknowledge-contract")]
    before, after = incumbent.parts.json(CONTRACT), parts.json(CONTRACT)
    changed = [
        shown(f"{key.replace('_', ' ')} {_shown(before.get(key))} -> {_shown(after.get(key))}")
        for key in CONTRACT_KEYS
        if before.get(key) != after.get(key)
    ]
    return [Missing(f"the signal contract changes: {'; '.join(changed)}", remedy)] if changed else []


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _evaluations(
    candidate: ModelVersion, mine: Sequence[Evidence], incumbent: _Incumbent | None, policy: Policy, verdict: Verdict
) -> None:
    """An evaluation counts by its best: what else was tried under its name, or under one that nobody asks for, is
    told and keeps nobody out. What production was measured by is asked for where the candidate tried it."""
    wanted = [each.name for each in policy.required]
    commands = {each.name: each for each in policy.required}
    useless: list[tuple[str, Missing]] = []
    counted: set[str] = set()
    for name in dict.fromkeys([*wanted, *(each.name for each in mine)]):
        requirement = commands.get(name) or Requirement.of_name(name)
        of_name = [each for each in mine if each.name == name]
        if not of_name:
            what = f"no evaluation {shown(name)} of {title(candidate)}"
            if wrong := requirement.unknown():
                what += f", and none can be made here: {shown(wrong)}"
            verdict.missing.append(Missing(what, requirement.command(title(candidate))))
        usable = []
        for each in of_name:
            why = _no_evidence(each, candidate, requirement)
            useless += [] if why is None else [(name, why)]
            usable += [each] if why is None else []
        verdict.remarks += [
            f"{shown(name)}: whether {title(candidate)} was trained on some of these is not known"
            for each in usable
            if each.facts["trained_on"] != "none"
        ]
        if usable:
            counted.add(name)
        if usable and incumbent is not None:
            _against(usable, incumbent, requirement, policy.margin, verdict)
    of_production = set() if incumbent is None else {each.name for each in incumbent.evidence}
    asked = ({*wanted} | of_production) - counted
    for name, why in useless:
        if name in asked or not counted:
            verdict.missing.append(why)
        else:
            verdict.remarks.append(f"does not count: {why.what}")
    verdict.remarks += [  # nothing asks for it, but who promotes shall know
        f"production was also measured by {shown(name)}; {title(candidate)} was not"
        for name in sorted(of_production - {each.name for each in mine})
    ]
    if not policy.required and not mine:
        what = f"no evaluation of {title(candidate)}, and nothing says which this model needs"
        verdict.missing.append(
            Missing(
                what, Requirement.parse("PROTOCOL:TASK").command(title(candidate)) + ", and --require PROTOCOL:TASK"
            )
        )


def _no_evidence(each: Evidence, candidate: ModelVersion, requirement: Requirement) -> Missing | None:
    """Why an evaluation shows nothing; None where it counts."""
    name, again = shown(each.name), requirement.command(title(candidate))
    if each.facts["trained_on"] == "found":
        what = f"{name} of {title(candidate)} was scored on records that it was trained on"
        return Missing(what, f"score others: {again}")
    if any(not _is_figure(each.facts.get(key)) for key in ("macro", "low", "high")):
        what = f"{name} of {title(candidate)} has no interval ({each.facts['n']} records)"
        return Missing(what, f"score more patients, with --bootstrap: {again}")
    return None


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _against(
    mine: Sequence[Evidence], incumbent: _Incumbent, requirement: Requirement, margin: float, verdict: Verdict
) -> None:
    """Every set of records that both were scored on; there must be one."""
    theirs = {each.measured: each for each in incumbent.evidence}
    pairs = [(each, theirs[each.measured]) for each in mine if each.measured in theirs]
    name, production = shown(mine[0].name), title(incumbent.version)
    if not pairs:
        others = [each for each in incumbent.evidence if each.name == mine[0].name]
        what = (
            f"{name} of production, {production}, is on other records or by other words than the candidate's"
            if others
            else f"no evaluation {name} of production, {production}, to compare with"
        )
        again = f"on the records that the candidate was scored on: {requirement.command(production)}"
        verdict.missing.append(Missing(what, again))
    for one, other in pairs:
        _compare(one, other, name, production, margin, verdict)


def _compare(one: Evidence, other: Evidence, name: str, production: str, margin: float, verdict: Verdict) -> None:
    from cardialign.pretrain.evaluation.scored import paired

    try:
        found = paired(one.scored, other.scored)
    except ValueError as error:
        what = f"{name} cannot be compared with production, {production}: {error}"
        verdict.missing.append(Missing(what, "score both on the same shards, with --track"))
        return
    gap = found.difference
    told = (
        f"{name}: {found.mine:.3f}, production ({production}) {found.theirs:.3f}, paired difference {gap.value:+z.4f} "
        f"({between(gap.low, gap.high, '+.4f')}) on {found.records} records of {found.patients} patients, "
        f"margin {margin:g}"
    )
    verdict.compared.append(
        {"on": name, "mine": found.mine, "production": found.theirs, "difference": gap.value, "low": gap.low,
         "high": gap.high, "records": found.records, "patients": found.patients, "margin": margin, "line": told}
    )  # fmt: skip
    if not gap.high >= -margin:  # nan: no interval
        is_worse = gap.high < -margin
        what = f"worse than production on {told}" if is_worse else f"no interval of the paired difference on {told}"
        verdict.missing.append(Missing(what, "train a better one" if is_worse else "score more patients"))
