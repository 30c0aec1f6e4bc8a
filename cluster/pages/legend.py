"""Entries of a map's legend as templates draw them (`templates/legend.html`)."""

from __future__ import annotations

from typing import Any

from cardialign.pretrain.evaluation.atlas import draw
from cardialign.pretrain.evaluation.atlas.chart import OTHER, SEVERAL


def legend_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """kind: "class" (with colour and mark), "several", "other" or "unlabelled"."""
    place = entry["place"]
    kind = {SEVERAL: "several", OTHER: "other"}.get(place, "unlabelled" if place < 0 else "class")
    colour, mark = (draw.PALETTE[place], draw.MARKS[place]) if place >= 0 else ("", "")
    return {"words": entry["words"], "records": entry["records"], "kind": kind, "colour": colour, "mark": mark}
