"""One self-contained HTML page about one run: what was run, on which data, how it learnt, and what it can tell on unseen patients.

No script and no external file: it can be mailed, archived or attached to an MLflow run. Every text from outside is escaped.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from cardialign.cluster.pages.charts import IntervalScale, line_chart, weight_bars
from cardialign.cluster.pages.page import write_page

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Picture:
    """A 12-lead picture (PNG bytes) with its caption and the lead-group attention weights of that record."""

    title: str
    png: bytes
    caption: str = ""
    group_weights: Mapping[str, float] = field(default_factory=dict)


def write_report(
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
    """Write the page to `path` (replaced in one step) and return it.

    run        "summary" (one sentence), "facts" {label: value}, "data" [{"name", "records", "patients", "findings" {code: records}, ...}], "config" (resolved).
    trace      rows of metrics.jsonl: "step", "loss", and where present "lr", "records_per_second", "data_wait_share", "effective_negatives", "temperature".
    zero_shot  `ZeroShotResult.to_dict()` of the trained encoder, `baseline` the same of an untrained one on the same records.
    commands   label -> shell command or http(s) link.
    """
    body = [
        _heading(title, run),
        _tiles(trace, zero_shot, baseline),
        _zero_shot(zero_shot, baseline),
        _training(trace),
        _pictures(pictures),
        _run(run),
        _data(run.get("data") or []),
        _commands(commands or {}),
        _config(run.get("config")),
        f"<footer>{escape(str(run.get('footer', 'Written by cardialign. Virtual or research data; not a medical device.')))}</footer>",
    ]
    return write_page(path, title, "\n".join(part for part in body if part))


def _heading(title: str, run: Mapping[str, Any]) -> str:
    summary = run.get("summary")
    return f"<h1>{escape(title)}</h1>" + (f'<p class="lead">{escape(str(summary))}</p>' if summary else "")


def _number(value: Any) -> str:
    """Figures as a reader wants them: thousands separated, three significant digits for fractions."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    if isinstance(value, float) and not math.isfinite(value):
        return "n/a"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _auroc(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else "n/a"


def _interval(low: Any, high: Any) -> str:
    return f"{_auroc(low)} to {_auroc(high)}" if _auroc(low) != "n/a" else ""


def _series(trace: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    rows = [(row["step"], row[key]) for row in trace if isinstance(row.get(key), int | float) and "step" in row]
    return [float(step) for step, _ in rows], [float(value) for _, value in rows]


def _tiles(
    trace: Sequence[Mapping[str, Any]], zero_shot: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None
) -> str:
    tiles: list[tuple[str, str, str]] = []
    if zero_shot:
        tiles.append(
            (
                "main",
                _auroc(zero_shot["macro"]),
                f"zero-shot macro AUROC<br>{_interval(zero_shot.get('low'), zero_shot.get('high'))}",
            )
        )
    if baseline:
        tiles.append(
            (
                "",
                _auroc(baseline["macro"]),
                f"untrained encoder<br>{_interval(baseline.get('low'), baseline.get('high'))}",
            )
        )
    if zero_shot:
        patients = f"<br>of {_number(zero_shot['patients'])} patients" if zero_shot.get("patients") else ""
        tiles.append(("", _number(zero_shot["n"]), f"records scored{patients}"))
    steps, losses = _series(trace, "loss")
    if losses:
        tiles.append(
            (
                "",
                f"{losses[-1]:.3f}",
                f"loss at step {_number(steps[-1])}<br>{losses[0]:.3f} at step {_number(steps[0])}",
            )
        )
    waits = _series(trace, "data_wait_share")[1]
    if waits:
        tiles.append(("", f"{100 * sum(waits) / len(waits):.2f} %", "of step time waiting<br>for data, mean"))
    cells = [f'<div class="tile {kind}"><b>{figure}</b><span>{text}</span></div>' for kind, figure, text in tiles]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _triple(entry: Mapping[str, Any], value: str = "auroc") -> Triple:
    figures = [entry.get(key) for key in (value, "low", "high")]
    a, b, c = (float(f) if isinstance(f, int | float) else math.nan for f in figures)
    return a, b, c


def _zero_shot_row(
    name: str,
    code: str,
    positives: Any,
    trained: Triple,
    untrained: Triple | None,
    scale: IntervalScale,
    kind: str = "",
) -> str:
    beside = f'<td class="number">{_auroc(untrained[0]) if untrained else ""}</td>'
    label = escape(name) + (f'<span class="code">{escape(code)}</span>' if code else "")
    return (
        f'<tr class="{kind}"><td>{label}</td><td class="number">{_number(positives)}</td><td class="number">{_auroc(trained[0])}</td>'
        f'<td class="number interval-text">{_interval(*trained[1:])}</td>{beside}<td class="plot">{scale.row(trained, untrained)}</td></tr>'
    )


def _zero_shot(zero_shot: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None) -> str:
    if not zero_shot:
        return ""
    classes = sorted(zero_shot["classes"], key=lambda c: -c["auroc"])
    others = {c["code"]: _triple(c) for c in (baseline or {}).get("classes", [])}
    macro, other_macro = _triple(zero_shot, "macro"), _triple(baseline, "macro") if baseline else None
    bounds = [value for t in [*(_triple(c) for c in classes), *others.values(), macro, other_macro] if t for value in t]
    scale = IntervalScale(bounds)
    rows = [_zero_shot_row("Macro, all classes", "", f"{len(classes)} classes", macro, other_macro, scale, "macro")]
    frequent = zero_shot.get("macro_frequent")
    if frequent and frequent.get("classes") not in (None, 0, len(classes)):
        other = _triple(baseline["macro_frequent"], "value") if baseline and baseline.get("macro_frequent") else None
        name = f"Macro, at least {frequent.get('min_positives', 10)} positives"
        rows.append(
            _zero_shot_row(
                name, "", f"{frequent['classes']} classes", _triple(frequent, "value"), other, scale, "macro"
            )
        )
    rows[-1] = rows[-1].replace('class="macro"', 'class="macro last-macro"', 1)
    rows += [
        _zero_shot_row(c["name"], c["code"], c["positives"], _triple(c), others.get(c["code"]), scale) for c in classes
    ]

    legend = '<div class="legend"><span>' + _legend_mark("trained") + "trained, 95 % interval</span>"
    legend += ("<span>" + _legend_mark("untrained") + "untrained encoder</span>") if baseline else ""
    legend += (
        '<span><svg width="14" height="14"><line class="chance" x1="7" x2="7" y1="0" y2="14"/></svg>chance</span></div>'
    )
    head = (
        '<tr><th>Class</th><th class="number">Positives</th><th class="number">AUROC</th><th class="number">95 % interval</th>'
        f'<th class="number">{"Untrained" if baseline else ""}</th><th class="plot">{scale.header()}</th></tr>'
    )
    return (
        f"<h2>Zero-shot on unseen records</h2>{_zero_shot_words(zero_shot)}{legend}"
        f'<div class="scroll"><table class="zero-shot"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>{_zero_shot_notes(zero_shot)}'
    )


def _legend_mark(kind: str) -> str:
    radius = 4.2 if kind == "trained" else 3.2
    return f'<svg width="34" height="14"><line class="{kind}" x1="2" x2="32" y1="7" y2="7"/><circle class="{kind}" cx="17" cy="7" r="{radius}"/></svg>'


def _zero_shot_words(result: Mapping[str, Any]) -> str:
    prompts, bootstrap = result.get("prompts") or {}, result.get("bootstrap") or {}
    words = f"{_number(result['n'])} records, scored by the cosine between the ECG embedding and the mean embedding of each class's prompts."
    if prompts.get("name"):
        words += f" Prompt set {escape(str(prompts['name']))}."
    if bootstrap.get("resamples"):
        words += f" Intervals: {_number(bootstrap['resamples'])} bootstrap resamples of patients."
    difference = result.get("difference")
    if difference:
        gain = _triple(difference, "value")
        words += f" Trained minus untrained, paired: <b>{gain[0]:+.3f}</b> ({gain[1]:+.3f} to {gain[2]:+.3f})."
    return f"<p>{words}</p>"


def _zero_shot_notes(result: Mapping[str, Any]) -> str:
    by_reason: dict[str, list[str]] = {}
    for entry in result.get("excluded") or []:
        by_reason.setdefault(entry["reason"], []).append(f"{entry['name']} ({entry['code']})")
    notes = [f"{escape(', '.join(names))}: {escape(reason)}" for reason, names in by_reason.items()]
    out = f'<p class="note">Left out of all means: {"; ".join(notes)}.</p>' if notes else ""
    few = [c for c in result.get("classes") or [] if c.get("low") is None]
    if few:
        out += '<p class="note">No interval where fewer than 5 patients have, or lack, the finding: resampling them says nothing about other patients.</p>'
    unprompted = result.get("unprompted") or []
    return out + (
        f'<p class="note">Labels in the data without prompts: {escape(", ".join(unprompted))}.</p>'
        if unprompted
        else ""
    )


def _training(trace: Sequence[Mapping[str, Any]]) -> str:
    panels = [
        ("loss", "Contrastive loss", "", {"smooth": True}),
        ("lr", "Learning rate", "", {"from_zero": True}),
        ("records_per_second", "Throughput", "records/s", {"from_zero": True}),
        ("data_wait_share", "Waiting for data", "% of step time", {"from_zero": True}),
        ("effective_negatives", "Effective negatives", "mean of the sum of weights per record", {"smooth": True}),
        ("temperature", "Temperature", "", {}),
    ]
    steps = [float(row["step"]) for row in trace if "step" in row]
    extent = (min(steps), max(steps)) if steps else None
    drawn = []
    for key, title, unit, options in panels:
        steps, values = _series(trace, key)
        if values:
            values = [100 * v for v in values] if key == "data_wait_share" else values
            drawn.append(line_chart(steps, values, title=title, unit=unit, extent=extent, **options))  # type: ignore[arg-type]
    return f'<h2>Training</h2><div class="panels">{"".join(drawn)}</div>' if drawn else ""


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    words = (
        "The attention weight of each lead group (each view of the heart) in the embedding of a record; the weights of a record sum to 1. "
        "They show where the encoder looked, not why."
    )
    return f"<h2>Recordings and lead-group attention</h2><p>{words}</p>" + "".join(_picture(p) for p in pictures)


def _picture(picture: Picture) -> str:
    image = base64.b64encode(picture.png).decode("ascii")
    weights = (
        f"<div><h4>Lead-group weight</h4>{weight_bars(picture.group_weights)}</div>" if picture.group_weights else ""
    )
    return (
        f'<section class="recording"><h3>{escape(picture.title)}</h3><img alt="12-lead ECG: {escape(picture.title, quote=True)}" src="data:image/png;base64,{image}">'
        f'<div class="below"><p>{escape(picture.caption)}</p>{weights}</div></section>'
    )


def _facts(facts: Mapping[str, Any]) -> str:
    return (
        f'<dl class="facts">{"".join(f"<dt>{escape(str(k))}</dt><dd>{_number(v)}</dd>" for k, v in facts.items())}</dl>'
    )


def _run(run: Mapping[str, Any]) -> str:
    return f"<h2>What was run</h2>{_facts(run['facts'])}" if run.get("facts") else ""


def _data(sets: Sequence[Mapping[str, Any]]) -> str:
    if not sets:
        return ""
    columns = list(
        dict.fromkeys(
            k
            for entry in sets
            for k, v in entry.items()
            if k not in ("name", "findings") and not isinstance(v, Mapping)
        )
    )
    kinds = [' class="number"' if all(isinstance(e.get(c, 0), int | float) for e in sets) else "" for c in columns]
    head = "".join(
        f"<th{kind}>{escape(c.replace('_', ' ').capitalize())}</th>" for c, kind in zip(columns, kinds, strict=True)
    )
    rows = ""
    for entry in sets:
        cells = "".join(f"<td{kind}>{_number(entry.get(c, ''))}</td>" for c, kind in zip(columns, kinds, strict=True))
        rows += f"<tr><td>{escape(str(entry.get('name', 'records')))}</td>{cells}</tr>"
    table = f'<div class="scroll"><table><thead><tr><th>Set</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<h2>Data</h2>{table}" + "".join(_findings(entry) for entry in sets if entry.get("findings"))


def _findings(entry: Mapping[str, Any]) -> str:
    ordered = sorted(entry["findings"].items(), key=lambda item: -item[1])
    cells = "".join(
        f"<div><span>{escape(str(code))}</span><span>{_number(count)}</span></div>" for code, count in ordered
    )
    return (
        f'<h3>Records per finding: {escape(str(entry.get("name", "records")))}</h3><div class="findings">{cells}</div>'
    )


def _commands(commands: Mapping[str, str]) -> str:
    if not commands:
        return ""
    parts = []
    for label, command in commands.items():
        text = escape(command, quote=True)
        link = command.startswith(("http://", "https://"))
        parts.append(
            f"<div>{escape(label)}</div>"
            + (f'<pre><a href="{text}">{text}</a></pre>' if link else f"<pre>{text}</pre>")
        )
    return "<h2>Look further</h2>" + "".join(parts)


def _config(config: Any) -> str:
    if not config:
        return ""
    return f"<h2>Resolved configuration</h2><details><summary>Show every setting</summary><pre>{escape(json.dumps(config, indent=2, default=str))}</pre></details>"
