"""What a zero-shot evaluation found, as data (`to_dict`, JSON-able) and as a text table (`table`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cardialign.data_shards.shown import between
from cardialign.pretrain.evaluation.ledger import of_pretraining, opening_line, told, twice_notes
from cardialign.pretrain.evaluation.scored import ScoredRecords
from cardialign.pretrain.evaluation.scoring import MIN_PATIENTS, ClassResult, Estimate, MacroResult


@dataclass(frozen=True)
class ZeroShotResult:
    """Figures and everything needed to make them again.

    That is the digest of the prompt set, the fingerprint of the shard set, folds, split rule, bootstrap, and the digest
    of the encoder. n records of `patients` patients; macro with low..high over all `classes`; `excluded` classes with
    the reason; `unprompted` label codes without words, `unprompted_records` how many records have each; `masked_leads`
    records with at least one missing lead; `protocol` which published protocol chose records, labels and prompts, if
    one did; `trained_on` which of the records the encoder has seen (`cardialign.pretrain.evaluation.overlap`);
    `label_set` what the label set does not know (`cardialign.data_shards.checks.label_coverage`); `test_opened` how
    often the test records were opened, where they are a protocol's (`openings.open_test`); `scored` every score, which
    is no part of the JSON.
    """

    n: int
    patients: int
    classes: list[ClassResult]
    macro: float
    low: float
    high: float
    macro_frequent: MacroResult
    excluded: list[dict[str, str]]
    unprompted: list[str]
    prompts: dict[str, Any]
    bootstrap: dict[str, Any]
    folds: list[int] | None
    encoder: str
    shards: str
    masked_leads: int
    seconds: float
    split: dict[str, Any] | None = None
    protocol: dict[str, Any] | None = None
    unprompted_records: dict[str, int] = field(default_factory=dict)
    trained_on: dict[str, Any] = field(default_factory=dict)
    label_set: dict[str, dict[str, int]] = field(default_factory=dict)
    test_opened: dict[str, Any] = field(default_factory=dict)
    scored: ScoredRecords | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; figures that are undefined are null."""
        told_of = asdict(replace(self, scored=None))
        del told_of["scored"]
        return plain({**told_of, "ledger": self.ledger})

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """What the encoder has seen of the scored records, as one line of the contamination ledger."""
        if not self.trained_on:
            return []
        scored = f"{self.protocol['protocol']}:{self.protocol['task']}" if self.protocol else self.prompts["name"]
        return [of_pretraining("encoder", scored, self.trained_on).to_dict()]

    def opened(self, test: dict[str, Any]) -> ZeroShotResult:
        """The same, with how often its test records were opened."""
        return replace(self, test_opened=test)

    def table(self) -> str:
        """Text table, best class first."""
        return _table(self, None)


@dataclass(frozen=True)
class ZeroShotComparison:
    """An encoder beside a baseline on the same records and resamples.

    `difference` (macro) and `differences` (per class code) are paired.
    """

    result: ZeroShotResult
    baseline: ZeroShotResult
    difference: Estimate
    differences: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """`to_dict()` of the encoder's result and, as `baseline`, of the baseline's; `difference` and `differences`."""
        return {
            **self.result.to_dict(),
            "baseline": self.baseline.to_dict(),
            "difference": plain(asdict(self.difference)),
            "differences": {code: plain(asdict(estimate)) for code, estimate in self.differences.items()},
        }

    def opened(self, test: dict[str, Any]) -> ZeroShotComparison:
        """The same, with how often its test records were opened."""
        return replace(self, result=self.result.opened(test))

    def table(self) -> str:
        """Text table, best class first, with the baseline's AUROC beside and the paired difference below."""
        gain = self.difference
        line = f"difference to the baseline, paired: {gain.value:+z.3f} ({between(gain.low, gain.high)})"
        return f"{_table(self.result, self.baseline)}\n{line}"


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "n/a"


