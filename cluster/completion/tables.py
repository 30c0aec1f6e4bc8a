"""What a completion leaves for people to read: a line per feature, a sheet to be judged, a sweep of thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.cluster.cli.result_file import write_rows
from cardialign.cluster.completion.guard import CLASS_NAME, DIAGNOSIS, SAID
from cardialign.cluster.completion.proposals import Pairs, Proposals
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shown import cell

SWEEP = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def acceptance(probability: np.ndarray, strange: np.ndarray, threshold: float) -> list[dict[str, float | None]]:
    """Per threshold the share of pairs that it keeps, and of features beside strangers' ECGs."""

    def above(values: np.ndarray, least: float) -> float | None:
        return round(float((values > least).mean()), 4) if values.size else None

    return [
        {"threshold": least, "kept": above(probability, least), "strangers": above(strange, least)}
        for least in sorted({*SWEEP, threshold})
    ]


def feature_rows(found: Proposals, pairs: Pairs, probability: np.ndarray, keep: np.ndarray) -> list[dict[str, Any]]:
    """A row per feature, most proposed first: in how many reports and records, kept in how many, how likely on the
    mean, and in how many reports the guard dropped it, by reason."""
    size = len(found.features)
    proposed = np.bincount(pairs.feature, minlength=size)
    kept = np.bincount(pairs.feature[keep], minlength=size)
    summed = np.bincount(pairs.feature, weights=probability, minlength=size)
    reports = np.bincount([f for each in found.of_report.values() for f in each] or [0], minlength=size)
    rows: dict[str, dict[str, Any]] = {
        feature.casefold(): {
            "feature": feature,
            "reports": int(reports[k]),
            "records": int(proposed[k]),
            "kept": int(kept[k]),
            "acceptance": round(float(kept[k] / proposed[k]), 4) if proposed[k] else None,
            "mean_probability": round(float(summed[k] / proposed[k]), 4) if proposed[k] else None,
            **dict.fromkeys((SAID, DIAGNOSIS, CLASS_NAME), 0),
        }
        for k, feature in enumerate(found.features)
    }
    for (feature, why), count in found.dropped.items():
        blank: dict[str, Any] = {"feature": feature, "reports": 0, "records": 0, "kept": 0, "acceptance": None}
        blank |= {"mean_probability": None, **dict.fromkeys((SAID, DIAGNOSIS, CLASS_NAME), 0)}
        rows.setdefault(feature.casefold(), blank)[why] += count
    return sorted(rows.values(), key=lambda row: (-row["records"], -row["reports"], row["feature"]))


def sheet_rows(
    shard_set: ShardSet,
    found: Proposals,
    pairs: Pairs,
    probability: np.ndarray,
    keep: np.ndarray,
    lines: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Up to `lines` pairs, as many kept as dropped, in any order; `right` is left for the reader, who looks at the ECG
    before the last columns."""
    rng = np.random.default_rng([seed, 1])
    parts = [rng.permutation(np.flatnonzero(side)) for side in (keep, ~keep)]
    least = [min(len(part), lines // 2) for part in parts]
    taken = [min(len(own), lines - other) for own, other in zip(parts, least[::-1], strict=True)]
    chosen = rng.permutation(np.concatenate([part[:some] for part, some in zip(parts, taken, strict=True)])[:lines])
    texts = shard_set.report_columns(["text"]).column("text")
    report = np.asarray(shard_set.report)
    return [
        {
            "record": shard_set.key(int(pairs.rows[at])),
            "report": texts[int(report[pairs.rows[at]])].as_py(),
            "feature": found.features[int(pairs.feature[at])],
            "right": "",
            "probability": round(float(probability[at]), 4),
            "kept": "yes" if keep[at] else "no",
        }
        for at in chosen.tolist()
    ]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """As CSV whose cells are safe in a spreadsheet; None where there is no row. Raises UserError."""
    if not rows:
        return None
    write_rows(path, [{k: cell(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows])
    return str(path)
