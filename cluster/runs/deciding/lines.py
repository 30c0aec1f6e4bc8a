"""What was decided about a run, as its driver tells and ends it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from cardialign.cluster.environment.sizes import Sizes
from cardialign.cluster.runs.deciding.keeper import LONGEST_CAUSE, note
from cardialign.cluster.watching.decisions import Decision, read_decisions
from cardialign.cluster.watching.state import spool_end
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import DECISIONS, METRICS, RESIZE, STOP

log = logging.getLogger(__name__)


class DecisionLines:
    """Of one start: those that its controller writes down, and how the driver ends it."""

    def __init__(self, run_dir: Path, sizes: Sizes) -> None:
        self.run_dir, self.sizes = run_dir, sizes
        self._before = len(read_decisions(run_dir))
        self._told, self._size = self._before, self._bytes()

    @property
    def made(self) -> list[Decision]:
        """Of this start."""
        return read_decisions(self.run_dir, self._before)

    @property
    def planned(self) -> int:
        """Worker groups that were ended at a checkpoint for a larger one: nothing was lost with them."""
        return sum(each.planned for each in self.made)

    @property
    def workers(self) -> int:
        """Of the newest worker group."""
        return next((each.after for each in reversed(self.made) if each.after), self.sizes.most)

    def look(self) -> None:
        """Tell what has been decided since the last look."""
        if (size := self._bytes()) == self._size:
            return
        self._size = size
        for decision in read_decisions(self.run_dir, self._told):
            self._told += 1
            log.warning("decision %s", decision.told())

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """What ends the run in here is written down as the decision to stop; a run that was taken over is not ours."""
        try:
            yield
        except fence.FencedOutError:
            raise
        except BaseException as error:
            problem = str(getattr(error, "problem", "")) or str(error)
            self.stop("Ctrl-C" if isinstance(error, KeyboardInterrupt) else problem or type(error).__name__)
            raise

    def stopped(self) -> None:
        """The run has ended at a checkpoint, as it was asked."""
        asked = ""
        with contextlib.suppress(OSError):
            asked = (self.run_dir / STOP).read_text(errors="replace").strip()
        self.stop(f"asked to stop ({asked[:80] or STOP}); a checkpoint was committed")

    def stop(self, cause: str) -> None:
        """Write it down, unless the controller has."""
        self.look()
        made = self.made
        if made and made[-1].kind == "stop":
            return
        last = made[-1] if made else Decision("retry", "", self.sizes.most, self.sizes.most, 0)
        step = max((int(line["step"]) for line in spool_end(self.run_dir / METRICS)), default=0)
        cause = shown(cause)[:LONGEST_CAUSE]
        note(self.run_dir, Decision("stop", cause, self.workers, 0, last.attempt + 1, last.failures, last.of, step))
        self._size, self._told = self._bytes(), self._told + 1

    def close(self) -> None:
        """A request to grow that the run has left behind, having ended before it could."""
        if not fence.fenced_out(self.run_dir):
            with contextlib.suppress(OSError):
                (self.run_dir / RESIZE).unlink(missing_ok=True)

    def _bytes(self) -> int:
        try:
            return (self.run_dir / DECISIONS).stat().st_size
        except OSError:
            return 0
