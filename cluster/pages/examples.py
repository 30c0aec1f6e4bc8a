"""Records of a shard set through a run's encoder, for its page: pictures with weights, a map, what is retrieved."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.cluster.pages.run_page import Picture
from cardialign.data_shards.errors import UserError

AMONG = 600
"""Records at most among which neighbours are looked for, and which the map shows: drawn by a fixed seed."""
NEAREST = 3


@dataclass(frozen=True)
class ShownRecords:
    """shards: folder or URL of the set; folds: of it; pictures: how many records are drawn; labels: set that colours
    the map, None: the only one."""

    shards: Path | str
    folds: Sequence[int] | None = None
    pictures: int = 3
    labels: str | None = None


@dataclass(frozen=True)
class Shown:
    """pictures and retrieval: of the same records; map: image and legend; left_out: what could not be made, and why."""

    pictures: list[Picture] = field(default_factory=list)
    retrieval: list[dict[str, Any]] = field(default_factory=list)
    map: dict[str, Any] | None = None
    left_out: list[str] = field(default_factory=list)


def show_records(folder: Path, wanted: ShownRecords) -> Shown:
    """Raises UserError for a set that cannot be read and for records that do not fit the encoder's signal contract."""
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.atlas.chart import draw_sample
    from cardialign.pretrain.export.loaded import load_encoder

    encoder, shard_set = load_encoder(folder), ShardSet.open(wanted.shards)
    encoder.reader(shard_set.spec)
    among = draw_sample(shard_set.select(folds=wanted.folds).rows, AMONG, seed=0).rows
    rows = different(shard_set, among, wanted.pictures)
    left_out: list[str] = []
    retrieval: list[dict[str, Any]] = []
    drawn = None
    try:
        retrieval = _retrieved(encoder, shard_set, among, rows)
    except UserError as error:
        left_out.append(f"retrieval: {error.problem}")
    try:
        drawn = _map(encoder, shard_set, among, wanted.labels)
    except UserError as error:
        left_out.append(f"map: {error.problem}")
    return Shown(draw_records(encoder, shard_set, rows), retrieval, drawn, left_out)


def different(shard_set: Any, rows: np.ndarray, count: int) -> list[int]:
    """The first so many of the rows, each with a report that none before it has."""
    seen: set[int] = set()
    chosen: list[int] = []
    for row in rows.tolist():
        report = int(shard_set.report[row])
        if report >= 0 and report not in seen and len(chosen) < count:
            seen.add(report)
            chosen.append(row)
    return chosen


def draw_records(encoder: Any, shard_set: Any, rows: Sequence[int]) -> list[Picture]:
    """A 12-lead picture of each, with the weights of the encoder's lead groups where it has any."""
    from cardialign.data_shards.signal.plot import draw_ecg
    from cardialign.pretrain.evaluation.atlas.weights import lead_weights

    pictures = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows:
            record = shard_set.read_record(row)
            found = lead_weights(encoder, record, shard_set.spec) if encoder.group_leads else {}
            png = Path(scratch) / "ecg.png"
            draw_ecg(record, png, weights=found)
            weights = {each.group: each.weight for each in found.values()}
            pictures.append(Picture(record.key, png.read_bytes(), ". ".join(record.statements), weights))
    return pictures


def _retrieved(encoder: Any, shard_set: Any, among: np.ndarray, rows: Sequence[int]) -> list[dict[str, Any]]:
    from cardialign.pretrain.evaluation.atlas.lookup import Asked, Found, retrieve

    def row(found: Found) -> dict[str, Any]:
        return {"cosine": f"{found.cosine:+z.3f}", "text": found.report, "own": found.own}

    return [
        {
            "key": each.key,
            "report": each.own_report,
            "reports": [row(found) for found in each.reports],
            "rank": each.rank,
            "among": each.among,
        }
        for each in retrieve(encoder, Asked(shard_set, among, NEAREST), rows)
    ]


def _map(encoder: Any, shard_set: Any, among: np.ndarray, labels: str | None) -> dict[str, Any]:
    from cardialign.pretrain.evaluation.atlas import draw
    from cardialign.pretrain.evaluation.atlas.chart import MapOptions, make_atlas

    atlas = make_atlas([("run", encoder)], shard_set, among, MapOptions(label_set=labels, records=AMONG))
    panel = draw.class_panel if atlas.label_set else draw.age_panel
    return {
        "image": base64.b64encode(panel(atlas, atlas.charts[0])).decode(),
        "legend": draw.class_legend(atlas) if atlas.label_set else [],
        "records": len(atlas.sample.rows),
        "labels": atlas.label_set,
    }
