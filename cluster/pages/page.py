"""What every HTML page of ours has: an inline style sheet, light and dark, a width that prints on A4, and a file that appears in one step."""

from __future__ import annotations

from html import escape
from pathlib import Path

STYLE = """
:root { --paper:#ffffff; --wash:#f5f7f9; --ink:#1b2530; --soft:#586573; --line:#d9dfe5; --grid:#e8ecf0; --accent:#1d5f8f; --faint:#9cc0da; --other:#8b96a1; --alarm:#a8442a; }
@media (prefers-color-scheme: dark) {
  :root { --paper:#14191f; --wash:#1b222a; --ink:#e2e8ed; --soft:#9aa7b3; --line:#323c47; --grid:#27303a; --accent:#6fb3e0; --faint:#37617f; --other:#84909c; --alarm:#e08a6d; }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); }
body { max-width: 1080px; margin: 0 auto; padding: 36px 28px 60px; font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 27px; line-height: 1.2; font-weight: 650; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 18px; font-weight: 650; margin: 44px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
p { margin: 0 0 12px; max-width: 76ch; }
.lead, .note { color: var(--soft); }
.note { font-size: 13px; }
code, pre, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 24px 0 0; }
.tile { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: 12px 14px; }
.tile b { display: block; font-size: 25px; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile.main b { color: var(--accent); }
.tile span { display: block; font-size: 13px; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; vertical-align: bottom; padding: 4px 12px 6px 0; border-bottom: 1px solid var(--line); }
td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; }
.zero-shot td { padding-top: 0; padding-bottom: 0; vertical-align: middle; height: 26px; border-bottom: none; white-space: nowrap; }
.zero-shot tbody tr:nth-child(even) td { background: var(--wash); }
.zero-shot td:first-child { padding-left: 8px; } .zero-shot th:first-child { padding-left: 8px; }
.zero-shot td.plot, .zero-shot th.plot { padding: 0 0 0 10px; width: 310px; }
.note { margin-top: 10px; }
.zero-shot tr.macro td { font-weight: 650; } .zero-shot tr.macro td.interval-text { font-weight: 400; } .zero-shot tr.last-macro td { border-bottom: 1px solid var(--line); }
.zero-shot .interval-text { color: var(--soft); font-weight: 400; }
.code { color: var(--soft); font-size: 12px; margin-left: 6px; font-weight: 400; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 5px 22px; margin: 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.findings { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 3px 26px; font-size: 13px; margin: 0 0 18px; font-variant-numeric: tabular-nums; }
.findings div { display: flex; justify-content: space-between; border-bottom: 1px dotted var(--line); }
h3 { font-size: 14px; font-weight: 600; margin: 18px 0 6px; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 18px 26px; }
figure { margin: 0; } .panel figcaption { font-size: 14px; font-weight: 600; margin: 0 0 2px 2px; } .panel figcaption span { color: var(--soft); font-weight: 400; }
svg { display: block; } svg.chart { width: 100%; height: auto; } svg.interval { width: 300px; max-width: none; margin-left: auto; }
svg text { font-family: inherit; } .tick, .axis-label { font-size: 12px; font-weight: 400; fill: var(--soft); } .bar-label { font-size: 13px; fill: var(--ink); }
.grid { stroke: var(--grid); stroke-width: 1; } tr:nth-child(even) .grid { stroke: var(--line); } .axis { stroke: var(--other); stroke-width: 1; }
.chance { stroke: var(--other); stroke-width: 1; stroke-dasharray: 3 3; } .reference { stroke: var(--other); stroke-dasharray: 4 4; }
.curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; } .curve.dot { fill: var(--accent); }
.raw { fill: none; stroke: var(--faint); stroke-width: 1; opacity: 0.8; }
line.trained { stroke: var(--accent); stroke-width: 2.4; } circle.trained { fill: var(--accent); }
line.untrained { stroke: var(--other); stroke-width: 1.4; } circle.untrained { fill: var(--paper); stroke: var(--other); stroke-width: 1.5; }
.track { fill: var(--grid); } .bar { fill: var(--accent); }
.legend { display: inline-flex; gap: 20px; font-size: 13px; color: var(--soft); align-items: center; margin: 0 0 8px; }
.legend span { display: inline-flex; gap: 7px; align-items: center; }
.recording { margin: 0 0 30px; } .recording img { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; background: #fff; }
.recording h3 { margin: 0 0 6px; } .recording .below { display: grid; grid-template-columns: 1fr 280px; gap: 24px; align-items: start; margin-top: 10px; }
.recording .below h4 { font-size: 13px; color: var(--soft); font-weight: 600; margin: 0 0 4px; } .recording svg.bars { max-width: 100%; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 5px; padding: 9px 12px; margin: 3px 0 14px; white-space: pre-wrap; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); font-size: 14px; } a { color: var(--accent); }
footer { margin-top: 48px; padding-top: 10px; border-top: 1px solid var(--line); color: var(--soft); font-size: 13px; }
@media screen and (max-width: 960px) { .scroll { overflow-x: auto; } }
@media screen and (max-width: 760px) { .recording .below { grid-template-columns: 1fr; } .panels { grid-template-columns: 1fr; } .legend { flex-wrap: wrap; gap: 4px 18px; white-space: nowrap; } }
@media print {
  :root { --paper:#fff; --wash:#f5f7f9; --ink:#000; --soft:#444; --line:#ccc; --grid:#e5e5e5; --accent:#1d5f8f; --faint:#9cc0da; --other:#777; }
  @page { size: A4; margin: 14mm; } body { max-width: none; padding: 0; font-size: 12px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .tiles { grid-template-columns: repeat(5, 1fr); gap: 8px; } .tile { padding: 8px 9px; } .tile b { font-size: 18px; } .tile span { font-size: 10px; }
  table, .legend, .note { font-size: 11px; } th { font-size: 10.5px; padding-right: 7px; } td { padding-right: 7px; } .panel figcaption { font-size: 12px; } .code { font-size: 9.5px; margin-left: 4px; }
  .zero-shot td { height: 20px; } .zero-shot td.plot, .zero-shot th.plot { width: 150px; padding-left: 0; } svg.interval { width: 150px; height: 13px; } .zero-shot .tick { font-size: 19px; }
  .panels { grid-template-columns: 1fr 1fr; gap: 10px 14px; } .tile, figure, .recording, tr, pre { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""


def write_page(path: Path | str, title: str, body: str) -> Path:
    """One self-contained page with this title (escaped here) and body (HTML) as `path`, replaced in one step; returns the path."""
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path
