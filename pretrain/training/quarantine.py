"""Records that cannot be read during a run:
agreed by all ranks, replaced on all ranks, written down, and counted against the error budget.

quarantine.jsonl in the run directory has one line per quarantined record, with the step from which it counts as
unreadable. It is written before the step is trained and read at every start, so that a run that is killed, or whose
record was repaired meanwhile, replays the same substitutes.

Only damage of a record gets in (`fault: record`). Storage that does not give a shard stops the run instead. Earlier
releases wrote such records down as well: their lines are judged again at the next start, and a record that can be read
by then is released by a line of its own. Nothing is ever taken out of the file; lines that are none of ours are named
and left where they are.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cardialign.data_shards.errors import DataError, StorageError, UserError
from cardialign.data_shards.files import is_count, parse_json, read_bytes, shortened
from cardialign.data_shards.order.contract import Order
from cardialign.data_shards.order.substitutes import BadSample, describe_bad, substitutes
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.payloads import REMEDY
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal.codec import decode_counts
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.stream.stream import ShardStream
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import QUARANTINE
from cardialign.pretrain.training.collectives import fail_together, on_rank_zero

log = logging.getLogger(__name__)

_FIELDS = tuple(BadSample.__dataclass_fields__)
_WORDS = ("key", "shard", "problem")
_OF_A_RECORD = ("does not match its crc32", "ECG payload", "payload holds")
"""What earlier releases said of a record that was damaged itself."""


def allowed_bad(max_bad_fraction: float, records: int) -> int:
    """Records that a run may lose: the fraction of the selected ones, rounded down, but at least 1;
    none when the fraction is 0.
    """
    return max(1, math.floor(max_bad_fraction * records)) if max_bad_fraction > 0 else 0


@dataclass(frozen=True)
class Entry:
    """A quarantined record. `doubtful`: an earlier release wrote it, and the storage may have been to blame."""

    step: int
    sample: BadSample
    doubtful: bool = False


def read_quarantine(run_dir: Path, selection_fingerprint: str) -> dict[int, Entry]:
    """Row -> entry of a run's quarantined records, without those that were released later.

    Lines of another selection do not count, nor does a last line that a crash cut short; any other line that is none of
    ours is named in a warning. Raises DataError when the file cannot be read.
    """
    found: dict[int, Entry] = {}
    path = run_dir / QUARANTINE
    strange: list[int] = []
    for number, text in enumerate(_lines(path), start=1):
        try:
            line = parse_json(text)
            if line["selection"] != selection_fingerprint:
                continue
            if "released" in line:
                found.pop(_number(line["released"]), None)
                continue
            entry = _entry(line)
        except (ValueError, KeyError, TypeError):
            strange.append(number)
            continue
        row = entry.sample.row
        if row not in found or entry.step < found[row].step:
            found[row] = entry
    if strange:
        log.warning(
            "action=ignore file=%s lines=%s: no entries of a quarantine, left as they are; if one was, its record is "
            "met and written down again",
            path,
            ",".join(map(str, strange[:10])) + (",..." if len(strange) > 10 else ""),
        )
    return found


def _lines(path: Path) -> list[bytes]:
    """The whole lines of the file, as bytes: whatever they hold, it is judged line by line."""
    try:
        *whole, last = read_bytes(path).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            "it says which records this run does without; put the file back, or move away what lies in its place",
        ) from error
    # a last line without its end was cut short, unless it lost no more than the end
    return [*whole, last] if last.endswith(b"}") else whole


def _number(value: Any) -> int:
    if not is_count(value):
        raise ValueError(f"{shortened(value)} is no number")
    return int(value)


def _entry(line: dict[str, Any]) -> Entry:
    values: dict[str, Any] = {name: line[name] if name in _WORDS else _number(line[name]) for name in _FIELDS}
    if not all(isinstance(values[name], str) for name in _WORDS):
        raise ValueError("a name is no text")
    sample = BadSample(**values)
    doubtful = line.get("fault") != "record" and not any(words in sample.problem for words in _OF_A_RECORD)
    return Entry(_number(line["step"]), sample, doubtful)


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Raises DataError when the file cannot be written: the step that needs the lines is then not trained."""
    try:
        torn = path.is_file() and path.stat().st_size > 0 and not read_bytes(path).endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + "".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error}",
            "free space there and see that it may be written to, then run the same command again",
        ) from error


class Quarantine:
    """The quarantined records of a run, the same on every rank. Made and called by all ranks together.

    `rows` (row -> step) is the dict to give to `ShardStream`. Raises DataError, the same on every rank, as soon as more
    records are quarantined than `max_bad_fraction` of the selected ones allows (see `allowed_bad`), and StorageError,
    the same on every rank, when the storage does not give what a substitute is to be read from.
    """

    def __init__(
        self,
        run_dir: Path,
        order: Order,
        selection_fingerprint: str,
        records: int,
        max_bad_fraction: float,
        shards: ShardSet | JoinedSets,
    ) -> None:
        self._path, self._order, self._selection = run_dir / QUARANTINE, order, selection_fingerprint
        self._fraction, self._records = max_bad_fraction, records
        found = on_rank_zero(lambda: self._judged(read_quarantine(run_dir, selection_fingerprint), shards))
        self._samples = {row: entry.sample for row, entry in found.items()}
        self.rows = {row: entry.step for row, entry in found.items()}
        self._check_budget()

    def _judged(self, found: dict[int, Entry], shards: ShardSet | JoinedSets) -> dict[int, Entry]:
        """The entries that still count: a doubtful one is read again, and released when it is whole.

        Raises StorageError when the storage is still away.
        """
        kept = dict(found)
        for row, entry in found.items():
            if row >= len(shards):
                raise DataError(
                    f"{self._path} names row {row}; the shard set has {len(shards)} records",
                    "the line is damaged; correct it, or take it out",
                )
            if not entry.doubtful:
                continue
            try:
                decode_counts(shards.read_payload(row), samples=shards.spec.samples)
            except StorageError:
                raise
            except DataError:
                continue
            _append(self._path, [{"released": row, "key": entry.sample.key, "selection": self._selection}])
            log.warning("action=release step=%d reason=it-can-be-read-now %s", entry.step, entry.sample.where())
            del kept[row]
        return kept

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
            fail_together(self._substituted(stream, batch))
            bad = self._gather(batch.bad)
            if not bad:
                break
        if fresh:
            on_rank_zero(lambda: self._write(batch, fresh))
        self._check_budget()

    def _substituted(self, stream: ShardStream, batch: Batch) -> UserError | None:
        """What this rank met on the way, for all ranks to know: none may be left waiting for one that is gone."""
        try:
            stream.substitute(batch, substitutes(self._order, batch.step, self.rows))
        except UserError as error:
            return error
        return None

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
            lines.append(
                {
                    "step": batch.step,
                    **asdict(sample),
                    "fault": "record",
                    "substitute": stand_in,
                    "selection": self._selection,
                }
            )
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
