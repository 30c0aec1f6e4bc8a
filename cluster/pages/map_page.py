"""The map of an encoder, or of two beside each other, as one self-contained page; `templates/map.html` is its look."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

from cardialign.cluster.pages.legend import legend_entry
from cardialign.cluster.pages.page import write_page
from cardialign.pretrain.evaluation.atlas import draw
from cardialign.pretrain.evaluation.atlas.chart import Atlas, Chart
from cardialign.pretrain.evaluation.result import overlap_note

MOST_PANELS = 60
"""Classes with a panel of their own, the most frequent first."""


def write_map_page(path: Path, atlas: Atlas) -> Path:
    """Write the page to `path` (replaced in one step) and return it. No record is named on it."""
    told = atlas.to_dict()
    names = [chart.name for chart in atlas.charts]
    return write_page(
        path,
        "map.html",
        title="Map of " + " and ".join(names),
        summary=f"Where an encoder puts {atlas.sample.words}: near on the map is near in its embedding.",
        tiles=_tiles(atlas, told),
        names=names,
        label_set=atlas.label_set,
        by_class=[_image(draw.class_panel(atlas, chart)) for chart in atlas.charts],
        legend=[legend_entry(entry) for entry in draw.class_legend(atlas)],
        by_age=[_image(draw.age_panel(atlas, chart)) for chart in atlas.charts],
        ages=_ages(atlas),
        each=_each(atlas),
        table=_table(told),
        notes=_notes(atlas, told),
        facts=_facts(atlas, told),
    )


def _image(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _ages(atlas: Atlas) -> dict[str, Any] | None:
    ticks = draw.age_ticks(atlas)
    if not ticks:
        return None
    unknown = int((~(atlas.about.ages >= 0)).sum())
    return {"bar": _image(draw.age_bar()), "ticks": [(100 * at, words) for at, words in ticks], "unknown": unknown}


def _each(atlas: Atlas) -> list[dict[str, Any]]:
    """A panel per class and encoder: a record with several classes is in each of theirs."""
    counts = atlas.about.truth.sum(axis=0)
    order = sorted((c for c in range(len(counts)) if counts[c]), key=lambda c: (-counts[c], atlas.about.names[c]))
    panels = []
    for column in order[:MOST_PANELS]:
        code, name = atlas.about.names[column]
        images = [_image(draw.one_class_panel(atlas, chart, column)) for chart in atlas.charts]
        panels.append(
            {"code": code, "name": name if name != code else "", "count": int(counts[column]), "images": images}
        )
    return panels


def _share(value: float | None) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


def _interval(figure: dict[str, Any], scale: float, unit: str, sign: str = "") -> str:
    if figure["value"] is None:
        return "n/a"
    value = f"{scale * figure['value']:{sign}z.1f}{unit}"
    if figure["low"] is None:
        return value
    return f"{value} ({scale * figure['low']:{sign}z.1f} to {scale * figure['high']:{sign}z.1f})"


def _tiles(atlas: Atlas, told: dict[str, Any]) -> list[dict[str, Any]]:
    known = f"{told['labelled']:,} labelled in {atlas.label_set}" if atlas.label_set else "no labels"
    counts = f"{told['patients']:,} patients", known
    tiles = [{"figure": f"{told['records']:,}", "lines": ["records", *counts], "main": False}]
    for chart in told["charts"] if atlas.label_set else ():
        lines = [
            f"of a record's {chart['neighbours']} nearest share a class of it",
            f"by chance {_share(chart['sharing_by_chance']['value'])}",
            chart["encoder"],
        ]
        tiles.append({"figure": _share(chart["sharing"]["value"]), "lines": lines, "main": True})
    for chart in told["charts"]:
        if chart["years"]["value"] is not None:
            lines = [
                f"apart in age from its {chart['neighbours']} nearest",
                f"from all others {chart['years_by_chance']['value']:.0f}",
                chart["encoder"],
            ]
            tiles.append({"figure": f"{chart['years']['value']:.0f} years", "lines": lines, "main": False})
    return tiles


def _table(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Per class: records, and of their nearest the share that has it too, per encoder and by chance."""
    rows = []
    for place, each in enumerate(told["classes"]):
        if each["records"]:
            own = [chart["classes"][place] for chart in told["charts"]]
            shares, chance = [_share(one["sharing"]) for one in own], _share(own[0]["by_chance"])
            rows.append({"code": each["code"], "name": each["name"], "count": each["records"], "shares": shares,
                         "chance": chance})  # fmt: skip
    return sorted(rows, key=lambda row: -row["count"])


def _notes(atlas: Atlas, told: dict[str, Any]) -> list[str]:
    notes = []
    if differences := told["differences"]:
        first, second = (chart.name for chart in atlas.charts)
        if atlas.label_set:
            shared = _interval(differences["sharing"], 100, " points", "+")
            notes.append(f"{first} less {second}, by patient: neighbours that share a class {shared}.")
        if differences["years"]["value"] is not None:
            notes.append(f"Difference of age to the neighbours: {_interval(differences['years'], 1, ' years', '+')}.")
    if told["left_open"]:
        listed = ", ".join(f"{code} ({count})" for code, count in told["left_open"].items())
        notes.append(f"Drawn without a class that their codes leave open: {listed} records.")
    notes += [f"{chart.name}: {_sentence(overlap_note(chart.trained_on))}" for chart in atlas.charts]
    return notes


def _sentence(words: str) -> str:
    return words if words.endswith(".") else f"{words}."


def _facts(atlas: Atlas, told: dict[str, Any]) -> dict[str, str]:
    def known(chart: Chart) -> str:
        return f"{chart.name}, digest {chart.digest[:24]}"

    return {
        "Encoders" if len(atlas.charts) > 1 else "Encoder": "; ".join(map(known, atlas.charts)),
        "Shard set": f"fingerprint {atlas.shards[:24]}",
        "Records": atlas.sample.words,
        "Layout": f"t-SNE from the first two principal components, perplexity {atlas.perplexity:.3g}, seed "
        f"{atlas.sample.seed}, one thread",
        "Neighbours": f"the {told['charts'][0]['neighbours']} of other patients with the largest cosine, in the "
        "embedding itself, not on the map",
    }
