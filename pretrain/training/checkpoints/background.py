"""Writing a checkpoint behind the steps that follow it, and the commit that all ranks hear of at a step boundary.

The step pays for a copy to host memory (`snapshot`). Then a thread of each rank writes its files, flushes them and
leaves a receipt with their sizes and digests in the temporary folder; the thread of rank 0 waits for all receipts and
commits. The threads speak through files alone: a collective there would mix with those of the steps. Whoever dies on
the way leaves a temporary folder, which the next start sweeps away.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import commit_file, difference, read_json
from cardialign.pretrain.config import TrainingConfig
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.moves import moved
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.save import (
    commit_and_prune,
    not_written,
    open_folder,
    raise_together,
    save_checkpoint,
)
from cardialign.pretrain.training.checkpoints.snapshot import HostBuffers, Share, take_share
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.collectives import fail_together, on_rank_zero
from cardialign.pretrain.training.engine import Workers

log = logging.getLogger(__name__)

RECEIPTS = "receipts"
LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 1800.0
"""How long the files of other ranks may stand still before a checkpoint is given up: as long as a collective waits."""
HURRY_SECONDS = 20.0
"""The same once the loop has failed: another rank may be gone."""


class Writing(threading.Thread):
    """One checkpoint on its way to the disk, on one rank: all ranks are `writers`, and rank 0 `commits`.

    error: why it was not written, once the thread has ended. seconds: until it was committed, on ranks that do not
    commit until their receipt.
    """

    def __init__(self, run_dir: Path, state: TrainerState, share: Share, workers: Workers, keep: int) -> None:
        super().__init__(name=f"checkpoint-{state.step}", daemon=True)
        self.run_dir, self.state, self.share, self.keep = run_dir, state, share, keep
        self.rank, self.writers, self.commits = workers.rank, set(range(workers.world_size)), 0
        self.folder = files.temporary_path(run_dir, state.step)
        self.error: UserError | None = None
        self.seconds = 0.0
        self.patience = PATIENCE_SECONDS
        self.given_up = threading.Event()
        self._began = time.perf_counter()

    @property
    def committed(self) -> bool:
        """Whether this rank knows it: the one that commits."""
        return self.rank == self.commits and not self.is_alive() and self.error is None

    def run(self) -> None:
        try:
            entries = self._write()
            self._leave_receipt({"files": entries})
            if self.rank == self.commits:
                self._commit()
        except UserError as error:
            self.error = error
        except (OSError, RuntimeError, SafetensorError) as error:
            self.error = not_written(f"rank {self.rank}: {error}", self.run_dir)
        except Exception as error:  # a defect: the run ends with it on all ranks, as with a full disk
            log.exception("checkpoint=%s action=give-up", self.folder)
            self.error = not_written(f"rank {self.rank}: {type(error).__name__}: {error}", self.run_dir)
        self.seconds = time.perf_counter() - self._began
        if self.error is not None:
            self._clear_up(self.error)

    def _write(self) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        for name, write in self.share.writers().items():
            self._go_on()
            write(self.folder)
            moved()
            entries |= files.seal(self.folder, [name])
            moved()
        return entries

    def _go_on(self) -> None:
        fence.check(self.run_dir)
        if self.given_up.is_set():
            raise not_written(f"rank {self.rank}: the run ended while it was written", self.run_dir)

    def _receipt(self, rank: int) -> Path:
        return self.folder / RECEIPTS / f"rank-{rank:05d}.json"

    def _leave_receipt(self, values: Mapping[str, Any]) -> None:
        self._go_on()
        text = json.dumps(values)
        commit_file(self._receipt(self.rank), lambda temporary: temporary.write_text(text), durable=False)

    def _commit(self) -> None:
        entries = self._all_receipts()
        for name, entry in entries.items():
            self._arrived(name, files.FileFacts(entry["sha256"], entry["bytes"]))
        files.remove(self.folder / RECEIPTS)
        self._go_on()
        commit_and_prune(self.run_dir, self.state, entries, self.keep, self.folder)

    def _all_receipts(self) -> dict[str, Any]:
        """Name -> digest and size of the files of all ranks. Raises CheckpointError of a rank that could not write, or
        that has stood still for longer than `patience`."""
        missing, entries = set(self.writers), dict[str, Any]()
        last, moved = None, time.monotonic()
        while True:
            for rank in sorted(missing):
                receipt = read_json(self._receipt(rank))
                if receipt is None:
                    continue
                if "problem" in receipt:
                    raise not_written(f"rank {rank}: {receipt['problem']}", self.run_dir)
                entries |= receipt["files"]
                missing.discard(rank)
            if not missing:
                return entries
            self._go_on()
            now = time.monotonic()
            if (seen := files.sizes_below(self.folder)) != last:
                last, moved = seen, now
            elif now - moved > self.patience:
                named = ", ".join(map(str, sorted(missing)))
                raise not_written(f"rank {named}: nothing was written for {now - moved:.0f} s", self.run_dir)
            self.given_up.wait(LOOK_SECONDS)

    def _arrived(self, name: str, listed: files.FileFacts) -> None:
        """A network file system may show a file of another host late: until it has its size here."""
        deadline = time.monotonic() + fence.SEEN_SECONDS
        while (differs := difference(self.folder / name, listed, quick=True)) is not None:
            self._go_on()
            if time.monotonic() > deadline:
                raise not_written(f"{name}: {differs.bytes} bytes instead of {differs.listed}", self.run_dir)
            time.sleep(LOOK_SECONDS)

    def _clear_up(self, error: UserError) -> None:
        """Who commits takes the folder away, first its name from those who still write; others say what went wrong."""
        log.warning("checkpoint=%s action=give-up reason=%s", self.folder, error.problem)
        if fence.fenced_out(self.run_dir):
            return  # the folder is the successor's to sweep
        try:
            if self.rank != self.commits:
                problem = error.problem.partition(f"rank {self.rank}: ")[2] or error.problem
                text = json.dumps({"problem": problem.partition(" (")[0]})
                commit_file(self._receipt(self.rank), lambda temporary: temporary.write_text(text), durable=False)
            else:
                aside = self.folder.with_name(f"{self.folder.name}-given-up")
                self.folder.rename(aside)
                files.remove(aside)
        except OSError as problem:
            log.warning("checkpoint=%s action=leave error=%s", self.folder, problem)

    def wait_for_commit(self) -> None:
        """Until it is committed or given up, without a collective: at the end of a run that has failed."""
        self.patience = min(self.patience, HURRY_SECONDS)
        self.join()
        last, moved = None, time.monotonic()
        while self.rank != self.commits and self.error is None and self.folder.exists():
            if fence.fenced_out(self.run_dir) or time.monotonic() - moved > self.patience:
                return
            if (seen := files.sizes_below(self.folder)) != last:
                last, moved = seen, time.monotonic()
            time.sleep(LOOK_SECONDS)


class Checkpoints:
    """How the loop saves, one per rank: `background`, behind the steps that follow, or in the step itself.

    As a context it waits for the commit of what was begun, however the loop ends.

    saved: step of the newest checkpoint that was begun; at the start that which the run goes on from, -1 without one.
    settled: step of the newest that all ranks know to be committed. commit_seconds: see `Writing.seconds`.
    """

    def __init__(self, engine: Any, run_dir: Path, workers: Workers, training: TrainingConfig, saved: int = -1) -> None:
        self.engine, self.run_dir, self.workers = engine, run_dir, workers
        self.keep, self.background = training.keep_checkpoints, training.checkpoint_writing == "background"
        self.saved = self.settled = saved
        self.commit_seconds = 0.0
        self._writing: Writing | None = None
        self._buffers = HostBuffers(pinned=workers.device.type == "cuda")

    def save(self, state: TrainerState, problem: str | None = None) -> None:
        """Begin a checkpoint (or write it), called by all ranks at the same step, once the one before is committed.

        problem: what this rank could not write of what belongs to the step, such as its trace; then nothing is written.
        Raises CheckpointError on every rank: that of the checkpoint before, or when this one cannot be begun.
        """
        self.finish()
        if not self.background:
            save_checkpoint(self.engine, self.run_dir, state, self.workers, keep=self.keep, problem=problem)
            self.saved = self.settled = state.step
            return
        folder = files.temporary_path(self.run_dir, state.step)
        raise_together(problem, self.run_dir, folder)
        on_rank_zero(lambda: open_behind(self.run_dir, folder))
        share, problem = take_share(self.engine, folder, state, self.workers, self._buffers)
        raise_together(problem, self.run_dir, folder)
        self._writing = Writing(self.run_dir, state, share, self.workers, self.keep)
        self._writing.start()
        self.saved = state.step

    @property
    def host_bytes(self) -> int:
        """What the copies of this rank hold."""
        return self._buffers.bytes

    @property
    def committed(self) -> int:
        """Step of the newest checkpoint that this rank knows to be committed: rank 0 before the others."""
        if self._writing is not None and self._writing.committed:
            return self._writing.state.step
        return self.settled

    def settle(self, step: int) -> None:
        """All ranks have heard that the checkpoint of `step` is committed."""
        self.settled = max(self.settled, step)

    def problem(self) -> UserError | None:
        """Why the checkpoint on its way was not written, as far as this rank knows."""
        writing = self._writing
        if writing is None or writing.is_alive():
            return None
        self.commit_seconds = writing.seconds
        return writing.error

    def finish(self) -> None:
        """Wait until the checkpoint on its way is committed. A collective. Raises CheckpointError on every rank."""
        writing = self._writing
        if writing is None:
            return
        if writing.is_alive():
            log.info("checkpoint=%s action=wait-for-commit", writing.folder)
        writing.join()
        fail_together(self.problem())
        self._writing = None
        self.settle(writing.state.step)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        writing, self._writing = self._writing, None
        if writing is None:
            return
        if isinstance(error, files.CheckpointError):  # of a rank that could not write: nobody waits for its receipt
            writing.given_up.set()
        writing.wait_for_commit()


def open_behind(run_dir: Path, folder: Path) -> None:
    """Make the folder that the threads write into, by one process. Raises CheckpointError where it cannot be made."""
    open_folder(run_dir, folder)
    try:
        (folder / RECEIPTS).mkdir()
    except OSError as error:
        raise not_written(str(error), folder.parent) from None
