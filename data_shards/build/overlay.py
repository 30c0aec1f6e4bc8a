"""Writing other reports beside a shard set (`shard_set.overlay`): every record's statements in, distinct reports and
their numbers out, whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.build.report_table import ReportTable
from cardialign.data_shards.errors import UserError, disk_error
from cardialign.data_shards.files import commit_folder, facts_of, write_json
from cardialign.data_shards.shard_set.layout import REPORTS
from cardialign.data_shards.shard_set.overlay import OVERLAY, OVERLAY_VERSION, ROW_REPORTS, ReportsOverlay
from cardialign.data_shards.shard_set.shard_set import ShardSet

log = logging.getLogger(__name__)


def check_new(out: Path) -> None:
    """Raises UserError where the reports cannot be made at `out`: to be asked before hours of work."""
    if out.exists():
        raise UserError(f"{out} exists already", "name a new folder, or remove that one first")


def write_overlay(
    shard_set: ShardSet, out: Path, statements: Iterable[Sequence[Sequence[str]]], step: dict[str, Any]
) -> ReportsOverlay:
    """The new folder `out` with these statements of every record of the set, in its order, some records at a time.

    step: what was done to the reports of `shard_set`, JSON-able; what was done before, where it is read with an overlay
    itself, stays in front. Raises UserError where `out` exists, DataError when the disk is full.
    """
    check_new(out)
    made = [*([] if shard_set.overlay is None else shard_set.overlay.made), step]
    try:
        with commit_folder(out) as folder:
            with ReportTable(folder / f".{REPORTS}.texts") as table:
                parts = [table.add(some) for some in statements]
                numbers = np.concatenate([np.empty(0, dtype=np.int32), *parts])
                table.write(folder / REPORTS)
            assert np.array_equal(numbers < 0, shard_set.report < 0), "a record with a report keeps one, another none"
            np.save(folder / ROW_REPORTS, numbers)
            values = {
                "version": OVERLAY_VERSION,
                "shards": shard_set.fingerprint,
                "records": len(numbers),
                "reports": len(table),
                "made": made,
                "files": {name: asdict(facts_of(folder / name)) for name in (REPORTS, ROW_REPORTS)},
            }
            write_json(folder / OVERLAY, values, indent=1, sort_keys=True, ensure_ascii=False)
    except OSError as error:
        if out.exists():  # another process was faster
            check_new(out)
        raise disk_error(error, out) from error
    log.info("reports=%s records=%d distinct=%d", out, len(numbers), len(table))
    return ReportsOverlay(out, shard_set.fingerprint, len(shard_set))
