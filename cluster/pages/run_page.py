"""One self-contained page about a run: what was run, on which data, how it learnt, what it tells on unseen patients.

It can be mailed, archived or attached to an MLflow run. Here is what the page says; `templates/run.html` is how.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.cluster.pages.charts import Estimate, IntervalScale, line_chart, share_bars, weight_bars
from cardialign.cluster.pages.legend import legend_entry
from cardialign.cluster.pages.page import number, write_page
from cardialign.cluster.watching.cause import Cause
from cardialign.data_shards.shown import between
from cardialign.pretrain.evaluation.result import overlap_note

FOOTER = "Written by cardialign. Virtual or research data; not a medical device."
FEW = (
    "No interval where fewer than 5 patients have, or lack, the finding: "
    "resampling them says nothing about other patients."
)


@dataclass(frozen=True)
class Picture:
    """A 12-lead picture (PNG bytes) with its caption and the lead-group attention weights of that record."""

    title: str
    png: bytes
    caption: str = ""
    group_weights: Mapping[str, float] = field(default_factory=dict)


def write_run_page(
    path: Path,
    *,
    title: str,
    run: Mapping[str, Any],
    trace: Sequence[Mapping[str, Any]],
    zero_shot: Mapping[str, Any] | None,
    baseline: Mapping[str, Any] | None = None,
    pictures: Sequence[Picture] = (),
    commands: Mapping[str, str] | None = None,
) -> Path:
    """Write the page to `path` (replaced in one step) and return it. What is not there is left out.

    run        "summary" (one sentence), "facts" and "cost" {label: value}, "config" (resolved), "footer", "cause" (a
               `Cause`), "data" [{"name", "records", "patients", "findings" {code: records}, ...}], "evaluations"
               [{"what", "system", "value", "interval"}], "map" {"image" (PNG, base64), "legend" of `class_legend`,
               "records", "labels"}, "retrieval" [{"key", "report", "reports" [{"cosine", "text", "own"}], "rank",
               "among"}], "left_out" [sentence].
    trace      rows of metrics.jsonl: "step", "loss", and where present "lr", "records_per_second", "data_wait_share",
               "effective_negatives", "temperature".
    zero_shot  `ZeroShotResult.to_dict()` of the trained encoder.
    baseline   the same of an untrained one on the same records.
    commands   label -> shell command or http(s) link.
    """
    config, cause = run.get("config"), run.get("cause")
    return write_page(
        path,
        "run.html",
        title=title,
        summary=run.get("summary"),
        tiles=_tiles(trace, zero_shot, baseline),
        zero_shot=zero_shot_table(zero_shot, baseline) if zero_shot else None,
        cause="" if cause is None else f"{cause.line[0].upper()}{cause.line[1:]}.",
        charts=[*_training(trace), *_time(cause)],
        pictures=[_picture(picture) for picture in pictures],
        facts=run.get("facts"),
        cost=run.get("cost"),
        evaluations=run.get("evaluations") or [],
        map=_map(run.get("map")),
        retrieval=run.get("retrieval") or [],
        left_out=run.get("left_out") or [],
        data=_data(run.get("data") or []),
        commands=commands,
        config=json.dumps(config, indent=2, default=str) if config else "",
        footer=run.get("footer", FOOTER),
    )


def _map(drawn: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if drawn is None else {**drawn, "legend": [legend_entry(entry) for entry in drawn["legend"]]}


def _auroc(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else "n/a"


def _interval(low: Any, high: Any) -> str:
    return f"{_auroc(low)} to {_auroc(high)}" if _auroc(low) != "n/a" else ""


def _estimate(entry: Mapping[str, Any], value: str = "auroc") -> Estimate:
    figures = [entry.get(key) for key in (value, "low", "high")]
    a, b, c = (float(f) if isinstance(f, int | float) else math.nan for f in figures)
    return a, b, c


def _series(trace: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    rows = [(row["step"], row[key]) for row in trace if isinstance(row.get(key), int | float) and "step" in row]
    return [float(step) for step, _ in rows], [float(value) for _, value in rows]


def _tiles(
    trace: Sequence[Mapping[str, Any]], zero_shot: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = []

    def tile(figure: str, *lines: str, main: bool = False) -> None:
        tiles.append({"figure": figure, "lines": lines, "main": main})

    if zero_shot:
        interval = _interval(zero_shot.get("low"), zero_shot.get("high"))
        tile(_auroc(zero_shot["macro"]), "zero-shot macro AUROC", interval, main=True)
    if baseline:
        tile(_auroc(baseline["macro"]), "untrained encoder", _interval(baseline.get("low"), baseline.get("high")))
    if zero_shot:
        patients = [f"of {number(zero_shot['patients'])} patients"] if zero_shot.get("patients") else []
        tile(number(zero_shot["n"]), "records scored", *patients)
    steps, losses = _series(trace, "loss")
    if losses:
        first = f"{losses[0]:.3f} at step {number(steps[0])}"
        tile(f"{losses[-1]:.3f}", f"loss at step {number(steps[-1])}", first)
    waits = _series(trace, "data_wait_share")[1]
    if waits:
        tile(f"{100 * sum(waits) / len(waits):.2f} %", "of step time waiting", "for data, mean")
    return tiles


def zero_shot_table(zero_shot: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the template shows of a result. Raises KeyError, TypeError or ValueError for what is none."""
    classes = sorted(zero_shot["classes"], key=lambda c: -c["auroc"])
    others = {c["code"]: _estimate(c) for c in (baseline or {}).get("classes", [])}
    macro, other_macro = _estimate(zero_shot, "macro"), _estimate(baseline, "macro") if baseline else None
    every = [*(_estimate(c) for c in classes), *others.values(), macro, *([other_macro] if other_macro else [])]
    scale = IntervalScale([bound for estimate in every for bound in estimate])

    rows: list[dict[str, Any]] = []

    def row(name: str, code: str, positives: Any, trained: Estimate, untrained: Estimate | None, kind: str) -> None:
        rows.append(
            {
                "name": name,
                "code": code,
                "positives": positives,
                "auroc": _auroc(trained[0]),
                "interval": _interval(*trained[1:]),
                "untrained": _auroc(untrained[0]) if untrained else "",
                "plot": scale.row(trained, untrained),
                "kind": kind,
            }
        )

    row("Macro, all classes", "", f"{len(classes)} classes", macro, other_macro, "macro")
    frequent = zero_shot.get("macro_frequent")
    if frequent and frequent.get("classes") not in (None, 0, len(classes)):
        other = _estimate(baseline["macro_frequent"], "value") if baseline and baseline.get("macro_frequent") else None
        name = f"Macro, at least {frequent.get('min_positives', 10)} positives"
        row(name, "", f"{frequent['classes']} classes", _estimate(frequent, "value"), other, "macro")
    rows[-1]["kind"] = "macro last-macro"
    for c in classes:
        row(c["name"], c["code"], c["positives"], _estimate(c), others.get(c["code"]), "")
    return {
        "words": _words(zero_shot),
        "gain": _gain(zero_shot.get("difference")),
        "baseline": bool(baseline),
        "header": scale.header(),
        "rows": rows,
        "notes": _notes(zero_shot),
    }


