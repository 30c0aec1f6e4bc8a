"""Records that cannot be read during a run:
agreed by all ranks, replaced on all ranks, written down, and counted against the error budget.

quarantine.jsonl in the run directory has one line per quarantined record, with the step from which it counts as
unreadable. It is written before the step is trained and read at every start, so that a run that is killed, or whose
storage has recovered meanwhile, replays the same substitutes.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.order.contract import Order
from cardialign.data_shards.order.substitutes import BadSample, describe_bad, substitutes
from cardialign.data_shards.shard_set.payloads import REMEDY
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.stream.stream import ShardStream
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import QUARANTINE
from cardialign.pretrain.training.collectives import on_rank_zero

log = logging.getLogger(__name__)

_FIELDS = tuple(BadSample.__dataclass_fields__)


def allowed_bad(max_bad_fraction: float, records: int) -> int:
    """Records that a run may lose: the fraction of the selected ones, rounded down, but at least 1;
    none when the fraction is 0.
    """
    return max(1, math.floor(max_bad_fraction * records)) if max_bad_fraction > 0 else 0


def read_quarantine(run_dir: Path, selection_fingerprint: str) -> dict[int, tuple[int, BadSample]]:
    """Row -> (step, sample) of a run's quarantined records;
    lines of another selection, or cut short by a crash, do not count.
    """
    found: dict[int, tuple[int, BadSample]] = {}
    path = run_dir / QUARANTINE
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
            step, sample = int(line["step"]), BadSample(**{name: line[name] for name in _FIELDS})
        except (ValueError, KeyError, TypeError):
            continue
        if line.get("selection") == selection_fingerprint and (sample.row not in found or step < found[sample.row][0]):
            found[sample.row] = step, sample
    return found


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + "".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


class Quarantine:
    """The quarantined records of a run, the same on every rank. Made and called by all ranks together.

    `rows` (row -> step) is the dict to give to `ShardStream`. Raises DataError, the same on every rank, as soon as more
    records are quarantined than `max_bad_fraction` of the selected ones allows (see `allowed_bad`).
    """

    def __init__(
        self, run_dir: Path, order: Order, selection_fingerprint: str, records: int, max_bad_fraction: float
    ) -> None:
        self._path, self._order, self._selection = run_dir / QUARANTINE, order, selection_fingerprint
        self._fraction, self._records = max_bad_fraction, records
        found = on_rank_zero(lambda: read_quarantine(run_dir, selection_fingerprint))
        self._samples = {row: sample for row, (_, sample) in found.items()}
        self.rows = {row: step for row, (step, _) in found.items()}
        self._check_budget()

    def touches(self, batch: Batch) -> bool:
        """This rank could not read its part of the batch, or the batch holds a record that is quarantined by now.

        It may have been read before.
        """
        return bool(batch.bad) or any(
            self.rows.get(row, batch.step + 1) <= batch.step for row in batch.global_rows.tolist() if self.rows
        )

    def settle(self, stream: ShardStream, batch: Batch) -> None:
        """Put substitutes for everything unreadable into the batch of this step.

        Also for substitutes that cannot be read either. Called on every rank when the batch of any rank is touched.
        """
        fresh: list[BadSample] = []
        bad = self._gather(batch.bad)
        while True:
            news = [sample for sample in bad if self.rows.get(sample.row, batch.step + 1) > batch.step]
            for sample in news:
                self.rows[sample.row], self._samples[sample.row] = batch.step, sample
            fresh += news
            if len(self.rows) > allowed_bad(self._fraction, self._records):
                break
            stream.substitute(batch, substitutes(self._order, batch.step, self.rows))
            bad = self._gather(batch.bad)
            if not bad:
                break
        if fresh:
            on_rank_zero(lambda: self._write(batch, fresh))
        self._check_budget()

    @staticmethod
    def _gather(mine: list[BadSample]) -> list[BadSample]:
        everyone: list[list[BadSample]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine)
        return sorted((sample for share in everyone for sample in share), key=lambda sample: sample.position)

    def _write(self, batch: Batch, fresh: list[BadSample]) -> None:
        lines = []
        for sample in fresh:
            now = int(batch.global_rows[sample.position])
            stand_in = None if now in self.rows else now  # beyond the budget nothing is put in its place
            lines.append({"step": batch.step, **asdict(sample), "substitute": stand_in, "selection": self._selection})
            log.warning("action=quarantine step=%d substitute=%s %s", batch.step, stand_in, sample.where())
        fence.check(self._path.parent)
        _append(self._path, lines)

    def _check_budget(self) -> None:
        allowed = allowed_bad(self._fraction, self._records)
        if len(self.rows) <= allowed:
            return
        last = max(self._samples.values(), key=lambda sample: (self.rows[sample.row], sample.position))
        raise DataError(
            f"{len(self.rows)} of {self._records} selected records could not be read, "
            f"data.max_bad_fraction {self._fraction:g} allows {allowed}: "
            f"{describe_bad(self._samples.values())}; last: {last.where()}",
            f"{REMEDY}; then delete {self._path} and run again, or raise data.max_bad_fraction",
        )