def _interval(entry: ClassResult | MacroResult | ZeroShotResult) -> str:
    return f"{entry.low:.3f}-{entry.high:.3f}" if math.isfinite(entry.low) else "n/a"


def _classes(count: int) -> str:
    return f"{count} class{'es' * (count != 1)}"


def _table(result: ZeroShotResult, baseline: ZeroShotResult | None) -> str:
    other = {c.code: c.auroc for c in baseline.classes} if baseline else {}
    head = ["code", "class", "positives", "AUROC", "95 % interval", *(["untrained"] if baseline else [])]
    rows = [
        [
            c.code,
            c.name,
            str(c.positives),
            _figure(c.auroc),
            _interval(c),
            *([_figure(other[c.code])] if baseline else []),
        ]
        for c in sorted(result.classes, key=lambda c: -c.auroc)
    ]
    macros = [["", f"macro, {_classes(len(result.classes))}", "", _figure(result.macro), _interval(result)]]
    frequent = result.macro_frequent
    if 0 < frequent.classes < len(result.classes):
        name = f"macro, {_classes(frequent.classes)} with n >= {frequent.min_positives}"
        macros.append(["", name, "", _figure(frequent.value), _interval(frequent)])
    reasons = dict.fromkeys(e["reason"] for e in result.excluded)
    notes = [
        f"left out, {reason}: {', '.join(e['code'] for e in result.excluded if e['reason'] == reason)}"
        for reason in reasons
    ]
    if few := [c.code for c in result.classes if not math.isfinite(c.low)] if math.isfinite(result.low) else []:
        notes.append(f"no interval, fewer than {MIN_PATIENTS} patients have it, or lack it: {', '.join(few)}")
    if not frequent.classes:
        notes.insert(0, f"no class has {frequent.min_positives} positives: the macro is a mean over rare ones alone")
    if baseline:
        beside = [baseline.macro, baseline.macro_frequent.value]
        macros = [[*row, _figure(value)] for row, value in zip(macros, beside, strict=False)]
    widths = [max(len(row[k]) for row in [head, *rows, *macros]) for k in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * w for w in widths)
    notes += _label_notes(result)
    if result.protocol:
        notes.append(f"protocol {result.protocol['protocol']}:{result.protocol['task']}: {result.protocol['note']}")
        notes += [f"  differs: {deviation}" for deviation in result.protocol["deviations"]]
    if result.trained_on:
        notes.append(overlap_note(result.trained_on))
        notes += told(result.ledger)
    if result.test_opened:
        notes.append(opening_line(result.test_opened))
    title = f"zero-shot, {result.prompts['name']}: {result.n} records of {result.patients} patients"
    return "\n".join([title, line(head), rule, *map(line, rows), rule, *map(line, macros), *notes])


def overlap_note(trained_on: Mapping[str, Any]) -> str:
    """One sentence beside every figure: whether the encoder has seen what it was scored on."""
    twice = "".join(f"; {note}" for note in twice_notes(trained_on.get("twice", 0)))
    if trained_on["status"] == "found":
        return f"TRAINED ON WHAT IT IS SCORED ON: {trained_on['note']}{twice}"
    known = "trained on" if trained_on["status"] == "none" else "trained on: unknown whether on some of these"
    return f"{known}: {trained_on['note']}{twice}"


def _label_notes(result: ZeroShotResult) -> list[str]:
    name = result.prompts["label_set"]
    said = {
        "labels without prompts": result.unprompted_records,
        f"codes that stand for no class of {name}": result.label_set.get("unknown"),
        "records whose codes leave the class open, not scored for it": result.label_set.get("undecided"),
        f"records that have a code and lack its class in {name}, build the set again": result.label_set.get("outdated"),
    }
    return [
        f"{words}: {', '.join(f'{code} ({count})' for code, count in counts.items())}"
        for words, counts in said.items()
        if counts
    ]