def _words(result: Mapping[str, Any]) -> str:
    prompts, bootstrap = result.get("prompts") or {}, result.get("bootstrap") or {}
    words = (
        f"{number(result['n'])} records, scored by the cosine between the ECG embedding "
        "and the mean embedding of each class's prompts."
    )
    if prompts.get("name"):
        words += f" Prompt set {prompts['name']}."
    if bootstrap.get("resamples"):
        words += f" Intervals: {number(bootstrap['resamples'])} bootstrap resamples of patients."
    return words


def _gain(difference: Mapping[str, Any] | None) -> dict[str, str] | None:
    if not difference:
        return None
    value, low, high = _estimate(difference, "value")
    return {"value": f"{value:+z.3f}", "interval": between(low, high)}


def _notes(result: Mapping[str, Any]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for entry in result.get("excluded") or []:
        by_reason.setdefault(entry["reason"], []).append(f"{entry['name']} ({entry['code']})")
    notes = []
    if by_reason:
        left_out = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
        notes.append(f"Left out of all means: {left_out}.")
    if any(c.get("low") is None for c in result.get("classes") or []):
        notes.append(FEW)
    if result.get("unprompted"):
        notes.append(f"Labels in the data without prompts: {', '.join(result['unprompted'])}.")
    if result.get("trained_on"):
        told = overlap_note(result["trained_on"])
        notes.append(f"{told[0].upper()}{told[1:]}.")
    return notes


def _training(trace: Sequence[Mapping[str, Any]]) -> list[str]:
    panels: list[tuple[str, str, str, dict[str, bool]]] = [
        ("loss", "Loss", "", {"smooth": True}),
        ("lr", "Learning rate", "", {"from_zero": True}),
        ("records_per_second", "Throughput", "records/s", {"from_zero": True}),
        ("data_wait_share", "Waiting for data", "% of step time", {"from_zero": True}),
        ("effective_negatives", "Effective negatives", "mean of the sum of weights per record", {"smooth": True}),
        ("temperature", "Temperature", "", {}),
    ]
    all_steps = [float(row["step"]) for row in trace if "step" in row]
    extent = (min(all_steps), max(all_steps)) if all_steps else None
    charts = []
    for key, title, unit, how in panels:
        steps, values = _series(trace, key)
        if values:
            values = [100 * v for v in values] if key == "data_wait_share" else values
            charts.append(line_chart(steps, values, title=title, unit=unit, extent=extent, **how))
    return charts


def _time(cause: Cause | None) -> list[str]:
    return (
        [] if cause is None else [share_bars(cause.shares, title="Where the time went", unit="% of the newest steps")]
    )


def _picture(picture: Picture) -> dict[str, str]:
    return {
        "title": picture.title,
        "base64": base64.b64encode(picture.png).decode("ascii"),
        "caption": picture.caption,
        "weights": weight_bars(picture.group_weights) if picture.group_weights else "",
    }


def _data(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not sets:
        return None
    shown = [
        {
            key: value
            for key, value in entry.items()
            if key not in ("name", "findings") and not isinstance(value, Mapping)
        }
        for entry in sets
    ]
    columns = list(dict.fromkeys(key for entry in shown for key in entry))
    return {
        "columns": [
            {
                "title": column.replace("_", " ").capitalize(),
                "numeric": all(isinstance(entry.get(column, 0), int | float) for entry in sets),
            }
            for column in columns
        ],
        "rows": [
            {"name": entry.get("name", "records"), "cells": [entry.get(column, "") for column in columns]}
            for entry in sets
        ],
        "findings": [
            {
                "name": entry.get("name", "records"),
                "counts": sorted(entry["findings"].items(), key=lambda item: -item[1]),
            }
            for entry in sets
            if entry.get("findings")
        ],
    }
